"""Each object once, wherever the borders of windows fall: streaming, and the same whatever the strips are.

Along an axis, what two neighbouring windows both see is halved between them: a window answers for the objects whose
centre lies in its half, and, since two windows put one object's centre in slightly different places, for those a
little beyond it. What a border of the window has cut is left to the neighbour, who sees it whole. Where both answered,
`boxes.suppress` among boxes of different windows leaves one; it compares only what lies near the halves' border,
because elsewhere a place has one window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from skysense_core.geo.windows import Lattice, Window

CUT = 1.0
"""Pixels from a window's border within which a box counts as cut by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPart:
    """The detections whose centre lies in finished rows of a strip, and the windows that made them."""

    window: Window
    scores: Float64[np.ndarray, "n 11"]
    """8 corner numbers (x, y) in pixels of the scene, class code, score, number of the window in the lattice."""


class ObjectMerger:
    """Collects the detections whose centre lies in a strip; rows are final when windows start below them."""

    def __init__(self, lattice: Lattice, strip: Window) -> None:
        self.lattice = lattice
        self.strip = strip
        self.top = strip.row
        self.rows: Float64[np.ndarray, "n 11"] = np.empty((0, 11))

    def ready(self, before: Window) -> Iterator[ObjectPart]:
        """Detections above everything for which the window `before` and its followers answer."""
        yield from self._pop(min(self.lattice.inner(before).row, self.strip.row_stop))

    def add(self, window: Window, scores: Float[Tensor, "n 10"], seen: UInt8[Tensor, "h w"]) -> None:
        """Keep the detections for which the window answers and whose centre lies in the strip and on valid pixels."""
        rows = scores[~scores[:, 8].isnan()].double().cpu().numpy()
        corners = rows[:, :8].reshape(-1, 4, 2)
        centre = corners.mean(axis=1)
        kept = ~self._cut(window, corners)
        for axis, starts in ((1, self.lattice.rows), (0, self.lattice.cols)):
            first, stop = _answers(self.lattice, starts, axis, (window.row, window.col)[1 - axis])
            place = centre[:, axis] + (window.col, window.row)[axis]
            low, high = (self.strip.col, self.strip.row)[axis], (self.strip.col_stop, self.strip.row_stop)[axis]
            kept &= (place >= max(first, low)) & (place < min(stop, high))
        known = seen.cpu().numpy() > 0
        x, y = (np.clip(centre[:, axis].astype(np.int64), 0, window.width - 1) for axis in (0, 1))
        kept &= known[y, x]
        corners = corners + np.array([window.col, window.row])
        number = self.lattice.rows.index(window.row) * len(self.lattice.cols) + self.lattice.cols.index(window.col)
        made = [corners.reshape(-1, 8), rows[:, 8:], np.full((len(rows), 1), float(number))]
        self.rows = np.concatenate([self.rows, np.concatenate(made, axis=1)[kept]])

    def finish(self) -> Iterator[ObjectPart]:
        """What is left."""
        yield from self._pop(self.strip.row_stop)

    def _pop(self, stop: int) -> Iterator[ObjectPart]:
        if stop <= self.top:
            return
        final = self.rows[:, 1:8:2].mean(axis=1) < stop
        window = Window(row=self.top, col=self.strip.col, height=stop - self.top, width=self.strip.width)
        ordered = self.rows[final]
        # By place: the order in which windows came would change with the strips.
        ordered = ordered[np.lexsort((ordered[:, 10], ordered[:, 0], ordered[:, 1]))]
        yield ObjectPart(window=window, scores=ordered)
        self.rows, self.top = self.rows[~final], stop

    def _cut(self, window: Window, corners: Float64[np.ndarray, "n 4 2"]) -> Bool[np.ndarray, "n"]:
        """Which boxes reach a border of the window behind which the scene goes on."""
        height, width = self.lattice.shape
        low, high = corners.min(axis=1), corners.max(axis=1)
        cut = np.zeros(len(corners), dtype=bool)
        if window.col > 0:
            cut |= low[:, 0] < CUT
        if window.row > 0:
            cut |= low[:, 1] < CUT
        if window.col_stop < width:
            cut |= high[:, 0] > window.width - CUT
        if window.row_stop < height:
            cut |= high[:, 1] > window.height - CUT
        return cut


def _answers(lattice: Lattice, starts: tuple[int, ...], axis: int, start: int) -> tuple[float, float]:
    """First and last place along an axis for which the window at `start` answers."""
    index, size = starts.index(start), lattice.shape[1 - axis]
    first, stop = 0.0, float(size)
    if index > 0:
        shared = starts[index - 1] + lattice.window - start
        first = start + shared / 2 - shared / 8
    if index < len(starts) - 1:
        shared = start + lattice.window - starts[index + 1]
        stop = start + lattice.window - shared / 2 + shared / 8
    return first, stop
