"""How much memory GDAL may use for decoded blocks while a scene is swept row by row."""

import contextlib
import os
from collections.abc import Iterable, Iterator

import rasterio

from skysense_core.geo.raster import Stack

LEAST, MOST = 32 * 2**20, 512 * 2**20
"""Bounds in bytes. GDAL's own default is a twentieth of the machine's memory, which a long scene fills."""
BLOCK_ROWS = 1024
"""Rows of the highest blocks in use (Sentinel-2's JPEG 2000)."""


@contextlib.contextmanager
def block_cache(stacks: Iterable[Stack], columns: int, readers: int) -> Iterator[None]:
    """Within, the cache holds one row of blocks over `columns` pixels for each reader, so that none is decoded twice.

    Nothing changes where the user has set GDAL_CACHEMAX.
    """
    pixel = sum(len(stack.days) * len(stack.band_names) * stack.dtype.itemsize for stack in stacks)
    size = min(max(BLOCK_ROWS * columns * pixel * readers, LEAST), MOST)
    with rasterio.Env(**({} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": size})):
        yield
