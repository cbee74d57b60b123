"""The settings of an ingest."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from skysense_core.geo.labels import UNKNOWN, Classes

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """Everything that a store depends on."""

    out: Path
    """The folder of the store."""
    inputs: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Files, globs, folders, products or cubes by modality; under "" those whose modality is to be found out."""
    collections: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What is searched for where an input is the address of a STAC API, by modality; "" stands for all others."""
    datetime: str | None = None
    """Of the search: `2020-06/2020-08`."""
    max_cloud: Annotated[float, Field(ge=0, le=100)] | None = None
    """Of the search for optical imagery, in percent."""
    data: dict[str, Any] = field(default_factory=dict)
    """Instead of `inputs`: a data set in a layout of `sources`, as the `[data]` table of a training."""
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields that differ from the modality's file: other bands, another pixel size."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How a modality's files are read: fields of `geo.options.ReadOptions`; "" stands for all others."""
    labels: str | None = None
    """Polygons in any vector format, or a raster of class codes."""
    label_column: str | None = None
    classes: Classes | None = None
    unlabelled: str = UNKNOWN
    """What lies outside all polygons: "ignore", or a class. Samples without a labelled pixel are left out."""
    size: Annotated[int, Field(ge=4, multiple_of=4)] = 64
    """Side of a footprint in Sentinel-2 pixels of 10 m."""
    stride: Count | None = None
    """From one footprint to the next, in the same pixels; not given: side by side."""
    crs: str | None = None
    """Of the lattice; not given: that of the UTM zone in which a footprint's centre lies."""
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str = "EPSG:4326"
    aoi: Path | None = None
    """Polygons; only footprints that share ground with them."""
    min_valid: Share = 0.5
    """A sample's least share of pixels that the reference modality shows on some date."""
    min_date_valid: Share = 0.1
    """Least share of valid pixels of a date within a sample; dates with less are dropped."""
    max_dates: Count | None = None
    """Most dates of a modality in a sample; evenly spaced ones are kept."""
    split_block: Annotated[float, Field(gt=0)] | None = None
    """Metres along the blocks that are dealt to train, val and test; not given: 10 km, less where that makes but a
    few."""
    val_share: Share = 0.1
    test_share: Share = 0.1
    """Of the blocks."""
    buffer: Annotated[float, Field(ge=0)] | None = None
    """Metres between samples of different parts; not given: one footprint."""
    seed: int = 0
    """Of the choice of blocks."""
    allow_leak: bool = False
    """Keep a data set's own split although samples of train and test show the same ground."""
    shard_size: Count = 1024
    """Samples of a shard: of a lattice, so many cells of a square block."""
    jobs: Count = 1
    """Processes."""
    overwrite: bool = False
