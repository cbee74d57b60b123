"""What the user states about inputs that do not say it themselves."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["linear", "dB"]
NONE = "none"
"""The `cloud_mask` that leaves nothing out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How files are to be read; a TOML table, or the reading options of the command line.

    Four of them concern some units of values only, so that one set of options serves several modalities: `rescale` the
    unit "0-255", `offset` reflectance, `unit` decibels and `cloud_mask` all others. Where one is given and does not
    concern the unit, the stack's notes say so.
    """

    bands: tuple[str, ...] | None = None
    """Names of the files' bands in their order, `-` leaving one out; wins over what the file says (`--bands`)."""
    nodata: float | None = None
    """Value that means no data, beside what the file declares (`--nodata`)."""
    rescale: tuple[float, float] | None = None
    """(lo, hi): this range of values becomes 0-255, what lies outside is clipped (`--rescale`)."""
    offset: float | None = None
    """Added to valid pixels: -1000 for Sentinel-2 of processing baseline 04.00 and later (`--s2-offset`)."""
    dates: tuple[str, ...] = ()
    """Acquisition dates: one for all files, or one per file in their order (`--date`)."""
    date_pattern: str | None = None
    r"""Regular expression with a group `date`, searched in each path (`--date-pattern`): `img_(?P<date>\d{8})`."""
    unit: Unit | None = None
    """What Sentinel-1 values are, over what the files state; linear power becomes decibels (`--s1-unit`)."""
    cloud_mask: str | None = None
    """A raster, or a folder or glob of dated ones, whose pixels other than 0 are left out; "none" leaves none out. By
    default the clouds and shadows that a Sentinel-2 L2A product states are (`--cloud-mask`)."""
