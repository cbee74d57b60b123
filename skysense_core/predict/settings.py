"""The settings of a prediction, and what it would take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from shapely.geometry.base import BaseGeometry

from skysense_core.geo.options import ReadOptions

Measure: TypeAlias = Literal["max", "margin", "entropy"]
"""How sure a pixel is; see `products.CONFIDENCE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictConfig:
    """The settings of one prediction."""

    inputs: tuple[str, ...]
    """`scene.tif`, or `hr=ortho.tif s2=series/` where a model reads several modalities; several of one are joined.
    For a model that compares dates, each modality has one for every date, in the order of time."""
    out: Path
    """The class map; others appear beside it as OUT_confidence.tif, OUT_probabilities.tif, OUT_observations.tif."""
    model: Path | None = None
    """A model or run folder or a packaged model's name; not given: the packaged one that reads such bands."""
    bbox: tuple[float, float, float, float] | None = None
    """xmin, ymin, xmax, ymax: predict this part only."""
    bbox_crs: str | None = None
    """CRS of `bbox`; not given: the scene's."""
    aoi: Path | None = None
    """Polygons; nothing is predicted outside."""
    region: BaseGeometry | None = None
    """A polygon in the scene's CRS, as one of many regions; nothing is predicted outside."""
    like: Path | None = None
    """A raster whose grid the map takes."""
    confidence: Measure | None = None
    """Also write how sure each pixel is, by this measure."""
    unsure: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Pixels whose highest probability is below it get no class, but `types.UNSURE`."""
    probabilities: bool = False
    observations: bool = False
    """Also write how many images showed each pixel."""
    polygons: Path | None = None
    """Also write the areas of the map as polygons: .parquet, .gpkg, .fgb or .geojson."""
    min_area: float = 0.0
    """Square metres; smaller patches of the map take the class around them."""
    preview: Path | None = None
    """A PNG of image, map and legend."""
    report: Path | None = None
    """An HTML page of image and map over each other, with legend, areas and confidence."""
    window: int | None = None
    """Side of a window in pixels of the reference modality; not given: the model's."""
    overlap: int | None = None
    """Pixels that two neighbouring windows share; not given: 5/16 of the window."""
    batch_size: int | None = None
    """Windows per forward pass; not given: by their size."""
    shard: tuple[int, int] | None = None
    """Most rows and columns that are computed, and kept, at a time, in whole blocks of 512; not given: by memory."""
    max_memory: int | None = None
    """Bytes that the process may take (on a GPU: that the model may); not given: modest sizes, or the free memory."""
    array: tuple[int, int] | None = None
    """(i, n): compute the i-th of n parts of the shards only, from 1; the process that ends last joins them."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers compute the shards, or `local`: one that starts and ends here."""
    compile: bool = False
    """Compile the model first: slower to start, faster on long runs."""
    device: str = "auto"
    precision: str = "auto"
    jobs: int | None = None
    """Threads that read ahead."""
    read: Mapping[str, ReadOptions] = field(default_factory=dict)
    """How a modality's files are read; the key "" stands for every modality that is not named."""
    creation_options: Mapping[str, str] = field(default_factory=dict)
    """Of GDAL's COG driver."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a prediction would take."""

    windows: int
    shards: int
    reused: int
    megapixels: float
    batch_size: int
    memory: int
    """Bytes at most, of this process."""
    disk: int
    """Bytes at most, for the shards and the files together, before compression."""
    seconds: float
    """From the time of one batch here; empty windows are not known yet."""
