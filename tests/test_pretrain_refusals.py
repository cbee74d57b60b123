"""What pre-training and fine-tuning refuse, or survive: data, starts, full disks; nothing is left of a refusal."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from tiny_data import write_chips

from skysense_core import checkpoint, config, modalities
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.model.presets import PRESETS, ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.pretrain import PretrainConfig, pretrain


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chips(tmp_path_factory.mktemp("data") / "chips")


def given(chips: Path, out: Path, **changes: Any) -> PretrainConfig:
    table = {
        "data": {"path": str(chips), "source": "folder", "modality": "s2"},
        "out": str(out),
        "modalities": {"s2": {"window": 16}},
        "model": {"preset": "nano", "prototypes": False},
        "views": {"global_cells": 4, "local_cells": 4, "window_cells": 8, "local_views": 0},
        "method": {"levels": ["image"], "hidden": 16, "answers": 16, "bottleneck": 8},
        "train": {"steps": 2, "batch_size": 2, "validate_every": 2, "save_every": 1, "log_every": 1},
        "device": "cpu",
    }
    return config.build(PretrainConfig, config.merge(table, changes))


def rewrite(path: Path, pixels: np.ndarray) -> None:
    with rasterio.open(path) as dataset:
        profile, names = dataset.profile, dataset.descriptions
    with rasterio.open(path, "w", **(profile | {"dtype": pixels.dtype})) as dataset:
        dataset.write(pixels)
        dataset.descriptions = names


def test_an_empty_data_set_and_a_single_sample_are_refused(tmp_path: Path) -> None:
    for left, message in ((0, "empty|no image|no sample"), (1, "one sample only")):
        folder = write_chips(tmp_path / f"chips{left}")
        for kind in ("images", "masks"):
            for path in sorted((folder / "train" / kind).iterdir())[left:]:
                path.unlink()
        with pytest.raises(SkysenseError, match=message):
            pretrain(given(folder, tmp_path / "run", train={"batch_size": 1}))
        assert not (tmp_path / "run").exists()


def test_a_modality_that_the_data_lack_is_refused_by_name(chips: Path, tmp_path: Path) -> None:
    with pytest.raises(SkysenseError, match=r"s2.*hr|hr.*s2"):
        pretrain(given(chips, tmp_path / "run", modalities={"hr": {}}))
    assert not (tmp_path / "run").exists()


def test_pixels_without_a_number_are_no_imagery_and_stop_nothing(tmp_path: Path) -> None:
    folder = write_chips(tmp_path / "chips")
    first, second, *_ = sorted((folder / "train" / "images").iterdir())
    with rasterio.open(first) as dataset:
        pixels = dataset.read().astype(np.float32)
    pixels[:, :5] = np.nan
    rewrite(first, pixels)
    rewrite(second, np.full_like(pixels, np.nan))
    run = pretrain(given(folder, tmp_path / "run", train={"steps": 3, "batch_size": 6}))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "train")


def test_a_place_beyond_the_earth_is_refused_by_name(chips: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chips, tmp_path / "chips")
    for path in folder.rglob("*.tif"):  # rows and columns that somebody declared to be degrees
        with rasterio.open(path, "r+") as dataset:
            dataset.crs, dataset.transform = "EPSG:4326", Affine(0.01, 0, 500, 0, -0.01, 120)
    with pytest.raises(SkysenseError, match=r"latitude 119\.[\s\S]* is no place on the earth[\s\S]*CRS"):
        pretrain(given(folder, tmp_path / "run", statistics="modality"))
    assert not (tmp_path / "run").exists()


def test_a_start_of_another_preset_is_refused(chips: Path, tmp_path: Path) -> None:
    run = pretrain(given(chips, tmp_path / "run"))
    with pytest.raises(SkysenseError, match=r"does not fit the model:\n  encoders.s2"):
        pretrain(given(chips, tmp_path / "other", model={"preset": "tiny"}, init=str(run.folder)))
    assert not (tmp_path / "other").exists()
    with pytest.raises(UsageError, match=r"model.preset: was nano, is now tiny"):
        pretrain(given(chips, tmp_path / "run", model={"preset": "tiny"}, resume=True))


def test_a_preset_beside_a_start_with_sizes_of_its_own_is_refused(chips: Path, tmp_path: Path) -> None:
    spec = ModelSpec(custom=PRESETS["nano"], fusion=False)
    start = torch.nn.ModuleDict({"encoder": SkySense(spec, {"s2": modalities.load("s2")})})
    about = {"name": "own", "training": {}, "metrics": {}, "licence": "not stated"}
    checkpoint.save_model(tmp_path / "own", start, None, **about)
    table = {
        "data": {"path": str(chips), "source": "folder", "modality": "s2"},
        "task": {"name": "landcover"},
        "out": str(tmp_path / "run"),
        "init": str(tmp_path / "own"),
        "model": {"preset": "tiny"},
        "device": "cpu",
    }
    with pytest.raises(UsageError, match=r"--preset tiny: .*own has sizes of its own[\s\S]*Leave out --preset"):
        finetune(config.build(FinetuneConfig, table))
    assert not (tmp_path / "run").exists()


def test_what_the_first_batch_shows_to_be_impossible_leaves_nothing(chips: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chips, tmp_path / "chips")
    for path in (folder / "train" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SkysenseError):
        pretrain(given(folder, tmp_path / "run", statistics="modality"))
    assert not (tmp_path / "run").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within, no file grows beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("shard_model", [False, True])
def test_a_full_disk_leaves_the_last_good_state_and_the_run_goes_on(
    chips: Path, tmp_path: Path, shard_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    train = {"shard_model": shard_model}
    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.trainer.Trainer._validate", killed)
        with pytest.raises(KilledError):
            pretrain(given(chips, tmp_path / "run", train=train))
    states = tmp_path / "run" / "state"
    assert [path.stem for path in states.iterdir()] == ["000000001"]
    again = given(chips, tmp_path / "run", train=train, resume=True)
    with largest_file(3 * 2**20), pytest.raises(SkysenseError, match=r"step 2 could not be written[\s\S]*--resume"):
        pretrain(again)
    assert [path.stem for path in states.iterdir()] == ["000000001"]
    pretrain(again)
    assert [path.stem for path in states.iterdir()] == ["000000002"]
