"""Objects of picture after picture, each found in windows: what is counted is the picture, not its windows."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from skysense_core.geo.objects import each_once
from skysense_core.geo.windows import Lattice, Window
from skysense_core.merge.vector import ObjectMerger

Place: TypeAlias = tuple[int, Lattice, Window]
"""The number of a picture, all its windows, and one of them."""


class PictureMerger:
    """Takes the windows of all pictures in their order and gives each picture's objects when its last one came."""

    def __init__(self, places: Sequence[Place], overlap: float) -> None:
        self.places = places
        self.overlap = overlap
        self.taken = 0
        self._merger: ObjectMerger | None = None

    def add(
        self, scores: Float[Tensor, "b n 10"], seen: UInt8[Tensor, "b h w"]
    ) -> Iterator[tuple[int, Float[Tensor, "m 10"]]]:
        """Take the next windows: rows of 8 corner numbers, code and score, in pixels of the window and then of the
        picture, whose number is given with them."""
        for found, shown in zip(scores, seen, strict=True):
            number, lattice, window = self.places[self.taken]
            height, width = lattice.shape
            self._merger = self._merger or ObjectMerger(lattice, Window(row=0, col=0, height=height, width=width))
            self._merger.add(window, found, shown)
            self.taken += 1
            if self.taken == len(self.places) or self.places[self.taken][0] != number:
                rows = np.concatenate([part.scores for part in self._merger.finish()])
                self._merger = None
                yield number, torch.from_numpy(each_once(rows, self.overlap)[:, :10]).float()
