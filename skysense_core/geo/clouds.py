"""Pixels that are left out although the file holds a value there: clouds, their shadows, defects.

A mask is a raster of codes. It is read on the grid of each layer by nearest neighbour and before any resampling, so
that no cloud is interpolated into its surroundings and a mosaic takes what another tile or orbit of the date shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox

from skysense_core.errors import UsageError
from skysense_core.geo import grid, warp
from skysense_core.geo.files import RasterFile, open_file
from skysense_core.geo.layer import FileLayer
from skysense_core.geo.options import NONE, ReadOptions
from skysense_core.geo.paths import expand
from skysense_core.geo.warp import Layer

SCL = {
    1: "saturated or defective",
    3: "cloud shadow",
    8: "cloud, medium probability",
    9: "cloud, high probability",
    10: "thin cirrus",
}
"""Classes of the scene classification of Sentinel-2 L2A (Sen2Cor) that are left out. Kept are 2 (dark or topographic
shadow), 4 vegetation, 5 bare, 6 water, 7 unclassified and 11 snow; where 0 (nodata) stands, the bands have none."""

LEFT_OUT = (
    "left out by the scene classification: "
    + ", ".join(f"{code} {name}" for code, name in SCL.items())
    + "; --cloud-mask none keeps them"
)
UNKNOWN = "no scene classification (SCL) in a product: clouds are not left out"
"""What is said of L2A."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masked:
    """A layer without the pixels that a mask leaves out."""

    layer: Layer
    mask: Layer
    hidden: tuple[int, ...] | None
    """The mask's values that are left out; None: all but 0."""

    @property
    def path(self) -> str:
        return self.layer.path

    @property
    def geobox(self) -> GeoBox:
        return self.layer.geobox

    @property
    def dtype(self) -> np.dtype:
        return self.layer.dtype

    @property
    def bands(self) -> tuple[int, ...]:
        return self.layer.bands

    @property
    def overviews(self) -> tuple[int, ...]:
        return self.layer.overviews

    def grid(self, level: int | None) -> GeoBox:
        """The grid of the layer that is masked."""
        return self.layer.grid(level)

    def read(
        self, rows: slice, cols: slice, *, level: int | None = None, shape: tuple[int, int] | None = None
    ) -> tuple[Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """As the layer's own; what the mask leaves out is not valid. Beyond the mask nothing is left out."""
        pixels, valid = self.layer.read(rows, cols, level=level, shape=shape)
        if not valid.any():
            return pixels, valid
        window = self.grid(level)[rows, cols]
        part = warp.read_onto(self.mask, window if shape is None else grid.scaled(window, shape), "nearest")
        if part is None:
            return pixels, valid
        codes, known = part[0][0], part[1]
        hidden = codes != 0 if self.hidden is None else np.isin(codes, self.hidden)
        return pixels, valid & ~(hidden & known)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cover:
    """A mask that the user gives for one date or, undated, for all."""

    day: date | None
    mask: FileLayer


def open_covers(given: str | None, days: Sequence[date | None]) -> tuple[Cover, ...]:
    """The rasters that `--cloud-mask` names, for imagery of these dates.

    Raises UsageError where one is of another date, and SkysenseError where one cannot be read.
    """
    if given is None or given == NONE:
        return ()
    covers = []
    for path in expand(given):
        file = open_file(path, ReadOptions(), colours=False)
        if len(file.found) != 1:
            raise UsageError(
                f"--cloud-mask {path} has {len(file.found)} bands",
                fix="Give a raster of one: 0 is clear, all else is not.",
            )
        if file.days[0] is not None and file.days[0] not in days:
            raise UsageError(
                f"--cloud-mask {path} is of {file.days[0]}, and no image is",
                fix="A mask without a date in its name holds for all dates.",
            )
        covers.append(Cover(day=file.days[0], mask=codes(file)))
    return tuple(covers)


def cover(layers: Sequence[Layer], day: date | None, covers: Sequence[Cover]) -> list[Layer]:
    """The layers of one date under the masks that hold for it."""
    masks = [one.mask for one in covers if one.day in (None, day)]
    covered = list(layers)
    for mask in masks:
        covered = [Masked(layer=layer, mask=mask, hidden=None) for layer in covered]
    return covered


def codes(file: RasterFile) -> FileLayer:
    """A mask's only band as it is stored: a declared nodata value is a code like any other."""
    return replace(file, nodata=(None,)).layers({0: 0}, 0, None, 0.0, positive=False)[0]
