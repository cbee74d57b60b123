"""The lattice of windows: every pixel counts once, wherever the scene begins and however large it is."""

import itertools

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from skysense_core.errors import UsageError
from skysense_core.geo.windows import Lattice, Window, lattice_for, reflect_pad, window_over
from skysense_core.types import Raster


def lattice(shape: tuple[int, int], origin=(0, 0), window=32, trim=2, overlap=8, align=1) -> Lattice:
    return Lattice(shape=shape, origin=origin, window=window, trim=trim, overlap=overlap, align=align)


def utm(shape: tuple[int, int], gsd: float = 10.0, x: float = 500_000.0, y: float = 4_000_000.0) -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, x, 0, -gsd, y), "EPSG:32636")


def total_weight(lattice: Lattice) -> np.ndarray:
    total = np.zeros(lattice.shape, dtype=np.float32)
    for window in lattice.windows():
        inside = window & Window(row=0, col=0, height=lattice.shape[0], width=lattice.shape[1])
        weights = np.multiply.outer(*lattice.weights(window))
        rows = slice(inside.row - window.row, inside.row_stop - window.row)
        cols = slice(inside.col - window.col, inside.col_stop - window.col)
        total[inside.row : inside.row_stop, inside.col : inside.col_stop] += weights[rows, cols]
    return total


@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    origin=st.tuples(st.integers(-500, 500), st.integers(-500, 500)),
    trim=st.integers(0, 6),
    overlap=st.integers(0, 10),
    align=st.sampled_from([1, 4, 8]),
)
@settings(max_examples=150, deadline=None)
def test_weights_sum_to_one_at_every_pixel(height, width, origin, trim, overlap, align):
    total = total_weight(lattice((height, width), origin, trim=trim, overlap=overlap, align=align))
    np.testing.assert_allclose(total, 1, rtol=0, atol=3e-7)


def test_weights_of_one_axis_sum_to_exactly_one():
    axis = lattice((200, 1), overlap=13)
    total = np.zeros(264, dtype=np.float32)
    for window in axis.windows():
        total[window.row + 32 : window.row + 64] += axis.weights(window)[0]
    assert (total[32:232] == 1).all()


def test_no_weight_is_wasted_on_windows_that_never_count():
    for size in range(1, 140):
        windows = lattice((size, 1), (17, 0)).windows()
        assert all(lattice((size, 1), (17, 0)).inner(window).height > 0 for window in windows)
        assert len(windows) <= max(1, int(np.ceil((size - 32) / 20)) + 2)


@given(size=st.integers(1, 5000), origin=st.integers(-(10**6), 10**6))
@settings(max_examples=200, deadline=None)
def test_windows_keep_their_phase_and_outer_ones_only_leave_the_lattice(size, origin):
    grid = lattice((size, 1), (origin, 0), window=512, trim=20, overlap=120, align=32)
    starts = grid.rows
    assert all((start + origin) % 32 == 0 for start in starts)
    assert all((start + origin) % 352 == 0 for start in starts[1:-1])
    assert starts[0] <= 0
    assert starts[-1] + 512 >= size
    assert all(352 <= after - before <= 432 for before, after in itertools.pairwise(starts))


def test_a_window_of_mirror_images_is_left_out_where_its_neighbour_reaches_the_border():
    """2,048 px take at most 6 windows of 512 at a stride of 352, wherever the lattice begins; 400 px take one."""
    counts = [
        len(lattice((2048, 1), (origin, 0), window=512, trim=20, overlap=120, align=32).rows) for origin in range(352)
    ]
    assert set(counts) == {5, 6}
    small = [
        len(lattice((400, 1), (origin, 0), window=512, trim=20, overlap=120, align=32).rows) for origin in range(352)
    ]
    assert set(small) == {1}


def test_stride_equal_to_the_window_covers_everything():
    assert (total_weight(lattice((100, 70), (5, 9), trim=0, overlap=0)) == 1).all()


def test_a_selection_holds_every_window_that_counts_there_and_no_other():
    whole = lattice((200, 300), (11, 7))
    select = Window(row=60, col=100, height=1, width=1)
    chosen = whole.windows(select)
    for window in whole.windows():
        wy, wx = whole.weights(window)
        row, col = select.row - window.row, select.col - window.col
        counts = 0 <= row < 32 and 0 <= col < 32 and wy[row] * wx[col] > 0
        assert (window in chosen) == counts


def test_neighbouring_scenes_share_their_windows():
    """Two scenes on one grid, the second 37 px to the right: their windows lie at the same places on the ground."""
    left, right = utm((100, 400)), utm((100, 300), x=500_370.0)
    a, b = lattice_for(left, 64, align=4), lattice_for(right, 64, align=4)
    assert {col + 37 for col in b.cols[1:-1]} <= set(a.cols)


@pytest.mark.parametrize(
    "affine",
    [
        Affine(10, 0, 5e5, 0, -10, 4e6) * Affine.rotation(30),
        Affine(10, 0, 5e5, 0, 10, 4e6),
        Affine(1e-4, 0, 36.5, 0, -1e-4, -1.25),
    ],
)
def test_the_anchor_is_the_same_ground_for_rotated_flipped_and_degree_grids(affine):
    crs = "EPSG:4326" if abs(affine.a) < 1 else "EPSG:32636"
    whole = GeoBox((300, 300), affine, crs)
    part = GeoBox((200, 200), affine * Affine.translation(33, 57), crs)
    a, b = lattice_for(whole, 64, align=4), lattice_for(part, 64, align=4)
    assert {row + 57 for row in b.rows[1:-1]} <= set(a.rows)
    assert {col + 33 for col in b.cols[1:-1]} <= set(a.cols)


def test_windows_and_strides_are_multiples_of_the_tokens():
    alone = lattice_for(utm((1000, 1000), 0.3), 512, align=32)
    beside = lattice_for(utm((1000, 1000), 0.3), 512, align=128)
    assert (alone.window, alone.stride) == (512, 352)
    assert (beside.window, beside.stride) == (512, 384)
    assert lattice_for(utm((1000, 1000)), 64, align=4, shared=0).stride == 64


def test_an_impossible_overlap_is_refused():
    for shared in (60, 64, -4):
        with pytest.raises(UsageError, match=f"--overlap {shared}: windows of 64 px share at most 32"):
            lattice_for(utm((100, 100)), 64, align=4, shared=shared)
    with pytest.raises(UsageError, match="--window 2"):
        lattice_for(utm((100, 100)), 2, align=4)


@pytest.mark.parametrize("scene", [(1, 1), (1, 40), (3, 5), (33, 20)])
def test_reflect_padding_mirrors_pixels_and_validity_down_to_one_pixel(scene):
    rng = np.random.default_rng(0)
    pixels, valid = rng.random((2, 3, *scene)), rng.random((2, *scene)) > 0.5
    raster = Raster(pixels=pixels, valid=valid, days=np.zeros(2, int), dated=np.zeros(2, bool), geobox=utm(scene))
    window = Window(row=-5, col=-7, height=64, width=64)
    padded = reflect_pad(raster, window, scene)
    assert padded.pixels.shape == (2, 3, 64, 64)
    assert padded.geobox == window.geobox(utm(scene))
    np.testing.assert_array_equal(padded.pixels[..., 5 : 5 + scene[0], 7 : 7 + scene[1]], pixels)
    rows = np.pad(np.arange(scene[0]), (5, 59 - scene[0]), mode="reflect")
    cols = np.pad(np.arange(scene[1]), (7, 57 - scene[1]), mode="reflect")
    np.testing.assert_array_equal(padded.pixels, pixels[..., rows[:, None], cols])
    np.testing.assert_array_equal(padded.valid, valid[..., rows[:, None], cols])


def test_window_over_a_part_takes_whole_pixels_and_none_too_many():
    grid = utm((100, 100))
    exact = Window(row=10, col=20, height=30, width=40)
    assert window_over(grid, exact.geobox(grid)) == exact
    shifted = GeoBox((30, 40), grid.affine * Affine.translation(20.5, 10.2), grid.crs)
    assert window_over(grid, shifted) == Window(row=10, col=20, height=31, width=41)
    assert window_over(grid, exact.geobox(grid), margin=15) == Window(row=0, col=5, height=55, width=70)
    assert window_over(grid, utm((5, 5), x=600_000.0)).empty
