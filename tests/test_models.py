"""The models at hand are listed with what they read, broken ones with their fault."""

import json
from pathlib import Path

from typer.testing import CliRunner

from skysense_cli.app import app
from skysense_core.description import packaged_models


def listed(*arguments: str) -> list[dict]:
    done = CliRunner().invoke(app, ["models", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["models"]


def test_packaged_models_and_those_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "run" / "best").symlink_to(packaged_models()["buildings-hr"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.toml").write_text("format = 1\n")
    found = {one["name"]: one for one in listed(str(tmp_path))}
    ours = found["buildings-hr"]
    assert (ours["packaged"], ours["task"]) == (True, "segmentation")
    assert ours["modalities"] == {"hr": "0.2 m, red, green, blue"}
    assert "building" in ours["classes"]
    copy = found[str(tmp_path / "a" / "run" / "best")]
    assert copy | {"name": "buildings-hr", "packaged": True} == ours
    assert found[str(tmp_path / "broken")]["fault"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["models", str(tmp_path / "absent")])
    assert done.exit_code != 0
