"""Pictures and masks: `images/` and `masks/` with equal file names, PNG, JPEG or GeoTIFF.

Which picture belongs to which part is said by subfolders (`train/images` or `images/train`) or by lists of names
(`train.txt`, `val.txt`, `test.txt`); otherwise it follows from a hash of the name. Masks hold class codes 0..k-1, 255
where nothing is known; any other values need a mapping (0/255 masks too: 255 would mean unknown).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, get_args

import numpy as np
from pydantic import Field

from skysense_core import config
from skysense_core.data.parts import shuffled
from skysense_core.data.scene import FACTOR
from skysense_core.data.sound import readable
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.files import open_file
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.labels import Classes, Legend
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.paths import RASTERS, natural
from skysense_core.geo.raster import read_picture
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import IGNORE, ClassMap, PartName, Raster, Sample

Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
LOOKED_AT = 20
"""Masks in which 0/255 is looked for before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The `[data]` table of a folder of pictures and masks."""

    looked_for: ClassVar[str] = "a folder with images/ and masks/, or with train/images/ and train/masks/"
    about: ClassVar[About] = About(
        tasks=("segmentation", "landcover", "crop"),
        modalities=("hr", "s2", "s1"),
        classes="yours",
        split="folders train/, val/, test/, or lists, or by place",
        licence="yours",
        where="your own images/ and masks/",
    )

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    classes: Classes | None = None
    """Names of the codes 0..k-1, or {value = class name}; not given: the lines of classes.txt."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""
    val_share: Share = 0.2
    test_share: Share = 0.2
    """Of the pictures, where no list and no subfolder says which."""
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        return any((root / IMAGES).is_dir() and (root / MASKS).is_dir() for root in (path, path / "train"))

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "FolderSplit":
        """The pictures of one part. Raises SkysenseError naming pictures and masks that do not belong together."""
        if set(modalities) != {self.modality}:
            raise UsageError(
                f"{self.path} holds {self.modality}, not {', '.join(modalities)}",
                fix=f"--modalities {self.modality}, or --set data.modality={next(iter(modalities))}",
            )
        table = {**self.read.get("", {}), **self.read.get(self.modality, {})}
        options = config.build(ReadOptions, table, f"data.read.{self.modality}")
        legend = self._legend()
        pairs, notes = self._parts(split)
        if not pairs:
            raise SkysenseError(f"{self.path}: the {split} part is empty")
        sized = readable(pairs, _common_size)
        opened = FolderSplit(
            modality=modalities[self.modality],
            options=options,
            legend=legend,
            pairs=tuple(pair for pair, _ in sized),
            sizes=tuple(size for _, size in sized),
            notes=notes,
        )
        opened.check()
        return opened

    def _legend(self) -> Legend:
        names = self.path / NAMES
        if self.classes is not None:
            return Legend.of_codes(self.classes)
        if names.is_file():
            lines = (line.strip() for line in names.read_text(encoding="utf-8").splitlines())
            return Legend.of_codes(tuple(line for line in lines if line))
        raise UsageError(
            f"{self.path}: what do the masks' codes mean?",
            fix=f"--classes background,building,... or a file {NAMES} with one name per line.",
        )

    def _parts(self, split: PartName) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
        """The pictures of a part, and notes on how it was found."""
        parts = {name: pairs for name in get_args(PartName) if (pairs := self._given(name)) is not None}
        notes: tuple[str, ...] = ()
        if not parts:
            rest = self._shuffled(_pairs(self.path / IMAGES, self.path / MASKS))
            test, val = (max(round(share * len(rest)), 1) for share in (self.test_share, self.val_share))
            parts = {"test": rest[:test], "val": rest[test : test + val], "train": rest[test + val :]}
            notes = (
                "split by a hash of the file names: if pictures are neighbours, test.txt and val.txt with whole places "
                "give honest scores",
            )
        elif "val" not in parts and "train" in parts:
            rest = self._shuffled(parts["train"])
            val = max(round(self.val_share * len(rest)), 1)
            parts |= {"val": rest[:val], "train": rest[val:]}
            notes = (f"no part validates: {val} of {len(rest)} training pictures do, by a hash of their names",)
        if split not in parts:
            raise SkysenseError(f"{self.path}: no {split} part", fix=f"Looked for {split}/{IMAGES}/ and {split}.txt.")
        return tuple(sorted(parts[split], key=lambda pair: natural(pair.name))), notes

    def _given(self, part: PartName) -> tuple[Pair, ...] | None:
        """The pictures that a subfolder or a list puts into a part; None where neither is there."""
        for images, masks in ((f"{part}/{IMAGES}", f"{part}/{MASKS}"), (f"{IMAGES}/{part}", f"{MASKS}/{part}")):
            if (self.path / images).is_dir():
                return _pairs(self.path / images, self.path / masks)
        names = self.path / f"{part}.txt"
        if not names.is_file():
            return None
        pairs = {pair.name: pair for pair in _pairs(self.path / IMAGES, self.path / MASKS)}
        listed = [_stem(line.strip()) for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        missing = [name for name in listed if name not in pairs]
        if missing:
            raise SkysenseError(f"{names}: not in {self.path / IMAGES}: {_some(missing)}")
        return tuple(pairs[name] for name in dict.fromkeys(listed))

    def _shuffled(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        by_name = {pair.name: pair for pair in pairs}
        return tuple(by_name[name] for name in shuffled(by_name, self.seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSplit:
    """The pictures of one part, as they are: no resampling."""

    modality: Modality
    options: ReadOptions
    legend: Legend
    pairs: tuple[Pair, ...]
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.legend.classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        bands = [band.names for band in self.modality.bands]
        image = read_picture(pair.image, bands=bands, unit=self.modality.unit, options=self.options)
        footprint, lonlat = (None, None) if image.geobox is None else footprint_lonlat(image.geobox)
        label = replace(self.label(index), geobox=image.geobox)
        return Sample(
            id=pair.name, epochs=({self.modality.name: image},), footprint=footprint, lonlat=lonlat, label=label
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def label(self, index: int) -> ClassMap:
        mask = read_mask(self.pairs[index].mask)
        codes = self.legend.encode(mask.pixels[0, 0], mask.valid[0], str(self.pairs[index].mask))
        return ClassMap(codes=codes, geobox=mask.geobox)

    def check(self) -> None:
        """Look at the first pictures and masks for what would spoil a training.

        Raises UsageError for pixels of another size than the modality's, SkysenseError for masks of 0 and 255 only
        whose 255 would mean unknown.
        """
        grid = open_file(str(self.pairs[0].image), ReadOptions(), colours=False, georeferenced=False).geobox
        gsd = None if grid.crs is None else ground_gsd(grid)
        # Not a number where the picture is no place on the earth, which reading it refuses by name.
        if gsd is not None and np.isfinite(gsd) and not 1 / FACTOR <= gsd / self.modality.gsd <= FACTOR:
            raise UsageError(
                f"{self.pairs[0].image}: its pixels are {gsd:.3g} m, the model's {self.modality.gsd:.3g} m",
                fix=f"--set modalities.{self.modality.name}.gsd={gsd:.3g} trains a model for such pixels.",
            )
        if str(IGNORE) not in self.legend.codes or self.legend.codes[str(IGNORE)] != IGNORE or len(self.classes) != 2:
            return
        looked = readable(self.pairs[:LOOKED_AT], lambda pair: np.unique(read_mask(pair.mask).pixels).tolist())
        values = {value for _, found in looked for value in found}
        if values == {0, IGNORE}:
            zero, other = self.classes
            raise SkysenseError(
                f"{self.pairs[0].mask.parent}: masks of 0 and 255, but the codes are 0 {zero}, 1 {other}, 255 unknown",
                fix=f'Say what they mean: --classes FILE with [classes] 0 = "{zero}" 255 = "{other}"',
            )


def read_mask(path: Path) -> Raster:
    """A picture of class codes. Raises SkysenseError where it has several bands."""
    mask = read_picture(path, bands=None)
    if mask.pixels.shape[1] != 1:
        raise SkysenseError(f"{path}: {mask.pixels.shape[1]} bands; a mask has one, of class codes")
    return mask


def _pairs(images: Path, masks: Path) -> tuple[Pair, ...]:
    """Every picture with the mask of its name. Raises SkysenseError where one of them is missing or there twice."""
    found = [_by_stem(images), _by_stem(masks)]
    for here, there, folder, what in ((found[0], found[1], masks, "mask"), (found[1], found[0], images, "image")):
        lonely = [name for name in here if name not in there]
        if lonely:
            raise SkysenseError(f"{folder}: no {what} of {_some(lonely)}", fix="Image and mask have the same name.")
    if not found[0]:
        raise SkysenseError(f"{images}: no picture in this folder")
    return tuple(Pair(name=name, image=path, mask=found[1][name]) for name, path in found[0].items())


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise SkysenseError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if path.suffix.lower() in RASTERS and not path.name.startswith("."):
            if path.stem in files:
                raise SkysenseError(f"{path} and {files[path.stem].name} have the same name")
            files[path.stem] = path
    return files


def _stem(name: str) -> str:
    """A listed name without the extension of a picture; dots within names stay."""
    return Path(name).stem if Path(name).suffix.lower() in RASTERS else Path(name).name


def _common_size(pair: Pair) -> tuple[int, int]:
    files = [
        open_file(str(path), ReadOptions(), colours=False, georeferenced=False) for path in (pair.image, pair.mask)
    ]
    sizes = [(file.geobox.shape.y, file.geobox.shape.x) for file in files]
    if sizes[0] != sizes[1]:
        shown = (f"{file.path} has {h} x {w}" for file, (h, w) in zip(files, sizes, strict=True))
        raise SkysenseError(f"image and mask differ in size: {', '.join(shown)} pixels")
    return sizes[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
