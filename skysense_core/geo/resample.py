"""Resampling in numpy: where target pixels lie in a source window, and what their values are there.

Written out rather than left to GDAL's warper, because prediction needs a pixel to be the same in whatever window it is
read: the warper approximates coordinates per window (up to 1/8 pixel) and derives the width of its kernel from the
window's shape. Here coordinates are interpolated between nodes that are fixed to the target lattice, and kernels depend
on the two lattices only. Invalid source pixels have no weight.
"""

import numpy as np
from affine import Affine
from jaxtyping import Bool, Float, Int, Num
from odc.geo.geobox import GeoBox

from skysense_core.geo import grid

NODES = 16
"""Target pixels between two exactly transformed nodes."""
ERROR = 0.01
"""Source pixels by which interpolated coordinates may be off; otherwise each pixel is transformed exactly."""
TIE = 1e-6
"""Coordinates this close below a pixel's edge belong to the next pixel, whatever the rounding."""
FAR = -1e9

Values = Float[np.ndarray, "c h w"]
Source = Num[np.ndarray, "c i j"]
SourceValid = Bool[np.ndarray, "i j"]
Valid = Bool[np.ndarray, "h w"]
Coordinates = Float[np.ndarray, "#h #w"]


def positions(source: GeoBox, target: GeoBox) -> tuple[Coordinates, Coordinates]:
    """Rows and columns of all target pixel centres in the source's pixels (0 is the edge of the first).

    Of shape (h, 1) and (1, w) where the axes are parallel, (h, w) otherwise; far outside where a pixel has no place.
    """
    height, width = target.shape
    i, j = np.arange(height) + 0.5, np.arange(width) + 0.5
    if source.crs == target.crs:
        step = ~source.affine * target.affine
        if parallel(source, target):
            return (step.e * i + step.f)[:, None], (step.a * j + step.c)[None, :]
        cols, rows = grid.place(step, *np.meshgrid(j, i))
        return rows, cols
    first_row, first_col = _lattice_index(target)
    along, across = _nodes(first_row, height), _nodes(first_col, width)
    cols, rows = _exact(source, target, *np.meshgrid(across, along))
    middle = _exact(source, target, *np.meshgrid(across[:-1] + NODES / 2, along[:-1] + NODES / 2))
    guessed = [(p[:-1, :-1] + p[1:, :-1] + p[:-1, 1:] + p[1:, 1:]) / 4 for p in (cols, rows)]
    if max(np.abs(g - m).max() for g, m in zip(guessed, middle, strict=True)) < ERROR:
        down, right = _hats(along, i), _hats(across, j)
        return down @ rows @ right.T, down @ cols @ right.T
    cols, rows = _exact(source, target, *np.meshgrid(j, i))
    return rows, cols


def parallel(source: GeoBox, target: GeoBox) -> bool:
    """Whether rows and columns of both grids run the same way (or opposite ways)."""
    if source.crs != target.crs:
        return False
    step = ~source.affine * target.affine
    return bool(abs(step.b) * target.shape[0] + abs(step.d) * target.shape[1] < TIE)


def _lattice_index(geobox: GeoBox) -> tuple[int, int]:
    """Row and column of a grid's first pixel on the lattice that is counted from the CRS's origin."""
    a = geobox.affine
    col, row = grid.place(~Affine(a.a, a.b, 0, a.d, a.e, 0), a.c, a.f)
    return int(np.floor(row + 0.25)), int(np.floor(col + 0.25))


def _nodes(first: int, count: int) -> Float[np.ndarray, "n"]:
    """Positions of the nodes that enclose `count` pixels, of which the first has the lattice index `first`."""
    start = -(first % NODES)
    return np.arange(start, count + NODES, NODES, dtype=np.float64)


def _hats(nodes: Float[np.ndarray, "n"], at: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m n"]:
    """Weights of linear interpolation between nodes, as a matrix."""
    return np.maximum(0, 1 - np.abs(at[:, None] - nodes) / NODES)


def _exact(
    source: GeoBox, target: GeoBox, cols: Float[np.ndarray, "h w"], rows: Float[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    x, y = grid.place(target.affine, cols, rows)
    x, y = grid.transform(grid.crs_of(target), grid.crs_of(source), x.ravel(), y.ravel())
    col, row = grid.place(~source.affine, x, y)
    known = np.isfinite(col) & np.isfinite(row)
    return np.where(known, col, FAR).reshape(cols.shape), np.where(known, row, FAR).reshape(cols.shape)


def nearest(
    pixels: Source, valid: SourceValid, rows: Coordinates, cols: Coordinates
) -> tuple[Num[np.ndarray, "c h w"], Valid]:
    """The source pixel that holds each target pixel's centre."""
    row, col, inside = _holders(valid, rows, cols)
    return pixels[:, row, col], valid[row, col] & inside


def _holders(
    valid: SourceValid, rows: Coordinates, cols: Coordinates
) -> tuple[Int[np.ndarray, "#h #w"], Int[np.ndarray, "#h #w"], Valid]:
    height, width = valid.shape
    row, col = (np.floor(p + TIE).astype(np.intp) for p in (rows, cols))
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return row.clip(0, height - 1), col.clip(0, width - 1), inside


def bilinear(pixels: Source, valid: SourceValid, rows: Coordinates, cols: Coordinates) -> tuple[Values, Valid]:
    """Linear interpolation between the valid ones of the four nearest source pixels; valid where the nearest one is."""
    row, col, inside = _holders(valid, rows, cols)
    good = valid[row, col] & inside
    values = _weighable(pixels, valid)
    if rows.shape[1] == 1 and cols.shape[0] == 1:
        between = _interpolate(values, rows[:, 0], axis=1)
        mixed = _interpolate(between, cols[0], axis=2)
    else:
        mixed = _gather(values, rows, cols, inside)
    return _weighed(mixed, good, len(pixels)), good


def average(
    pixels: Source, valid: SourceValid, rows: Coordinates, cols: Coordinates, size: tuple[float, float]
) -> tuple[Values, Valid]:
    """Mean of the source over each target pixel's area of `size` (rows, columns) source pixels, for parallel axes.

    Parts of source pixels count by their area. Valid where at least half of the area inside the source is.
    """
    _, _, inside = _holders(valid, rows, cols)
    values = _weighable(pixels, valid)
    mixed = _weigh(values, *_covered(rows[:, 0], size[0], values.shape[1]), axis=1)
    mixed = _weigh(mixed, *_covered(cols[0], size[1], values.shape[2]), axis=2)
    good = inside if len(mixed) == len(pixels) else inside & (mixed[-1] >= 0.5 - TIE)
    return _weighed(mixed, good, len(pixels)), good


def reduce(pixels: Source, valid: SourceValid, factors: tuple[int, int]) -> tuple[Values, Valid]:
    """Means of the valid pixels of each block of `factors` (rows, columns) pixels: an overview made on the fly.

    The last blocks may be smaller. A block is valid where at least half of it is.
    """
    # The middle of a last, smaller block may lie outside, where nothing would be valid: stay within.
    rows, cols = (
        np.minimum(np.arange(0, size, factor) + factor / 2, size - TIE * 2)
        for size, factor in zip(valid.shape, factors, strict=True)
    )
    return average(pixels, valid, rows[:, None], cols[None, :], (float(factors[0]), float(factors[1])))


def _weighable(pixels: Source, valid: SourceValid) -> Float[np.ndarray, "n i j"]:
    """The source as float32; where not all is valid, with invalid pixels 0 and their validity as one more band."""
    if valid.all():
        return pixels.astype(np.float32)
    return np.concatenate([np.where(valid, pixels, 0).astype(np.float32), valid[None].astype(np.float32)])


def _weighed(mixed: Float[np.ndarray, "n h w"], good: Valid, count: int) -> Values:
    """The weighted means, from weighted sums and (if not all was valid) the sum of the weights in the last band."""
    return mixed if len(mixed) == count else mixed[:-1] / np.where(good, mixed[-1], 1)


def _interpolate(
    values: Float[np.ndarray, "c i j"], at: Float[np.ndarray, "n"], axis: int
) -> Float[np.ndarray, "c p q"]:
    """Linear interpolation along the rows (axis 1) or columns (axis 2); constants stay exactly constant."""
    count = values.shape[axis]
    first = np.floor(at - 0.5)
    share = (at - 0.5 - first).astype(np.float32)
    low, high = (index.clip(0, count - 1).astype(np.intp) for index in (first, first + 1))
    result = np.take(values, low, axis=axis)
    step = np.take(values, high, axis=axis)
    step -= result
    step *= share[:, None] if axis == 1 else share
    result += step
    return result


Taps = tuple[Int[np.ndarray, "n h"], Float[np.ndarray, "n h"]]
"""For each of h positions along an axis, n source pixels and their weights, which sum to 1."""


def _covered(centres: Float[np.ndarray, "h"], size: float, count: int) -> Taps:
    low, high = (centres - size / 2).clip(0, count), (centres + size / 2).clip(0, count)
    taps = np.floor(low) + np.arange(int(np.ceil(size)) + 1)[:, None]
    weights = (np.minimum(high, taps + 1) - np.maximum(low, taps)).clip(0)
    weights /= np.maximum(weights.sum(axis=0), TIE)
    return taps.clip(0, count - 1).astype(np.intp), weights.astype(np.float32)


def _weigh(
    values: Float[np.ndarray, "c i j"], taps: Int[np.ndarray, "n h"], weights: Float[np.ndarray, "n h"], axis: int
) -> Float[np.ndarray, "c p q"]:
    """Weighted sums of n source rows (axis 1) or columns (axis 2) for each of h positions."""
    shape = (-1, 1) if axis == 1 else (-1,)
    total = np.take(values, taps[0], axis=axis) * weights[0].reshape(shape)
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        part = np.take(values, tap, axis=axis)
        part *= weight.reshape(shape)
        total += part
    return total


def _gather(
    values: Float[np.ndarray, "c i j"], rows: Coordinates, cols: Coordinates, inside: Valid
) -> Float[np.ndarray, "c h w"]:
    """Bilinear interpolation at scattered positions. Band by band in one dimension: several times faster in numpy."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    row, col = rows + 0.5, cols + 0.5  # the padding has moved the pixel centres to whole numbers + 1
    low_row, low_col = np.floor(row), np.floor(col)
    down, right = (row - low_row).astype(np.float32), (col - low_col).astype(np.float32)
    width = padded.shape[2]
    index = np.where(inside, low_row * width + low_col, 0).astype(np.intp)
    out = np.empty((len(values), *inside.shape), np.float32)
    right_of, below = np.empty_like(out[0]), np.empty_like(out[0])

    def between(plane: Float[np.ndarray, "n"], into: Float[np.ndarray, "h w"]) -> None:
        """a + (b - a) x right, for each pixel and its right neighbour."""
        plane.take(index, out=into, mode="clip")
        plane[1:].take(index, out=right_of, mode="clip")
        np.subtract(right_of, into, out=right_of)
        np.multiply(right_of, right, out=right_of)
        np.add(into, right_of, out=into)

    for band, plane in zip(out, padded.reshape(len(values), -1), strict=True):
        between(plane, band)
        between(plane[width:], below)
        below -= band
        below *= down
        band += below
    return out
