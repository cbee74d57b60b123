"""The nouns of the project, and the one legend of dimension letters.

Legend, used by every shape in the code:
    b batch   t dates of a series   c bands   h, w rows and columns of pixels
    d feature channels   n tokens   k classes   r regions   p prototypes   e epochs

Everything here is numpy: torch begins in `data.batch`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8
from odc.geo.geobox import GeoBox
from shapely import Polygon

from skysense_core.errors import SkysenseError

PartName: TypeAlias = Literal["train", "val", "test"]

IGNORE = 255
"""Label value that no loss and no metric looks at; also the nodata value of class maps on disk."""
UNSURE = 254
"""Value of a class map where the model is less sure than was asked for (`predict --unsure`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """One modality over one footprint, as a time series (t = 1 for a single image), in its native dtype and unit."""

    pixels: Num[np.ndarray, "t c h w"]
    valid: Bool[np.ndarray, "t h w"]
    """False for nodata, cloud, padding or absence; pixels there are never read."""
    days: Int[np.ndarray, "t"]
    """Days since 1970-01-01; meaningful where `dated`."""
    dated: Bool[np.ndarray, "t"]
    """False where no acquisition date is known: such an image gets no date embedding."""
    geobox: GeoBox | None = None
    """Its own grid; None for pictures without georeference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """A label as a map of class codes 0..k-1; `IGNORE` where nothing is known."""

    codes: UInt8[np.ndarray, "h w"]
    geobox: GeoBox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMaps:
    """A map of class codes for every epoch; `IGNORE` where nothing is known."""

    codes: UInt8[np.ndarray, "e h w"]
    geobox: GeoBox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueMap:
    """A label as a map of values in the unit of the data set; NaN where nothing is known."""

    values: Float[np.ndarray, "h w"]
    geobox: GeoBox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Class codes 0..k-1 of a whole sample: one where classes exclude each other, any number where they do not."""

    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Things in an image, by their corners: a horizontal box is a rectangle like any other."""

    corners: Float[np.ndarray, "n 4 2"]
    """x and y of four corners, clockwise as seen, in pixels of the reference raster from its upper left corner."""
    codes: Int[np.ndarray, "n"]
    """Class codes 0..k-1."""
    difficult: Bool[np.ndarray, "n"]
    """Counts neither when it is found nor when it is missed."""


Label: TypeAlias = ClassMap | ClassMaps | ValueMap | Tags | Objects
"""What a source knows of the truth of one sample; a task encodes it into its target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Aligned imagery of one place: one or several epochs of {modality: Raster}, and what is known of it."""

    id: str
    epochs: tuple[dict[str, Raster], ...]
    """One for most tasks, two for before/after, 24 for monthly semantic change."""
    footprint: Polygon | None = None
    """Outline in EPSG:4326."""
    lonlat: tuple[float, float] | None = None
    """Centre in degrees (EPSG:4326); chooses the geo-context region. SkysenseError where it is not on the earth."""
    label: Label | None = None

    def __post_init__(self) -> None:
        if self.lonlat is not None and not (abs(self.lonlat[0]) <= 360 and abs(self.lonlat[1]) <= 90):
            raise SkysenseError(
                f"{self.id}: longitude {self.lonlat[0]:g}, latitude {self.lonlat[1]:g} is no place on the earth",
                fix="Look at its CRS and geotransform: degrees are written as longitude, then latitude.",
            )


@runtime_checkable
class Split(Protocol):
    """The samples of one part (train, val or test) of a data set, as a source opens it; reading is lazy.

    It is pickled into loader processes, so it holds paths and numbers, never open files.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the label codes 0..k-1."""

    @property
    def colours(self) -> tuple[str, ...] | None:
        """One hex colour per class where the data set has its own."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts that the user should know: what was reprojected, dropped, assumed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """A sample with its label, maps on the grid of the reference (finest) modality."""

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns of a sample on the reference grid, without reading pixels."""

    def label(self, index: int) -> Label:
        """The label of a sample alone."""
