"""Samples become a shard: chips in a tar, and beside it a sidecar with their rows and statistics.

The sidecar appears last: with it the shard is finished, whoever has made it. What a shard holds depends on the plan and
on its number alone.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from einops import rearrange
from jaxtyping import Int, Num

from skysense_core.data.histogram import Histogram
from skysense_core.data.labels import class_map
from skysense_core.data.shards import FULL, ShardWriter
from skysense_core.data.statistics import BandStatistics
from skysense_core.data.store import SHARDS, Chip, Row
from skysense_core.errors import SkysenseError
from skysense_core.geo.chips import encode_chip, encode_label, iso_dates
from skysense_core.ingest.inputs import Failure
from skysense_core.modalities import Modality
from skysense_core.types import IGNORE, ClassMap, Raster, Sample

WORK = ".ingest"
"""Folder of the sidecars within a store that is not complete."""
TOGETHER = 2**22
"""Values of which statistics are computed at once."""
OUTLINE = 1e-6
"""Degrees that the outline of a sample in the index may deviate: a tenth of a metre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A sample on its way into a shard."""

    sample: Sample
    split: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """What every shard says of its chips and labels."""

    modalities: Mapping[str, Modality]
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the valid pixels of one modality are like; those of two shards add up."""

    moments: BandStatistics | None = None
    histograms: list[Histogram] = field(default_factory=list)
    samples: int = 0
    images: int = 0
    waiting: list[Num[np.ndarray, "c n"]] = field(default_factory=list)
    """Values of small rasters, counted together: one by one would take several times as long."""
    dates: int = 0
    """Most dates of those."""

    def add(self, raster: Raster) -> None:
        """Count one raster."""
        bands = rearrange(raster.pixels, "t c h w -> c (t h w)")
        self.waiting.append(bands if raster.valid.all() else bands[:, raster.valid.ravel()])
        self.samples, self.images = self.samples + 1, self.images + len(raster.days)
        self.dates = max(self.dates, len(raster.days))
        if sum(values.size for values in self.waiting) > TOGETHER:
            self.count()

    def count(self) -> None:
        """Count what waits."""
        if not self.waiting:
            return
        values = np.concatenate(self.waiting, axis=1)
        self.waiting.clear()
        counted = [_distinct(band) for band in values]
        mean, squares = np.array([_moments(*band) for band in counted]).T
        moments = BandStatistics(count=values.shape[1], mean=mean, squares=squares, dates=self.dates)
        self.include(Tally(moments=moments, histograms=[Histogram.of(*band) for band in counted]))

    def include(self, other: "Tally") -> None:
        """Count what another one has counted."""
        if other.moments is None:
            return
        if self.moments is None:
            self.moments, self.histograms = other.moments, list(other.histograms)
        else:
            self.moments += other.moments
            self.histograms = [one + two for one, two in zip(self.histograms, other.histograms, strict=True)]
        self.samples, self.images = self.samples + other.samples, self.images + other.images

    def table(self) -> dict[str, Any]:
        """As JSON; numbers come back exactly."""
        self.count()
        if self.moments is None:
            return {}
        moments = {key: _listed(value) for key, value in asdict(self.moments).items()}
        sparse = [[one.first, *_sparse(one.counts)] for one in self.histograms]
        return {"moments": moments, "histograms": sparse, "samples": self.samples, "images": self.images}

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> "Tally":
        """What `table` has written."""
        if not table:
            return cls()
        moments: dict[str, Any] = {
            key: np.array(value, dtype=np.float64) if isinstance(value, list) else value
            for key, value in table["moments"].items()
        }
        histograms = []
        for first, length, places, counts in table["histograms"]:
            full = np.zeros(length, dtype=np.int64)
            full[places] = counts
            histograms.append(Histogram(first=first, counts=full))
        return cls(
            moments=BandStatistics(**moments),
            histograms=histograms,
            samples=table["samples"],
            images=table["images"],
        )


def _distinct(values: Num[np.ndarray, "n"]) -> tuple[Num[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Values and how often each occurs. Small whole numbers occur often: counted first, the rest is quick."""
    if not (values.size and values.dtype.kind in "iu" and values.dtype.itemsize <= 2):
        return values, np.ones(len(values), dtype=np.int64)
    low = int(values.min())
    counts = np.bincount(values.astype(np.int64) - low)
    found = np.flatnonzero(counts)
    return found + low, counts[found]


def _moments(values: Num[np.ndarray, "k"], counts: Int[np.ndarray, "k"]) -> tuple[float, float]:
    """Mean and sum of squared deviations."""
    if not len(values):
        return 0.0, 0.0
    exact = values.astype(np.float64)
    mean = float((exact * counts).sum() / counts.sum())
    return mean, float(((exact - mean) ** 2 * counts).sum())


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _sparse(counts: np.ndarray) -> tuple[int, list[int], list[int]]:
    places = np.flatnonzero(counts)
    return len(counts), places.tolist(), counts[places].tolist()


def shard_of(number: int) -> str:
    """Path of a shard within its store."""
    return f"{SHARDS}/{number:05}.tar"


def sidecar_of(store: Path, number: int) -> Path:
    """Where the rows of a finished shard lie."""
    return store / WORK / f"{number:05}.json"


def finished(store: Path, number: int) -> dict[str, Any] | None:
    """The sidecar of a shard that is there, whole; else None."""
    try:
        table: dict[str, Any] = json.loads(sidecar_of(store, number).read_text(encoding="utf-8"))
        whole = not table["rows"] or (store / shard_of(number)).stat().st_size == table["bytes"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return table if whole else None


def write_shard(store: Path, number: int, samples: Iterable[Packed], failures: list[Failure], legend: Legend) -> None:
    """Write one shard and its sidecar; `failures` grows while the samples are read.

    Raises SkysenseError where the disk is full; what is not complete is gone then.
    """
    shard = shard_of(number)
    tallies = {name: Tally() for name in legend.modalities}
    records: list[dict[str, Any]] = []
    names: set[str] = set()
    with ShardWriter(store / shard) as tar:
        for packed in samples:
            row = _row(tar, packed, shard, _member(packed.sample.id, names), tallies, legend)
            records.append(row.record(legend.modalities))
        size = tar.close() if records else 0
    table = {
        "bytes": size,
        "rows": records,
        "failures": [asdict(failure) for failure in failures],
        "statistics": {name: tally.table() for name, tally in tallies.items()},
    }
    path = sidecar_of(store, number)
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text(json.dumps(table), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SkysenseError(f"{path}: cannot be written: {error.strerror}", fix=FULL) from None


def _row(tar: ShardWriter, packed: Packed, shard: str, name: str, tallies: Mapping[str, Tally], legend: Legend) -> Row:
    sample = packed.sample
    if len(sample.epochs) != 1:
        raise SkysenseError(f"sample {sample.id} has {len(sample.epochs)} epochs, and a store holds one of each")
    images, chips = sample.epochs[0], {}
    for key in sorted(images):
        modality, raster = legend.modalities[key], images[key]
        tags = {"MODALITY": key, "UNIT": modality.unit, "LEVEL": modality.level}
        offset, size = tar.add(f"{name}.{key}.tif", encode_chip(raster, modality.band_names, tags))
        tallies[key].add(raster)
        height, width = raster.pixels.shape[-2:]
        share = float(np.float32(raster.valid.mean()))
        chips[key] = Chip(offset=offset, size=size, dates=iso_dates(raster), valid=share, height=height, width=width)
    label: tuple[int, int] = (0, 0)
    counts: tuple[int, ...] = ()
    if sample.label is not None and legend.classes:
        map = class_map(sample.label)
        label = tar.add(f"{name}.label.tif", encode_label(map, legend.classes, legend.colours))
        counts = counts_of(map, len(legend.classes))
    grid = next((raster.geobox for raster in images.values() if raster.geobox is not None), None)
    return Row(
        id=sample.id,
        split=packed.split,
        crs="" if grid is None else str(grid.crs),
        lonlat=sample.lonlat,
        footprint=None if sample.footprint is None else shapely.simplify(sample.footprint, OUTLINE),
        shard=shard,
        chips=chips,
        label=label,
        label_counts=counts,
        items=packed.items,
    )


def counts_of(label: ClassMap, classes: int) -> tuple[int, ...]:
    """Pixels of every class code."""
    return tuple(np.bincount(label.codes.ravel(), minlength=IGNORE + 1)[:classes].tolist())


def _member(name: str, taken: set[str]) -> str:
    """A file name for a sample, which no other sample of the shard has."""
    plain = re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "sample"
    unique, number = plain, 1
    while unique in taken:
        number += 1
        unique = f"{plain}_{number}"
    taken.add(unique)
    return unique
