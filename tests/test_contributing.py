"""Every how-to of CONTRIBUTING.md works as it is written: its code is put beside the package's own and used."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import Labels

import skysense_core.sources
import skysense_core.tasks
from skysense_core import config, modalities, registry, sources
from skysense_core.data.batch import Batch, Series
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HOW_TOS = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
LONGEST = 15


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    """Write a how-to's file into a folder of its own and return the folder."""

    def write(name: str) -> Path:
        folder = tmp_path / "added"
        folder.mkdir()
        (folder / Path(name).name).write_text(HOW_TOS[name], encoding="utf-8")
        return folder

    return write


@pytest.fixture(autouse=True)
def packages_as_before() -> Iterator[None]:
    before = {package: list(package.__path__) for package in (skysense_core.tasks, skysense_core.sources)}
    yield
    for package, paths in before.items():
        package.__path__[:] = paths
        for name in [name for name in sys.modules if name.startswith(f"{package.__name__}.roofs")]:
            del sys.modules[name]


@pytest.mark.parametrize("name", sorted(HOW_TOS))
def test_a_how_to_is_short(name: str) -> None:
    assert len([line for line in HOW_TOS[name].splitlines() if line.strip()]) <= LONGEST


def test_there_is_one_for_every_kind() -> None:
    assert {str(Path(name).parent) for name in HOW_TOS} == {
        "skysense_core/tasks",
        "skysense_core/sources",
        "skysense_core/modalities",
        "skysense_cli",
    }


def test_a_task_is_found_by_its_name_and_makes_class_maps(place: Callable[[str], Path]) -> None:
    skysense_core.tasks.__path__.append(str(place("skysense_core/tasks/roofs.py")))
    assert "roofs" in registry.names("tasks")
    task = config.build(registry.load("tasks", "roofs"), {}, "task")
    task = task.completed(Labels((99, 1), classes=("background", "roof")))
    common, rare = task.class_weights
    assert rare / common == pytest.approx(99)
    model = task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), {"hr": modalities.load("hr")}))
    batch = one_image("hr", channels=3, side=64)
    assert task.scores(model.eval(), batch).shape == (1, 2, 64, 64)


def test_a_source_is_detected_and_read(
    place: Callable[[str], Path], write_raster: Callable[..., Path], tmp_path: Path
) -> None:
    skysense_core.sources.__path__.append(str(place("skysense_core/sources/roofs.py")))
    for kind, count in (("images", 3), ("masks", 1)):
        folder = tmp_path / "city" / "tiles" / kind
        folder.mkdir(parents=True)
        for number in range(6):
            write_raster(folder / f"{number}.tif", np.ones((count, 32, 32), dtype=np.uint8))
    name, source = sources.from_table({"path": str(tmp_path / "city")})
    assert name == "roofs"
    split = source.open("train", {"hr": modalities.load("hr")})
    assert split.classes == ("background", "roof")
    assert split[0].epochs[0]["hr"].pixels.shape == (1, 3, 32, 32)
    assert (split.label(0).codes == 1).all()


def test_a_modality_is_loaded_and_encoded(place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place("skysense_core/modalities/planet.toml")
    named_in_settings = modalities.load("planet", {"file": str(folder / "planet.toml")})
    monkeypatch.setattr(modalities, "__file__", str(folder / "__init__.py"))
    planet = modalities.load("planet")
    assert planet == named_in_settings
    assert planet.band_names == ("blue", "green", "red", "nir")
    encoder = SkySense(ModelSpec(preset="nano", fusion=False), {"planet": planet}).eval()
    batch = one_image("planet", channels=4, side=64)
    features = encoder(batch.epochs[0], batch.lonlat, batch.located)
    assert len(features.levels["planet"]) == 4


def test_a_command_is_found_and_has_help(place: Callable[[str], Path]) -> None:
    folder = place("skysense_cli/bands.py")
    code = (
        f"import skysense_cli; skysense_cli.__path__.append({str(folder)!r}); from skysense_cli.app import main; main()"
    )

    def run(*words: str) -> str:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "bands" in run("--help")
    assert run("bands", "s1", "--json") == '{"bands": ["VV", "VH"]}\n'
    assert "VH" in run("bands", "s1")


def one_image(name: str, *, channels: int, side: int) -> Batch:
    series = Series(
        pixels=torch.rand(1, 1, channels, side, side),
        valid=torch.ones(1, 1, side, side, dtype=torch.bool),
        day_of_year=torch.ones(1, 1, dtype=torch.int64),
        dated=torch.zeros(1, 1, dtype=torch.bool),
    )
    return Batch(
        ids=("a",), epochs=({name: series},), lonlat=torch.zeros(1, 2), located=torch.zeros(1, dtype=torch.bool)
    )
