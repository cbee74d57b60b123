"""Pictures with objects drawn on them, as data sets of detection have them: checked once, read as they are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from skysense_core import config
from skysense_core.data.sound import readable
from skysense_core.errors import SkysenseError, UsageError, did_you_mean
from skysense_core.geo import boxes
from skysense_core.geo.files import open_file
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.raster import read_picture
from skysense_core.modalities import Modality
from skysense_core.types import Objects, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One object as an annotation file has it."""

    corners: tuple[float, ...]
    """x1, y1, ... x4, y4 in pixels."""
    name: str
    difficult: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture and what is drawn on it."""

    image: Path
    drawn: tuple[Drawn, ...]
    annotation: str
    """Where that is written, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPictures:
    """The pictures of one part, as they are: no resampling."""

    modality: Modality
    options: ReadOptions
    classes: tuple[str, ...]
    pictures: tuple[Path, ...]
    labels: tuple[Objects, ...]
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        pictures: Sequence[Picture],
        *,
        classes: Sequence[str],
        modality: Modality,
        read: Mapping[str, Mapping[str, Any]],
        notes: Sequence[str] = (),
    ) -> "ObjectPictures":
        """Check what is drawn. Objects without an area or off the picture are left out, and a note says so.

        Raises SkysenseError for a picture that cannot be opened and for a class that the data set does not have.
        """
        table = {**read.get("", {}), **read.get(modality.name, {})}
        options = config.build(ReadOptions, table, f"data.read.{modality.name}")
        checked = _Checked()
        sized = readable(pictures, lambda picture: size_of(picture.image))
        labels = [checked.objects(picture, size, tuple(classes)) for picture, size in sized]
        return cls(
            modality=modality,
            options=options,
            classes=tuple(classes),
            pictures=tuple(picture.image for picture, _ in sized),
            labels=tuple(labels),
            sizes=tuple(size for _, size in sized),
            notes=(*notes, *checked.notes()),
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        path = self.pictures[index]
        bands = [band.names for band in self.modality.bands]
        image = read_picture(path, bands=bands, unit=self.modality.unit, options=self.options)
        footprint, lonlat = (None, None) if image.geobox is None else footprint_lonlat(image.geobox)
        return Sample(
            id=path.stem,
            epochs=({self.modality.name: image},),
            footprint=footprint,
            lonlat=lonlat,
            label=self.labels[index],
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def label(self, index: int) -> Objects:
        return self.labels[index]


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is wrong with the objects of a data set: how often, and where first."""

    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def objects(self, picture: Picture, size: tuple[int, int], classes: tuple[str, ...]) -> Objects:
        for one in picture.drawn:
            if one.name not in classes:
                raise SkysenseError(
                    f"{picture.annotation}: class {one.name!r}, which the data set does not have",
                    fix=f"{did_you_mean(one.name, classes)}It has: {', '.join(classes)}.",
                )
        corners = np.array([one.corners for one in picture.drawn], dtype=np.float64).reshape(-1, 4, 2)
        kept = self._sound(corners, size, picture.annotation)
        drawn = [one for one, sound in zip(picture.drawn, kept.tolist(), strict=True) if sound]
        return Objects(
            corners=boxes.clockwise(corners[kept]),
            codes=np.array([classes.index(one.name) for one in drawn], dtype=np.int64),
            difficult=np.array([one.difficult for one in drawn], dtype=bool),
        )

    def _sound(self, corners: Float[np.ndarray, "n 4 2"], size: tuple[int, int], where: str) -> np.ndarray:
        finite = np.isfinite(corners).all(axis=(1, 2))
        area = np.zeros(len(corners))
        area[finite] = boxes.areas(corners[finite])
        x, y = corners.mean(axis=1).T
        inside = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0])
        for fault, found in (("have no area", area <= boxes.FEWEST), ("lie off the picture", ~inside & (area > 0))):
            if found.any():
                self.faults[fault] += int(found.sum())
                self.first.setdefault(fault, where)
        return (area > boxes.FEWEST) & inside

    def notes(self) -> list[str]:
        return [
            f"{count} objects {fault} and are left out, the first in {self.first[fault]}"
            for fault, count in self.faults.items()
        ]


def size_of(image: Path) -> tuple[int, int]:
    """Rows and columns of a picture. Raises SkysenseError where it cannot be opened."""
    grid = open_file(str(image), ReadOptions(), colours=False, georeferenced=False).geobox
    return grid.shape.y, grid.shape.x


def upright(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    """The corners of an upright box."""
    return (left, top, right, top, right, bottom, left, bottom)


def refuse_others(path: Path, modality: str, wanted: Iterable[str]) -> None:
    """Raises UsageError where other modalities are wanted than the pictures are."""
    if set(wanted) != {modality}:
        raise UsageError(
            f"{path} holds {modality}, not {', '.join(wanted)}",
            fix=f"--modalities {modality}, or --set data.modality={next(iter(wanted))}",
        )


def pictures_of(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The pictures of a folder by their names. Raises SkysenseError where it is missing or holds none."""
    if not folder.is_dir():
        raise SkysenseError(f"{folder}: no such folder")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}
    if not found:
        raise SkysenseError(f"{folder}: no picture in this folder")
    return found
