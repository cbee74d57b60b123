"""Where prediction windows lie and how much each counts: a lattice anchored in the units of the CRS.

A pixel's windows depend on its place on the globe alone, not on the rectangle that was asked for: a part of a scene
gets the same pixels as the whole, and neighbouring scenes on one grid agree.

    window   |--------------------------------|
    trim     |--|                          |--|     weight 0: too little context
    taper       |------|            |------|        sin^2 up, cos^2 down: sums to one with the neighbour's
    stride                          |--->           the neighbour's taper begins here
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from jaxtyping import Float32
from odc.geo.geobox import GeoBox

from skysense_core.errors import UsageError
from skysense_core.geo.grid import LATTICE, pixel_bounds, place
from skysense_core.types import Raster


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A rectangle of pixels of a scene; it may reach beyond the scene."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        return self.col + self.width

    @property
    def empty(self) -> bool:
        return self.height <= 0 or self.width <= 0

    def __and__(self, other: "Window") -> "Window":
        """The common part; `empty` where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height, width = min(self.row_stop, other.row_stop) - row, min(self.col_stop, other.col_stop) - col
        return Window(row=row, col=col, height=max(height, 0), width=max(width, 0))

    def __str__(self) -> str:
        return f"rows {self.row}-{self.row_stop}, columns {self.col}-{self.col_stop}"

    def shifted(self, rows: int, cols: int) -> "Window":
        """The same rectangle so many rows further down and columns further right."""
        return replace(self, row=self.row + rows, col=self.col + cols)

    def geobox(self, grid: GeoBox) -> GeoBox:
        """The window as a grid of its own, within or beyond `grid`."""
        a, b, _, d, e, _ = grid.affine[:6]
        x, y = place(grid.affine, float(self.col), float(self.row))
        return GeoBox((self.height, self.width), Affine(a, b, x, d, e, y), grid.crs)

    @staticmethod
    def of(grid: GeoBox) -> "Window":
        """The whole of a grid."""
        return Window(row=0, col=0, height=grid.shape.y, width=grid.shape.x)


def window_over(grid: GeoBox, part: GeoBox, margin: int = 0) -> Window:
    """The smallest window of `grid` over the grid `part` (any CRS), `margin` pixels wider, cut to `grid`."""
    bounds = pixel_bounds(grid, part)
    if bounds is None:
        return Window(row=0, col=0, height=0, width=0)
    # An edge on a pixel's edge, up to float noise, does not take in the next pixel.
    left, top = (math.floor(edge + LATTICE) - margin for edge in bounds[:2])
    right, bottom = (math.ceil(edge - LATTICE) + margin for edge in bounds[2:])
    return Window(row=top, col=left, height=bottom - top, width=right - left) & Window.of(grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """The windows of one scene.

    Along an axis window i starts at i * stride - origin, and at most two windows count at a pixel. The scene's own
    border is no seam: the outermost windows are those that reach it, with weight 1 up to it. Where the last window but
    one can reach the border by moving outwards a little, it does so, and the last one, which would show mostly mirror
    images, is left out.
    """

    shape: tuple[int, int]
    """Rows and columns of the scene."""
    origin: tuple[int, int]
    """Row and column of the scene's first pixel, counted from the origin of the CRS."""
    window: int
    """Side of a window in pixels."""
    trim: int
    """Pixels at a window's inner sides that count nothing."""
    overlap: int
    """Pixels over which two neighbours blend."""
    align: int = 1
    """Outermost windows move by multiples of so many pixels, the coarsest patch of the model."""

    def __post_init__(self) -> None:
        if min(self.trim, self.overlap) < 0 or self.overlap > self.stride:
            raise ValueError(f"windows of {self.window} px cannot trim {self.trim} px and blend {self.overlap} px")

    @property
    def stride(self) -> int:
        return self.window - 2 * self.trim - self.overlap

    @property
    def rows(self) -> tuple[int, ...]:
        """First rows of the windows, from top to bottom; the first may be negative."""
        return _starts(self, axis=0)

    @property
    def cols(self) -> tuple[int, ...]:
        """First columns of the windows, from left to right."""
        return _starts(self, axis=1)

    def windows(self, select: Window | None = None) -> list[Window]:
        """Every window, row by row; with `select` those that count at one of its pixels."""
        height, width = self.shape
        select = select or Window(row=0, col=0, height=height, width=width)
        rows = self._counting(self.rows, height, select.row, select.row_stop)
        cols = self._counting(self.cols, width, select.col, select.col_stop)
        return [Window(row=row, col=col, height=self.window, width=self.window) for row in rows for col in cols]

    def inner(self, window: Window) -> Window:
        """The part of the scene where the window counts."""
        top, bottom = self._reach(window.row, self.rows, self.shape[0])
        left, right = self._reach(window.col, self.cols, self.shape[1])
        return Window(row=top, col=left, height=bottom - top, width=right - left)

    def weights(self, window: Window) -> tuple[Float32[np.ndarray, "h"], Float32[np.ndarray, "w"]]:
        """Separable weights of the window's rows and columns.

        The products of all windows sum to one at every pixel of the scene, so nothing needs to be divided at the end.
        """
        return self._taper(window.row, self.rows), self._taper(window.col, self.cols)

    def _counting(self, starts: tuple[int, ...], size: int, first: int, stop: int) -> list[int]:
        reaches = ((start, *self._reach(start, starts, size)) for start in starts)
        return [start for start, begin, end in reaches if max(begin, first) < min(end, stop)]

    def _reach(self, start: int, starts: tuple[int, ...], size: int) -> tuple[int, int]:
        begin = 0 if start == starts[0] else start + self.trim
        return begin, size if start == starts[-1] else start + self.window - self.trim

    def _taper(self, start: int, starts: tuple[int, ...]) -> Float32[np.ndarray, "n"]:
        weights = np.ones(self.window, dtype=np.float32)
        index, shared = starts.index(start), self.window - 2 * self.trim
        if index > 0:
            rise = _rise(starts[index - 1] + shared - start)
            weights[: self.trim] = 0
            weights[self.trim : self.trim + len(rise)] = rise
        if index < len(starts) - 1:
            rise = _rise(start + shared - starts[index + 1])
            stop = self.window - self.trim
            weights[stop:] = 0
            weights[stop - len(rise) : stop] = rise[::-1]
        return weights


@functools.lru_cache(maxsize=64)
def _starts(lattice: Lattice, axis: int) -> tuple[int, ...]:
    """Where the windows start along an axis."""
    size, origin = lattice.shape[axis], lattice.origin[axis]
    window, stride, align = lattice.window, lattice.stride, lattice.align
    phase = -(origin % align)
    if phase + window >= size:
        return (phase,)
    first = -(origin % stride)
    count = 1 + max(0, math.ceil((size - window - first) / stride))
    starts = [first + index * stride for index in range(count)]
    # Two that were moved apart still blend over a part of what regular neighbours share.
    most = min(lattice.overlap, (window - stride) // 2)
    if len(starts) > 2:
        outwards = math.ceil(starts[1] / align) * align
        if outwards <= most:
            starts[:2] = [starts[1] - outwards]
    if len(starts) > 2:
        outwards = math.ceil((size - starts[-2] - window) / align) * align
        if starts[-2] + outwards - starts[-3] - stride <= most:
            starts[-2:] = [starts[-2] + outwards]
    return tuple(starts)


def _rise(n: int) -> Float32[np.ndarray, "n"]:
    """sin^2(pi/2 (i + 1/2) / n); the second half is one minus the first: with its mirror image it sums to exactly 1."""
    rise = np.square(np.sin(np.pi / 2 * (np.arange(n) + 0.5) / max(n, 1))).astype(np.float32)
    half = n // 2
    rise[n - half :] = 1 - rise[:half][::-1]
    return rise


def lattice_for(grid: GeoBox, window: int, *, align: int, shared: int | None = None) -> Lattice:
    """The lattice of a scene's grid.

    `align`: window and stride become multiples of it (the coarsest patch or token of the model), so that every
    window cuts the ground at the same phase. `shared`: pixels that two neighbouring windows have in common, 5/16 of
    the window by default: about 2.1 passes over each pixel. An eighth of them is trimmed at either side and the rest
    is blended. Raises UsageError for a window or an overlap that cannot work.
    """
    if window < align:
        raise UsageError(f"--window {window}: smaller than the model's patches", fix=f"Use a multiple of {align}.")
    window = round(window / align) * align
    if shared is not None and not 0 <= shared <= window // 2:
        raise UsageError(f"--overlap {shared}: windows of {window} px share at most {window // 2} px")
    wanted = window * 11 // 16 if shared is None else window - shared
    stride = min(max(1, round(wanted / align)) * align, window)
    trim = (window - stride) // 8
    overlap = window - stride - 2 * trim
    shape = (grid.shape.y, grid.shape.x)
    return Lattice(shape=shape, origin=_origin(grid), window=window, trim=trim, overlap=overlap, align=align)


def cells_of(grid: GeoBox, cell: int) -> GeoBox:
    """Squares of `cell` pixels that cover a grid, with the phase of the windows: a window is whole cells.

    The outer ones may reach beyond the grid. Grids whose pixels lie on one lattice have cells on one lattice.
    """
    row, col = _lead(grid, cell)
    a, b, _, d, e, _ = grid.affine[:6]
    x, y = place(grid.affine, float(-col), float(-row))
    shape = math.ceil((grid.shape.y + row) / cell), math.ceil((grid.shape.x + col) / cell)
    return GeoBox(shape, Affine(a * cell, b * cell, x, d * cell, e * cell, y), grid.crs)


def pixels_of(grid: GeoBox, cell: int, window: Window) -> Window:
    """The pixels of a grid in a window that is counted in its cells."""
    row, col = _lead(grid, cell)
    return Window(
        row=window.row * cell - row,
        col=window.col * cell - col,
        height=window.height * cell,
        width=window.width * cell,
    )


def _lead(grid: GeoBox, cell: int) -> tuple[int, int]:
    """Rows and columns by which the first cell begins before the grid."""
    row, col = _origin(grid)
    return row % cell, col % cell


def _origin(grid: GeoBox) -> tuple[int, int]:
    """Row and column of the first pixel, counted from the CRS origin in the grid's own (maybe rotated) pixels."""
    a, b, x, d, e, y = grid.affine[:6]
    col, row = place(~Affine(a, b, 0, d, e, 0), x, y)
    # The fraction of a pixel is the same for all scenes on one grid; floats next to a whole number must not split them.
    return math.floor(row + LATTICE), math.floor(col + LATTICE)


def reflect_pad(raster: Raster, window: Window, scene: tuple[int, int]) -> Raster:
    """The raster read for the part of `window` inside the scene, mirrored to the whole window, `valid` as well.

    `scene` is (rows, columns); any part down to one pixel can be mirrored.
    """
    top, left = max(0, -window.row), max(0, -window.col)
    bottom, right = max(0, window.row_stop - scene[0]), max(0, window.col_stop - scene[1])
    if not any((top, left, bottom, right)):
        return raster
    border = ((top, bottom), (left, right))
    grid = raster.geobox
    return replace(
        raster,
        pixels=np.pad(raster.pixels, ((0, 0), (0, 0), *border), mode="reflect"),
        valid=np.pad(raster.valid, ((0, 0), *border), mode="reflect"),
        geobox=None if grid is None else replace(window, row=-top, col=-left).geobox(grid),
    )
