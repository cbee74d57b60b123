"""Boxes of any direction: what a network learns means the same box, overlaps are true, one box stays per object."""

import math

import numpy as np
import pytest
import shapely
import torch
from torchvision import ops

from skysense_core.geo import boxes
from skysense_core.losses import boxes as codes


def random_boxes(count: int, seed: int = 0, far: float = 0.0) -> torch.Tensor:
    """Rotated boxes: long, square and slender ones, some of them exactly upright."""
    draw = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spread = torch.tensor([300, 300, 60, 30, math.pi], dtype=torch.float64)
    found = draw * spread + torch.tensor([far, far, 1, 1, -math.pi / 2], dtype=torch.float64)
    found[::5, 4] = 0
    found[1::5, 4] = -math.pi / 2
    found[2::5, 3] = found[2::5, 2]
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> float:
    """Least overlap of boxes (as corners), pair by pair."""
    shapes = (boxes.shapes(corners.double().numpy()) for corners in (one, other))
    return float(boxes.overlaps(*shapes).min())


@pytest.mark.parametrize("far", [0.0, 20000.0])
def test_corners_and_rotated_boxes_are_the_same_boxes(far: float) -> None:
    rotated = random_boxes(200, far=far)
    corners = codes.corners_of(rotated)
    again = codes.rotated_of(corners)
    assert same(corners, codes.corners_of(again)) > 1 - 1e-6
    assert (again[:, 2] >= again[:, 3]).all()
    assert ((again[:, 4] >= -math.pi / 2) & (again[:, 4] < math.pi / 2)).all()
    np.testing.assert_array_equal(boxes.clockwise(corners.numpy()), corners.numpy())
    np.testing.assert_allclose(boxes.areas(corners.numpy()), (rotated[:, 2] * rotated[:, 3]).numpy())


def test_midpoint_offsets_mean_the_rectangle_that_they_were_made_from() -> None:
    corners = codes.corners_of(random_boxes(300, seed=1))
    spread = torch.rand(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 8
    anchors = codes.bounds_of(corners) + spread * torch.tensor([-1, -1, 1, 1])
    decoded = codes.decode_midpoints(anchors, codes.encode_midpoints(anchors, corners))
    assert same(corners, codes.corners_of(decoded)) > codes.UPRIGHT - 1e-3


def test_an_upright_box_has_one_description_however_slightly_it_is_turned() -> None:
    anchors = torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    for angle in (-1e-4, 0.0, 1e-4):
        corners = codes.corners_of(torch.tensor([[10.0, 5.0, 16.0, 8.0, angle]]))
        alpha, beta = codes.encode_midpoints(anchors, corners)[0, 4:].tolist()
        assert (alpha, beta) == pytest.approx((-0.5, -0.5), abs=1e-3)


def test_deltas_of_rotated_proposals_mean_the_box_that_they_were_made_from() -> None:
    rotated = random_boxes(300, seed=3)
    noise = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    proposals = rotated + noise * torch.tensor([4, 4, 0, 0, 1.0])
    proposals[:, 2:4] *= (noise[:, 2:4] / 4).exp()
    deltas = codes.encode_rotated(proposals, rotated)
    assert same(codes.corners_of(rotated), codes.corners_of(codes.decode_rotated(proposals, deltas))) > 1 - 1e-6
    turn = deltas[:, 4] * codes.DELTA_STD[4]
    assert turn.abs().max() <= math.pi / 4 + 1e-9  # a rectangle turned by more than that is nearer from its other side
    assert codes.encode_rotated(rotated, rotated).abs().max() < 1e-9


@pytest.mark.parametrize("far", [0.0, 20000.0])
def test_rotated_overlap_is_that_of_the_polygons(far: float) -> None:
    one, other = random_boxes(80, seed=5, far=far), random_boxes(70, seed=6, far=far)
    truth = boxes.ious(codes.corners_of(one).numpy(), codes.corners_of(other).numpy())
    np.testing.assert_allclose(codes.rotated_iou(one, other).numpy(), truth, atol=1e-5)
    np.testing.assert_allclose(codes.rotated_iou(one.float(), other.float()).numpy(), truth, atol=2e-3)
    assert (truth > 0.1).sum() > 20
    by_hand = [
        [a.intersection(b).area / a.union(b).area for b in shapely.polygons(codes.corners_of(other).numpy())]
        for a in shapely.polygons(codes.corners_of(one).numpy())
    ]
    np.testing.assert_allclose(truth, by_hand, atol=1e-9)


def test_without_rotated_overlap_in_torchvision_the_polygons_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = random_boxes(30, seed=7).float(), random_boxes(40, seed=8).float()
    expected = codes.rotated_iou(one, other)
    monkeypatch.setattr(codes, "native", lambda: False)
    torch.testing.assert_close(codes.rotated_iou(one, other), expected, atol=2e-3, rtol=0)


def test_boxes_without_area_overlap_nothing() -> None:
    rotated = torch.tensor(
        [[9.0, 9, 20, 10, 0.3], [9, 9, 20, 0, 0.3], [9, 9, 0, 0, 0], [9, 9, 10, 20, 0.3 + math.pi / 2]]
    )
    truth = torch.zeros(4, 4)
    truth[0, 0] = truth[0, 3] = truth[3, 0] = truth[3, 3] = 1
    torch.testing.assert_close(codes.rotated_iou(rotated, rotated), truth, atol=1e-5, rtol=0)
    np.testing.assert_allclose(boxes.ious(*[codes.corners_of(rotated).double().numpy()] * 2), truth, atol=1e-6)


def test_rectangles_stay_and_other_quadrangles_get_the_smallest_about_them() -> None:
    corners = codes.corners_of(random_boxes(100, seed=9))
    assert same(corners, torch.from_numpy(boxes.rectangles(corners.numpy()))) > 1 - 1e-6
    crossing = np.array([[[0.0, 0], [10, 10], [10, 0], [0, 10]]])
    assert boxes.areas(boxes.rectangles(crossing)) == pytest.approx([100])
    line = np.array([[[0.0, 0], [10, 0], [10, 0], [0, 0]]])
    assert boxes.areas(boxes.rectangles(line)) == pytest.approx([0])
    anticlockwise = corners.numpy()[:, ::-1]
    assert (shapely.is_ccw(shapely.linearrings(boxes.clockwise(anticlockwise)))).all()  # y upwards for shapely


def brute_force(corners: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> set[int]:
    overlap, kept = boxes.ious(corners, corners), list[int]()
    for index in np.argsort(-scores):
        if all(labels[index] != labels[k] or overlap[index, k] <= threshold for k in kept):
            kept.append(int(index))
    return set(kept)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_suppression_is_that_of_the_definition(threshold: float) -> None:
    rng = np.random.default_rng(0)
    corners = codes.corners_of(random_boxes(400, seed=10)).numpy()
    scores, labels = rng.random(400), rng.integers(0, 2, 400)
    kept = boxes.suppress(corners, scores, labels, threshold)
    assert set(kept.tolist()) == brute_force(corners, scores, labels, threshold)
    assert (np.diff(scores[kept]) <= 0).all()
    assert 10 < len(kept) < 400


def test_suppression_of_upright_boxes_is_torchvisions() -> None:
    rng = np.random.default_rng(1)
    corners, scores = boxes.upright(codes.corners_of(random_boxes(400, seed=11)).numpy()), rng.random(400)
    labels = rng.integers(0, 3, 400)
    bounds = codes.bounds_of(torch.from_numpy(corners))
    expected = ops.batched_nms(bounds, torch.from_numpy(scores), torch.from_numpy(labels), 0.4)
    np.testing.assert_array_equal(boxes.suppress(corners, scores, labels, 0.4), expected.numpy())


def test_crossed_slender_boxes_both_stay_and_equal_boxes_leave_one() -> None:
    rotated = torch.tensor([[50.0, 50, 80, 4, 0.8], [50, 50, 80, 4, -0.8], [50, 50, 80, 4, 0.8]])
    corners = codes.corners_of(rotated).double().numpy()
    kept = boxes.suppress(corners, np.array([0.9, 0.8, 0.7]), np.zeros(3, dtype=np.int64), 0.1)
    assert kept.tolist() == [0, 1]
    upright = boxes.suppress(boxes.upright(corners), np.array([0.9, 0.8, 0.7]), np.zeros(3, dtype=np.int64), 0.1)
    assert upright.tolist() == [0]  # what boxes of no direction would do to them
    groups = boxes.suppress(
        corners, np.array([0.9, 0.8, 0.7]), np.zeros(3, dtype=np.int64), 0.1, np.zeros(3, dtype=int)
    )
    assert groups.tolist() == [0, 1, 2]


def test_the_order_of_the_boxes_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    corners, labels = codes.corners_of(random_boxes(200, seed=12)).numpy(), np.zeros(200, dtype=np.int64)
    scores = rng.choice([0.2, 0.5, 0.9], 200)
    first = corners[boxes.suppress(corners, scores, labels, 0.1)]
    order = rng.permutation(200)
    again = corners[order][boxes.suppress(corners[order], scores[order], labels, 0.1)]
    np.testing.assert_array_equal(first, again)
