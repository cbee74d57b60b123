"""STAC items with small rasters beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from surfaces import UTM

from skysense_core.geo.raster import ReadOptions, Stack, open_stack

REFLECTANCE = "reflectance x 10000"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
RASTER = "https://stac-extensions.github.io/raster/v1.1.0/schema.json"


def write_band(path: Path, pixels: np.ndarray, grid: GeoBox = UTM, **profile: object) -> Path:
    """(h, w) or (c, h, w) pixels as a GeoTIFF that says nothing of bands."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    shape = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", crs=str(grid.crs), transform=grid.affine, **(shape | profile)) as dataset:
        dataset.write(pixels)
    return path


def asset(href: str, name: str | None = None, common: str | None = None, **fields: Any) -> dict[str, Any]:
    """An asset of STAC 1.0 with one band; `scale`, `offset` and `nodata` are those of `raster:bands`."""
    band = {key: value for key, value in (("name", name), ("common_name", common)) if value}
    raster = {key: fields.pop(key) for key in ("scale", "offset", "nodata", "unit") if key in fields}
    listed = {"eo:bands": [band]} if band else {}
    listed |= {"raster:bands": [raster]} if raster else {}
    return {"href": href, "type": COG, "roles": ["data"], **listed, **fields}


def item(
    assets: Mapping[str, Mapping[str, Any]], *, name: str = "one", day: str = "2023-08-21", **properties: Any
) -> dict[str, Any]:
    """A STAC item of some place; further `properties` by name, colons as double underscores."""
    ring = [[33.0, -17.0], [33.1, -17.0], [33.1, -16.9], [33.0, -16.9], [33.0, -17.0]]
    named = {key.replace("__", ":"): value for key, value in properties.items()}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [RASTER],
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": [33.0, -17.0, 33.1, -16.9],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day}T10:16:01Z", **named},
        "links": [],
        "assets": dict(assets),
    }


def placed(one: dict, west: float, south: float) -> dict:
    ring = [[west, south], [west + 0.1, south], [west + 0.1, south + 0.1], [west, south + 0.1], [west, south]]
    where = {"bbox": [*ring[0], *ring[2]], "geometry": {"type": "Polygon", "coordinates": [ring]}}
    return one | where


def write_item(path: Path, *args: Any, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(item(*args, **fields)))
    return path


def open_items(*paths: Path | str, bands: list[tuple[str, ...]], unit: str = REFLECTANCE, **options: object) -> Stack:
    return open_stack([str(path) for path in paths], bands=bands, unit=unit, options=ReadOptions(**options))
