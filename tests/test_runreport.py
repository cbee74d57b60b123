"""The page of a training: made as it goes, also of one that was interrupted, small, and without a network."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import write_chips
from typer.testing import CliRunner

from skysense_cli.app import app
from skysense_core import config
from skysense_core.errors import SkysenseError
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.runreport import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    table = {
        "data": {"path": str(write_chips(folder / "chips")), "modality": "s2"},
        "task": {"name": "segmentation"},
        "model": {"preset": "nano"},
        "out": str(folder / "run"),
        "train": {"steps": 20, "batch_size": 2, "validate_every": 10, "log_every": 2, "precision": "fp32"},
        "device": "cpu",
    }
    finetune(config.build(FinetuneConfig, table))
    return folder / "run"


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text()
    return json.loads(re.search(r"const DATA = (\{.*\});\n", text)[1])


def test_training_leaves_a_page_that_says_what_happened(run: Path) -> None:
    page = run / "report.html"
    (told,) = data_of(page)["runs"]
    assert {"loss", "cross_entropy", "lr", "samples_per_s", "data_wait"} <= told["curves"]["train"].keys()
    assert [point[0] for point in told["curves"]["val"]["miou"]] == [10, 20]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in logged if line["kind"] == "train"]
    np.testing.assert_allclose(told["curves"]["train"]["loss"], losses, rtol=1e-4)
    scores = json.loads((run / "metrics.json").read_text())
    assert told["scores"]["miou"] == scores["miou"]
    assert told["confusion"] == scores["confusion"]
    assert list(told["classes"]) == ["water", "forest", "field", "cloud forest"]
    assert {part: one["samples"] for part, one in told["parts"].items()} == {"train": 6, "val": 2, "test": 2}
    assert all(len(one["outlines"]) == one["samples"] for one in told["parts"].values())
    assert 'name = "segmentation"' in told["settings"]
    chips = told["chips"]
    assert sorted(chip["id"].split("@")[0] for chip in chips) == ["val0", "val1"]
    assert all(0 <= chip["right"] <= 1 and chip["image"].startswith("data:image/png") for chip in chips)
    assert not re.findall(r"(?:https?:)?//[a-z]|@import|<link", page.read_text().split("<script>")[0])
    assert page.stat().st_size < 300_000


def test_the_fitted_temperature_is_the_models(run: Path) -> None:
    scores = json.loads((run / "metrics.json").read_text())
    table = config.load_toml(run / "best" / "model.toml")["task"]
    assert table["temperature"] == pytest.approx(scores["temperature"])
    assert table["temperature"] != 1


def test_an_interrupted_run_has_a_page_and_a_long_one_is_small(run: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    shutil.copytree(run, long)
    for name in ("metrics.json", "report.html"):
        (long / name).unlink()
    names = [f"loss_{number}" for number in range(10)]
    lines = [
        json.dumps({"step": step, "kind": "train", **dict.fromkeys(names, step / 7)}) for step in range(1, 40_000, 2)
    ]
    (long / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 40001, "ki')
    page = write_report([long])
    assert page == long / "report.html"
    (told,) = data_of(page)["runs"]
    assert told["curves"]["train"]["loss_3"][-1][0] == 39_999
    assert told["scores"] == {}
    assert page.stat().st_size < 3_000_000


def test_a_run_that_was_killed_early_or_while_it_wrote(run: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    early.mkdir()
    shutil.copy(run / "config.toml", early)
    done = CliRunner().invoke(app, ["report", str(early), "--json"])  # not one step is logged yet
    assert done.exit_code == 0, done.output
    (told,) = data_of(early / "report.html")["runs"]
    assert told["curves"] == {"train": {}, "val": {}}
    assert "0 steps" in told["state"]
    for name in ("metrics.json", "looks.json"):
        broken = tmp_path / name / "run"
        shutil.copytree(run, broken)
        text = (run / name).read_text()
        (broken / name).write_text(text[: len(text) // 2])
        with pytest.raises(SkysenseError, match=rf"{name}: cut short") as caught:
            write_report([broken])
        assert "Delete it" in str(caught.value)
        (broken / name).unlink()
        write_report([broken])


def test_a_page_needs_no_font_that_a_machine_may_lack(run: Path) -> None:
    text = (run / "report.html").read_text()
    families = re.findall(r"[{; ]font(?:-family)?: ([^;}]+)", text)
    assert families
    assert all(one.strip().endswith(("sans-serif", "monospace", "inherit")) for one in families)
    assert "@font-face" not in text


def test_runs_are_compared_and_strangers_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    out = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", str(run), str(other), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["scores"][str(other)]["miou"] >= 0
    assert [one["name"] for one in data_of(out)["runs"]] == ["run", "other"]
    with pytest.raises(SkysenseError, match="no run"):
        write_report([tmp_path])
    with pytest.raises(SkysenseError, match="cannot be written"):
        write_report([run], tmp_path / "absent" / "page.html")


@pytest.mark.slow
def test_a_browser_opens_every_tab_without_an_error(run: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs Debian's package chromium")
    for tab in ("curves", "scores", "chips", "data", "settings"):
        shot = tmp_path / f"{tab}.png"
        command = (
            f"{browser} --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,900 "
            f"--virtual-time-budget=3000 --enable-logging=stderr --user-data-dir={tmp_path / 'profile'} "
            f"--screenshot={shot} {(run / 'report.html').as_uri()}#{tab}"
        )
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr
        drawn = np.asarray(Image.open(shot).convert("RGB"))
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5, f"{tab} is empty"
