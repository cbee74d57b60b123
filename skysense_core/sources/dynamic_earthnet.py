"""Dynamic EarthNet (Toker et al. 2022): land cover of every month of 2018 and 2019 in 75 cubes of 1024 x 1024 pixels.

Layout: `dynnet_training_splits/{train,val,test}.txt`, a line for each month of a cube: the folder of its daily Planet
images, its label and the month (`/planet/10N/1311_3077_13/PF-SR /labels/.../...-2018_01_01.tif 2018-01`), both below
the folder of the data set. Of hr (Planet, 3 m: blue, green, red, near infrared) the image of the first day is read.
Monthly composites of s2 and s1 are any files below `sentinel2/` and `sentinel1/` with the cube's number and the month
in their paths. Labels have a band of 0 and 255 for each class; snow and ice is not scored (METHOD 4).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Num

from skysense_core import config
from skysense_core.data.pictures import PicturesSplit, Place, open_places
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.labels import Legend
from skysense_core.geo.options import ReadOptions
from skysense_core.modalities import Band, Modality, load
from skysense_core.sources import About
from skysense_core.types import IGNORE, PartName, Raster

LISTS = "dynnet_training_splits"
FOLDERS = {"hr": "planet", "s2": "sentinel2", "s1": "sentinel1"}
CLASSES = ("impervious surface", "agriculture", "forest and other vegetation", "wetlands", "soil", "water")
COLOURS = ("#606060", "#cccc00", "#00cc00", "#0000cc", "#996633", "#2c99f0")
SNOW = len(CLASSES)
LEGEND = Legend(classes=CLASSES, codes={**{str(i): i for i in range(SNOW)}, str(SNOW): IGNORE, str(IGNORE): IGNORE})
PLANET = {"blue": (671.26, 596.94), "green": (915.62, 715.55), "red": (1042.59, 957.96), "nir": (2605.21, 1059.90)}
"""Bands in the files' order, each with mean and deviation of reflectance x 10000 (authors' code)."""
SENTINEL2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
CUBE, MONTH = re.compile(r"\d{4}_\d{4}_\d{2}"), re.compile(r"20\d\d[-_](?:0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A line of a list."""

    cube: str
    folder: Path
    label: Path
    month: str
    """2018-01 and so on."""


@dataclass(frozen=True, kw_only=True)
class DynamicEarthnet:
    """The `[data]` table of Dynamic EarthNet."""

    looked_for: ClassVar[str] = f"a folder with {LISTS}/train.txt, planet/ and labels/"
    about: ClassVar[About] = About(
        tasks=("segmentation", "landcover", "semantic_change"),
        modalities=("hr", "s2", "s1"),
        classes="6, snow unscored",
        split="lists as published",
        licence="CC BY 4.0 (labels); Planet imagery for research; see its page",
        where="mediatum.ub.tum.de/1650201, lists from github.com/aysim/dynnet",
    )

    path: Path
    months: Literal["apart", "together"] = "apart"
    """apart: each month of a cube is a sample, for a map of one month; together: a cube is a sample whose epochs are
    its months, for semantic_change."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the files of a modality are read: fields of `geo.options.ReadOptions` by its name. Those of s1 have eight
    bands whose names nobody states: `[data.read.s1] bands = ["vv", "vh", "-", ...]`."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / LISTS / "train.txt").is_file()

    def available(self) -> tuple[str, ...]:
        return tuple(name for name, folder in FOLDERS.items() if (self.path / folder).is_dir())

    def described(self) -> dict[str, Modality]:
        """Planet's four bands at 3 m; s2 and s1 of one date on the same pixels, as they are published."""
        bands = tuple(
            Band(name=name, mean=PLANET[name][0], std=PLANET[name][1]) for name in ("red", "green", "blue", "nir")
        )
        hr = Modality(
            name="hr",
            title="Planet, four bands",
            encoder="swin",
            level="surface reflectance",
            unit="reflectance x 10000",
            gsd=3.0,
            window=512,
            dates=1,
            bands=bands,
        )
        others = {name: load(name, {"gsd": 3.0, "dates": 1, "window": 128}) for name in ("s2", "s1")}
        return {name: one for name, one in {"hr": hr, **others}.items() if name in self.available()}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> PicturesSplit:
        """The months or cubes of one part. Raises SkysenseError naming a file that is missing."""
        for name in modalities:
            if name not in self.available():
                raise UsageError(f"{self.path} has no {name}", fix=f"It has {', '.join(self.available())}.")
        listed = self._listed(split)
        places = [
            Place(
                id=f"{one.cube}_{one.month}",
                epochs=({name: self._file(name, one) for name in modalities},),
                masks=(one.label,),
            )
            for one in listed
        ]
        if self.months == "together":
            places = self._cubes(listed, places)
        given: dict[str, dict[str, Any]] = {"hr": {"bands": tuple(PLANET)}, "s2": {"bands": SENTINEL2}}
        read = {
            name: config.build(ReadOptions, {**given.get(name, {}), **self.read.get(name, {})}, f"data.read.{name}")
            for name in modalities
        }
        return open_places(
            tuple(places),
            modalities,
            folder=self.path,
            part=split,
            legend=LEGEND,
            values=class_of,
            read=read,
            colours=COLOURS,
        )

    def _listed(self, split: PartName) -> list[Month]:
        path, found = self.path / LISTS / f"{split}.txt", []
        if not path.is_file():
            raise SkysenseError(f"{path}: no such file", fix="The lists are published beside the authors' code.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            fields = line.split()
            cube = CUBE.search(fields[0])
            if len(fields) != 3 or cube is None or not MONTH.fullmatch(fields[2]):
                raise SkysenseError(f"{path}, line {number}: no folder, label and month of a cube: {line.strip()}")
            folder, label = (self.path / one.lstrip("/") for one in fields[:2])
            found.append(Month(cube=cube[0], folder=folder, label=label, month=fields[2]))
        return sorted(found, key=lambda one: (one.cube, one.month))

    def _cubes(self, listed: list[Month], places: list[Place]) -> list[Place]:
        """All months of a cube as one place."""
        together: dict[str, list[Place]] = {}
        for one, place in zip(listed, places, strict=True):
            together.setdefault(one.cube, []).append(place)
        counts = {cube: len(months) for cube, months in together.items()}
        if len(set(counts.values())) > 1:
            few = min(counts, key=lambda cube: counts[cube])
            raise SkysenseError(
                f"{self.path}: cube {few} has {counts[few]} months, another {max(counts.values())}",
                fix="Cubes of all months are compared: complete the list, or leave this cube out of it.",
            )
        return [
            Place(
                id=cube,
                epochs=tuple(place.epochs[0] for place in months),
                masks=tuple(place.masks[0] for place in months),
            )
            for cube, months in together.items()
        ]

    def _file(self, name: str, one: Month) -> Path:
        if name == "hr":
            return one.folder / f"{one.month}-01.tif"
        found = self._composites.get((name, one.cube, one.month), [])
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files ({', '.join(path.name for path in found)})"
            raise SkysenseError(
                f"{self.path / FOLDERS[name]}: {what} of cube {one.cube} and month {one.month}",
                fix="Composites have both in their paths; leave months that lack them out of the lists.",
            )
        return found[0]

    @cached_property
    def _composites(self) -> dict[tuple[str, str, str], list[Path]]:
        """Files of s2 and s1 by modality, cube and month."""
        found: dict[tuple[str, str, str], list[Path]] = {}
        for name in ("s2", "s1"):
            for path in sorted((self.path / FOLDERS[name]).rglob("*.tif")):
                cube, month = CUBE.search(str(path.relative_to(self.path))), MONTH.search(path.stem)
                if cube is not None and month is not None:
                    found.setdefault((name, cube[0], month[0].replace("_", "-")), []).append(path)
        return found


def class_of(mask: Raster, path: Path) -> Num[np.ndarray, "h w"]:
    """The class whose band is 255, `IGNORE` where there is none. Raises SkysenseError where bands are no classes."""
    bands = mask.pixels[0]
    if len(bands) != SNOW + 1:
        raise SkysenseError(f"{path}: {len(bands)} bands; a label has {SNOW + 1}, one for each class")
    on = bands == 255
    if (on.sum(axis=0) > 1).any():
        raise SkysenseError(f"{path}: pixels of several classes at once")
    return np.where(on.any(axis=0), on.argmax(axis=0), IGNORE)
