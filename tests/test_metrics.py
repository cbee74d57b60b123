"""Scores of class maps against scikit-learn, counted by hand where classes are missing."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, cohen_kappa_score, jaccard_score, precision_recall_fscore_support

from skysense_core.metrics import COLUMNS, ClassMapMetrics, headline, plot_confusion
from skysense_core.types import IGNORE

CLASSES = ("water", "forest", "field", "town")


def measure(codes: np.ndarray, target: np.ndarray, classes: tuple[str, ...] = CLASSES, parts: int = 1) -> dict:
    metrics = ClassMapMetrics(classes)
    for some_codes, some_target in zip(np.array_split(codes, parts), np.array_split(target, parts), strict=True):
        scores = torch.nn.functional.one_hot(torch.from_numpy(some_codes), len(classes)).movedim(-1, 1).float()
        metrics.update(scores, torch.from_numpy(some_target.astype(np.uint8)))
    return metrics.compute()


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, (6, 9, 7))
    codes = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 4, target.shape))
    return codes, target


def test_scores_equal_scikit_learn(maps: tuple[np.ndarray, np.ndarray]) -> None:
    codes, target = maps
    void = np.random.default_rng(1).random(target.shape) < 0.2
    scores = measure(codes, np.where(void, IGNORE, target), parts=3)
    truth, predicted = target[~void], codes[~void]
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted)
    expected = dict(
        zip(COLUMNS, (jaccard_score(truth, predicted, average=None), f1, precision, recall, support), strict=True)
    )
    for i, name in enumerate(CLASSES):
        for column in COLUMNS:
            assert scores["classes"][name][column] == pytest.approx(expected[column][i]), (name, column)
    assert scores["oa"] == pytest.approx(accuracy_score(truth, predicted))
    assert scores["miou"] == pytest.approx(expected["iou"].mean())
    assert scores["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted))
    assert scores["support"] == truth.size


def test_absent_classes_have_no_score_and_enter_no_mean() -> None:
    target = np.array([[[0, 0, 1, 1]]])
    codes = np.array([[[0, 1, 1, 2]]])  # field (2) is predicted but never true; town (3) is neither
    scores = measure(codes, target)
    assert scores["classes"]["town"] == {"iou": None, "f1": None, "precision": None, "recall": None, "support": 0}
    assert scores["classes"]["field"] == {"iou": 0.0, "f1": 0.0, "precision": 0.0, "recall": None, "support": 0}
    assert scores["miou"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_nothing_but_void_gives_no_number_and_valid_json() -> None:
    scores = measure(np.zeros((1, 2, 2), dtype=int), np.full((1, 2, 2), IGNORE))
    assert scores["oa"] is None
    assert scores["miou"] is None
    assert headline(scores) == {}
    assert "NaN" not in json.dumps(scores, allow_nan=False)


def test_one_class_is_measured_too() -> None:
    scores = measure(np.zeros((1, 2, 2), dtype=int), np.zeros((1, 2, 2)), classes=("town",))
    assert (scores["oa"], scores["miou"], scores["confusion"]) == (1.0, 1.0, [[4]])


def test_the_confusion_matrix_is_drawn(tmp_path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    plot_confusion(tmp_path / "confusion.png", measure(*maps))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
