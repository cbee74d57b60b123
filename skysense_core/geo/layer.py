"""Raster files through GDAL: what one file is, and the reading of its windows.

A dataset handle belongs to one thread of one process; layers themselves are plain values that travel anywhere.
"""

import contextlib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from jaxtyping import Bool, Num, UInt8
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from skysense_core.errors import SkysenseError
from skysense_core.geo import grid, masks
from skysense_core.geo.paths import is_plain, is_remote

Stamp = tuple[int, int] | None
"""Time and size of a local file: a file that is written anew is opened anew."""

_REMOTE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "1"}
_HANDLES = 128
_local = threading.local()
# A file without georeference is refused, or read as the picture that it is: rasterio's warning adds nothing.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


def stamp_of(path: str) -> Stamp:
    """What tells one state of a local file from another; None for anything that is not one."""
    if not is_plain(path):
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def open_dataset(path: str, stamp: Stamp, level: int | None = None) -> DatasetReader:
    """This thread's handle of a file or of one of its overviews; the least recently used ones are closed.

    Raises SkysenseError where GDAL cannot open it.
    """
    if getattr(_local, "process", None) != os.getpid():  # a forked process must not share its parent's handles
        _local.process, _local.handles = os.getpid(), OrderedDict()
    handles: OrderedDict[tuple[str, Stamp, int | None], DatasetReader] = _local.handles
    key = (path, stamp, level)
    if key not in handles:
        options = {} if level is None else {"overview_level": level}
        with remote_options(path):
            try:
                handles[key] = rasterio.open(path, **options)
            except RasterioError as error:
                raise SkysenseError(f"{path}: {_reason(error)}") from None
        if len(handles) > _HANDLES:
            handles.popitem(last=False)[1].close()
    handles.move_to_end(key)
    return handles[key]


@contextlib.contextmanager
def remote_options(path: str) -> Iterator[None]:
    """GDAL's settings for files behind a network, where the user has not set them: retry, and list no folders."""
    if not is_remote(path):
        yield
        return
    with rasterio.Env(**{key: value for key, value in _REMOTE.items() if key not in os.environ}):
        yield


def _reason(error: Exception) -> str:
    text = str(error.__cause__ or error)
    if "not recognized as being in a supported file format" in str(error):
        return "not a raster that GDAL can read"
    return f"cannot be read: {text}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileLayer:
    """Some bands of one raster file."""

    path: str
    stamp: Stamp
    geobox: GeoBox
    stored: np.dtype
    """Type in the file (of all its bands together, where they differ)."""
    dtype: np.dtype
    """Type of what is read."""
    bands: tuple[int, ...]
    """Positions among the stack's bands."""
    indexes: tuple[int, ...]
    """GDAL's numbers (from 1) of the same bands; (1,) with a palette."""
    nodata: tuple[float | None, ...]
    gain: tuple[float, ...]
    bias: tuple[float, ...]
    """Stated scale and offset: pixel = gain x stored + bias. (1, 0) leaves the stored type."""
    masked: bool
    """Has a mask band, internal or .msk."""
    alpha: tuple[int, float] | None
    """Number of a real alpha band, and the value from which on a pixel is shown."""
    palette: UInt8[np.ndarray, "256 4"] | None
    columns: tuple[int, ...]
    """With a palette: which of its red, green, blue are read."""
    positive: bool
    """Values at or below zero are no measurements (linear power, of which a logarithm is taken)."""
    overviews: tuple[int, ...]

    def grid(self, level: int | None) -> GeoBox:
        """The file's own grid, or that of its overview number `level`."""
        return self.geobox if level is None else grid.scaled(self.geobox, self._open(level).shape)

    def _open(self, level: int | None) -> DatasetReader:
        return open_dataset(self.path, self.stamp, level)

    def read(
        self, rows: slice, cols: slice, *, level: int | None = None, shape: tuple[int, int] | None = None
    ) -> tuple[Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """Pixels and validity of a window that lies within the file, or its decimation to `shape` by picking pixels.

        Raises SkysenseError, naming file and window, where a block is damaged.
        """
        window = Window.from_slices(rows, cols)
        indexes = [*self.indexes, *([self.alpha[0]] if self.alpha else [])]
        dataset = self._open(level)
        try:
            with remote_options(self.path):
                if len(set(dataset.dtypes)) == 1:
                    stored = dataset.read(indexes, window=window, out_shape=shape and (len(indexes), *shape))
                else:  # rasterio reads bands of several types one by one only
                    planes = [dataset.read(index, window=window, out_shape=shape) for index in indexes]
                    stored = np.stack(planes, dtype=self.stored)
                mask = dataset.read_masks(1, window=window, out_shape=shape) if self.masked else None
        except (RasterioIOError, RasterioError) as error:
            raise SkysenseError(
                f"{self.path}: rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop} {_reason(error)}",
                fix="The file is damaged there or was cut off: copy or download it again.",
            ) from None
        bands = stored[: len(self.indexes)]
        valid = masks.measured(bands, self.nodata)
        if mask is not None:
            valid &= mask > 0
        if self.alpha is not None:
            valid &= stored[-1] >= self.alpha[1]
        if self.palette is not None:
            colours = self.palette[bands[0]]
            return colours[..., list(self.columns)].transpose(2, 0, 1), valid & (colours[..., 3] > 0)
        if self.positive:
            valid &= (bands > 0).all(axis=0)
        return masks.scale(bands, self.gain, self.bias), valid
