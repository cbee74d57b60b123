"""Average precision against a plain reading of its definition, and against COCO's by hand."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
import torch

from skysense_core.average_precision import ObjectMetrics, average_precision

CLASSES = ("ship", "car")


def row(x: float, y: float, side: float, code: int, last: float, turn: float = 0.0) -> list[float]:
    corners = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * (side / 2, side / 4)
    cos, sin = np.cos(turn), np.sin(turn)
    corners = corners @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    return [*corners.ravel().tolist(), float(code), last]


def padded(images: list[list[list[float]]]) -> torch.Tensor:
    longest = max(len(rows) for rows in images)
    filled = [rows + [[float("nan")] * 10] * (longest - len(rows)) for rows in images]
    return torch.tensor(filled, dtype=torch.float64).reshape(len(images), longest, 10)


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images of true boxes, and detections: some near, some doubled, some wrong, some of difficult boxes."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(3):
        known = [
            row(*rng.uniform(0, 300, 2), rng.uniform(10, 40), int(rng.integers(2)), float(rng.random() < 0.2),
                rng.uniform(0, 3))
            for _ in range(25)
        ]  # fmt: skip
        said = []
        for one in known:
            for _ in range(int(rng.integers(0, 3))):
                moved = np.array(one[:8]).reshape(4, 2) + rng.normal(0, 1.5, 2)
                said.append([*moved.ravel().tolist(), one[8], round(float(rng.random()), 3)])
        said += [row(*rng.uniform(0, 300, 2), 20, int(rng.integers(2)), float(rng.random())) for _ in range(10)]
        truth.append(known)
        found.append(said)
    return padded(found), padded(truth)


def by_definition(found: torch.Tensor, truth: torch.Tensor, code: int, points: bool) -> float:
    """One class, as the DOTA development kit describes it, with loops."""
    detections = [
        (float(one[9]), image, shapely.Polygon(np.array(one[:8]).reshape(4, 2)))
        for image, rows in enumerate(found.tolist())
        for one in rows
        if one[8] == code
    ]
    known = {
        image: [(shapely.Polygon(np.array(o[:8]).reshape(4, 2)), bool(o[9])) for o in rows if o[8] == code]
        for image, rows in enumerate(truth.tolist())
    }
    total = sum(not difficult for rows in known.values() for _, difficult in rows)
    used, hits, misses, curve = set(), 0, 0, []
    for _, image, shape in sorted(detections, key=lambda item: -item[0]):
        overlap = [shape.intersection(other).area / shape.union(other).area for other, _ in known[image]]
        nearest = int(np.argmax(overlap)) if overlap else -1
        if nearest >= 0 and overlap[nearest] > 0.5:
            if known[image][nearest][1]:
                continue
            if (image, nearest) in used:
                misses += 1
            else:
                used.add((image, nearest))
                hits += 1
        else:
            misses += 1
        curve.append((hits / total, hits / (hits + misses)))
    if points:
        return sum(max((p for r, p in curve if r >= t / 10 - 1e-12), default=0.0) for t in range(11)) / 11
    recalls = sorted({0.0, *(r for r, _ in curve)})
    return sum((b - a) * max(p for r, p in curve if r >= b) for a, b in pairwise(recalls))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_the_definition(seed: int) -> None:
    found, truth = scene(seed)
    metrics = ObjectMetrics(CLASSES, coco=False)
    for image in range(3):
        metrics.update(found[image : image + 1], truth[image : image + 1])
    measured = metrics.compute()
    for code, name in enumerate(CLASSES):
        assert measured["classes"][name]["ap50"] == pytest.approx(by_definition(found, truth, code, False))
        assert measured["classes"][name]["ap50_11"] == pytest.approx(by_definition(found, truth, code, True))
        assert 0.1 < measured["classes"][name]["ap50"] < 0.95
    assert measured["map50"] == pytest.approx(np.mean([one["ap50"] for one in measured["classes"].values()]))
    assert measured["support"] == int((truth[..., 9] == 0).sum())


def test_what_is_perfect_scores_one_and_a_class_without_truth_nothing() -> None:
    truth = padded([[row(20, 20, 20, 0, 0.0), row(60, 60, 20, 0, 0.0)], []])
    found = padded([[row(20, 20, 20, 0, 0.9), row(60, 60, 20, 0, 0.8)], []])
    metrics = ObjectMetrics(CLASSES, coco=True)
    metrics.update(found, truth)
    measured = metrics.compute()
    assert measured["map50"] == measured["map50_11"] == measured["coco_map"] == measured["coco_map50"] == 1.0
    assert measured["classes"]["car"]["ap50"] is None
    assert measured["classes"]["ship"] == {"ap50": 1.0, "ap50_11": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}


def test_cocos_score_counts_more_than_a_hundred_objects_and_leaves_difficult_ones_out() -> None:
    where = [(30 * (i % 20), 30 * (i // 20)) for i in range(200)]
    truth = padded([[row(x, y, 20, 0, float(i < 20)) for i, (x, y) in enumerate(where)]])
    found = padded([[row(x, y, 20, 0, 1 - i / 1000) for i, (x, y) in enumerate(where)]])
    metrics = ObjectMetrics(CLASSES, coco=True)
    metrics.update(found, truth)
    measured = metrics.compute()
    assert measured["coco_map50"] == pytest.approx(1.0)
    assert measured["map50"] == pytest.approx(1.0)
    assert measured["support"] == 180


def test_nothing_found_is_zero_and_nothing_true_is_no_score() -> None:
    truth = padded([[row(20, 20, 20, 0, 0.0)]])
    metrics = ObjectMetrics(CLASSES, coco=True)
    metrics.update(torch.full((1, 0, 10), float("nan"), dtype=torch.float64), truth)
    assert metrics.compute()["map50"] == 0.0
    empty = ObjectMetrics(CLASSES, coco=False)
    empty.update(truth, torch.full((1, 3, 10), float("nan"), dtype=torch.float64))
    assert empty.compute()["map50"] is None
    assert empty.compute()["support"] == 0
    assert average_precision(np.empty(0), np.empty(0)) == 0.0
