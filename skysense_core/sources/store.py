"""A store that `skysense ingest` has written: samples of several modalities, with or without labels.

Nothing is reprojected: a chip is read where it lies in its shard (see `data.store`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from skysense_core.data.scene import SAME_GSD
from skysense_core.data.store import (
    DESCRIPTION,
    INDEX,
    Description,
    load_description,
    path_of,
    read_index,
    web_address,
)
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.chips import read_chip, read_label, subfile
from skysense_core.modalities import Modality, finest
from skysense_core.sources import About
from skysense_core.types import IGNORE, ClassMap, PartName, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The `[data]` table of a store."""

    looked_for: ClassVar[str] = f"a store of skysense ingest: a folder with {DESCRIPTION} and {INDEX}"
    about: ClassVar[About] = About(
        tasks=("segmentation", "landcover", "crop", "pretrain"),
        modalities=("hr", "s2", "s1"),
        classes="those of what it was made of",
        split="kept in the store",
        licence="that of what it was made of",
        where="skysense ingest",
    )

    path: str
    """A folder, or the address of one on a web server."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / DESCRIPTION).is_file() and (path / INDEX).is_file()

    def available(self) -> tuple[str, ...]:
        return tuple(self.described())

    def described(self) -> dict[str, Modality]:
        """The modalities as the store holds them, with its own level and statistics."""
        return load_description(self.path).modalities

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "StoreSplit":
        """The samples of one part that have the reference modality.

        Raises UsageError for a modality, level or band that the store does not have, and SkysenseError where the part
        is empty or a shard is missing or cut short.
        """
        description = load_description(self.path)
        for name, modality in modalities.items():
            _check(self.path, description, name, modality)
        reference = finest(modalities)
        whole = read_index(self.path, split=split)
        table = whole.filter(pc.greater(whole[f"{reference}_size"], 0))
        notes = list(dict.fromkeys(f"{name}: {note}" for name in modalities for note in description.facts[name].notes))
        if len(table) < len(whole):
            notes.append(f"{len(whole) - len(table)} samples without {reference} are left out of {split}")
        if not len(table):
            raise SkysenseError(
                f"{self.path}: the {split} part is empty",
                fix="Ingest more area, or with smaller --split-block, or another --val-share and --test-share.",
            )
        if web_address(self.path) is None:
            _check_shards(self.path, table, [*(f"{name}" for name in description.modalities), "label"])
        return StoreSplit(
            root=self.path,
            modalities=dict(modalities),
            table=table.select(_columns(modalities)).combine_chunks(),
            classes=description.classes,
            colours=description.colours or None,
            notes=tuple(notes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSplit:
    """Some rows of the index, and of its columns those that reading takes."""

    root: str
    modalities: Mapping[str, Modality]
    table: pa.Table
    classes: tuple[str, ...]
    colours: tuple[str, ...] | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        row = self._row(index)
        images = {
            name: read_chip(self._part(row, name), [band.names for band in modality.bands])
            for name, modality in self.modalities.items()
            if row[f"{name}_size"]
        }
        return Sample(
            id=row["id"],
            epochs=(images,),
            footprint=None if row["geometry"] is None else shapely.from_wkb(row["geometry"]),
            lonlat=None if row["lon"] is None else (row["lon"], row["lat"]),
            label=self.label(index) if self.classes else None,
        )

    def size(self, index: int) -> tuple[int, int]:
        row, reference = self._row(index), finest(self.modalities)
        return row[f"{reference}_height"], row[f"{reference}_width"]

    def label(self, index: int) -> ClassMap:
        """The label on the reference's grid; from a finer one each pixel takes the code at its centre.

        Raises SkysenseError where the store has no labels.
        """
        if not self.classes:
            raise SkysenseError(
                f"{self.root}: the store has no labels",
                fix="Ingest it with --labels, or use skysense pretrain, which needs none.",
            )
        row, (height, width) = self._row(index), self.size(index)
        if not row["label_size"]:
            return ClassMap(codes=np.full((height, width), IGNORE, dtype=np.uint8))
        label = read_label(self._part(row, "label"))
        if label.codes.shape == (height, width):
            return label
        rows, cols = (
            ((np.arange(n) + 0.5) * m / n).astype(np.int64)
            for n, m in zip((height, width), label.codes.shape, strict=True)
        )
        return ClassMap(
            codes=label.codes[np.ix_(rows, cols)],
            geobox=None if label.geobox is None else label.geobox.zoom_to((height, width)),
        )

    def _row(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.table.slice(index % len(self), 1).to_pylist()[0]

    def _part(self, row: Mapping[str, Any], name: str) -> str:
        return subfile(path_of(self.root, row["shard"]), row[f"{name}_offset"], row[f"{name}_size"])


def _columns(modalities: Iterable[str]) -> list[str]:
    """What a sample is read by: looking up all of a row takes as long as decoding a chip."""
    places = [f"{name}_{field}" for name in modalities for field in ("offset", "size", "height", "width")]
    return ["id", "lon", "lat", "shard", "geometry", "label_offset", "label_size", *places]


def _check(path: str, description: Description, name: str, modality: Modality) -> None:
    """Whether the chips are what is wanted: they are not resampled or converted any more."""
    if name not in description.modalities:
        raise UsageError(f"{path} has no {name}", fix=f"It has {', '.join(description.modalities)}: --modalities")
    own = description.modalities[name]
    for field in ("level", "unit"):
        here, wanted = getattr(own, field), getattr(modality, field)
        if here != wanted:
            raise UsageError(
                f"{path}: {name} is stored as {field} {here}, and {wanted} is wanted",
                fix=f'Ingest {wanted} data, or --set modalities.{name}.{field}="{here}"',
            )
    if abs(modality.gsd / own.gsd - 1) > SAME_GSD:
        raise UsageError(
            f"{path}: {name} is stored with pixels of {own.gsd:g} m, and {modality.gsd:g} m are wanted",
            fix=f"--set modalities.{name}.gsd={own.gsd:g}, or ingest it again.",
        )
    known = {alias.lower() for band in own.bands for alias in band.names}
    absent = [band.name for band in modality.bands if not known & {alias.lower() for alias in band.names}]
    if absent:
        raise UsageError(f"{path}: {name} has no {', '.join(absent)}", fix=f"It has {', '.join(own.band_names)}.")


def _check_shards(root: str, table: pa.Table, parts: list[str]) -> None:
    """Whether every shard is there and as long as the index says. Raises SkysenseError naming the first that is not."""
    ends: dict[str, int] = {}
    for part in parts:
        stops = pc.add(table[f"{part}_offset"], table[f"{part}_size"])
        for group in (
            pa.table({"shard": table["shard"], "stop": stops})
            .group_by("shard")
            .aggregate([("stop", "max")])
            .to_pylist()
        ):
            ends[group["shard"]] = max(ends.get(group["shard"], 0), group["stop_max"])
    for shard, stop in sorted(ends.items()):
        path = Path(root) / shard
        if not path.is_file() or path.stat().st_size < stop:
            state = "is missing" if not path.is_file() else f"has {path.stat().st_size:,} bytes of at least {stop:,}"
            raise SkysenseError(f"{path} {state}", fix="Copy the store again, or repeat the skysense ingest command.")
