"""Where a grid lies on the earth; by itself, because reading vectors imports much more."""

import math

import numpy as np
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from shapely import Polygon

from skysense_core.errors import SkysenseError
from skysense_core.geo import grid

LONLAT = CRS("EPSG:4326")
SEGMENTS = 32
"""Pieces per edge when a straight edge is brought into another CRS, where it is curved."""


def footprint_lonlat(geobox: GeoBox) -> tuple[Polygon, tuple[float, float]]:
    """The outline of a grid in EPSG:4326 and its centre (lon, lat), lon in [-180, 180).

    An outline that crosses the antimeridian goes on beyond +-180 rather than around the earth. Raises SkysenseError
    where the grid has no CRS or lies nowhere on the earth.
    """
    height, width = geobox.shape
    steps = np.linspace(0, 1, SEGMENTS + 1)[:-1]
    cols = np.concatenate([steps, np.ones_like(steps), 1 - steps, np.zeros_like(steps)]) * width
    rows = np.concatenate([np.zeros_like(steps), steps, np.ones_like(steps), 1 - steps]) * height
    lon, lat = _lonlat(geobox, cols, rows)
    middle_lon, middle_lat = (
        float(value[0]) for value in _lonlat(geobox, np.array([width / 2]), np.array([height / 2]))
    )
    if np.isfinite(lon).all() and math.isfinite(middle_lon):
        closed = np.unwrap(np.append(lon, lon[0]), period=360)
        if abs(closed[-1] - closed[0]) > 180:  # the ring runs around a pole
            top = (lat.min(), 90.0) if middle_lat > 0 else (-90.0, lat.max())
            return shapely.box(-180, top[0], 180, top[1]), (_wrap(middle_lon), middle_lat)
        shift = 360 * round((middle_lon - closed[:-1].mean()) / 360) + _wrap(middle_lon) - middle_lon
        return Polygon(np.column_stack([closed[:-1] + shift, lat])), (_wrap(middle_lon), middle_lat)
    # Beyond the edge of the earth's disk (geostationary images): what there is of it.
    x, y = grid.sample_points(geobox, steps=SEGMENTS)
    lon, lat = grid.transform(grid.crs_of(geobox), LONLAT, x, y)
    known = np.isfinite(lon) & np.isfinite(lat)
    hull = shapely.convex_hull(shapely.MultiPoint(np.column_stack([lon[known], lat[known]])))
    if not isinstance(hull, Polygon):
        raise SkysenseError(f"the grid in {geobox.crs} lies nowhere on the earth")
    return hull, (_wrap(hull.centroid.x), hull.centroid.y)


def _lonlat(geobox: GeoBox, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = grid.place(geobox.affine, cols, rows)
    return grid.transform(grid.crs_of(geobox), LONLAT, x, y)


def _wrap(lon: float) -> float:
    return (lon + 180) % 360 - 180
