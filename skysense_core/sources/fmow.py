"""fMoW-Sentinel (Cong et al. 2022): what a place is used for, from a series of Sentinel-2 L1C images; 62 categories.

Layout: `train.csv`, `val.csv` and `test_gt.csv` with the columns category, location_id, image_id and timestamp, and
`<part>/<category>/<category>_<location_id>/<category>_<location_id>_<image_id>.tif` beside them or in
`fmow-sentinel/`. Images have 13 bands, and sizes of their own: a sample is the middle of the first one, and all others
are read on its grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core import modalities as modality_files
from skysense_core.data.scene import read_place
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.raster import open_stack
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import PartName, Sample, Tags

BANDS = tuple(f"B{number}" for number in ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "10", "11", "12"))
"""In the order of the files."""
FILES: dict[PartName, str] = {"train": "train", "val": "val", "test": "test_gt"}
COLUMNS = ("category", "location_id", "image_id", "timestamp")
SIDE = 96
"""Pixels along a sample, as the authors of the data set use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fmow:
    """The `[data]` table of an fMoW-Sentinel folder."""

    looked_for: ClassVar[str] = "fMoW-Sentinel: a folder with train.csv and train/CATEGORY/CATEGORY_0/CATEGORY_0_0.tif"
    about: ClassVar[About] = About(
        tasks=("classification",),
        modalities=("s2",),
        classes="62",
        split="train, val and test_gt as published",
        licence="see its page",
        where="purl.stanford.edu/vg497cb6002",
    )

    path: Path

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / "train.csv").is_file() and (_root(path) / "train").is_dir()

    def available(self) -> tuple[str, ...]:
        return ("s2",)

    def described(self) -> dict[str, Modality]:
        """s2 as top-of-atmosphere reflectance."""
        return {"s2": modality_files.load("s2", {"level": "L1C"})}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "FmowSplit":
        """The places of one part, each with all its images. Raises SkysenseError where its table is not there."""
        if set(modalities) != {"s2"}:
            raise UsageError(f"{self.path} has s2, not {', '.join(modalities)}", fix="--modalities s2")
        if modalities["s2"].level != "L1C":
            raise UsageError(
                f"{self.path} is L1C, and s2 is {modalities['s2'].level}", fix="--set modalities.s2.level=L1C"
            )
        table = self._table(split)
        places = [
            Place(category=str(category), number=str(number), images=tuple(map(str, own.image_id)), days=_days(own))
            for (category, number), own in table.groupby(["category", "location_id"], sort=True)
        ]
        trained = table if split == "train" else self._table("train")
        classes = tuple(sorted(set(map(str, trained.category))))
        if strange := sorted({place.category for place in places} - set(classes)):
            raise SkysenseError(f"{self.path}: no training place is {', '.join(strange[:5])}, which {split} has")
        return FmowSplit(
            folder=_root(self.path) / FILES[split],
            modality=modalities["s2"],
            places=tuple(places),
            classes=classes,
            notes=(f"{len(places)} places with {len(table)} images",),
        )

    def _table(self, split: PartName) -> pd.DataFrame:
        path = self.path / f"{FILES[split]}.csv"
        if not path.is_file():
            raise SkysenseError(f"{path}: no such file", fix=f"Expected {self.looked_for}.")
        try:
            return pd.read_csv(path, usecols=list(COLUMNS)).sort_values(list(COLUMNS), ignore_index=True)
        except ValueError as error:
            raise SkysenseError(f"{path}: not a table of fMoW-Sentinel: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a table says of one place."""

    category: str
    number: str
    images: tuple[str, ...]
    days: tuple[str, ...]
    """Date of each image, YYYY-MM-DD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FmowSplit:
    """The places of one part."""

    folder: Path
    modality: Modality
    places: tuple[Place, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        place = self.places[index]
        name = f"{place.category}_{place.number}"
        files = [self.folder / place.category / name / f"{name}_{image}.tif" for image in place.images]
        if missing := [file for file in files if not file.is_file()]:
            raise SkysenseError(f"{missing[0]}: no such image, though the table lists it")
        options = ReadOptions(bands=BANDS, dates=place.days, nodata=0.0)
        stack = open_stack(
            files, bands=[band.names for band in self.modality.bands], unit=self.modality.unit, options=options
        )
        first = open_stack(files[:1], bands=None).geobox
        rows, columns = first.shape
        middle = first.affine * Affine.translation((columns - SIDE) // 2, (rows - SIDE) // 2)
        grid = GeoBox((SIDE, SIDE), middle, first.crs)
        footprint, lonlat = footprint_lonlat(grid)
        return Sample(
            id=name,
            epochs=(read_place({"s2": stack}, {"s2": self.modality}, grid),),
            footprint=footprint,
            lonlat=lonlat,
            label=self.label(index),
        )

    def size(self, index: int) -> tuple[int, int]:
        return SIDE, SIDE

    def label(self, index: int) -> Tags:
        return Tags(codes=(self.classes.index(self.places[index].category),))


def _root(path: Path) -> Path:
    """The folder of the parts."""
    inner = path / "fmow-sentinel"
    return inner if inner.is_dir() else path


def _days(images: pd.DataFrame) -> tuple[str, ...]:
    return tuple(str(moment)[:10] for moment in images.timestamp)
