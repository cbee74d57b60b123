"""WorldCereal's patches: a folder per location, a NetCDF file per sensor and pixel size, each with its own dates.

Layout: `<location>/S2_L2A_10m_*.nc` and `S2_L2A_20m_*.nc` (digital numbers, reflectance x 10000; SCL in the latter),
`S1_GRD-ASCENDING_20m_*.nc` and `S1_GRD-DESCENDING_20m_*.nc` (dB, which together are one s1 series) and `OUTPUT_*.nc`
(codes of land cover LC, crop type CT and irrigation IRR; 0 is unknown). A location is 640 m wide, and one sample.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from odc.geo.geobox import GeoBox
from pydantic import Field

from skysense_core.data.parts import deal
from skysense_core.data.scene import read_place
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.clouds import SCL, Masked
from skysense_core.geo.grid import scaled
from skysense_core.geo.labels import UNKNOWN, Classes, Legend, text_of
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.raster import ReadOptions, Stack, open_stack
from skysense_core.modalities import Modality, finest
from skysense_core.sources import About
from skysense_core.types import ClassMap, PartName, Sample

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]

SIDE, PIXEL = 64, 10.0
"""Pixels along a location at 10 m; at 20 m they are half as many."""
FILES = {"s2": ("S2_L2A_10m_*.nc", "S2_L2A_20m_*.nc"), "s1": ("S1_GRD-*.nc",)}
LABELS = "OUTPUT_*.nc"
NOTES = {"s2": "s2: clouds and shadows of SCL are left out", "s1": "s1: taken as dB, which the files do not state"}
READ = {"s2": ReadOptions(nodata=0.0), "s1": ReadOptions(unit="dB")}
"""0 is the nodata value of Sentinel-2 products, which these files do not declare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worldcereal:
    """The `[data]` table of WorldCereal patches."""

    looked_for: ClassVar[str] = "a folder of locations with S2_L2A_10m_*.nc, S2_L2A_20m_*.nc and OUTPUT_*.nc, or one"
    about: ClassVar[About] = About(
        tasks=("crop", "segmentation"),
        modalities=("s2", "s1"),
        classes="those of the column",
        split="by place",
        licence="see its page",
        where="github.com/WorldCereal",
    )

    path: Path
    label_column: Literal["LC", "CT", "IRR"] = "CT"
    """Variable of the OUTPUT file: land cover, crop type or irrigation."""
    classes: Classes | None = None
    """Codes that are classes, others are ignored, or {code = class name}; not given: all codes but 0."""
    val_share: Share = 0.2
    test_share: Share = 0.2
    """Of the locations."""
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        return any(True for _ in path.glob("S2_L2A_10m_*.nc")) or any(True for _ in path.glob("*/S2_L2A_10m_*.nc"))

    def locations(self) -> tuple[Path, ...]:
        """Folders with files of a sensor, in the order of their names."""
        folders = [self.path, *sorted(item for item in self.path.iterdir() if item.is_dir())]
        patterns = [pattern for patterns in FILES.values() for pattern in patterns]
        return tuple(folder for folder in folders if any(any(folder.glob(pattern)) for pattern in patterns))

    def available(self) -> tuple[str, ...]:
        return tuple(
            name
            for name, patterns in FILES.items()
            if any(all(any(folder.glob(pattern)) for pattern in patterns) for folder in self.locations())
        )

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "WorldcerealSplit":
        """The locations of one part. Raises UsageError where the modalities are not those of the files."""
        for name, modality in modalities.items():
            if name not in self.available():
                raise UsageError(f"{self.path} has no {name}", fix=f"It has {', '.join(self.available())}.")
            if name == "s2" and modality.level != "L2A":
                raise UsageError(f"{self.path} is L2A, and s2 is {modality.level}", fix="--set modalities.s2.level=L2A")
        reference = modalities[finest(modalities)]
        side = next((n for n in (SIDE, SIDE // 2) if 0.9 <= SIDE * PIXEL / n / reference.gsd <= 1.1), None)
        if side is None:
            raise UsageError(
                f"locations have pixels of 10 and 20 m, and {reference.name} is {reference.gsd:g} m",
                fix=f"--set modalities.{reference.name}.gsd=10",
            )
        locations = self.locations()
        parts = deal(
            (one.name for one in locations), val_share=self.val_share, test_share=self.test_share, seed=self.seed
        )
        chosen = tuple(one for one in locations if parts[one.name] == split)
        counts = ", ".join(f"{list(parts.values()).count(part)} {part}" for part in ("train", "val", "test"))
        note = f"locations: {counts}"
        if len(parts) < 3:
            note = f"{len(parts)} location{'s' * (len(parts) > 1)}, too few to be split: all of it trains"
        return WorldcerealSplit(
            locations=chosen,
            modalities=dict(modalities),
            variable=self.label_column,
            legend=self._legend(locations),
            side=side,
            notes=(note, *(NOTES[name] for name in modalities)),
        )

    def _legend(self, locations: Iterable[Path]) -> Legend:
        """The classes by their codes. Raises UsageError for a code that is no number."""
        found: set[str] = set()
        if self.classes is None:
            files = [file for folder in locations for file in sorted(folder.glob(LABELS))]
            found = {code for file in files for code in _codes(file, self.label_column)}
        legend = Legend.of_values(found, self.classes, UNKNOWN)
        strange = [code for code in legend.codes if not code.isdecimal()]
        if strange:
            raise UsageError(
                f"{strange[0]} is no code of {self.label_column}",
                fix='Name codes: --classes 1100,1200, or a TOML file with [classes] 1200 = "maize".',
            )
        return legend


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldcerealSplit:
    """The locations of one part."""

    locations: tuple[Path, ...]
    modalities: Mapping[str, Modality]
    variable: str
    legend: Legend
    side: int
    """Pixels along a sample on the reference grid."""
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.legend.classes

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, index: int) -> Sample:
        folder = self.locations[index]
        stacks = {name: _stack(folder, modality) for name, modality in self.modalities.items()}
        grid = self._grid(folder, stacks[finest(self.modalities)])
        footprint, lonlat = footprint_lonlat(grid)
        return Sample(
            id=folder.name,
            epochs=(read_place(stacks, self.modalities, grid),),
            footprint=footprint,
            lonlat=lonlat,
            label=self._label(folder, grid) if any(folder.glob(LABELS)) else None,
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def label(self, index: int) -> ClassMap:
        """Class codes on the reference grid. Raises SkysenseError where the location has no OUTPUT file."""
        folder = self.locations[index]
        reference = self.modalities[finest(self.modalities)]
        return self._label(folder, self._grid(folder, _stack(folder, reference)))

    def _grid(self, folder: Path, stack: Stack) -> GeoBox:
        """The location in pixels of the reference modality."""
        if tuple(stack.geobox.shape) not in ((SIDE, SIDE), (SIDE // 2, SIDE // 2)):
            raise SkysenseError(f"{folder}: {tuple(stack.geobox.shape)} pixels; a location has {SIDE} x {SIDE} of 10 m")
        return scaled(stack.geobox, (self.side, self.side))

    def _label(self, folder: Path, grid: GeoBox) -> ClassMap:
        files = sorted(folder.glob(LABELS))
        if not files:
            raise SkysenseError(f"{folder}: no {LABELS}", fix="Leave locations without labels out.")
        raster = open_stack(files, bands=[(self.variable,)]).read(grid, resampling="nearest")
        stored = raster.pixels[0, 0]
        known = raster.valid[0] & np.isin(stored, [int(code) for code in self.legend.codes])
        return ClassMap(codes=self.legend.encode(np.where(known, stored, 0), known, str(files[0])), geobox=grid)


def _stack(folder: Path, modality: Modality) -> Stack:
    """A sensor's series. Raises SkysenseError where the location lacks files of it."""
    found = {pattern: sorted(folder.glob(pattern)) for pattern in FILES[modality.name]}
    for pattern, files in found.items():
        if not files:
            raise SkysenseError(f"{folder}: no {pattern}", fix=f"Leave the location out, or {modality.name}.")
    bands, options = [band.names for band in modality.bands], READ[modality.name]
    paths = [file for files in found.values() for file in files]
    stack = open_stack(paths, bands=bands, unit=modality.unit, options=options)
    return _clear(stack, found[FILES["s2"][1]]) if modality.name == "s2" else stack


def _clear(stack: Stack, classified: Sequence[Path]) -> Stack:
    """Without clouds, shadows and defects of the scene classification, before anything is interpolated."""
    scl = open_stack(classified, bands=[("SCL",)])
    known = np.isin(scl.days, stack.days)
    if scl.days[known].tolist() != stack.days.tolist():
        raise SkysenseError(f"{classified[0]}: SCL has other dates than the bands")
    masks = [layers[0][0] for layers, wanted in zip(scl.layers, known, strict=True) if wanted]
    layers = tuple(
        tuple((Masked(layer=layer, mask=mask, hidden=tuple(SCL)), bounds) for layer, bounds in date)
        for date, mask in zip(stack.layers, masks, strict=True)
    )
    return replace(stack, layers=layers)


def _codes(file: Path, variable: str) -> set[str]:
    stack = open_stack([file], bands=[(variable,)])
    raster = stack.read(stack.geobox)
    return {text_of(code) for code in np.unique(raster.pixels[0, 0][raster.valid[0]]).tolist()}
