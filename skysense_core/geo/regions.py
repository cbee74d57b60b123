"""Regions: the parts that a large area is predicted in, cut from a grid or read from a file or from stdin."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from skysense_core.errors import UsageError, did_you_mean
from skysense_core.geo.grid import Bounds, place
from skysense_core.geo.vector import load_aoi, load_polygons, write_vector
from skysense_core.geo.windows import Window, window_over

ID = "id"
"""The column of ids in what `write_regions` writes, and the one that `read_regions` takes unless told otherwise."""
MOST = 10**6
"""Regions that a grid is cut into at most: more are a mistake in the size."""
LONGEST = 200
"""Bytes of an id: a file name has 255, and a temporary file's is longer than the file's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of an area, with an id that can be (part of) a file name."""

    id: str
    bounds: Bounds
    """xmin, ymin, xmax, ymax in the CRS that was asked for."""
    polygon: BaseGeometry | None = None
    """What is meant within the bounds; None: all of it."""


def over(grid: GeoBox, bounds: Bounds) -> Window:
    """The whole pixels of a grid that cover a rectangle in its CRS; empty where they do not meet."""
    left, bottom, right, top = bounds
    return window_over(grid, GeoBox((1, 1), Affine(right - left, 0, left, 0, bottom - top, top), grid.crs))


def cut(grid: GeoBox, size: int, area: BaseGeometry | None = None) -> list[Region]:
    """Squares of `size` pixels that cover a grid, row by row from its upper left corner; the last ones are smaller.

    Their edges are the edges of pixels. With an `area` in the grid's CRS only those that share ground with it. Raises
    UsageError where they would be more than a million.
    """
    height, width = grid.shape
    rows, cols = -(-height // size), -(-width // size)
    if rows * cols > MOST:
        raise UsageError(f"{rows * cols:,} regions of {size:,} pixels: too many", fix="Give a larger --size.")
    digits = max(2, len(str(max(rows, cols) - 1)))
    regions = [
        Region(
            id=f"r{row:0{digits}}_c{col:0{digits}}",
            bounds=_bounds(grid, row * size, col * size, min((row + 1) * size, height), min((col + 1) * size, width)),
        )
        for row in range(rows)
        for col in range(cols)
    ]
    if area is None:
        return regions
    shapely.prepare(area)
    boxes = shapely.box(*np.transpose([region.bounds for region in regions]))
    kept = shapely.intersects(area, boxes) & ~shapely.touches(area, boxes)
    return [region for region, keep in zip(regions, kept, strict=True) if keep]


def _bounds(grid: GeoBox, top: int, left: int, bottom: int, right: int) -> Bounds:
    """Of a rectangle of pixels. A corner is the same number for all regions that share it."""
    corners = [place(grid.affine, float(col), float(row)) for row in (top, bottom) for col in (left, right)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def text_of(bounds: Bounds) -> str:
    """`xmin,ymin,xmax,ymax` as `--bbox` takes it: 15 digits, without the noise of binary numbers."""
    return ",".join(f"{edge:.15g}" for edge in bounds)


def read_regions(
    source: str | Path, crs: CRS | str, *, id_column: str | None = None, bbox_crs: CRS | str | None = None
) -> list[Region]:
    """Regions in `crs`: the polygons of a vector file, or with `-` lines of `id<TAB>xmin,ymin,xmax,ymax` from stdin.

    `id_column` names the column of the file that holds the ids, else it is `id`; a rectangle of stdin is in `bbox_crs`,
    else in `crs`. Raises UsageError where ids are missing, not unique or no file names, and where a line is no region.
    """
    crs = CRS(crs)
    piped = str(source) == "-"
    found = _from_lines(sys.stdin, crs, bbox_crs) if piped else _from_file(source, crs, id_column)
    if not found:
        raise UsageError("no region on stdin", fix="A line is an id, a tab and xmin,ymin,xmax,ymax.")
    names = [region.id for region in found]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UsageError(
            f"{_title(source)}: ids that several regions have: {_some(twice)}",
            fix="Each is the name of a file: take another column, or dissolve the polygons by this one.",
        )
    unfit = [name for name in names if not is_file_name(name)]
    if unfit:
        raise UsageError(
            f"{_title(source)}: ids that cannot be file names: {_some([repr(name) for name in unfit])}",
            fix=f"Without / and \\, not empty, not beginning with a dot, at most {LONGEST} bytes.",
        )
    return found


def is_file_name(name: str) -> bool:
    """Whether a file can be called so in every folder."""
    plain = re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", name)
    return plain is not None and len(name.encode()) <= LONGEST


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _title(source: str | Path) -> str:
    return "stdin" if str(source) == "-" else str(source)


def _from_lines(lines: Iterable[str], crs: CRS, bbox_crs: CRS | str | None) -> list[Region]:
    regions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, box = line.strip().rpartition("\t" if "\t" in line.strip() else " ")
        try:
            xmin, ymin, xmax, ymax = map(float, box.split(","))
        except ValueError:
            raise UsageError(
                f"stdin, line {number}: not a region: {line.strip()!r}",
                fix="A line is an id, a tab and xmin,ymin,xmax,ymax, as skysense regions prints it.",
            ) from None
        regions.append(
            Region(id=name.strip(), bounds=load_aoi((xmin, ymin, xmax, ymax), crs, bbox_crs=bbox_crs).bounds)
        )
    return regions


def _from_file(path: str | Path, crs: CRS, id_column: str | None) -> list[Region]:
    frame = load_polygons(path, column=None, crs=crs)
    column = id_column or ID
    if column not in frame.columns or column == frame.geometry.name:
        known = [str(name) for name in frame.columns if name != frame.geometry.name]
        hint = did_you_mean(column, known) if id_column else ""
        raise UsageError(
            f"{path} has no column {column!r}",
            fix=f"{hint}--id-column says which names the regions; it has: {', '.join(known) or 'none'}.",
        )
    if frame[column].isna().any():
        raise UsageError(f"{path}: {int(frame[column].isna().sum())} regions have no {column}", fix="Fill it in.")
    return [
        Region(id=_id(value), bounds=shape.bounds, polygon=None if shape.equals(shapely.box(*shape.bounds)) else shape)
        for value, shape in zip(frame[column], frame.geometry, strict=True)
    ]


def _id(value: object) -> str:
    """Whole numbers come as floats where a column had gaps."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def write_regions(regions: Sequence[Region], crs: CRS | str, out: Path) -> None:
    """Write the rectangles of regions as polygons with a column `id`; the file appears whole or not at all.

    Raises UsageError for a format that is not known and SkysenseError where it cannot be written.
    """
    shapes = [shapely.box(*region.bounds) for region in regions]
    write_vector(gpd.GeoDataFrame({ID: [region.id for region in regions]}, geometry=shapes, crs=CRS(crs).proj), out)
