"""A data set of a known layout: what is in it, and what would spoil a training or its scores.

It is read as a training reads it, by the source that knows its layout.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Int64

from skysense_core import modalities, sources
from skysense_core.data.sound import going_on
from skysense_core.data.statistics import spread
from skysense_core.errors import SkysenseError
from skysense_core.geo.grid import ground_pixel
from skysense_core.info.leaks import Leak, Seen, leaks_of, seen
from skysense_core.modalities import Modality
from skysense_core.progress import Bar
from skysense_core.types import IGNORE, ClassMap, ClassMaps, Label, Objects, PartName, Sample, Split, Tags, ValueMap

LOOKED_AT = 200
"""Samples of each part that are read, evenly spaced ones, unless all are wanted."""
COUNTED = 100_000
"""Samples of each part whose sizes are compared, and whose labels are counted where these take no pixels."""
EXAMPLES = 5
"""Most samples that a finding names."""
USUAL = 0.8
"""Share of the samples that must have one size for others to be odd."""
PRETRAIN = "pretrain"
"""Stands among the tasks of data without labels."""
SQUARE = 1.02
"""A pixel whose sides differ by more than this is not square."""

Kind: TypeAlias = Literal["pixels", "objects", "samples", "values"]
"""What labels are counted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """One part of a data set."""

    samples: int
    looked_at: int
    """Samples that were read."""
    labelled: int
    """Samples whose labels were counted."""
    labels: dict[str, int]
    """By class."""
    unknown: int
    """Pixels of these labels that are of no class."""
    values: tuple[float, float, float] | None
    """Lowest, mean and highest value of labels that are values."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Samples that are odd in some way."""

    samples: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What a data set holds."""

    path: Path
    source: str
    """Name of its layout."""
    evidence: str
    """What it was recognised by."""
    settings: dict[str, Any]
    """What was said of it: tables of a training."""
    tasks: tuple[str, ...]
    modalities: dict[str, Modality]
    classes: tuple[str, ...]
    counted: Kind | None
    """None: there are no labels."""
    parts: dict[str, PartInfo]
    refused: dict[str, str]
    """Parts that cannot be opened, and why."""
    whole: bool
    """Whether every sample was read."""
    sizes: dict[str, int]
    """Samples by rows and columns, most frequent first."""
    odd_sizes: Finding
    """Where most samples have one size: those of another one."""
    not_square: Finding
    """Samples whose pixels are longer than wide, or wider than long, on the ground."""
    unreadable: tuple[str, ...]
    leaks: tuple[Leak, ...]


@dataclass(kw_only=True)
class Tally:
    """Counts labels as they pass; none of them is kept."""

    counts: Int64[np.ndarray, "n"]
    """By code, those of no class at `IGNORE`."""
    kind: Kind | None = None
    labelled: int = 0
    ranges: list[tuple[float, float, float]] = field(default_factory=list)
    """Lowest, mean and highest value of each sample."""

    @classmethod
    def of(cls, split: Split) -> "Tally":
        """An empty one for the classes of a part."""
        return cls(counts=np.zeros(max(len(split.classes), IGNORE + 1), dtype=np.int64))

    def add(self, label: Label | None) -> None:
        """Count the label of one sample, if it has one."""
        if label is None:
            return
        self.kind = _kind(label)
        self.labelled += 1
        if isinstance(label, ValueMap):
            known = label.values[np.isfinite(label.values)]
            if known.size:
                self.ranges.append((float(known.min()), float(known.mean()), float(known.max())))
        else:
            self.counts += np.bincount(np.asarray(label.codes, dtype=np.int64).ravel(), minlength=len(self.counts))

    def part(self, split: Split, looked_at: int) -> PartInfo:
        """What it has counted of a part."""
        low, mean, high = zip(*self.ranges, strict=True) if self.ranges else ((), (), ())
        return PartInfo(
            samples=len(split),
            looked_at=looked_at,
            labelled=self.labelled,
            labels=dict(zip(split.classes, self.counts.tolist(), strict=False)),
            unknown=int(self.counts[IGNORE]) if self.kind == "pixels" else 0,
            values=(min(low), sum(mean) / len(mean), max(high)) if self.ranges else None,
            notes=split.notes,
        )


@dataclass(kw_only=True)
class Looks:
    """Looks at the parts, one after another."""

    every: bool
    seen: list[Seen] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    sized: list[tuple[PartName, Split, int, tuple[int, int]]] = field(default_factory=list)
    skewed: list[str] = field(default_factory=list)
    counted: Kind | None = None
    classes: tuple[str, ...] = ()

    def look_at(self, part: PartName, split: Split) -> PartInfo:
        """Read some samples of a part, or all."""
        self.classes = self.classes or split.classes
        self.sized += [(part, split, index, split.size(index)) for index in _some(split, COUNTED)]
        numbers, tally = list(range(len(split))) if self.every else _some(split, LOOKED_AT), Tally.of(split)
        for index in Bar(numbers, desc=part, unit="sample"):
            try:
                sample = split[index]
            except SkysenseError as error:
                self.unreadable.append(f"{part}: {error.message}")
                continue
            self.seen.append(seen(sample, part))
            self.skewed += [f"{part}: {sample.id} ({sides})" for sides in _not_square(sample)]
            tally.add(sample.label)
        self.counted = tally.kind or self.counted
        if tally.kind in ("objects", "samples"):  # counting all of them reads no pixels
            tally = Tally.of(split)
            for index in _some(split, COUNTED):
                tally.add(_label(split, index))
        return tally.part(split, len(numbers))

    def odd_sizes(self) -> Finding:
        """Samples of another size than nearly all have."""
        sizes = Counter(size for *_, size in self.sized)
        if not sizes or (usual := sizes.most_common(1)[0])[1] < USUAL * len(self.sized):
            return Finding()
        odd = [one for one in self.sized if one[3] != usual[0]]
        examples = [
            f"{part}: {_name(split, index)} ({size[0]} x {size[1]} pixels)"
            for part, split, index, size in odd[:EXAMPLES]
        ]
        return Finding(samples=len(odd), examples=tuple(examples))


def look_at_dataset(path: Path, settings: Mapping[str, Any], *, every: bool = False) -> DatasetInfo:
    """What lies in a data set: parts, labels, leaks between parts, odd samples.

    `settings` are the `data` and `modalities` tables of a training. A part that cannot be opened and samples that
    cannot be read are findings. Raises UsageError for a layout that is not known and for settings that it does not
    have.
    """
    name, source = sources.from_table({"path": str(path), **settings.get("data", {})})
    given, own = settings.get("modalities", {}), sources.described(source)
    wanted = {one: modalities.load(one, given.get(one), own.get(one)) for one in given or source.available()}
    looks = Looks(every=every)
    parts: dict[str, PartInfo] = {}
    refused: dict[str, str] = {}
    for part in get_args(PartName):
        with going_on(True) as failures:
            try:
                parts[part] = looks.look_at(part, source.open(part, wanted))
            except SkysenseError as error:
                refused[part] = str(error)
        looks.unreadable += [f"{part}: {failure.splitlines()[0]}" for failure in failures]
    return DatasetInfo(
        path=path,
        source=name,
        evidence=source.looked_for,
        settings={key: dict(table) for key, table in settings.items()},
        tasks=source.about.tasks,
        modalities=wanted,
        classes=looks.classes,
        counted=looks.counted,
        parts=parts,
        refused=refused,
        whole=all(one.looked_at == one.samples for one in parts.values()),
        sizes={f"{h} x {w}": count for (h, w), count in Counter(size for *_, size in looks.sized).most_common()},
        odd_sizes=looks.odd_sizes(),
        not_square=Finding(samples=len(looks.skewed), examples=tuple(looks.skewed[:EXAMPLES])),
        unreadable=tuple(dict.fromkeys(looks.unreadable)),
        leaks=leaks_of(looks.seen),
    )


def training_command(found: DatasetInfo) -> str | None:
    """The training that could follow; None where the data do not allow one yet."""
    there = {part for part, one in found.parts.items() if one.samples}
    tasks = [task for task in found.tasks if task != PRETRAIN] if found.counted and "val" in there else []
    if "train" not in there or not (tasks or PRETRAIN in found.tasks or not found.counted):
        return None
    table = {key: value for key, value in found.settings.get("data", {}).items() if key != "source"}
    words = ["--source", str(found.settings["data"]["source"])] if "source" in found.settings.get("data", {}) else []
    words += ["--modalities", ",".join(named)] if (named := found.settings.get("modalities")) else []
    for prefix, fields in (("data", table), ("modalities", found.settings.get("modalities", {}))):
        for line in _assignments(prefix, fields):
            words += ["--set", line]
    verb = ["finetune", "--task", tasks[0]] if tasks else [PRETRAIN]
    return shlex.join(["skysense", *verb, "--data", str(found.path), *words, "--out", "RUN"])


def _assignments(prefix: str, fields: Mapping[str, Any]) -> Iterable[str]:
    """Nested fields as `--set` takes them."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _assignments(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}={json.dumps(value, ensure_ascii=False, default=str)}"  # TOML writes these alike


def _some(split: Split, most: int) -> list[int]:
    return spread(len(split), most) if len(split) else []


def _name(split: Split, index: int) -> str:
    try:
        return split[index].id
    except SkysenseError:  # it is named among those that cannot be read
        return f"sample {index}"


def _label(split: Split, index: int) -> Label | None:
    try:
        return split.label(index)
    except SkysenseError:  # how sources answer where nothing says the label of a sample
        return None


def _not_square(sample: Sample) -> list[str]:
    """The sides of the first raster whose pixels are not square, as text; empty where all are."""
    for raster in (raster for epoch in sample.epochs for raster in epoch.values()):
        if raster.geobox is not None and raster.geobox.crs is not None:
            across, along = ground_pixel(raster.geobox)
            if max(across, along) > SQUARE * min(across, along):
                return [f"{across:.3g} m across, {along:.3g} m along"]
    return []


def _kind(label: Label) -> Kind:
    match label:
        case ClassMap() | ClassMaps():
            return "pixels"
        case Objects():
            return "objects"
        case Tags():
            return "samples"
        case _:
            return "values"
