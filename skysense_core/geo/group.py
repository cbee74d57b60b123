"""Bands that lie on one grid, each in a file of its own: those of a Sentinel-2 product or of a STAC item.

They are one layer, so that a mask over them (clouds) is read once for all of them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox

from skysense_core.geo import masks
from skysense_core.geo.layer import FileLayer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Bands of one grid at one date, from several files."""

    path: str
    """Of the product or item that they belong to."""
    files: tuple[FileLayer, ...]
    """Read as they are stored."""
    gain: tuple[float, ...]
    bias: tuple[float, ...]
    """For each band: pixel = gain x stored + bias."""
    saturated: float | None = None
    """A stored value that is no measurement, beside what the files declare."""

    @property
    def geobox(self) -> GeoBox:
        return self.files[0].geobox

    @property
    def dtype(self) -> np.dtype:
        plain = all(gain == 1 for gain in self.gain) and not any(self.bias)
        return np.result_type(*(file.dtype for file in self.files)) if plain else np.dtype("float32")

    @property
    def bands(self) -> tuple[int, ...]:
        return tuple(band for file in self.files for band in file.bands)

    @property
    def overviews(self) -> tuple[int, ...]:
        return self.files[0].overviews

    def grid(self, level: int | None) -> GeoBox:
        """The grid of all its bands."""
        return self.files[0].grid(level)

    def read(
        self, rows: slice, cols: slice, *, level: int | None = None, shape: tuple[int, int] | None = None
    ) -> tuple[Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """Pixels and validity of a window: a pixel is valid where all bands are."""
        parts = [file.read(rows, cols, level=level, shape=shape) for file in self.files]
        stored = np.concatenate([pixels for pixels, _ in parts])
        valid = np.logical_and.reduce([valid for _, valid in parts])
        if self.saturated is not None:
            valid &= (stored != self.saturated).all(axis=0)
        return masks.scale(stored, self.gain, self.bias), valid
