"""Streaming blend of probabilities: memory grows with the window and the strip's width, never with its height."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from skysense_core.geo.windows import Lattice, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Finished rows of a strip. The tensors are views that hold until the merger is asked for the next part."""

    window: Window
    scores: Float[Tensor, "k n w"]
    """Blended probabilities; 0 where no window came."""
    seen: UInt8[Tensor, "n w"]
    """Valid observations of each pixel; 0 where the reference modality has no data."""

    @property
    def valid(self) -> Bool[Tensor, "n w"]:
        """Where there is anything to say."""
        return self.seen > 0


class RasterMerger:
    """Weighted sum of windows over one strip of a scene, on the device.

    The strip is any rectangle of the scene. It holds the rows that the current row of windows covers; as soon as a
    window starts below a row, that row is final. The lattice's weights sum to one, so nothing is divided.
    """

    def __init__(self, lattice: Lattice, strip: Window, classes: int, device: torch.device) -> None:
        self.lattice = lattice
        self.strip = strip
        self.top = strip.row
        height = min(lattice.window, strip.height)
        self.scores = torch.zeros(classes, height, strip.width, device=device)
        self.seen = torch.zeros(height, strip.width, dtype=torch.uint8, device=device)

    def ready(self, before: Window) -> Iterator[Part]:
        """Rows above everything that the window `before` and its followers can reach."""
        yield from self._pop(min(self.lattice.inner(before).row, self.strip.row_stop))

    def add(self, window: Window, scores: Float[Tensor, "k h w"], seen: UInt8[Tensor, "h w"]) -> None:
        """Accumulate a window's probabilities times its weights, inside the strip."""
        part = self.lattice.inner(window) & self.strip
        rows, cols = slice(part.row - window.row, part.row_stop - window.row), _columns(part, window.col)
        here = slice(part.row - self.top, part.row_stop - self.top), _columns(part, self.strip.col)
        wy, wx = (torch.from_numpy(weights).to(scores.device) for weights in self.lattice.weights(window))
        # In place: a product of the window's size would cost as much memory again, and more time.
        self.scores[:, *here].addcmul_(scores[:, rows, cols], wy[rows, None] * wx[cols])
        # Where other modalities are resampled, overlapping windows may differ by one.
        self.seen[here] = torch.maximum(self.seen[here], seen[rows, cols])

    def finish(self) -> Iterator[Part]:
        """The rows that are left."""
        yield from self._pop(self.strip.row_stop)

    def _pop(self, stop: int) -> Iterator[Part]:
        while self.top < stop:
            n = min(stop - self.top, len(self.seen))
            window = Window(row=self.top, col=self.strip.col, height=n, width=self.strip.width)
            yield Part(window=window, scores=self.scores[:, :n], seen=self.seen[:n])
            for plane in (*self.scores, self.seen):
                kept = plane[n:]
                plane[: len(kept)] = kept if len(kept) <= n else kept.clone()  # they may share rows
                plane[len(kept) :].zero_()
            self.top += n


def _columns(part: Window, origin: int) -> slice:
    return slice(part.col - origin, part.col_stop - origin)
