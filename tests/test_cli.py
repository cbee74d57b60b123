"""The command line as an analyst meets it: what is printed where, exit codes, and messages that say what to do."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from shapely import box
from typer.testing import CliRunner

from skysense_cli import console, tables
from skysense_cli.app import app, main
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.progress import Bar

GRID = GeoBox.from_bbox((300000, 5800000, 302560, 5801280), "EPSG:32633", resolution=10)
"""256 x 128 pixels of 10 m: large enough for both halves to have blocks of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended and what it printed."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `skysense` with some words in an empty folder; within this process, for importing torch takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["skysense", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return Done(code=int(ended.value.code or 0), stdout=captured.out, stderr=captured.err)

    return call


@pytest.fixture
def scene(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Three bands over bright fields and dark lakes, in stripes."""
    h, w = GRID.shape
    pixels = np.full((3, h, w), 3000, dtype=np.uint16)
    pixels[:, (np.arange(h) // 16) % 2 == 1] = 400
    return write_raster(tmp_path / "scene.tif", pixels, GRID, names=("B02", "B03", "B04"))


@pytest.fixture
def polygons(tmp_path: Path) -> Path:
    """One polygon per stripe."""
    left, _, right, top = GRID.boundingbox
    stripes = [box(left, top - 160 * (i + 1), right, top - 160 * i) for i in range(8)]
    names = ["lake" if i % 2 else "field" for i in range(8)]
    path = tmp_path / "polygons.gpkg"
    gpd.GeoDataFrame({"cover": names}, geometry=stripes, crs="EPSG:32633").to_file(path)
    return path


SETTINGS = (
    'modalities.s2.bands=["B02", "B03", "B04"]',
    "modalities.s2.window=32",
    "data.block=1",
    "train.validate_every=10",
)
FINETUNE = (
    *("finetune", "--task", "landcover", "--label-column", "cover", "--split-by", "west-east", "--preset", "nano"),
    *(word for setting in SETTINGS for word in ("--set", setting)),
    *("--steps", "10", "--batch-size", "2", "--out", "run"),
)


def test_train_judge_and_map(run: Run, scene: Path, polygons: Path, tmp_path: Path) -> None:
    trained = run(*FINETUNE, "--data", f"s2={scene}", "--labels", polygons, "--json")
    assert trained.code == 0, trained.stderr
    assert json.loads(trained.stdout)["steps"] == 10
    assert (tmp_path / "run" / "config.toml").exists()

    judged = run("evaluate", "--model", "run", "--split", "test", "--baselines")
    assert judged.code == 0, judged.stderr
    for word in ("field", "lake", "mIoU", "kappa", "majority class", "pixel random forest", "confusion.png"):
        assert word in judged.stdout
    again = run("evaluate", "--model", "run", "--split", "test", "--json")
    assert again.code == 2
    assert "--overwrite" in again.stderr
    assert again.stdout == ""

    words = ("predict", scene, "--model", "run", "--out", "map.tif", "--preview", "map.png")
    mapped = run(*words, "--json")
    assert mapped.code == 0, mapped.stderr
    result = json.loads(mapped.stdout)
    assert {one["name"] for one in result["classes"]} == {"field", "lake"}
    assert (tmp_path / "map.tif").exists()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert run(*words).code == 2
    shown = run(*words, "--overwrite")
    assert shown.code == 0
    assert "hectares" in shown.stdout
    assert "map.tif" in shown.stdout
    assert run(*words, "--overwrite", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("finetune", "--task", "crops", "--data", "."), 2, "did you mean crop?"),
        (("finetune", "--task", "crop", "--data", "absent"), 1, "absent"),
        (("finetune", "--data", "absent"), 2, "--task"),
        (("finetune", "--task", "crop"), 2, "--data"),
        (("finetune", "--task", "crop", "--data", ".", "--source", "pasti"), 2, "did you mean pastis?"),
        (("finetune", "--task", "crop", "--data", "a", "--data", "b"), 2, "MODALITY=PATH"),
        (("finetune", "--task", "crop", "--data", "a.tif", "--labels", "b.gpkg"), 2, "--data s2=a.tif"),
        (("finetune", "--task", "crop", "--data", ".", "--epochs", "1", "--steps", "1"), 2, "one of them"),
        (("finetune", "--task", "crop", "--data", ".", "--set", "optim.lrr=1"), 2, "did you mean optim.lr?"),
        (("finetune", "--task", "crop", "--data", ".", "--set", "optim.lr"), 2, "key=value"),
        (("finetune", "--task", "crop", "--data", ".", "--config", "absent.toml"), 1, "absent.toml: no such file"),
        (("evaluate", "--model", "absent"), 1, "absent: no such model folder"),
        (("predict", "absent.tif", "--model", "absent", "--out", "map.tif"), 1, "absent: no such model folder"),
        (("predict", "absent.tif", "--out", "map.png"), 2, "--out map.tif"),
        (("predict", "a.tif", "--out", "b.tif", "--bbox", "1,2,3"), 2, "4 numbers"),
        (("predict", "a.tif", "--out", "b.tif", "--co", "COMPRESS"), 2, "KEY=VALUE"),
        (("predict", "a.tif"), 2, "--out"),
        (("predikt",), 2, "Did you mean 'predict'?"),
    ],
)
def test_a_mistake_gets_one_message_and_a_code(run: Run, words: tuple[str, ...], code: int, message: str) -> None:
    done = run(*words)
    assert done.code == code, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("--debug", "evaluate", "--model", "a"), ("evaluate", "--model", "a", "--debug")])
def test_debug_lets_the_error_through(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["skysense", *words])
    with pytest.raises(SkysenseError, match="no such model folder"):
        main()


def test_the_version_is_the_package_s(run: Run) -> None:
    assert re.fullmatch(r"skysense \d+\.\d+\.\d+\S*\n", run("--version").stdout)


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m skysense_cli finetune --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("Usage: skysense finetune")
    assert done.stderr == ""


def test_colours_are_left_out_where_they_are_not_wanted(run: Run) -> None:
    assert "\x1b" not in run("evaluate", "--model", "absent").stderr


def test_ctrl_c_ends_with_130(scene: Path, polygons: Path, tmp_path: Path) -> None:
    words = [*FINETUNE, "--steps", "100000", "--data", f"s2={scene}", "--labels", str(polygons)]
    process = subprocess.Popen(
        [sys.executable, "-m", "skysense_cli", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors


def test_inputs_go_to_the_modality_that_they_name(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert tables.by_modality(["s2=a", "hr=b.tif", "s2=c", str(odd)]) == {
        "s2": ("a", "c"),
        "hr": ("b.tif",),
        "": (str(odd),),
    }


def test_reading_options_of_one_modality_keep_those_of_all() -> None:
    table = tables.read(
        bands=["s2=B02,B03", "red,green,blue"],
        nodata=0.0,
        rescale="0,2000",
        s2_offset=None,
        s1_unit=None,
        cloud_mask=["s2=none"],
        date=["s2=2024-06-30", "s2=2024-07-05"],
        date_pattern=None,
    )
    shared = {"nodata": 0.0, "rescale": (0.0, 2000.0)}
    assert table == {
        "": {**shared, "bands": ("red", "green", "blue")},
        "s2": {**shared, "bands": ("B02", "B03"), "cloud_mask": "none", "dates": ("2024-06-30", "2024-07-05")},
    }


def test_classes_are_a_list_or_a_mapping_in_a_file(tmp_path: Path) -> None:
    def classes(text: str) -> object:
        return tables.data(
            inputs=["s2=a"],
            labels=None,
            label_column=None,
            unlabelled=None,
            classes=text,
            source=None,
            split_by=None,
            fold=None,
            reading={},
        )["classes"]

    path = tmp_path / "classes.toml"
    path.write_text('[classes]\noak = "forest"\npine = "forest"\n')
    assert classes("water, forest") == ("water", "forest")
    assert classes(str(path)) == {"oak": "forest", "pine": "forest"}
    path.write_text('oak = "forest"\n')
    with pytest.raises(UsageError, match="classes"):
        classes(str(path))


def test_options_of_regions_are_refused_without_them(run: Run) -> None:
    done = run("predict", "scene.tif", "--out", "map.tif", "--keep-going")
    assert done.code == 2
    assert "--keep-going are for --regions" in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_hides_the_bars_of_a_terminal() -> None:
    drawn = {}
    for quiet in (False, True):
        console.start_logging(quiet=quiet, verbose=False)
        screen = Terminal()
        with Bar(total=2, file=screen) as bar:
            bar.update()
        drawn[quiet] = screen.getvalue()
    assert "1/2" in drawn[False]
    assert drawn[True] == ""
    console.start_logging(quiet=False, verbose=False)
    off, shown = io.StringIO(), Terminal()
    assert [*Bar(range(2), file=off), *Bar(range(2), file=shown, shown=False)] == [0, 1, 0, 1]
    assert off.getvalue() == shown.getvalue() == ""


def test_length_and_modalities_of_the_command_line_replace_those_of_the_file() -> None:
    file = {"train": {"epochs": 12, "batch_size": 4}, "modalities": {"s1": {"window": 96}, "s2": {}}}
    flags = {"train": {"epochs": None, "steps": 5}, "modalities": {"s1": {}}}
    assert tables.training(file, {}, flags) == {
        "train": {"steps": 5, "batch_size": 4},
        "modalities": {"s1": {"window": 96}},
    }
    none = {"train": {"epochs": None, "steps": None}, "modalities": None}
    assert tables.training(file, {}, none) == file


def test_an_interactive_shell_completes_commands_and_options(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    # The shell is the one that runs it; "&&" keeps bash from giving its place away.
    install = ["bash", "-c", "skysense --install-completion && true"]
    subprocess.run(install, env=environment, check=True, capture_output=True)
    ask = "COMP_WORDS=({}); COMP_CWORD={}; _skysense_completion skysense; echo ${{COMPREPLY[@]}}"

    def completed(line: str) -> list[str]:
        shell = ["bash", "-ic", ask.format(line, len(line.split()) - 1)]
        return subprocess.run(shell, env=environment, check=True, capture_output=True, text=True).stdout.split()

    assert completed("skysense pre") == ["predict", "pretrain"]
    assert completed("skysense predict --conf") == ["--confidence"]


def test_a_probability_beyond_one_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["predict", "absent.tif", "--out", str(tmp_path / "map.tif"), "--unsure", "2"])
    assert done.exit_code == 2
    assert "--unsure" in done.output
