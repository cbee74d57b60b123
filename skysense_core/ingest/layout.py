"""From a labelled data set in a layout of `sources` to samples: its parts, labels and grids stay as they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from skysense_core import config, modalities, sources
from skysense_core.data.store import Facts
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.fingerprint import fingerprint
from skysense_core.geo.grid import ground_gsd
from skysense_core.ingest.inputs import Failure, Found
from skysense_core.ingest.pack import Legend, Packed
from skysense_core.ingest.settings import IngestConfig
from skysense_core.types import ClassMap, PartName, Split


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayoutWork:
    """An ingest of a data set that is ready to start. Travels to other processes."""

    given: IngestConfig
    table: dict[str, Any]
    """The resolved `[data]` table."""
    parts: Mapping[PartName, Split]
    stretches: tuple[tuple[PartName, int, int], ...]
    """Part, first and last but one sample of every shard."""
    legend: Legend
    facts: Mapping[str, Facts]
    found: tuple[Found, ...]
    notes: tuple[str, ...]
    failures: tuple[Failure, ...] = ()
    size: int | None = None

    @property
    def shards(self) -> tuple[tuple[PartName, int, int], ...]:
        return self.stretches

    @property
    def made_from(self) -> dict[str, Any]:
        """What the bytes of the store depend on."""
        names = ("modalities", "shard_size", "allow_leak")
        given = {key: value for key, value in config.to_table(self.given).items() if key in names}
        path = str(self.table.get("path", ""))
        tables = {name: config.to_table(one) for name, one in self.legend.modalities.items()}
        counts = {name: len(split) for name, split in self.parts.items()}
        return {
            **given,
            "data": self.table,
            "state": fingerprint(path) if path else "",
            "modalities": tables,
            "counts": counts,
        }

    def count(self, number: int) -> int:
        """Samples of a shard."""
        _, start, stop = self.stretches[number]
        return stop - start

    def estimate(self) -> tuple[int, dict[str, int], int]:
        """Samples, images by modality, and bytes of pixels before compression, judged by the first of each part."""
        images: dict[str, int] = dict.fromkeys(self.legend.modalities, 0)
        size = 0
        for split in self.parts.values():
            for name, raster in split[0].epochs[0].items():
                images[name] += len(raster.days) * len(split)
                size += raster.pixels.nbytes * len(split)
        return sum(map(len, self.parts.values())), images, size

    def samples(self, number: int, failures: list[Failure]) -> Iterator[Packed]:
        """The samples of a shard in the data set's order; one that cannot be read is noted in `failures`."""
        part, start, stop = self.stretches[number]
        for index in range(start, stop):
            try:
                sample = self.parts[part][index]
            except SkysenseError as error:
                failures.append(Failure(item=f"{part} {index}", modality="", where=f"shard {number}", error=str(error)))
                continue
            yield Packed(sample=sample, split=part)


def plan_layout(given: IngestConfig) -> LayoutWork:
    """Open a data set; nothing is written.

    Raises UsageError and SkysenseError where it has no layout that is known, or nothing in it.
    """
    name, source = sources.from_table(given.data)
    names = tuple(given.modalities) or source.available()
    own = sources.described(source)
    kinds = {key: modalities.load(key, given.modalities.get(key), own.get(key)) for key in names}
    parts: dict[PartName, Split] = {}
    lacking: list[SkysenseError] = []
    for part in get_args(PartName):
        try:
            parts[part] = source.open(part, kinds)
        except UsageError:
            raise
        except SkysenseError as error:  # not every data set has all three
            lacking.append(error)
    parts = {part: split for part, split in parts.items() if len(split)}
    if not parts:
        raise lacking[0] if lacking else SkysenseError(f"{given.data.get('path')}: no samples")
    first = next(iter(parts.values()))
    mapped = bool(first.classes) and isinstance(first.label(0), ClassMap)
    stretches = [
        (part, start, min(start + given.shard_size, len(split)))
        for part, split in parts.items()
        for start in range(0, len(split), given.shard_size)
    ]
    noted = [note for split in parts.values() for note in split.notes]
    if first.classes and not mapped:
        noted.append("the labels are no maps of classes, which is all that a store holds: left out")
    notes = tuple(dict.fromkeys(noted))
    return LayoutWork(
        given=given,
        table={"source": name, **config.to_table(source)},
        parts=parts,
        stretches=tuple(stretches),
        legend=Legend(
            modalities=kinds,
            classes=first.classes if mapped else (),
            colours=(first.colours or ()) if mapped else (),
        ),
        facts={key: Facts(level=kind.level, notes=notes) for key, kind in kinds.items()},
        found=tuple(_found(key, parts, Path(str(given.data.get("path", "")))) for key in kinds),
        notes=(*notes, *(f"left out: {error.message}" for error in lacking)),
    )


def _found(name: str, parts: Mapping[PartName, Split], path: Path) -> Found:
    """What the first sample shows of a modality."""
    raster = next(iter(parts.values()))[0].epochs[0].get(name)
    days = [] if raster is None else [str(day) for day in raster.days[raster.dated].astype("datetime64[D]")]
    grid = None if raster is None else raster.geobox
    return Found(
        modality=name,
        inputs=sum(map(len, parts.values())),
        images=0 if raster is None else len(raster.days),
        first=days[0] if days else "",
        last=days[-1] if days else "",
        crs="" if grid is None else str(grid.crs),
        gsd=0.0 if grid is None or grid.crs is None else round(ground_gsd(grid), 3),
        level="",
        notes=(),
    )
