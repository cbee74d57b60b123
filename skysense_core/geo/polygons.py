"""A finished class map without its specks, and as polygons: made band by band and written chunk by chunk."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyogrio
import rasterio
import shapely
from jaxtyping import Float64, Num
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyarrow.parquet import ParquetWriter
from rasterio import features
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.cache import block_cache
from skysense_core.geo.cog import BLOCK, FULL, scratch_beside
from skysense_core.geo.contours import Contours, Outlines
from skysense_core.geo.grid import crs_of, place, transform
from skysense_core.types import IGNORE, UNSURE

DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
"""What OGR calls the formats that it writes, by suffix; .parquet is written without it."""

SCHEMA = pa.schema(
    {
        "class": pa.int32(),
        "name": pa.string(),
        "area_m2": pa.float64(),
        "confidence": pa.float64(),
        "geometry": pa.binary(),
    }
)

_STRAIGHT = 32
"""Longest edge in pixels that is brought into degrees, where straight lines are curved."""
_NODES = 33
"""Columns where the ground area of a row's pixels is computed; it is linear in between."""


def check_polygons_path(out: Path) -> None:
    """Raises UsageError where the suffix names no format that `write_polygons` writes."""
    if out.suffix.lower() not in (".parquet", *DRIVERS):
        raise UsageError(f"{out}: not a format of polygons", fix=f"Use .parquet, {', '.join(DRIVERS)}.")


def sieve(path: Path, minimum_pixels: int) -> None:
    """Give areas of fewer pixels (4-connected) the class of their largest neighbour, in place.

    `path` is a draft of `RowWriter`, as its blocks are written anew. Nodata stays, and no area becomes nodata. The
    rules are those of GDAL's sieve, which sees the whole map at once: up to four bytes per pixel, and some for each
    area. Raises SkysenseError where the file cannot be read or written.
    """
    with block_cache((), 0, 0), _opened(path, "r+") as dataset:
        minimum = min(minimum_pixels, dataset.width * dataset.height)
        if minimum <= 1:
            return
        sieved = np.empty((dataset.height, dataset.width), dtype=np.uint8)
        mask = dataset.read_masks(1)
        features.sieve(
            rasterio.band(dataset, 1), minimum, out=sieved, mask=None if mask.all() else mask, connectivity=4
        )
        del mask
        for row in range(0, dataset.height, BLOCK):
            rows = sieved[row : row + BLOCK]
            dataset.write(rows, 1, window=RasterioWindow(0, row, dataset.width, len(rows)))


def write_polygons(
    classes: Path,
    out: Path,
    *,
    names: Sequence[str],
    confidence: Path | None = None,
    rows: int = 128,
    skip: Collection[int] = (),
) -> int:
    """One polygon for each 4-connected area of a class in the class map `classes`; returns how many.

    Columns: class (its code), name, area_m2 (on the ground), confidence (mean of the raster `confidence` over the
    polygon's pixels; null without) and geometry, in the CRS of the map, or in longitude and latitude in .geojson.
    Nodata and the codes in `skip` have no polygon. The polygons do not depend on `rows`, the height of a band.

    Memory: up to 50 bytes per pixel of a band, the outlines of the areas that reach its last row, and one chunk of
    polygons. `out` appears complete or not at all. Raises UsageError for an unknown suffix, and SkysenseError where a
    file cannot be read or written, a code has no name, or `confidence` lies on another grid.
    """
    check_polygons_path(out)
    with contextlib.ExitStack() as context:
        scratch = context.enter_context(scratch_beside(out))
        context.enter_context(block_cache((), 0, 0))
        dataset = context.enter_context(_opened(classes))
        values = None if confidence is None else context.enter_context(_opened(confidence))
        grid = GeoBox(dataset.shape, dataset.transform, str(dataset.crs) if dataset.crs else None)
        if values is not None and (values.shape, values.transform) != (dataset.shape, dataset.transform):
            raise SkysenseError(f"{confidence}: lies on another grid than {classes}")
        scale = (values.scales[0], values.offsets[0]) if values is not None else None
        batches = _Batches(
            _batch(outlines, grid, names, scale, curved=out.suffix.lower() == ".geojson")
            for outlines in _outlines(dataset, values, grid, len(names), rows, skip)
        )
        draft = scratch / out.name
        _write(batches, draft, crs_of(grid))
        draft.replace(out)
    return batches.count


@contextlib.contextmanager
def _opened(path: Path, mode: str = "r") -> Iterator[DatasetReader]:
    try:
        with rasterio.open(path, mode, driver="GTiff") as dataset:
            yield dataset
    except RasterioError as error:
        raise SkysenseError(f"{path}: cannot be read{' or written' if mode == 'r+' else ''}: {error}") from error


def _outlines(
    classes: DatasetReader,
    values: DatasetReader | None,
    grid: GeoBox,
    named: int,
    rows: int,
    skip: Collection[int],
) -> Iterator[Outlines]:
    """The areas of a map as they end; summed up are square metres, confidence, and pixels with confidence."""
    drawn = np.arange(256, dtype=np.uint8)
    drawn[[*skip, UNSURE]] = IGNORE
    areas = _measure(grid)
    contours = Contours(grid.shape.x, quantities=1 if values is None else 3)
    for row in range(0, grid.shape.y, rows):
        window = RasterioWindow(0, row, grid.shape.x, min(rows, grid.shape.y - row))
        codes = drawn[classes.read(1, window=window)]
        top = int(codes.max(initial=0, where=codes != IGNORE))
        if top >= named:
            raise SkysenseError(f"{classes.name}: code {top} has no name, there are {named} classes")
        quantities: list[Num[np.ndarray, "n w"]] = [areas(row, len(codes))]
        if values is not None:
            known = values.read_masks(1, window=window) > 0
            quantities += [np.where(known, values.read(1, window=window), 0), known.astype(np.uint8)]
        yield from contours.add(codes, quantities)
    nothing = np.full((1, grid.shape.x), IGNORE, dtype=np.uint8)
    yield from contours.add(nothing, [np.zeros(nothing.shape)] * (1 if values is None else 3))


def _measure(grid: GeoBox) -> Callable[[int, int], Float64[np.ndarray, "n w"]]:
    """What tells the square metres on the ground of the pixels of `count` rows from `row` on.

    A pixel is four small parallelograms about its centre, on the ellipsoid of the CRS; their sides meet at any angle,
    as a map need not be conformal.
    """
    crs = crs_of(grid)
    geodetic, ellipsoid = crs.proj.geodetic_crs, crs.proj.get_geod()
    if geodetic is None or ellipsoid is None:
        raise SkysenseError("a map in a local CRS has no place on the ground")
    lonlat = CRS(geodetic.to_wkt())
    centres = np.arange(grid.shape.x) + 0.5
    nodes = np.linspace(0.5, grid.shape.x - 0.5, min(_NODES, grid.shape.x))

    def areas(row: int, count: int) -> Float64[np.ndarray, "n w"]:
        cols, rows = np.meshgrid(nodes, row + 0.5 + np.arange(count))
        centre = transform(crs, lonlat, *place(grid.affine, cols, rows))
        bearings, lengths = [], []
        for right, down in ((0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5)):
            side = transform(crs, lonlat, *place(grid.affine, cols + right, rows + down))
            bearing, _, length = ellipsoid.inv(*centre, *side)
            bearings.append(np.radians(bearing))
            lengths.append(length)
        quarters = [lengths[i - 1] * lengths[i] * np.sin(bearings[i] - bearings[i - 1]) for i in range(4)]
        known = np.abs(np.sum(quarters, axis=0))
        found = np.empty((count, grid.shape.x))
        for line, value in zip(found, known, strict=True):
            line[:] = np.interp(centres, nodes, value)
        return found

    return areas


def _batch(
    outlines: Outlines, grid: GeoBox, names: Sequence[str], scale: tuple[float, float] | None, *, curved: bool
) -> pa.RecordBatch:
    """The rows of some areas. `curved`: with vertices along their edges, which another CRS may bend."""
    x, y = place(grid.affine, outlines.x.astype(float), outlines.y.astype(float))
    rings = shapely.linearrings(np.stack([x, y], axis=1), indices=outlines.ring)
    polygons = shapely.polygons(rings, indices=outlines.area)
    if curved:
        a, b, _, d, e, _ = grid.affine[:6]
        polygons = shapely.segmentize(polygons, _STRAIGHT * min(math.hypot(a, d), math.hypot(b, e)))
    mean = np.full(len(polygons), np.nan)
    if scale is not None:
        known = outlines.sums[:, 2] > 0
        mean[known] = outlines.sums[known, 1] / outlines.sums[known, 2] * scale[0] + scale[1]
    columns = [
        outlines.codes.astype(np.int32),
        np.array(list(names), dtype=object)[outlines.codes],
        outlines.sums[:, 0],
        mean,
        shapely.to_wkb(polygons),
    ]
    arrays = [pa.array(column, field.type, from_pandas=True) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class _Batches:
    """Counts the rows, and keeps an error: one that is raised while OGR reads the batches is lost on the way."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                self.count += batch.num_rows
                yield batch
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise


def _write(batches: _Batches, path: Path, crs: CRS) -> None:
    try:
        if path.suffix.lower() == ".parquet":
            _write_parquet(batches, path, crs)
        else:
            _write_ogr(batches, path, crs)
    except (RuntimeError, ValueError, OSError) as error:
        if batches.error is None:
            raise SkysenseError(f"{path.name}: cannot be written: {error}", fix=FULL) from error
    if batches.error is not None:
        raise batches.error


def _write_parquet(batches: _Batches, path: Path, crs: CRS) -> None:
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.proj.to_json_dict()}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
    with ParquetWriter(path, SCHEMA.with_metadata({"geo": json.dumps(geo)}), compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_ogr(batches: _Batches, path: Path, crs: CRS) -> None:
    driver = DRIVERS[path.suffix.lower()]
    pyogrio.write_arrow(
        pa.RecordBatchReader.from_batches(SCHEMA, batches),
        path,
        driver=driver,
        geometry_name="geometry",
        geometry_type="Polygon",
        crs=crs.proj.to_wkt(),
        layer_options={"RFC7946": "YES"} if driver == "GeoJSON" else None,
    )
    _check(path, batches.count)


def _check(path: Path, count: int) -> None:
    """OGR does not tell of what it fails to write when it closes a file: the last bytes, the index of a GeoPackage."""
    complete = True
    if path.suffix.lower() == ".geojson":
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            complete = b"".join(file.read().split()).endswith(b"]}")
    elif path.suffix.lower() == ".gpkg":
        complete = pyogrio.read_info(path)["capabilities"]["fast_spatial_filter"]
    elif count:
        pyogrio.raw.read(path, fids=[count - 1])
    if not complete:
        raise OSError("the end of the file or its index is missing")
