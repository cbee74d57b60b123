"""How much memory GDAL may use for decoded blocks while a scene is swept row by row, or column by column."""

import contextlib
import os
from collections.abc import Iterable, Iterator

import rasterio

from skysense_core.geo.raster import Stack

LEAST, MOST = 32 * 2**20, 512 * 2**20
"""Bounds in bytes. GDAL's own default is a twentieth of the machine's memory, which a long scene fills."""
BLOCK = 1024
"""Side of the largest blocks in use (Sentinel-2's JPEG 2000)."""


@contextlib.contextmanager
def block_cache(stacks: Iterable[Stack], length: int, lines: int) -> Iterator[None]:
    """Within, the cache holds so many rows of blocks over `length` pixels, or columns, so that none is decoded twice.

    Nothing changes where the user has set GDAL_CACHEMAX.
    """
    pixel = sum(len(stack.days) * len(stack.band_names) * stack.dtype.itemsize for stack in stacks)
    size = min(max(BLOCK * length * pixel * lines, LEAST), MOST)
    with rasterio.Env(**({} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": size})):
        yield
