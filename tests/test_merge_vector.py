"""Objects of overlapping windows: each once, wherever the windows' borders fall, however the scene is cut."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from skysense_core.geo import boxes
from skysense_core.geo.objects import ObjectWriter, join_objects
from skysense_core.geo.windows import Lattice, Window
from skysense_core.losses.boxes import corners_of
from skysense_core.merge.vector import ObjectMerger

WINDOW, SHARED = 64, 20


def lattice(height: int = 200, width: int = 260) -> Lattice:
    trim = SHARED // 8
    return Lattice(shape=(height, width), origin=(0, 0), window=WINDOW, trim=trim, overlap=SHARED - 2 * trim, align=4)


def seen_in(window: Window, objects: np.ndarray, jitter: float) -> torch.Tensor:
    """What a detector finds in a window: every object that it shows, cut to the window, a little off its place."""
    rng = np.random.default_rng([window.row + 1000, window.col + 1000])
    rows = []
    for x, y, w, h, a in objects:
        centre = np.array([x - window.col, y - window.row]) + rng.uniform(-jitter, jitter, 2)
        corners = corners_of(torch.tensor([[*centre, w, h, a]], dtype=torch.float64))[0].numpy()
        if ((corners < 0) | (corners > WINDOW)).any():
            corners = corners.clip(0, WINDOW)
            if boxes.areas(corners[None])[0] < 4:
                continue
        rows.append([*corners.ravel(), 0.0, rng.uniform(0.5, 1)])
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 10)


def merged(
    tmp_path: Path, objects: np.ndarray, strips: list[Window], jitter: float = 0.7, overlap: float = 0.1
) -> np.ndarray:
    """The objects of a scene that is predicted in strips; each window is found anew in each strip, as in a sweep."""
    grid, paths = lattice(), []
    for number, strip in enumerate(strips):
        merger, writer = ObjectMerger(grid, strip), ObjectWriter(tmp_path / f"{number}.npy")
        for window in grid.windows(strip):
            for part in merger.ready(window):
                writer.write(part.scores)
            merger.add(window, seen_in(window, objects, jitter), torch.ones(WINDOW, WINDOW, dtype=torch.uint8))
        for part in merger.finish():
            writer.write(part.scores)
        writer.close()
        paths.append(tmp_path / f"{number}.npy")
    return join_objects(paths, overlap)


WHOLE = [Window(row=0, col=0, height=200, width=260)]


@pytest.mark.parametrize("angle", [0.0, 0.6])
def test_an_object_is_found_once_wherever_a_seam_falls(tmp_path: Path, angle: float) -> None:
    for shift in range(WINDOW):
        objects = np.array([[60.0 + shift, 50.0 + 0.7 * shift, 11, 6, angle]])
        found = merged(tmp_path, objects, WHOLE)
        assert len(found) == 1, shift
        assert np.abs(found[0, :8].reshape(4, 2).mean(axis=0) - objects[0, :2]).max() < 1, shift


def test_many_objects_are_each_found_once_whatever_the_strips_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(8, 250, 16.0), np.arange(8, 190, 16.0))
    places = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-1.5, 1.5, (x.size, 2))
    objects = np.column_stack([places, np.full(x.size, 11.0), np.full(x.size, 5.0), rng.uniform(-1.5, 1.5, x.size)])
    whole = merged(tmp_path, objects, WHOLE)
    assert len(whole) == len(objects)
    nearest = np.abs(whole[:, None, :8].reshape(-1, 1, 4, 2).mean(axis=2) - places).max(axis=2).argmin(axis=1)
    assert sorted(nearest.tolist()) == list(range(len(objects)))
    for cut in ([0, 77, 200], [0, 20, 64, 65, 130, 200]):
        strips = [
            Window(row=top, col=left, height=bottom - top, width=right - left)
            for left, right in ((0, 101), (101, 260))
            for top, bottom in pairwise(cut)
        ]
        np.testing.assert_array_equal(merged(tmp_path, objects, strips), whole)


def test_crossed_slender_objects_on_a_seam_both_stay(tmp_path: Path) -> None:
    for shift in range(0, WINDOW, 3):
        x, y = 60.0 + shift, 70.0
        objects = np.array([[x, y, 14, 2, 0.75], [x, y, 14, 2, -0.75]])
        assert len(merged(tmp_path, objects, WHOLE, jitter=0.3)) == 2, shift


def test_what_lies_off_the_scene_or_on_nodata_is_left_out(tmp_path: Path) -> None:
    grid = lattice()
    window = grid.windows()[0]
    rows = torch.tensor([[0.0] * 10, [0.0] * 10])
    rows[0, :8] = torch.tensor([-9.0, -9, -1, -9, -1, -1, -9, -1])  # in the mirror image beyond the border
    rows[1, :8] = torch.tensor([20.0, 20, 30, 20, 30, 30, 20, 30])
    seen = torch.ones(WINDOW, WINDOW, dtype=torch.uint8)
    for hole, count in ((False, 1), (True, 0)):
        seen[15:35, 15:35] = 0 if hole else 1
        merger = ObjectMerger(grid, WHOLE[0])
        merger.add(window, rows, seen)
        assert sum(len(part.scores) for part in merger.finish()) == count


def test_rows_leave_as_soon_as_no_window_can_add_to_them() -> None:
    grid, objects = lattice(), np.array([[20.0, 20, 8, 4, 0], [20, 180, 8, 4, 0]])
    merger, parts = ObjectMerger(grid, WHOLE[0]), []
    for window in grid.windows():
        parts += merger.ready(window)
        merger.add(window, seen_in(window, objects, 0.1), torch.ones(WINDOW, WINDOW, dtype=torch.uint8))
    early = sum(len(part.scores) for part in parts)
    parts += merger.finish()
    assert early == 1
    assert sum(len(part.scores) for part in parts) == 2
    rows = [(part.window.row, part.window.row_stop) for part in parts]
    assert rows[0][0] == 0
    assert rows[-1][1] == 200
    assert all(one[1] == other[0] for one, other in pairwise(rows))
