"""Raster files through GDAL: what one file is, and the reading of its windows.

A dataset handle belongs to one thread of one process; layers themselves are plain values that travel anywhere.
"""

import logging
import os
import re
import threading
import time
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import rasterio
from jaxtyping import Bool, Num, UInt8
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError, stack_errors
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from skysense_core.errors import SkysenseError
from skysense_core.geo import grid, masks
from skysense_core.geo.paths import is_plain, is_remote

T = TypeVar("T")
Stamp = tuple[int, int] | None
"""Time and size of a local file: a file that is written anew is opened anew."""

ATTEMPTS = 3
"""How often a remote read is tried. GDAL asks again by itself where no answer comes, not where one breaks off."""
_REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # looks for no sidecar files
    # Closing a file forgets what came from it: half an answer, or that it could not be reached.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/:/vsiadls/:/vsioss/:/vsiswift/",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",  # bytes per second over so many seconds: a silent server is given up
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
}
_HANDLES = 128
_STRICT = (
    # From GDAL's own threads no error of a damaged block comes back, and zeros would be read for it.
    (re.compile(r"\.(jp2|j2k|jpx|jpf)(?!\w)", re.IGNORECASE), {"GDAL_NUM_THREADS": "1"}),
    # GDAL's short cut for whole pictures takes what lies in memory for the pixels that a cut file lacks.
    (re.compile(r"\.png(?!\w)", re.IGNORECASE), {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO"}),
)
"""By the end of a name: settings without which a damaged file of that format can be read as if it were sound."""
_local = threading.local()
_shared = SimpleNamespace()
_turns: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
os.register_at_fork(after_in_child=_turns.clear)  # a lock that a thread of the parent held would never be released
logger = logging.getLogger(__name__)
# A file without georeference is refused, or read as the picture that it is: rasterio's warning adds nothing.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


def stamp_of(path: str) -> Stamp:
    """What tells one state of a local file from another; None for anything that is not one."""
    if not is_plain(path):
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def open_dataset(path: str, stamp: Stamp, level: int | None = None) -> DatasetReader:
    """The handle of a file or of one of its overviews; the least recently used ones are closed.

    A local file has one per thread, a remote one per process: what it has downloaded and decoded serves all threads.
    Pixels are read within `access`. Raises SkysenseError where GDAL cannot open it.
    """
    holder = _shared if is_remote(path) else _local
    if getattr(holder, "process", None) != os.getpid():  # a forked process must not share its parent's handles
        holder.process, holder.handles = os.getpid(), OrderedDict()
    handles: OrderedDict[tuple[str, Stamp, int | None], DatasetReader] = holder.handles
    key, options = (path, stamp, level), {} if level is None else {"overview_level": level}

    def take() -> DatasetReader:
        handle = handles.pop(key, None) or rasterio.open(path, **options)
        handles[key] = handle
        return handle

    handle = access(path, take)
    if len(handles) > _HANDLES:
        handles.popitem(last=False)  # closes itself when nobody reads from it any more
    return handle


def access(path: str, read: Callable[[], T], where: str = "") -> T:
    """What `read` gives; all use of a file goes through here.

    Behind a network one thread at a time reads a file, with GDAL's settings for it where the user has not set them,
    and where that fails again with the file opened anew: `read` calls `open_dataset` itself. Raises SkysenseError
    naming the file and `where` in it.
    """
    try:
        with _strictly(path):
            return _remotely(path, read) if is_remote(path) else read()
    except (RasterioError, CPLE_BaseError) as error:
        _forget_error()
        raise _explained(path, where, error) from None


def _strictly(path: str) -> AbstractContextManager[object]:
    """Within, GDAL says where a file is damaged."""
    settings = next((settings for names, settings in _STRICT if names.search(path)), None)
    return nullcontext() if settings is None else rasterio.Env(**settings)


def _forget_error() -> None:
    """After a failed read rasterio leaves GDAL's error standing, and the thread's next call, on any file, raises it."""
    with stack_errors():
        pass


def _remotely(path: str, read: Callable[[], T]) -> T:
    with _turns[path], rasterio.Env(**{key: value for key, value in _REMOTE.items() if key not in os.environ}):
        attempt = 1
        while True:
            try:
                return read()
            except (RasterioError, CPLE_BaseError) as error:
                _forget_error()
                _close(path)
                if attempt == ATTEMPTS or _status(error) in REFUSALS:
                    raise
                logger.warning("%s: %s; trying again", path, error.__cause__ or error)
                time.sleep(attempt)
                attempt += 1


def _close(path: str) -> None:
    handles = getattr(_shared, "handles", {})
    for key in [key for key in handles if key[0] == path]:
        handles.pop(key).close()


REFUSALS = {
    "401": ("asks who you are", "Tell GDAL, for example with GDAL_HTTP_USERPWD or GDAL_HTTP_HEADERS."),
    "403": ("refuses to give it", "Tell GDAL who you are, for example with GDAL_HTTP_HEADERS or AWS_PROFILE."),
    "404": ("has no such file", "Check the address."),
    "410": ("has no such file any more", "Check the address."),
}
"""Answers of a server that stay the same however often it is asked."""


def _status(error: Exception) -> str | None:
    found = re.search(r"HTTP response code: (\d+)", f"{error} {error.__cause__}")
    return found[1] if found else None


def _explained(path: str, where: str, error: Exception) -> SkysenseError:
    status = _status(error)
    if status in REFUSALS:
        answer, fix = REFUSALS[status]
        return SkysenseError(f"{path}: the server {answer} (HTTP {status})", fix=fix)
    if "not recognized as being in a supported file format" in str(error):
        if is_remote(path):
            message = f"{path}: no raster that GDAL can read came from there"
            return SkysenseError(message, fix="Check the address and the connection.")
        return SkysenseError(f"{path}: not a raster that GDAL can read")
    again = "The file is damaged there or was cut off: copy or download it again." if where else None
    again = "Check the connection and run it again." if is_remote(path) else again
    return SkysenseError(f"{path}: {where}cannot be read: {error.__cause__ or error}", fix=again)


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

        def read() -> tuple[Num[np.ndarray, "c h w"], UInt8[np.ndarray, "h w"] | None]:
            dataset = self._open(level)
            if len(set(dataset.dtypes)) == 1:
                stored = dataset.read(indexes, window=window, out_shape=shape and (len(indexes), *shape))
            else:  # rasterio reads bands of several types one by one only
                planes = [dataset.read(index, window=window, out_shape=shape) for index in indexes]
                stored = np.stack(planes, dtype=self.stored)
            return stored, dataset.read_masks(1, window=window, out_shape=shape) if self.masked else None

        where = f"rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop} "
        stored, mask = access(self.path, read, where)
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
