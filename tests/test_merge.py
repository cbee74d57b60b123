"""The streaming merger against a plain weighted sum over the whole scene."""

import numpy as np
import pytest
import torch

from skysense_core.geo.windows import Lattice, Window
from skysense_core.merge.raster import RasterMerger

SHAPE = (150, 90)
LATTICE = Lattice(shape=SHAPE, origin=(13, 5), window=32, trim=2, overlap=8)
WHOLE = Window(row=0, col=0, height=SHAPE[0], width=SHAPE[1])


def window_scores(window: Window) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng((window.row + 99, window.col + 99)).random((3, 32, 32))).float()


def everywhere() -> torch.Tensor:
    """The same sum, held whole."""
    total = torch.zeros(3, SHAPE[0] + 64, SHAPE[1] + 64)
    for window in LATTICE.windows():
        wy, wx = map(torch.from_numpy, LATTICE.weights(window))
        at = (slice(None), slice(window.row + 32, window.row_stop + 32), slice(window.col + 32, window.col_stop + 32))
        total[at] += window_scores(window) * wy[:, None] * wx
    return total[:, 32 : 32 + SHAPE[0], 32 : 32 + SHAPE[1]]


def streamed(strip: Window, keep=lambda window: True) -> tuple[torch.Tensor, torch.Tensor]:
    merger = RasterMerger(LATTICE, strip, 3, torch.device("cpu"))
    parts = []
    for window in LATTICE.windows(strip):
        if keep(window):
            parts += [(part.window, part.scores.clone(), part.valid.clone()) for part in merger.ready(window)]
            merger.add(window, window_scores(window), torch.ones(32, 32, dtype=torch.uint8))
    parts += [(part.window, part.scores.clone(), part.valid.clone()) for part in merger.finish()]
    assert [part[0].row for part in parts[1:]] == [part[0].row_stop for part in parts[:-1]]
    assert max(part[0].height for part in parts) <= 32
    return torch.cat([part[1] for part in parts], dim=1), torch.cat([part[2] for part in parts])


def test_streaming_equals_the_sum_over_the_whole():
    scores, valid = streamed(WHOLE)
    torch.testing.assert_close(scores, everywhere(), rtol=0, atol=1e-6)
    assert valid.all()


@pytest.mark.parametrize(
    "strip",
    [
        Window(row=0, col=0, height=150, width=1),
        Window(row=0, col=30, height=150, width=33),
        Window(row=47, col=11, height=5, width=60),
        Window(row=149, col=89, height=1, width=1),
    ],
)
def test_a_strip_or_a_part_gets_bit_for_bit_the_same(strip):
    rows, cols = slice(strip.row, strip.row_stop), slice(strip.col, strip.col_stop)
    assert torch.equal(streamed(strip)[0], streamed(WHOLE)[0][:, rows, cols])


def test_rows_that_no_window_came_to_are_invalid_and_nothing_is_lost():
    """A hole of several lattice rows, as over the sea."""
    kept = [window for window in LATTICE.windows() if not 20 < window.row < 110]
    scores, valid = streamed(WHOLE, keep=lambda window: window in kept)
    reached = torch.zeros(SHAPE, dtype=torch.bool)
    for window in kept:
        inner = LATTICE.inner(window)
        reached[inner.row : inner.row_stop, inner.col : inner.col_stop] = True
    assert scores.shape == (3, *SHAPE)
    assert torch.equal(valid, reached)
    assert not scores[:, ~reached].any()


def test_scores_of_invalid_pixels_are_marked():
    merger = RasterMerger(LATTICE, WHOLE, 3, torch.device("cpu"))
    (window,) = LATTICE.windows(Window(row=5, col=4, height=1, width=1))
    seen = torch.zeros(32, 32, dtype=torch.uint8)
    seen[5 - window.row, 4 - window.col] = 3
    merger.add(window, window_scores(window), seen)
    marked = torch.cat([part.seen.clone() for part in merger.finish()])
    assert marked.nonzero().tolist() == [[5, 4]]
    assert marked[5, 4] == 3
