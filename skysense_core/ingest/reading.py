"""Dates of cells on their way from the files into chips: read, cut, put aside, taken back."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox

from skysense_core.data.shards import FULL
from skysense_core.errors import SkysenseError
from skysense_core.geo.grid import Bounds, bounds_in
from skysense_core.geo.raster import Stack
from skysense_core.types import Raster

HELD = 64 * 2**20
"""Bytes of cells that are put aside in memory; beyond, on disk."""


class Aside:
    """Dates of cells, put aside until all of a cell are there, what is much in a file without a name in `folder`.

    A context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = tempfile.SpooledTemporaryFile(max_size=HELD, dir=str(folder), mode="w+b")  # noqa: SIM115
        self._places: dict[tuple[int, str], dict[int, tuple[int, np.dtype, tuple[int, ...]]]] = {}

    def put(
        self, key: tuple[int, str], date: int, pixels: Num[np.ndarray, "c h w"], valid: Bool[np.ndarray, "h w"]
    ) -> None:
        """Keep one date of one cell. Raises SkysenseError where the disk is full."""
        try:
            place = self._file.seek(0, 2)
            self._file.write(pixels.tobytes())
            self._file.write(valid.tobytes())
        except OSError as error:
            raise SkysenseError(f"{self.folder}: {error.strerror}", fix=FULL) from None
        self._places.setdefault(key, {})[date] = (place, pixels.dtype, pixels.shape)

    def dates(self, key: tuple[int, str]) -> list[int]:
        """The dates that there are of a cell, in order."""
        return sorted(self._places.get(key, {}))

    def take(self, key: tuple[int, str], date: int) -> tuple[Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """One date of one cell."""
        place, dtype, (bands, height, width) = self._places[key][date]
        self._file.seek(place)
        pixels = np.frombuffer(self._file.read(bands * height * width * dtype.itemsize), dtype)
        valid = np.frombuffer(self._file.read(height * width), bool)
        return pixels.reshape(bands, height, width), valid.reshape(height, width)

    def __enter__(self) -> "Aside":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def meets(stack: Stack, date: int, grid: GeoBox) -> bool:
    """Whether a file of a date may show a part of the grid."""
    reach = bounds_in(grid, stack.geobox.crs)
    return any(overlap(bounds, reach) for _, bounds in stack.layers[date])


def overlap(one: Bounds, other: Bounds) -> bool:
    """Whether two rectangles share ground."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def read_date(stack: Stack, date: int, grid: GeoBox) -> tuple[Raster, list[tuple[str, str]]]:
    """One date on a grid, and (path, reason) of the files that could not be read there: it is read without them."""
    try:
        return stack.read(grid, dates=[date]), []
    except SkysenseError:
        sound, failed = [], []
        for placed in stack.layers[date]:
            try:
                _only(stack, date, [placed]).read(grid)
                sound.append(placed)
            except SkysenseError as error:
                failed.append((placed[0].path, str(error)))
        return _only(stack, date, sound).read(grid), failed


def _only(stack: Stack, date: int, layers: Sequence[tuple]) -> Stack:
    """The stack of some files of one date."""
    return replace(stack, layers=(tuple(layers),), days=stack.days[[date]], dated=stack.dated[[date]])


def rounded(pixels: Num[np.ndarray, "t c h w"], preferred: np.dtype) -> Num[np.ndarray, "t c h w"]:
    """Whole numbers in `preferred` where they fit, else in the smallest signed type that holds them."""
    if pixels.dtype.kind in "iu":
        return pixels
    values = np.rint(pixels)
    for dtype in (preferred, np.dtype(np.int16), np.dtype(np.int32)):
        limits = np.iinfo(dtype)
        if values.min() >= limits.min and values.max() <= limits.max:
            return values.astype(dtype)
    return pixels
