"""Vectors: labelled polygons, areas of interest; any format that OGR reads, and GeoParquet."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from jaxtyping import Integer, UInt8
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyogrio.errors import DataSourceError
from rasterio import features
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from skysense_core.errors import SkysenseError, UsageError, did_you_mean
from skysense_core.geo.cog import FULL, scratch_beside
from skysense_core.geo.outline import SEGMENTS
from skysense_core.geo.paths import is_plain

logger = logging.getLogger(__name__)

FORMATS = (".gpkg", ".parquet", ".geojson", ".fgb")


def load_polygons(path: str | Path, *, column: str | None, crs: CRS | str | None) -> gpd.GeoDataFrame:
    """The polygons of a vector file in `crs` (None: in the file's own), repaired where they cross themselves.

    `path` may name a layer as QGIS does: fields.gpkg|layername=parcels. With a `column` (the class, text or numbers)
    only that and the geometry are kept, without rows where it is empty. Raises SkysenseError where the file is
    missing, no vector file, empty, without CRS or without polygons, and UsageError where column or layer are not there.
    """
    frame = _read(str(path))
    if column is not None:
        if column not in frame.columns or column == frame.geometry.name:
            known = [str(name) for name in frame.columns if name != frame.geometry.name]
            raise UsageError(
                f"{path} has no column {column!r}", fix=f"{did_you_mean(column, known)}It has: {', '.join(known)}."
            )
        frame = frame[[column, frame.geometry.name]]
        frame = frame[frame[column].notna()]
    polygons = shapely.make_valid(frame.geometry.to_numpy())
    frame = frame.set_geometry(gpd.GeoSeries([_polygonal(item) for item in polygons], frame.index, frame.crs))
    kept = frame[~(frame.geometry.is_empty | frame.geometry.isna())]
    if kept.empty:
        found = ", ".join(sorted({item.geom_type for item in polygons if item is not None})) or "no geometry"
        raise SkysenseError(f"{path}: no polygon with a {column or 'shape'} in it (it holds {found})")
    if len(kept) < len(frame):
        logger.warning("%s: %d rows have no polygon and are left out", path, len(frame) - len(kept))
    kept = kept.reset_index(drop=True)
    return kept if crs is None else _to_crs(kept, CRS(crs), str(path))


def load_points(path: str | Path, crs: CRS | str) -> gpd.GeoDataFrame:
    """The points of a vector file in `crs`, with all its columns. Raises SkysenseError where it holds anything else."""
    frame = _to_crs(_read(str(path)), CRS(crs), str(path))
    kinds = {str(kind) for kind in frame.geom_type.dropna()}
    if kinds != {"Point"} or frame.geometry.isna().any():
        found = ", ".join(sorted(kinds)) or "no geometry"
        raise SkysenseError(f"{path}: every row must be a point (it holds {found})", fix="ogr2ogr -where drops others.")
    return frame


def write_vector(frame: gpd.GeoDataFrame, out: Path) -> None:
    """Write a frame in the format of the suffix; the file appears whole or not at all.

    Raises UsageError for a format that is not known and SkysenseError where it cannot be written.
    """
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: not a vector file", fix=f"Give it one of the suffixes {', '.join(FORMATS)}.")
    with scratch_beside(out) as scratch:
        draft = scratch / out.name
        try:
            if out.suffix.lower() == ".parquet":
                frame.to_parquet(draft)
            else:
                frame.to_file(draft)
        except (DataSourceError, OSError) as error:
            raise SkysenseError(f"{out}: cannot be written: {error}", fix=FULL) from None
        draft.replace(out)


def _read(path: str) -> gpd.GeoDataFrame:
    file, _, layer = path.partition("|layername=")
    if is_plain(file) and not Path(file).exists():
        parent = Path(file).parent
        hint = did_you_mean(Path(file).name, (item.name for item in parent.iterdir())) if parent.is_dir() else ""
        raise SkysenseError(f"{file}: no such file", fix=hint.strip() or None)
    try:
        if file.endswith((".parquet", ".geoparquet")):
            frame = gpd.read_parquet(file)
        else:
            layers = [str(name) for name, kind in pyogrio.list_layers(file) if kind is not None]
            if not layer and len(layers) > 1:
                raise UsageError(
                    f"{file} has {len(layers)} layers: {', '.join(layers)}",
                    fix=f"Name one: '{file}|layername={layers[0]}'",
                )
            if layer and layer not in layers:
                raise UsageError(
                    f"{file} has no layer {layer!r}",
                    fix=f"{did_you_mean(layer, layers)}It has: {', '.join(layers) or 'none with geometry'}.",
                )
            frame = gpd.read_file(file, layer=layer or None)
    except (DataSourceError, ValueError, OSError) as error:
        raise SkysenseError(f"{file}: not a vector file that can be read: {error}") from None
    if not isinstance(frame, gpd.GeoDataFrame):
        raise SkysenseError(f"{file}: a table without geometry")
    if frame.empty:
        raise SkysenseError(f"{file}: holds no features")
    if frame.crs is None:
        raise SkysenseError(
            f"{file}: has no coordinate reference system (CRS)",
            fix=f"State it, if you know it: ogr2ogr -a_srs EPSG:CODE out.gpkg {file}",
        )
    return frame


def _polygonal(geometry: BaseGeometry | None) -> BaseGeometry | None:
    """The polygons of what make_valid returned, which may hold the lines of a collapsed part too."""
    if geometry is None or geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts) if parts else None


def _to_crs(frame: gpd.GeoDataFrame, crs: CRS, path: str) -> gpd.GeoDataFrame:
    moved = frame.to_crs(crs.proj)
    bounds = moved.total_bounds
    if not np.isfinite(bounds).all():
        raise SkysenseError(f"{path}: has no place in {crs}", fix="Is the CRS that the file states the right one?")
    return moved


def rasterize(
    frame: gpd.GeoDataFrame, codes: Sequence[int] | Integer[np.ndarray, "n"], geobox: GeoBox, *, fill: int
) -> UInt8[np.ndarray, "h w"]:
    """Burn one code per row onto a grid: a pixel gets the code of the last polygon that holds its centre, else `fill`.

    The frame may be in any CRS; rows outside of the grid cost nothing.
    """
    if len(codes) != len(frame):
        raise ValueError(f"{len(codes)} codes for {len(frame)} polygons")
    if frame.crs is not None and geobox.crs is not None and CRS(frame.crs) != geobox.crs:
        frame = _to_crs(frame, geobox.crs, "polygons")
    inside = np.sort(frame.sindex.query(geobox.extent.geom, predicate="intersects"))
    shapes = [(frame.geometry.iloc[int(row)], int(codes[int(row)])) for row in inside]
    if not shapes:
        return np.full(tuple(geobox.shape), fill, np.uint8)
    return features.rasterize(
        shapes, out_shape=tuple(geobox.shape), fill=fill, transform=geobox.affine, all_touched=False, dtype="uint8"
    )


def load_aoi(
    source: str | Path | tuple[float, float, float, float], crs: CRS | str, *, bbox_crs: CRS | str | None = None
) -> BaseGeometry:
    """An area of interest in `crs`: the union of a file's polygons, or a box (xmin, ymin, xmax, ymax).

    A box is in `bbox_crs`, else in `crs`; in degrees one with xmin > xmax crosses the antimeridian.
    """
    crs = CRS(crs)
    if not isinstance(source, tuple):
        return shapely.union_all(load_polygons(source, column=None, crs=crs).geometry.to_numpy())
    own = CRS(bbox_crs) if bbox_crs is not None else crs
    xmin, ymin, xmax, ymax = source
    text = ",".join(f"{value:g}" for value in source)
    if not all(map(math.isfinite, source)) or ymin >= ymax or (xmin >= xmax and not own.geographic):
        raise UsageError(f"--bbox {text}: not a box", fix="Its order is xmin,ymin,xmax,ymax.")
    boxes = [shapely.box(xmin, ymin, xmax, ymax)] if xmin < xmax else _split_box(xmin, ymin, xmax, ymax)
    pieces = [shapely.segmentize(box, max(box.length / (4 * SEGMENTS), 1e-9)) for box in boxes]
    moved = gpd.GeoSeries(pieces, crs=own.proj).to_crs(crs.proj)
    if not np.isfinite(moved.total_bounds).all():
        raise UsageError(f"--bbox {text}: has no place in {crs}", fix="--bbox-crs says what its numbers are.")
    return shapely.union_all(moved.to_numpy())


def _split_box(xmin: float, ymin: float, xmax: float, ymax: float) -> list[Polygon]:
    return [shapely.box(xmin, ymin, 180, ymax), shapely.box(-180, ymin, xmax, ymax)]
