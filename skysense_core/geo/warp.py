"""One layer onto one grid: copied where the lattices agree, resampled otherwise.

A pixel does not depend on the window that it is read in: kernel and overview are chosen from the two lattices alone
(see `resample`). It is valid where the nearest source pixel is, or, for area averages, half of the area.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox

from skysense_core.errors import unknown
from skysense_core.geo import grid, resample

RESAMPLINGS = ("nearest", "bilinear", "average")
SHRINK = 1.5
"""From this many source pixels per target pixel on, bilinear would alias: the covered area is averaged instead."""
MOST_VALUES = 2**24
"""Source values held at once; a read that needs more is done in parts."""

Pixels = Num[np.ndarray, "c h w"]
Valid = Bool[np.ndarray, "h w"]


@runtime_checkable
class Layer(Protocol):
    """Some bands of one file at one date, on the file's own grid."""

    @property
    def path(self) -> str: ...
    @property
    def geobox(self) -> GeoBox: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def bands(self) -> tuple[int, ...]:
        """Which of the stack's bands these are."""
        ...

    @property
    def overviews(self) -> tuple[int, ...]:
        """Reduction factors of the overviews, finest first."""
        ...

    def grid(self, level: int | None) -> GeoBox:
        """The layer's own grid, or that of its overview number `level`."""
        ...

    def read(
        self, rows: slice, cols: slice, *, level: int | None = None, shape: tuple[int, int] | None = None
    ) -> tuple[Pixels, Valid]:
        """A window of the file or of its overview number `level`; decimated to `shape` by picking pixels."""
        ...


def read_onto(layer: Layer, target: GeoBox, resampling: str) -> tuple[Pixels, Valid] | None:
    """The layer's pixels and validity on the target grid, or None where it lies elsewhere.

    Pixels keep their dtype where nothing is interpolated, and are float32 otherwise.
    """
    if resampling not in RESAMPLINGS:
        raise unknown("resampling", resampling, RESAMPLINGS)
    lattice = grid.aligned(layer.geobox, target)
    if lattice is not None:
        return _copy(layer, target, *lattice)
    return _resample(layer, target, resampling)


def reach(layer: Layer, target: GeoBox) -> tuple[slice, slice] | None:
    """Rows and columns of a layer without overviews that bilinear reads of the target, or of any part of it, may take
    pixels from; None where it lies elsewhere."""
    lattice = grid.aligned(layer.geobox, target)
    if lattice is None:
        window = _kernel(layer, target, "bilinear").window(target)
    else:
        row, col, down, right = lattice
        window = (
            _overlap(row, target.shape[0], down, layer.geobox.shape[0])[0],
            _overlap(col, target.shape[1], right, layer.geobox.shape[1])[0],
        )
    return window if window and all(span.stop > span.start for span in window) else None


def _copy(layer: Layer, target: GeoBox, row: int, col: int, down: int, right: int) -> tuple[Pixels, Valid] | None:
    height, width = target.shape
    rows, to_rows = _overlap(row, height, down, layer.geobox.shape[0])
    cols, to_cols = _overlap(col, width, right, layer.geobox.shape[1])
    if rows.stop <= rows.start or cols.stop <= cols.start:
        return None
    pixels, valid = layer.read(rows, cols)
    pixels, valid = pixels[:, ::down, ::right], valid[::down, ::right]
    if valid.shape == (height, width):
        return pixels, valid
    placed = np.zeros((len(pixels), height, width), pixels.dtype), np.zeros((height, width), bool)
    placed[0][:, to_rows, to_cols] = pixels
    placed[1][to_rows, to_cols] = valid
    return placed


def _overlap(first: int, count: int, step: int, size: int) -> tuple[slice, slice]:
    """Along one axis: the source's pixels that exist, and their places in the target."""
    start = first if step > 0 else first - count + 1
    low, high = max(start, 0), min(start + count, size)
    place = low - start if step > 0 else start + count - high
    return slice(low, high), slice(place, place + high - low)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """How a layer becomes pixels of another lattice, whatever the window."""

    resampling: str
    level: int | None
    """Number of the overview that is read."""
    source: GeoBox
    """The grid that is read."""
    size: tuple[float, float]
    """Source rows and columns per target pixel."""
    blocks: tuple[int, int]
    """Rows and columns of source pixels that may be averaged before."""

    def window(self, target: GeoBox) -> tuple[slice, slice] | None:
        """The source pixels needed, from a multiple of the blocks on: blocks are the same in every window."""
        bounds = grid.pixel_bounds(self.source, target)
        if bounds is None:
            return None
        slices = []
        for axis in (1, 0):
            total, step, block = self.source.shape[1 - axis], self.size[1 - axis], self.blocks[1 - axis]
            low, high = bounds[axis], bounds[axis + 2]
            # Between the sampled points a border may bulge by a small part of the whole; kernels reach further.
            margin = 2 + step + block + 0.02 * (high - low) * (self.source.crs != target.crs)
            first, last = max(0, math.floor((low - margin) / block) * block), min(total, math.ceil(high + margin))
            last = min(total, -(-last // block) * block)
            if last <= first:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1]


def _kernel(layer: Layer, target: GeoBox, resampling: str) -> _Kernel:
    along, across = grid.source_step(layer.geobox, target)
    if resampling == "bilinear" and max(along, across) > SHRINK:
        resampling = "average"
    level = _overview(layer, max(along, across)) if resampling == "average" else None
    source = layer.grid(level)
    ratio = source.shape[0] / layer.geobox.shape[0], source.shape[1] / layer.geobox.shape[1]
    size = along * ratio[0], across * ratio[1]
    blocks = (max(1, round(size[0])), max(1, round(size[1]))) if resampling == "average" else (1, 1)
    return _Kernel(resampling, level, source, size, blocks)


def _resample(layer: Layer, target: GeoBox, resampling: str) -> tuple[Pixels, Valid] | None:
    kernel = _kernel(layer, target, resampling)
    source, blocks = kernel.source, kernel.blocks
    window = kernel.window(target)
    if window is None:
        return None
    rows, cols = window
    height, width = target.shape
    if (rows.stop - rows.start) * (cols.stop - cols.start) * len(layer.bands) > MOST_VALUES and height * width > 1:
        return _in_halves(layer, target, resampling)
    pixels, valid = layer.read(rows, cols, level=kernel.level)
    row, col = resample.positions(source, target)
    row, col = row - rows.start, col - cols.start
    if kernel.resampling == "nearest":
        return resample.nearest(pixels, valid, row, col)
    if kernel.resampling == "average" and resample.parallel(source, target):
        return resample.average(pixels, valid, row, col, kernel.size)
    if blocks != (1, 1):
        pixels, valid = resample.reduce(pixels, valid, blocks)
    return resample.bilinear(pixels, valid, row / blocks[0], col / blocks[1])


def _overview(layer: Layer, step: float) -> int | None:
    """The coarsest overview that still has two pixels per target pixel: what it was made by shows little then."""
    fit = [level for level, factor in enumerate(layer.overviews) if factor * 2 <= step]
    return fit[-1] if fit else None


def _in_halves(layer: Layer, target: GeoBox, resampling: str) -> tuple[Pixels, Valid] | None:
    height, width = target.shape
    rows, cols = slice(0, height), slice(0, width)
    if height >= width:
        places = (slice(0, height // 2), cols), (slice(height // 2, height), cols)
    else:
        places = (rows, slice(0, width // 2)), (rows, slice(width // 2, width))
    read = [_resample(layer, target[place], resampling) for place in places]
    if all(part is None for part in read):
        return None
    dtype = next(part[0].dtype for part in read if part is not None)
    pixels, valid = np.zeros((len(layer.bands), height, width), dtype), np.zeros((height, width), bool)
    for part, place in zip(read, places, strict=True):
        if part is not None:
            pixels[(slice(None), *place)], valid[place] = part
    return pixels, valid
