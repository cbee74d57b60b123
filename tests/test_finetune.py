"""Fine-tuning from settings to a model folder, on small labelled chips of Sentinel-2."""

import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file
from tiny_data import CLASSES, write_chips, write_pastis

from skysense_core import checkpoint, config
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.finetune import FinetuneConfig, RunResult, finetune
from skysense_core.trainer import TrainConfig

S2 = {"s2": {"window": 16}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chips(tmp_path_factory.mktemp("data") / "chips")


def settings(chips: Path, out: Path, **changes: Any) -> FinetuneConfig:
    table = {
        "data": {"path": str(chips), "modality": "s2"},
        "task": {"name": "landcover"},
        "out": str(out),
        "modalities": S2,
        "model": {"preset": "nano"},
        "train": {"steps": 4, "batch_size": 2, "validate_every": 4, "save_every": 2, "log_every": 1},
        "optim": {"lr": 2e-3},
        "device": "cpu",
    }
    return config.build(FinetuneConfig, config.merge(table, changes))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A short run that other tests look at and start from."""
    return finetune(settings(data, tmp_path_factory.mktemp("runs") / "short"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_an_easy_map_is_learnt(data: Path, tmp_path: Path) -> None:
    result = finetune(settings(data, tmp_path / "run", train={"steps": 30, "validate_every": 30, "batch_size": 3}))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["cross_entropy"] for line in lines if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert result.metrics["oa"] > 0.9
    assert result.metrics["classes"]["cloud forest"]["iou"] is None


def test_a_run_holds_what_it_promises(run: RunResult) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "config.toml",
        "metrics.json",
        "metrics.jsonl",
        "tensorboard",
        "state",
        "best",
        "last",
        "looks.json",
        "report.html",
    }
    assert run.steps == 4
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics
    loaded = checkpoint.load_model(run.folder, torch.device("cpu"))
    assert (loaded.folder, loaded.name, loaded.task_name) == (run.model, "short", "landcover")
    assert loaded.classes == CLASSES
    assert loaded.training["training_samples"] == 6
    assert loaded.metrics["miou"] == pytest.approx(run.metrics["miou"])


def test_statistics_of_the_data_travel_in_the_model(run: RunResult, data: Path) -> None:
    (s2,) = checkpoint.load_description(run.folder).modalities.values()
    pixels = np.stack([rasterio.open(path).read() for path in (data / "train" / "images").iterdir()])
    np.testing.assert_allclose(s2.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(s2.std, pixels.std(axis=(0, 2, 3)), rtol=1e-6)


def test_the_written_settings_repeat_the_run(run: RunResult, data: Path, tmp_path: Path) -> None:
    table = config.load_toml(run.folder / "config.toml")
    again = finetune(config.build(FinetuneConfig, config.merge(table, {"out": str(tmp_path / "again")})))
    for name, tensor in weights(run.folder / "last").items():
        assert torch.equal(tensor, weights(again.folder / "last")[name]), name
    assert table["data"]["source"] == "folder"
    assert table["train"]["steps"] == 4
    assert table["optim"]["layer_decay"] == 1.0


def test_resuming_gives_the_same_bytes_and_other_settings_are_refused(run: RunResult, data: Path) -> None:
    before = (run.folder / "best" / "model.safetensors").read_bytes()
    text = (run.folder / "config.toml").read_text()
    with pytest.raises(UsageError, match=r"optim.lr: was 0.002, is now 0.001[\s\S]*train.seed: was 0, is now 1"):
        finetune(settings(data, run.folder, optim={"lr": 1e-3}, train={"seed": 1}, resume=True))
    assert (run.folder / "config.toml").read_text() == text
    result = finetune(settings(data, run.folder, resume=True))
    assert result.metrics == run.metrics
    assert (run.folder / "best" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_killing_at_any_moment_and_resuming_changes_no_bit(data: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from skysense_core import config;"
        "from skysense_core.finetune import FinetuneConfig, finetune;"
        "finetune(config.build(FinetuneConfig, config.load_toml(Path(sys.argv[1]))))"
    )
    train = {"steps": 12, "save_every": 2, "validate_every": 5}
    whole = finetune(settings(data, tmp_path / "whole", train=train))
    given = settings(data, tmp_path / "killed", train=train, resume=True)
    config.write_toml(tmp_path / "killed.toml", config.to_table(given))
    for number in (signal.SIGKILL, signal.SIGTERM):
        states = sorted((tmp_path / "killed").glob("state/*"))
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed.toml")])
        while process.poll() is None and sorted((tmp_path / "killed").glob("state/*.safetensors")) == states:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait() != 0
    assert 2 <= int(max((tmp_path / "killed").glob("state/*.safetensors")).stem) < 12
    killed = finetune(given)
    assert killed.metrics == whole.metrics
    for name in ("best", "last"):
        tensors = [weights(run.folder / name) for run in (whole, killed)]
        assert [key for key in tensors[0] if not torch.equal(tensors[0][key], tensors[1][key])] == []


def test_starting_from_a_model_takes_its_encoder(
    run: RunResult, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="skysense_core"):
        result = finetune(
            settings(data, tmp_path / "run", init=str(run.folder), model={}, freeze=True, train={"steps": 1})
        )
    start, end = weights(run.model), weights(result.folder / "last")
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert {name for name in start if name.startswith("encoder.")} <= same
    assert "head.classifier.weight" not in same
    assert "tensors of the encoder taken from short; new: head" in caplog.text
    table = config.load_toml(tmp_path / "run" / "config.toml")
    assert table["optim"]["layer_decay"] == 0.9
    first, second = (checkpoint.load_description(folder).modalities for folder in (run.folder, result.folder))
    assert first == second


def test_the_licence_of_the_start_is_carried_over(data: Path, tmp_path: Path) -> None:
    start = finetune(settings(data, tmp_path / "a", train={"steps": 1}, licence="non-commercial research"))
    heir = finetune(settings(data, tmp_path / "b", train={"steps": 1}, init=str(start.folder)))
    assert checkpoint.load_description(heir.folder).licence == "non-commercial research"


def test_a_start_of_another_size_is_refused(run: RunResult, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SkysenseError, match=r"does not fit the model:\n  encoders.s2"):
        finetune(settings(data, tmp_path / "run", init=str(run.folder), model={"preset": "tiny"}))


@pytest.mark.slow
def test_series_of_all_modalities_are_used_unless_some_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings(tmp_path, tmp_path / "run", train={"steps": 2, "batch_size": 1}, task={"name": "crop"})
    given = replace(given, data={"path": write_pastis(tmp_path / "pastis")}, modalities={})
    finetune(given)
    assert set(checkpoint.load_description(tmp_path / "run").modalities) == {"s2", "s1"}
    with caplog.at_level(logging.INFO, logger="skysense_core"):
        finetune(replace(given, out=tmp_path / "one", modalities=S2))
    assert set(checkpoint.load_description(tmp_path / "one").modalities) == {"s2"}
    assert "not used, because others are named or the start does not know them: s1" in caplog.text


def test_a_share_of_the_labels_is_a_share_of_the_samples(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="skysense_core"):
        finetune(settings(data, tmp_path / "run", label_fraction=0.5, train={"steps": 1}))
    assert "3 training and 2 validation samples" in caplog.text


def test_facts_about_the_labels_are_told(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="skysense_core"):
        given = settings(data, tmp_path / "run", task={"class_balance": "none"})
        finetune(replace(given, train=TrainConfig(epochs=0.5, batch_size=2)))
    assert "% of the labelled pixels, weight 1.00" in caplog.text
    assert "classes without a training label, which cannot be learnt: cloud forest" in caplog.text
    assert "2 steps of 2" in caplog.text


def test_an_existing_folder_is_not_touched_unasked(run: RunResult, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not empty\nUse --resume"):
        finetune(settings(data, run.folder))
    with pytest.raises(UsageError, match="contradict"):
        finetune(settings(data, run.folder, resume=True, overwrite=True))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not a run"):
        finetune(settings(data, tmp_path / "letters", overwrite=True))
    assert (tmp_path / "letters" / "love.txt").exists()


def test_overwriting_removes_the_run_and_nothing_else(data: Path, tmp_path: Path) -> None:
    finetune(settings(data, tmp_path / "run", train={"steps": 2}))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    result = finetune(settings(data, tmp_path / "run", train={"steps": 1}, overwrite=True))
    assert result.steps == 1
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["000000001.safetensors"]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "landcovr"}}, "unknown task 'landcovr'\ndid you mean landcover"),
        ({"task": {"hed": "fcn"}}, r"task.hed: unknown key"),
        ({"task": {"classes": ["a", "b"]}}, "not the classes of the data"),
        ({"model": {"preset": "nono"}}, "unknown preset 'nono'"),
        ({"data": {"source": "pastries"}}, "unknown source 'pastries'"),
        ({"data": {"val_share": 9}}, r"data.val_share"),
        ({"modalities": {"s2": {"bands": ["B02", "B99"]}}}, "unknown band of s2 'B99'"),
        ({"modalities": {"hr": {}}}, "holds s2, not"),
        ({"modalities": {"s2": {"window": 18}}}, r"modalities.s2.window = 18"),
        ({"train": {"epochs": 1.0}}, "train.epochs are both given"),
        ({"device": "abacus"}, "--device abacus"),
        ({"init": "/none.pth"}, "pickle is never read"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SkysenseError, match=message):
        finetune(settings(data, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"optim": {"lrr": 1}}, r"optim.lrr: unknown key\ndid you mean optim.lr\?"),
        ({"train": {"batch_size": 0}}, r"train.batch_size"),
        ({"label_fraction": 1.5}, "label_fraction"),
        ({"optim": {"lr": -1}}, r"optim.lr"),
    ],
)
def test_values_are_checked_at_the_door(data: Path, tmp_path: Path, table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(data, tmp_path / "run", **table)


def test_labels_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    folder = write_chips(tmp_path / "void")
    for path in (folder / "train" / "masks").iterdir():
        with rasterio.open(path, "r+") as dataset:
            dataset.write(np.full((1, 16, 16), 255, dtype=np.uint8))
    with pytest.raises(SkysenseError, match="training part has no labelled pixel"):
        finetune(settings(folder, tmp_path / "run"))
