"""Several data sets as one, as material for pre-training: a TOML file (paths are relative to it).

    [[data]]
    source = "images"
    path = "aerial/"
    weight = 2.0               # optional: its samples come twice per pass

    [[data]]
    path = "pastis/"

A table has the fields of its source. Data sets may have different modalities; labels are not looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skysense_core import config, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import Modality
from skysense_core.types import ClassMap, PartName, Sample, Split

PATHS = ("path", "labels")
"""Fields of sources that are paths, where they are text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The `[data]` table of several data sets."""

    looked_for: ClassVar[str] = "a TOML file with [[data]] tables, each a data set of its own"
    about: ClassVar[sources.About] = sources.About(
        tasks=("pretrain",),
        modalities=("hr", "s2", "s1"),
        classes="none",
        split="all train",
        licence="that of its parts",
        where="several data sets named in one TOML file",
    )

    path: Path

    @staticmethod
    def detect(path: Path) -> bool:
        return path.suffix == ".toml" and path.is_file() and isinstance(config.load_toml(path).get("data"), list)

    def available(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, source, _ in self.members() for name in source.available()))

    def described(self) -> dict[str, Modality]:
        """What the data sets say of their modalities, the first one that says something of each."""
        members = [sources.described(source) for _, source, _ in self.members()]
        return {name: one for member in reversed(members) for name, one in member.items()}

    def members(self) -> list[tuple[str, sources.Source, float]]:
        """Name, source and weight of every data set. Raises UsageError where a table is none."""
        found = []
        for number, given in enumerate(config.load_toml(self.path).get("data", []), start=1):
            table: dict[str, Any] = dict(given)
            weight = table.pop("weight", 1.0)
            if not isinstance(weight, int | float) or weight <= 0:
                raise UsageError(f"{self.path}: data set {number}: weight = {weight}", fix="A number above 0.")
            table |= {key: str(self.path.parent / table[key]) for key in PATHS if isinstance(table.get(key), str)}
            name, source = sources.from_table(table)
            found.append((f"{number}-{name}", source, float(weight)))
        if not found:
            raise UsageError(f"{self.path}: no data set", fix=f"Expected {self.looked_for}.")
        return found

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "MixtureSplit":
        """The samples of one part of all data sets, each with those of the modalities that it has.

        Raises SkysenseError for another part than train: scores over several data sets would say nothing.
        """
        if split != "train":
            raise SkysenseError(f"{self.path}: a mixture has no {split} part", fix="Measure on one of its data sets.")
        parts: list[tuple[str, Split]] = []
        rows: list[tuple[int, int]] = []
        notes: list[str] = []
        for name, source, weight in self.members():
            own = {key: one for key, one in modalities.items() if key in source.available()}
            if not own:
                notes.append(f"{name}: left out, it has {', '.join(source.available())} only")
                continue
            part = source.open(split, own)
            chosen = np.floor(np.arange(round(weight * len(part))) / weight).astype(np.int64)
            rows += [(len(parts), int(index)) for index in chosen]
            parts.append((name, part))
            notes += [*(f"{name}: {note}" for note in part.notes), f"{name}: {len(chosen)} samples per pass"]
        return MixtureSplit(parts=tuple(parts), rows=tuple(rows), notes=tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSplit:
    """The samples of several splits, without their labels."""

    parts: tuple[tuple[str, Split], ...]
    rows: tuple[tuple[int, int], ...]
    """Part and number in it of every sample."""
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        part, own = self.rows[index]
        name, split = self.parts[part]
        sample = split[own]
        return replace(sample, id=f"{name}:{sample.id}", label=None)

    def size(self, index: int) -> tuple[int, int]:
        part, own = self.rows[index]
        return self.parts[part][1].size(own)

    def label(self, index: int) -> ClassMap:
        """Raises SkysenseError: labels of several data sets have no legend in common."""
        raise SkysenseError(f"{self.parts[self.rows[index][0]][0]}: a mixture has no labels")
