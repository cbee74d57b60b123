"""Evaluation: scores on one part, beside the best constant map and a random forest on the same pixels."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from tiny_data import CLASSES, write_chips

from skysense_core import baselines, checkpoint, config
from skysense_core.data.batch import Batch, Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.evaluate import EvaluateConfig, evaluate
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.metrics import class_scores
from skysense_core.types import IGNORE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chips(tmp_path_factory.mktemp("data") / "chips")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = {
        "data": {"path": str(data), "modality": "s2"},
        "task": {"name": "segmentation"},
        "out": str(tmp_path_factory.mktemp("runs") / "chips"),
        "modalities": {"s2": {"window": 16}},
        "model": {"preset": "nano"},
        "train": {"steps": 2, "batch_size": 2, "validate_every": 2},
    }
    return finetune(config.build(FinetuneConfig, table)).folder


def settings(run: Path, **changes: Any) -> EvaluateConfig:
    return config.build(EvaluateConfig, {"model": str(run), **changes})


def test_scores_are_those_of_the_models_own_predictions(run: Path, data: Path, tmp_path: Path) -> None:
    result = evaluate(settings(run, out=str(tmp_path / "out"), batch_size=1, precision="fp32"))
    loaded = checkpoint.load_model(run, torch.device("cpu"))
    counts = np.zeros((4, 4), dtype=np.int64)
    for path in (data / "test" / "images").iterdir():
        with rasterio.open(path) as image, rasterio.open(data / "test" / "masks" / path.name) as mask:
            pixels, truth = image.read().astype(np.float32), mask.read(1)
        series = Series(
            pixels=torch.from_numpy(pixels)[None, None],
            valid=torch.ones(1, 1, 16, 16, dtype=torch.bool),
            day_of_year=torch.ones(1, 1, dtype=torch.int64),
            dated=torch.zeros(1, 1, dtype=torch.bool),
        )
        batch = Batch(ids=("a",), epochs=({"s2": series},), lonlat=torch.zeros(1, 2), located=torch.tensor([False]))
        with torch.no_grad():
            codes = loaded.model(batch)[0].argmax(0).numpy()
        np.add.at(counts, (truth[truth != IGNORE], codes[truth != IGNORE]), 1)
    expected = class_scores(torch.from_numpy(counts), CLASSES)
    assert {key: result.scores["model"][key] for key in expected} == expected
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["scores"] == result.scores
    assert (written["split"], written["digest"]) == ("test", loaded.digest)
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_data_of_the_run_are_the_default_and_other_data_may_be_given(run: Path, tmp_path: Path) -> None:
    default = evaluate(settings(run, overwrite=True))
    assert default.folder == run / "evaluation" / "test"
    copy = write_chips(tmp_path / "copy")
    given = evaluate(settings(run, data={"path": str(copy)}, out=str(tmp_path / "out")))  # modality = s2 is kept
    assert given.scores == default.scores
    val = evaluate(settings(run, split="val", out=str(tmp_path / "val")))
    metrics = json.loads((run / "metrics.json").read_text())
    calibration = {"temperature", "ece", "ece_calibrated", "reliability"}
    assert {key: val.scores["model"][key] for key in metrics.keys() - calibration} == {
        key: metrics[key] for key in metrics.keys() - calibration
    }
    # The model that was saved is the calibrated one.
    assert val.scores["model"]["ece"] == pytest.approx(metrics["ece_calibrated"], abs=1e-4)


def test_baselines_are_measured_on_the_same_pixels(run: Path, tmp_path: Path) -> None:
    scores = evaluate(settings(run, baselines=True, out=str(tmp_path / "out"))).scores
    assert scores["random_forest"]["oa"] > 0.99  # every class has a spectrum of its own
    assert {name: one["support"] for name, one in scores.items()} == dict.fromkeys(scores, 2 * (16 * 16 - 4))
    support = [one["support"] for one in scores["model"]["classes"].values()]
    assert scores["majority"]["oa"] == pytest.approx(max(support) / sum(support))


def test_the_majority_map_has_the_most_frequent_class_everywhere() -> None:
    scores = class_scores(torch.tensor([[1, 2, 0], [4, 0, 4], [0, 0, 0]]), ("a", "b", "c"))
    majority = baselines.majority(scores)
    assert majority["confusion"] == [[0, 3, 0], [0, 8, 0], [0, 0, 0]]
    assert majority["oa"] == pytest.approx(8 / 11)
    assert majority["miou"] == pytest.approx((0 + 8 / 11) / 2)


def test_invalid_pixels_and_padding_do_not_reach_the_forest() -> None:
    def batch(junk: float) -> Batch:
        pixels = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        valid = torch.ones(2, 3, 4, 4, dtype=torch.bool)
        valid[:, 2], pixels[:, 2] = False, junk
        series = Series(
            pixels=pixels,
            valid=valid,
            day_of_year=torch.ones(2, 3, dtype=torch.int64),
            dated=torch.zeros(2, 3, dtype=torch.bool),
        )
        return Batch(
            ids=("a", "b"),
            epochs=({"s2": series},),
            lonlat=torch.zeros(2, 2),
            located=torch.zeros(2, dtype=torch.bool),
            target=(torch.arange(32).reshape(2, 4, 4) % 2).to(torch.uint8),
        )

    one, other = (baselines.random_forest([batch(0)], [batch(junk)], ("a", "b")) for junk in (1.0, float("nan")))
    assert one == other


def test_a_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(UsageError, match="scikit-learn"):
        baselines.random_forest([], [], ("a", "b"))


def test_results_are_not_replaced_unasked(run: Path, tmp_path: Path) -> None:
    evaluate(settings(run, out=str(tmp_path)))
    with pytest.raises(UsageError, match=r"metrics.json exists\nUse --overwrite"):
        evaluate(settings(run, out=str(tmp_path)))
    evaluate(settings(run, out=str(tmp_path), overwrite=True))


def test_a_bare_model_needs_data(run: Path, data: Path, tmp_path: Path) -> None:
    (run / "best").rename(tmp_path / "model")
    try:
        with pytest.raises(UsageError, match=r"not in a run folder[^\n]*\nGive --data"):
            evaluate(settings(tmp_path / "model"))
        given = {"path": str(data), "modality": "s2"}
        assert evaluate(settings(tmp_path / "model", data=given)).folder == tmp_path / "model" / "evaluation" / "test"
    finally:
        (tmp_path / "model").rename(run / "best")


def test_other_classes_are_refused(run: Path, tmp_path: Path) -> None:
    other = write_chips(tmp_path / "other")
    (other / "classes.txt").write_text("a\nb\nc\nd")
    with pytest.raises(UsageError, match="the data have the classes a, b, c, d; the model has water"):
        evaluate(settings(run, data={"path": str(other)}, out=str(tmp_path / "out")))


def test_what_cannot_be_measured_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SkysenseError, match="no such model folder"):
        evaluate(settings(tmp_path / "none"))
    with pytest.raises(SkysenseError, match="no such file or folder"):
        evaluate(settings(run, data={"path": str(tmp_path / "none")}, out=str(tmp_path / "out")))
    with pytest.raises(UsageError, match="split"):
        settings(run, split="tset")
