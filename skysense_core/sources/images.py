"""Pictures without labels: a folder of PNG, JPEG or GeoTIFF of any sizes, as material for pre-training.

All pictures in the folder and below it are used. Large ones are cut into windows, which are read one at a time. Those
with georeference know their place on the earth. A fourth band that is alpha says where a picture is valid.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from skysense_core import config
from skysense_core.data.scene import FACTOR
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.blocks import cut
from skysense_core.geo.files import open_file
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.paths import natural
from skysense_core.geo.raster import open_picture
from skysense_core.geo.windows import Window
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import ClassMap, PartName, Sample

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The `[data]` table of a folder of pictures."""

    looked_for: ClassVar[str] = "a folder with pictures (PNG, JPEG, TIFF) directly in it, without labels"
    about: ClassVar[About] = About(
        tasks=("pretrain",),
        modalities=("hr", "s2", "s1"),
        classes="none",
        split="all train",
        licence="yours",
        where="your own pictures",
    )

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    side: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels of the windows that larger pictures are cut into, the last ones up to twice as large; not given:
    twice the modality's window."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""

    @staticmethod
    def detect(path: Path) -> bool:
        return path.is_dir() and any(is_picture(item) for item in path.iterdir())

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "ImagesSplit":
        """Windows of all pictures, which are all for training.

        Raises UsageError for other modalities, SkysenseError for another part, an empty folder or a damaged picture.
        """
        if set(modalities) != {self.modality}:
            raise UsageError(
                f"{self.path} holds {self.modality}, not {', '.join(modalities)}",
                fix=f"--modalities {self.modality}, or --set data.modality={next(iter(modalities))}",
            )
        if split != "train":
            raise SkysenseError(f"{self.path}: pictures without labels have no {split} part")
        table = {**self.read.get("", {}), **self.read.get(self.modality, {})}
        options = config.build(ReadOptions, table, f"data.read.{self.modality}")
        modality = modalities[self.modality]
        found = sorted(filter(is_picture, self.path.rglob("*")), key=lambda path: natural(str(path)))
        if not found:
            raise SkysenseError(f"{self.path}: no picture in this folder or below it")
        side = self.side or 2 * modality.window
        windows, far = [], Counter[str]()
        for path in found:
            grid = open_file(str(path), options, colours=False, georeferenced=False).geobox
            windows += [(path, window) for window in cut(Window.of(grid), side)]
            gsd = None if grid.crs is None else ground_gsd(grid)
            if gsd is not None and not 1 / FACTOR <= gsd / modality.gsd <= FACTOR:
                far[f"{gsd:.2g} m"] += 1
        notes = [f"{len(found)} pictures, {len(windows)} windows of {side} pixels or what there is"]
        if far:
            sizes = ", ".join(f"{count} of {gsd}" for gsd, count in far.most_common(5))
            notes.append(f"{far.total()} pictures have pixels far from {modality.gsd:g} m, used as they are: {sizes}")
        return ImagesSplit(root=self.path, modality=modality, options=options, windows=tuple(windows), notes=(*notes,))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesSplit:
    """Windows of pictures, as they are: no resampling."""

    root: Path
    modality: Modality
    options: ReadOptions
    windows: tuple[tuple[Path, Window], ...]
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        path, window = self.windows[index]
        bands = [band.names for band in self.modality.bands]
        stack = open_picture(path, bands=bands, unit=self.modality.unit, options=self.options)
        grid = window.geobox(stack.geobox)
        placed = stack.geobox.crs is not None
        footprint, lonlat = footprint_lonlat(grid) if placed else (None, None)
        image = stack.read(grid)
        return Sample(
            id=f"{path.relative_to(self.root)}:{window.row},{window.col}",
            epochs=({self.modality.name: image if placed else replace(image, geobox=None)},),
            footprint=footprint,
            lonlat=lonlat,
        )

    def size(self, index: int) -> tuple[int, int]:
        _, window = self.windows[index]
        return window.height, window.width

    def label(self, index: int) -> ClassMap:
        """Raises SkysenseError: there is none."""
        raise SkysenseError(f"{self.windows[index][0]}: a picture without label")


def is_picture(path: Path) -> bool:
    """Whether a path has the name of a picture."""
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")
