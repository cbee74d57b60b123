"""SSL4EO-S12 (Wang et al. 2023): places of 2.6 km, all over the world, four seasons of S1, S2 L1C and S2 L2A.

Layout: `s1/`, `s2c/` (L1C) and `s2a/` (L2A) with a folder per place, in it one per acquisition, in it a GeoTIFF per
band and `metadata.json`. S2 are digital numbers, S1 dB: both as Google Earth Engine exports them. Every modality has
its own grid in degrees; samples lie on that of the reference. The level of `modalities.s2` says which folder is read.
A place is nine samples of about 880 m, so that one is read without the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from odc.geo.geobox import GeoBox

from skysense_core import modalities as modality_files
from skysense_core.data.scene import read_place
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.raster import ReadOptions, Stack, open_stack
from skysense_core.geo.series import SHIFTED_BASELINE
from skysense_core.modalities import Modality, finest
from skysense_core.sources import About
from skysense_core.types import ClassMap, PartName, Sample

SIDE, PIXEL = 264, 10.0
CUT = 88
"""Pixels along a sample: a third of a place, and whole patches of the ViT."""
LEVELS = {"L2A": "s2a", "L1C": "s2c"}
READ = {"s2": ReadOptions(nodata=0.0), "s1": ReadOptions(unit="dB")}
"""0 is the nodata value of Sentinel-2 products; COPERNICUS/S1_GRD of Earth Engine is in dB. No file states either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssl4eo:
    """The `[data]` table of an SSL4EO-S12 folder."""

    looked_for: ClassVar[str] = "a folder with s1/, s2a/ or s2c/, in them PLACE/ACQUISITION/B2.tif (SSL4EO-S12)"
    about: ClassVar[About] = About(
        tasks=("pretrain",),
        modalities=("s2", "s1"),
        classes="none",
        split="all train",
        licence="CC BY 4.0",
        where="github.com/zhu-xlab/SSL4EO-S12",
    )

    path: Path

    @staticmethod
    def detect(path: Path) -> bool:
        return any(True for part in ("s2a", "s2c") for _ in path.glob(f"{part}/*/*/B2.tif"))

    def available(self) -> tuple[str, ...]:
        folders = {"s2": tuple(LEVELS.values()), "s1": ("s1",)}
        return tuple(name for name, parts in folders.items() if any((self.path / part).is_dir() for part in parts))

    def described(self) -> dict[str, Modality]:
        """s2 of the level that is there, of two L2A."""
        levels = [level for level, folder in LEVELS.items() if (self.path / folder).is_dir()]
        return {"s2": modality_files.load("s2", {"level": levels[0]})} if levels else {}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "Ssl4eoSplit":
        """All places that have every modality train; there are no labels. Raises UsageError where one is not there."""
        folders = {}
        for name, modality in modalities.items():
            levels = {"s2": LEVELS, "s1": {modality.level: "s1"}}.get(name, {})
            there = {level: self.path / part for level, part in levels.items() if (self.path / part).is_dir()}
            if not there:
                raise UsageError(f"{self.path} has no {name}", fix=f"It has {', '.join(self.available())}.")
            if modality.level not in there:
                raise UsageError(
                    f"{self.path} has {name} as {', '.join(there)}, not as {modality.level}",
                    fix=f"--set modalities.{name}.level={next(iter(there))}",
                )
            if not 0.9 <= modality.gsd / PIXEL <= 1.1:
                raise UsageError(
                    f"the images have pixels of {PIXEL:g} m, and {name} is {modality.gsd:g} m",
                    fix=f"--set modalities.{name}.gsd={PIXEL:g}",
                )
            folders[name] = there[modality.level]
        ids = [{item.name for item in folder.iterdir() if item.is_dir()} for folder in folders.values()]
        places = tuple(sorted(set.intersection(*ids)))
        notes = [f"{len(places)} place{'s' * (len(places) != 1)}, without labels: all train"]
        lacking = len(set.union(*ids)) - len(places)
        if lacking:
            notes.append(f"{lacking} places do not have all of {', '.join(modalities)} and are left out")
        return Ssl4eoSplit(
            folders=folders,
            places=places if split == "train" else (),
            modalities=dict(modalities),
            notes=tuple(notes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssl4eoSplit:
    """The places of one part."""

    folders: Mapping[str, Path]
    """By modality."""
    places: tuple[str, ...]
    modalities: Mapping[str, Modality]
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.places) * (SIDE // CUT) ** 2

    def __getitem__(self, index: int) -> Sample:
        number, part = divmod(index, (SIDE // CUT) ** 2)
        row, col = (CUT * step for step in divmod(part, SIDE // CUT))
        place = self.places[number]
        stacks = {name: _stack(folder / place, self.modalities[name]) for name, folder in self.folders.items()}
        reference = finest(self.modalities)
        grid = self._grid(self.folders[reference] / place)[row : row + CUT, col : col + CUT]
        footprint, lonlat = footprint_lonlat(grid)
        images = read_place(stacks, self.modalities, grid)
        return Sample(id=f"{place}:{row},{col}", epochs=(images,), footprint=footprint, lonlat=lonlat)

    def size(self, index: int) -> tuple[int, int]:
        return CUT, CUT

    def label(self, index: int) -> ClassMap:
        """Raises SkysenseError: there is none."""
        raise SkysenseError(
            "SSL4EO-S12 has no labels", fix="skysense pretrain learns from it; finetune needs labelled data."
        )

    def _grid(self, folder: Path) -> GeoBox:
        """The grid of the bands of 10 m: those of 20 m begin half a pixel beside it."""
        files = [file for file in sorted(folder.glob("*/*.tif")) if file.stem in ("B2", "VV")]
        stack = open_stack(files[:1], bands=None)
        if tuple(stack.geobox.shape) != (SIDE, SIDE):
            raise SkysenseError(f"{files[0]}: {tuple(stack.geobox.shape)} pixels; expected {SIDE} x {SIDE}")
        return stack.geobox


def _stack(folder: Path, modality: Modality) -> Stack:
    """The seasons of a place. Raises SkysenseError where one is of a processing baseline whose values are shifted."""
    files = sorted(folder.glob("*/*.tif"))
    if not files:
        raise SkysenseError(f"{folder}: no ACQUISITION/BAND.tif", fix="Unpack it again, or remove the folder.")
    for path in sorted(folder.glob("*/metadata.json")):
        try:
            baseline = float(json.loads(path.read_text(encoding="utf-8")).get("PROCESSING_BASELINE", 0))
        except ValueError as error:
            raise SkysenseError(f"{path}: not the metadata of an acquisition: {error}") from None
        if baseline >= SHIFTED_BASELINE:
            raise SkysenseError(
                f"{path}: processing baseline {baseline:05.2f}, whose values are 1000 higher than those of the others",
                fix="Remove this acquisition: SSL4EO-S12 as published has none.",
            )
    bands = [band.names for band in modality.bands]
    return open_stack(files, bands=bands, unit=modality.unit, options=READ[modality.name])
