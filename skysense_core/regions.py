"""Cut an area into regions for many processes or machines: a grid over a raster, an area of interest or a rectangle."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from skysense_core.errors import UsageError
from skysense_core.geo.grid import Bounds, crs_of, ground_gsd
from skysense_core.geo.raster import open_stack
from skysense_core.geo.regions import Region, cut, over, write_regions
from skysense_core.geo.vector import load_aoi, load_polygons

DEGREE = 1e-5
"""Without a raster, edges lie on whole units of the CRS, or on this part of a degree (about a metre)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsConfig:
    """What is cut, and into what."""

    size: str
    """Side of a region: `4096` pixels of the raster, or `500m`, `5km`."""
    inputs: tuple[str, ...] = ()
    """The raster whose grid is cut: a file, a glob or a folder; not given: the area itself is cut."""
    bbox: Bounds | None = None
    """xmin, ymin, xmax, ymax."""
    bbox_crs: str | None = None
    """CRS of `bbox`; not given: that of the regions."""
    aoi: Path | None = None
    """Polygons; regions that share no ground with them are left out."""
    crs: str | None = None
    """CRS of the regions where there is no raster; not given: that of the area or the rectangle."""
    out: Path | None = None
    """A vector file for the regions."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsResult:
    """The regions, row by row, and the CRS of their bounds."""

    crs: str
    regions: tuple[Region, ...]
    path: Path | None


def regions(config: RegionsConfig) -> RegionsResult:
    """Squares over a raster, or over an area, in that raster's or area's CRS.

    Over a raster their edges are edges of its pixels, so what is predicted in them has neither gap nor overlap. The
    first one begins at the upper left corner of the raster, or of the part of it that rectangle and polygons lie in.
    Raises UsageError where nothing can be cut: no raster and no area, areas that do not meet, a size that is none.
    """
    if config.out is not None and config.out.exists() and not config.overwrite:
        raise UsageError(f"{config.out} exists", fix="Use --overwrite to replace it.")
    stack = open_stack(config.inputs, bands=None) if config.inputs else None
    if stack is not None and config.crs is not None:
        raise UsageError("--crs is for areas without a raster", fix="The regions of a raster are in its own CRS.")
    crs = _crs(config) if stack is None else crs_of(stack.geobox)
    area = _area(config, crs)
    if stack is None:
        assert area is not None  # or there would be no CRS
        grid = _grid_over(area, crs)
    else:
        grid = stack.geobox
    if area is not None:
        part = over(grid, area.bounds)
        if part.empty:
            raise UsageError(
                f"the area lies outside the raster: {_text(area.bounds)}; the raster is {_text(grid.boundingbox.bbox)}",
                fix="--bbox-crs says what the numbers of --bbox are, for example EPSG:4326.",
            )
        grid = part.geobox(grid)
    found = cut(grid, _pixels(config.size, grid, on_raster=stack is not None), area)
    if config.out is not None:
        write_regions(found, crs, config.out)
    return RegionsResult(crs=str(crs), regions=tuple(found), path=config.out)


def _crs(config: RegionsConfig) -> CRS:
    """The CRS of regions that no raster gives one."""
    for option, text in (("--crs", config.crs), ("--bbox-crs", None if config.aoi else config.bbox_crs)):
        if text is not None:
            return _known(option, text)
    if config.aoi is not None:
        own = load_polygons(config.aoi, column=None, crs=None).crs
        return CRS(own if own.to_epsg() is None else f"EPSG:{own.to_epsg()}")
    if config.bbox is None:
        raise UsageError("nothing to cut", fix="Give a raster, --aoi FILE or --bbox XMIN,YMIN,XMAX,YMAX.")
    raise UsageError("--bbox: in which CRS?", fix="For example --bbox-crs EPSG:4326")


def _known(option: str, text: str) -> CRS:
    try:
        return CRS(text)
    except CRSError:
        raise UsageError(f"{option} {text}: no such CRS", fix=f"For example {option} EPSG:4326") from None


def _area(config: RegionsConfig, crs: CRS) -> BaseGeometry | None:
    """What both the rectangle and the polygons cover."""
    own = None if config.bbox_crs is None else _known("--bbox-crs", config.bbox_crs)
    areas = [load_aoi(source, crs, bbox_crs=own) for source in (config.bbox, config.aoi) if source is not None]
    if not areas:
        return None
    area = shapely.intersection_all(areas)
    if area.area == 0:
        raise UsageError("--bbox and --aoi have nothing in common")
    return area


def _grid_over(area: BaseGeometry, crs: CRS) -> GeoBox:
    """Pixels of about a metre, on round numbers: edges of regions can be read and repeated."""
    unit = DEGREE if crs.geographic else 1.0
    left, bottom, right, top = (edge / unit for edge in area.bounds)
    first, last = math.floor(left + 1e-6), math.ceil(top - 1e-6)
    shape = last - math.floor(bottom + 1e-6), math.ceil(right - 1e-6) - first
    return GeoBox(shape, Affine(unit, 0, first * unit, 0, -unit, last * unit), crs)


def _pixels(size: str, grid: GeoBox, *, on_raster: bool) -> int:
    """The side of a region in pixels of the grid."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(px|m|km)?", size)
    fix = "For example --size 4096 (pixels of the raster) or --size 5km"
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--size {size}: not a size", fix=fix)
    number, unit = float(match[1]), match[2] or "px"
    if unit != "px":
        return max(1, round(number * (1000 if unit == "km" else 1) / _metres(grid)))
    if not on_raster:
        raise UsageError(f"--size {size}: pixels of which raster?", fix="Give a raster, or a size such as 5km.")
    if not number.is_integer():
        raise UsageError(f"--size {size}: not whole pixels", fix=fix)
    return int(number)


def _metres(grid: GeoBox) -> float:
    """A pixel's side: in a projection's own metres, where 5 km are to be a round number; in degrees on the ground."""
    crs = crs_of(grid)
    if crs.geographic:
        return ground_gsd(grid)
    return math.sqrt(abs(grid.affine.determinant)) * crs.proj.axis_info[0].unit_conversion_factor


def _text(bounds: Bounds) -> str:
    return ", ".join(f"{edge:.7g}" for edge in bounds)
