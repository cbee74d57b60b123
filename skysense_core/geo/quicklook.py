"""A look at a scene without reading all of it: how its first file is stored, and a sample of its pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import rasterio
from jaxtyping import Num

from skysense_core.geo.layer import access, open_dataset, stamp_of
from skysense_core.geo.raster import Stack
from skysense_core.geo.warp import Layer

SIDE = 512
"""Most pixels along each side of what is looked at."""
SMALL = 2048
"""Files up to this side are looked at whole, with or without overviews."""
PIECES, PIECE = 5, 96
"""Of a large file without overviews, so many pieces of this side along each axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a raster file is stored."""

    driver: str
    compression: str | None
    tiled: bool
    overviews: tuple[int, ...]
    """Factors by which they are smaller."""
    cog: bool
    """Whether it says that it was laid out as a cloud-optimised GeoTIFF."""
    nodata: float | None


def storage(path: str) -> Storage:
    """How a file that GDAL opens is stored. Raises SkysenseError where it cannot be read."""

    def look() -> Storage:
        dataset = open_dataset(path, stamp_of(path))
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        return Storage(
            driver=dataset.driver,
            compression=structure.get("COMPRESSION"),
            tiled=dataset.block_shapes[0][1] < dataset.width,
            overviews=tuple(dataset.overviews(1)),
            cog=structure.get("LAYOUT") == "COG",
            nodata=dataset.nodatavals[0],
        )

    return access(path, look)


def sample(stack: Stack) -> tuple[tuple[Num[np.ndarray, "n"], ...], float]:
    """(valid values of each band on the date in the middle, share of the looked-at pixels that are valid).

    Picked, by overviews where there are some, and by pieces all over a large file that has none.
    """
    bands: list[list[Num[np.ndarray, "n"]]] = [[] for _ in stack.band_names]
    looked, measured = 0, 0
    for layer, _ in stack.layers[len(stack.layers) // 2]:
        for rows, cols, shape in _windows(layer):
            pixels, valid = layer.read(rows, cols, shape=shape)
            converted = stack.conversion(pixels[None], valid[None])[0]
            looked, measured = looked + valid.size, measured + int(valid.sum())
            for band, plane in zip(layer.bands, converted, strict=True):
                bands[band].append(plane[valid])
    return tuple(np.concatenate(parts) for parts in bands), measured / max(looked, 1)


def _windows(layer: Layer) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Rows, columns, and the shape that they are read in."""
    height, width = layer.geobox.shape
    if max(height, width) <= SMALL or layer.overviews:
        yield slice(0, height), slice(0, width), (min(height, SIDE), min(width, SIDE))
        return
    for row in np.linspace(0, max(height - PIECE, 0), PIECES).astype(int).tolist():
        for col in np.linspace(0, max(width - PIECE, 0), PIECES).astype(int).tolist():
            rows, cols = slice(row, min(row + PIECE, height)), slice(col, min(col + PIECE, width))
            yield rows, cols, (rows.stop - rows.start, cols.stop - cols.start)


def gdal_version() -> str:
    """The version of GDAL that reads rasters here."""
    return str(rasterio.__gdal_version__)
