"""What a training set looks like: mean and deviation of every band, pixels of every class. One pass, bounded, exact."""

import logging
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int

from skysense_core.data import labels
from skysense_core.errors import SkysenseError
from skysense_core.progress import Bar
from skysense_core.types import Raster, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BandStatistics:
    """Moments of some pixels, in float64; those of two sets add up to those of their union (Chan et al. 1979)."""

    count: int
    mean: Float[np.ndarray, "c"]
    squares: Float[np.ndarray, "c"]
    """Sum of squared deviations from the mean."""
    dates: int
    """Most dates of one sample."""

    @classmethod
    def of(cls, raster: Raster) -> "BandStatistics":
        """Of the valid pixels of one raster, all dates together."""
        count = int(raster.valid.sum())
        bands = rearrange(raster.pixels, "t c h w -> c t h w")
        # One band in float64 at a time: an aerial sample may have tens of megapixels.
        moments = [
            (band.mean(), band.var()) for band in (own[raster.valid].astype(np.float64) for own in bands) if count
        ]
        mean, variance = np.array(moments or [(0.0, 0.0)] * len(bands)).T
        return cls(count=count, mean=mean, squares=variance * count, dates=len(raster.days))

    def __add__(self, other: "BandStatistics") -> "BandStatistics":
        count = self.count + other.count
        share = other.count / max(count, 1)
        apart = other.mean - self.mean
        return BandStatistics(
            count=count,
            mean=self.mean + apart * share,
            squares=self.squares + other.squares + apart**2 * share * self.count,
            dates=max(self.dates, other.dates),
        )

    @property
    def std(self) -> Float[np.ndarray, "c"]:
        return np.sqrt(self.squares / max(self.count, 1))


def measure_bands(split: Split, *, most: int = 256) -> dict[str, BandStatistics]:
    """Statistics per modality over at most `most` evenly spaced samples.

    Raises SkysenseError for a modality without a valid pixel or with a constant band, which cannot be normalised.
    """
    found: dict[str, BandStatistics] = {}
    for index in Bar(spread(len(split), most), desc="statistics", unit="sample"):
        for epoch in split[index].epochs:
            for name, raster in epoch.items():
                own = BandStatistics.of(raster)
                found[name] = found[name] + own if name in found else own
    for name, statistics in found.items():
        if not statistics.count:
            raise SkysenseError(f"{name}: no valid pixel in the training samples")
        if not statistics.std.all():
            bands = ", ".join(str(band + 1) for band in np.flatnonzero(statistics.std == 0))
            raise SkysenseError(f"{name}: band {bands} has one value everywhere in the training samples")
    return found


def count_classes(split: Split, *, most: int = 4096) -> Int[np.ndarray, "k"]:
    """Labelled pixels (samples, objects) of every class over at most `most` evenly spaced samples."""
    found = np.zeros(len(split.classes), dtype=np.int64)
    for index in Bar(spread(len(split), most), desc="labels", unit="sample"):
        found += labels.counts(split.label(index), len(found))
    return found


def refuse_one_class(classes: tuple[str, ...], counts: Int[np.ndarray, "k"]) -> None:
    """Raises SkysenseError where the labels of a training part are of one class; warns of classes that have none."""
    present = [name for name, count in zip(classes, counts.tolist(), strict=True) if count]
    if len(present) == 1:
        raise SkysenseError(
            f"all labels of the training part are {present[0]}: nothing to tell apart",
            fix=f"Add samples of {', '.join(name for name in classes if name not in present)}, or split otherwise.",
        )
    if absent := [name for name in classes if name not in present]:
        log.warning("classes without a training label, which cannot be learnt: %s", ", ".join(absent))


def says_anything(split: Split) -> bool:
    """Whether any sample has a label that says anything."""
    return any(labels.known(split.label(index)) for index in range(len(split)))


def spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced numbers of 0..count-1."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist()
