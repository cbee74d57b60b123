"""Features instead of classes: feature maps as rasters, their means over polygons, or the nearest prototypes.

They go through the same sweep, shards and files as a class map (`predict`). Their grid is that of the features: one
pixel per cell, anchored as the windows are, so that scenes on one pixel lattice have features on one lattice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skysense_core.embed.job import EmbedJob
from skysense_core.embed.settings import EmbedConfig, check
from skysense_core.predict import run
from skysense_core.predict.job import Job
from skysense_core.predict.settings import Estimate
from skysense_core.predict.shards import Shards

__all__ = ["EmbedConfig", "EmbedResult", "embed", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """What was written."""

    path: Path
    model: str
    digest: str
    features: str
    channels: int
    cell: int
    """Pixels of the finest modality along a pixel of the features."""
    shape: tuple[int, int]
    """Rows and columns of the features."""
    windows: int
    skipped: int
    shards: int
    reused: int
    megapixels: float
    seconds: float
    waited: float
    notes: tuple[str, ...]


def embed(given: EmbedConfig) -> EmbedResult:
    """Compute the features of a scene and write them.

    A raster has the features' own pixel size. Raises, resumes and replaces as `predict` does; UsageError also for
    features that the model does not have, more components than channels, polygons outside the scene, and prototypes
    of a model or a place that has none.
    """
    check(given)
    job = EmbedJob(given)
    pooled: list[str] = []

    def pool(_: Job, store: Shards, outs: Mapping[str, Path]) -> bool:
        with store.drafts() as drafts:
            for name, draft in drafts.items():
                pooled.extend(job.pool(draft, outs[name]))
        store.remove()
        return True

    result = run(job, {job.main: given.out}, pool if given.pooled else None)
    return EmbedResult(
        path=given.out,
        model=result.model,
        digest=result.digest,
        features=job.level.name,
        channels=len(job.model.classes),
        cell=job.level.cell,
        shape=(job.ground.shape.y, job.ground.shape.x),
        windows=result.windows,
        skipped=result.skipped,
        shards=result.shards,
        reused=result.reused,
        megapixels=result.megapixels,
        seconds=result.seconds,
        waited=result.waited,
        notes=(*result.notes, *pooled),
    )


def estimate(given: EmbedConfig) -> Estimate:
    """What `embed` would take; nothing is written. Raises as `embed` does before its first window."""
    check(given)
    return EmbedJob(given).estimate()
