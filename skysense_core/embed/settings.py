"""The settings of an embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from skysense_core.errors import UsageError
from skysense_core.geo.options import ReadOptions
from skysense_core.predict import check_geotiff, check_new
from skysense_core.predict.settings import PredictConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """The settings of one embedding; those that are not explained here are those of `PredictConfig`."""

    inputs: tuple[str, ...]
    """Any of the model's modalities."""
    out: Path
    """A GeoTIFF, or with `polygons` or `grid` a .parquet."""
    model: Path | None = None
    """A model folder, with or without a task, a run folder or a packaged model's name."""
    features: str | None = None
    """Name of a map that the model offers; not given: the fused map, or the deepest level of a lone encoder."""
    dtype: Literal["int8", "float16"] = "int8"
    pca: int | None = None
    """So many principal components instead of all channels."""
    prototypes: bool = False
    """The nearest geo-context prototypes instead of features."""
    polygons: Path | None = None
    """Mean features of each polygon."""
    grid: int | None = None
    """Mean features of each square of so many pixels of the finest modality."""
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str | None = None
    aoi: Path | None = None
    window: int | None = None
    overlap: int | None = None
    batch_size: int | None = None
    shard: tuple[int, int] | None = None
    """Most rows and columns of features that are computed, and kept, at a time, in whole blocks of 128."""
    max_memory: int | None = None
    device: str = "auto"
    precision: str = "auto"
    jobs: int | None = None
    read: Mapping[str, ReadOptions] = field(default_factory=dict)
    creation_options: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False

    @property
    def pooled(self) -> bool:
        """Whether the result is a table."""
        return self.polygons is not None or self.grid is not None


SHARED = sorted({one.name for one in fields(EmbedConfig)} & {one.name for one in fields(PredictConfig)} - {"polygons"})
"""Settings that mean the same for both."""


def check(given: EmbedConfig) -> None:
    """Refuse settings that contradict each other or the files that are there."""
    asked = {
        "--polygons": given.polygons is not None,
        "--grid": given.grid is not None,
        "--prototypes": given.prototypes,
        "--pca": given.pca is not None,
        "--features": given.features is not None,
        "--bbox": given.bbox is not None,
        "--aoi": given.aoi is not None,
    }
    for option, others in (
        ("--prototypes", ("--polygons", "--grid", "--pca", "--features")),
        ("--polygons", ("--grid", "--bbox", "--aoi")),
    ):
        for other in others:
            if asked[option] and asked[other]:
                raise UsageError(f"{option} and {other} do not go together", fix="Leave one of them out.")
    if not given.pooled:
        check_geotiff(given.out)
    elif given.out.suffix.lower() != ".parquet":
        raise UsageError(f"--out {given.out}: a table of means is GeoParquet", fix="For example --out emb.parquet")
    check_new((given.out,), overwrite=given.overwrite)
