"""Detected objects of a scene as a vector file: one box each, measured on the ground."""

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from jaxtyping import Float, Float64
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod

from skysense_core.errors import SkysenseError
from skysense_core.geo import boxes
from skysense_core.geo.cog import FULL, scratch_beside
from skysense_core.geo.grid import crs_of, place, transform
from skysense_core.geo.polygons import DRIVERS, check_polygons_path

SUFFIXES = (".parquet", *DRIVERS)
COLUMNS = 11
"""Of a row of a table: 8 corner numbers (x, y) in pixels, class code, score, number of the window that found it."""


class ObjectWriter:
    """Collects rows of objects of one shard and writes them as one array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Float64[np.ndarray, "_ 11"]] = [np.empty((0, COLUMNS))]

    def write(self, rows: Float64[np.ndarray, "_ 11"]) -> None:
        """Some more rows."""
        self._rows.append(rows)

    def close(self, *, whole: bool = True) -> None:
        """Write the file, if all is there. Raises SkysenseError where that fails."""
        if not whole:
            return
        rows = np.concatenate(self._rows)
        try:
            np.save(self.path, rows, allow_pickle=False)
            if len(np.load(self.path, mmap_mode="r")) != len(rows):
                raise OSError("cut short")
        except (OSError, ValueError) as error:
            raise SkysenseError(f"{self.path}: cannot be written: {error}", fix=FULL) from None


def of_rows(
    rows: Float64[np.ndarray, "n 11"], within: tuple[int, int], first: int, stop: int
) -> Float64[np.ndarray, "m 11"]:
    """The objects whose centre lies in pixel rows `first` to `stop`, of some whose centres lie in those of `within`."""
    row = np.floor(rows[:, 1:8:2].mean(axis=1)).clip(within[0], within[1] - 1)
    return rows[(row >= first) & (row < stop)]


def join_objects(parts: Sequence[Path], overlap: float) -> Float64[np.ndarray, "n 11"]:
    """The objects of all shards, each once: see `each_once`.

    Raises SkysenseError where a shard cannot be read.
    """
    tables = [np.empty((0, COLUMNS))]
    for path in parts:
        try:
            tables.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise SkysenseError(f"{path}: cannot be read: {error}", fix=f"Delete {path.parent} and repeat.") from None
    return each_once(np.concatenate(tables), overlap)


def each_once(rows: Float64[np.ndarray, "n 11"], overlap: float) -> Float64[np.ndarray, "m 11"]:
    """Of boxes of one class that different windows found and that overlap more than `overlap`, the best; best first."""
    corners, codes, windows = rows[:, :8].reshape(-1, 4, 2), rows[:, 8].astype(np.int64), rows[:, 10].astype(np.int64)
    return rows[boxes.suppress(corners, rows[:, 9], codes, overlap, windows)]


def object_table(
    rows: Float[np.ndarray, "n 11"], grid: GeoBox, *, names: Sequence[str], oriented: bool
) -> gpd.GeoDataFrame:
    """Objects (corners in pixels of `grid`) as a table in its CRS, best first.

    Columns: class (its code), name, score, angle (degrees clockwise from north to the longer side, 0 to 180; null for
    boxes that have no direction), length_m and width_m (the longer and the shorter side, on the ground), geometry.
    Raises SkysenseError for a grid without a place on the ground.
    """
    crs = crs_of(grid)
    geodetic, ellipsoid = crs.proj.geodetic_crs, crs.proj.get_geod()
    if geodetic is None or ellipsoid is None:
        raise SkysenseError("a scene in a local CRS has no place on the ground")
    corners = rows[:, :8].reshape(-1, 4, 2)
    x, y = place(grid.affine, corners[..., 0], corners[..., 1])
    lon, lat = transform(crs, CRS(geodetic.to_wkt()), x.ravel(), y.ravel())
    length, width, angle = _measured(lon.reshape(-1, 4), lat.reshape(-1, 4), ellipsoid)
    codes = rows[:, 8].astype(np.int64)
    columns = {
        "class": codes,
        "name": np.array([*names, ""], dtype=object)[codes],
        "score": rows[:, 9],
        "angle": angle if oriented else np.full(len(rows), np.nan),
        "length_m": length,
        "width_m": width,
    }
    return gpd.GeoDataFrame(columns, geometry=shapely.polygons(np.stack([x, y], axis=-1)), crs=crs.proj)


def write_objects(table: gpd.GeoDataFrame, out: Path) -> None:
    """Write a table of objects as .gpkg, .parquet, .fgb or (in longitude and latitude) .geojson.

    `out` appears complete or not at all. Raises UsageError for another suffix and SkysenseError where it cannot be
    written.
    """
    check_polygons_path(out)
    with scratch_beside(out) as scratch:
        draft = scratch / out.name
        try:
            if out.suffix.lower() == ".parquet":
                table.to_parquet(draft, compression="zstd", write_covering_bbox=True)
            else:
                driver = DRIVERS[out.suffix.lower()]
                moved = table.to_crs(4326) if driver == "GeoJSON" else table
                options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}
                moved.to_file(draft, driver=driver, engine="pyogrio", geometry_type="Polygon", layer_options=options)
                # OGR does not tell of a full disk when it closes a file.
                if pyogrio.read_info(draft, force_feature_count=True)["features"] != len(table):
                    raise OSError("the file is not complete")
        except (RuntimeError, ValueError, OSError) as error:
            raise SkysenseError(f"{out}: cannot be written: {error}", fix=FULL) from error
        draft.replace(out)


def _measured(
    lon: Float[np.ndarray, "n 4"], lat: Float[np.ndarray, "n 4"], ellipsoid: Geod
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Longer side, shorter side, bearing of the longer one, of boxes on the ground."""
    sides = [ellipsoid.inv(lon[:, i], lat[:, i], lon[:, i + 1], lat[:, i + 1]) for i in (0, 1)]
    (first, _, one), (second, _, other) = sides
    longest = one >= other
    return np.maximum(one, other), np.minimum(one, other), np.where(longest, first, second) % 180
