"""Geometry of pixel grids: what lies on the same lattice, what covers what, and how large a pixel is on the ground.

Affines stay float64 throughout.
"""

import functools
import math
import threading
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from affine import Affine
from jaxtyping import Float
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from pyproj.exceptions import ProjError

from skysense_core.errors import SkysenseError

Bounds = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax."""

LATTICE = 0.01
"""Grids that differ by less than this part of a pixel, everywhere on them, are the same."""


def transform(
    source: CRS, target: CRS, x: Float[np.ndarray, "*n"], y: Float[np.ndarray, "*n"]
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Points in another CRS, x before y in both; inf where a point has no place there.

    Raises SkysenseError where no way leads from one CRS to the other (another planet).
    """
    if source == target:
        return x, y
    try:
        return _transformer(source, target, threading.get_ident()).transform(x, y)
    except ProjError as error:
        if "celestial body" in str(error):
            raise SkysenseError(f"{_title(source)} and {_title(target)} are of two celestial bodies") from None
        raise SkysenseError(f"cannot transform from {_title(source)} to {_title(target)}: {error}") from None


@functools.lru_cache(maxsize=256)
def _transformer(source: CRS, target: CRS, _thread: int) -> Transformer:
    # PROJ objects are not safe to share between threads, and cost milliseconds to make: one per thread.
    return Transformer.from_crs(source.proj, target.proj, always_xy=True)


def _title(crs: CRS) -> str:
    return str(crs.proj.name if crs.to_epsg() is None else f"EPSG:{crs.to_epsg()}")


def crs_of(geobox: GeoBox) -> CRS:
    """The CRS of a grid that must have one."""
    if geobox.crs is None:
        raise SkysenseError("a grid without CRS has no place on the ground")
    return geobox.crs


def differ(grid: GeoBox, other: GeoBox) -> bool:
    """Whether two grids are not the same pixels."""
    return grid.shape != other.shape or aligned(grid, other) != (0, 0, 1, 1)


def aligned(source: GeoBox, target: GeoBox) -> tuple[int, int, int, int] | None:
    """(row, col, down, right) where target pixel (i, j) is source pixel (row + down i, col + right j), else None.

    `down` and `right` are 1 or -1 (grids of opposite orientation). None means that reading needs resampling.
    """
    if source.crs != target.crs:
        return None
    step = ~source.affine * target.affine
    down, right = round(step.e), round(step.a)
    height, width = target.shape
    drift = max(abs(step.a - right), abs(step.d)) * width + max(abs(step.e - down), abs(step.b)) * height
    col, row = place(step, 0.5, 0.5)
    shift = max(abs(col - 0.5 - round(col - 0.5)), abs(row - 0.5 - round(row - 0.5)))
    if abs(down) != 1 or abs(right) != 1 or drift + shift > LATTICE:
        return None
    return round(row - 0.5), round(col - 0.5), down, right


Number = TypeVar("Number", float, Float[np.ndarray, "*n"])


def place(affine: Affine, x: Number, y: Number) -> tuple[Number, Number]:
    """Points through an affine transform, x before y."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def sample_points(geobox: GeoBox, steps: int = 17) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """A net of points over a grid, its border included, in its CRS."""
    height, width = geobox.shape
    cols, rows = np.meshgrid(np.linspace(0, width, steps), np.linspace(0, height, steps))
    return place(geobox.affine, cols.ravel(), rows.ravel())


def pixel_bounds(source: GeoBox, target: GeoBox) -> Bounds | None:
    """What the target covers, in pixels of the source (col, row, col, row); None where they cannot meet."""
    x, y = sample_points(target)
    if source.crs != target.crs:
        x, y = transform(crs_of(target), crs_of(source), x, y)
    col, row = place(~source.affine, x, y)
    known = np.isfinite(col) & np.isfinite(row)
    if not known.any():
        return None
    return float(col[known].min()), float(row[known].min()), float(col[known].max()), float(row[known].max())


def bounds_in(geobox: GeoBox, crs: CRS | None) -> Bounds:
    """Rectangle around a grid in another CRS, a little too large rather than too small."""
    x, y = sample_points(geobox)
    if geobox.crs != crs and crs is not None:
        x, y = transform(crs_of(geobox), crs, x, y)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return math.inf, math.inf, -math.inf, -math.inf
    x, y = x[known], y[known]
    margin = 0.02 * max(np.ptp(x), np.ptp(y)) if geobox.crs != crs else 0.0
    return float(x.min() - margin), float(y.min() - margin), float(x.max() + margin), float(y.max() + margin)


def source_step(source: GeoBox, target: GeoBox) -> tuple[float, float]:
    """Source pixels per target pixel along the source's rows and columns, taken at the centre of the source.

    It depends on the two lattices only, not on the window being read: all windows are resampled alike.
    """
    height, width = source.shape
    x, y = place(source.affine, np.array([width / 2]), np.array([height / 2]))
    if source.crs != target.crs:
        x, y = transform(crs_of(source), crs_of(target), x, y)
    i, j = place(~target.affine, float(x[0]), float(y[0]))
    if not (math.isfinite(i) and math.isfinite(j)):
        i, j = target.shape[1] / 2, target.shape[0] / 2
    px, py = place(target.affine, np.array([i, i + 1.0, i]), np.array([j, j, j + 1.0]))
    if source.crs != target.crs:
        px, py = transform(crs_of(target), crs_of(source), px, py)
    col, row = place(~source.affine, px, py)
    return float(np.hypot(row[1] - row[0], row[2] - row[0])), float(np.hypot(col[1] - col[0], col[2] - col[0]))


def scaled(geobox: GeoBox, shape: tuple[int, int]) -> GeoBox:
    """The same ground cut into another number of rows and columns (the grid of an overview)."""
    height, width = geobox.shape
    return GeoBox(shape, geobox.affine * Affine.scale(width / shape[1], height / shape[0]), geobox.crs)


def north_up(geobox: GeoBox) -> GeoBox:
    """The same pixels with rows from north to south and columns from west to east; rotated grids stay as they are."""
    if geobox.crs is None or not geobox.axis_aligned:
        return geobox
    geobox = geobox.flipy() if geobox.affine.e > 0 else geobox
    return geobox.flipx() if geobox.affine.a < 0 else geobox


def union(grids: Sequence[GeoBox]) -> GeoBox:
    """The grid of the finest of them, extended over all of them."""
    finest = min(grids, key=pixel_size)
    crs = finest.crs
    boxes = []
    for grid in grids:
        bounds = pixel_bounds(finest, grid)
        if bounds is not None:
            boxes.append(bounds)
    left, top = (math.floor(min(box[i] for box in boxes) + LATTICE) for i in (0, 1))
    right, bottom = (math.ceil(max(box[i] for box in boxes) - LATTICE) for i in (2, 3))
    return north_up(GeoBox((bottom - top, right - left), finest.affine * Affine.translation(left, top), crs))


def pixel_size(geobox: GeoBox) -> float:
    """Metres per pixel to three digits, by which grids are ranked; 1 for a picture without CRS."""
    return float(f"{ground_gsd(geobox):.3g}") if geobox.crs is not None else 1.0


def ground_gsd(geobox: GeoBox) -> float:
    """Metres on the ground per pixel at the centre of a grid: the root of the area of `ground_pixel`."""
    return math.sqrt(math.prod(ground_pixel(geobox)))


def ground_pixel(geobox: GeoBox) -> tuple[float, float]:
    """Metres on the ground across and along the pixel at the centre of a grid, on the CRS's own ellipsoid.

    True for degrees (EPSG:4326) and for web mercator, whose metres are not metres. Raises SkysenseError where the
    centre of the grid lies nowhere on the ground.
    """
    crs = crs_of(geobox)
    height, width = geobox.shape
    i, j = width / 2, height / 2
    x, y = place(geobox.affine, np.array([i - 0.5, i + 0.5, i, i]), np.array([j, j, j - 0.5, j + 0.5]))
    geodetic = crs.proj.geodetic_crs
    ellipsoid = crs.proj.get_geod()
    if geodetic is None or ellipsoid is None:
        raise SkysenseError(f"{_title(crs)}: a local CRS has no place on the ground")
    lon, lat = transform(crs, CRS(geodetic.to_wkt()), x, y)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise SkysenseError(f"the centre of the grid in {_title(crs)} lies nowhere on the ground")
    _, _, across = ellipsoid.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, along = ellipsoid.inv(lon[2], lat[2], lon[3], lat[3])
    return float(across), float(along)
