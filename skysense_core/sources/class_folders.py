"""Pictures in folders named by their class, as AID, RESISC-45, UC Merced, EuroSAT and SAT-6 are published.

`CLASS/picture.jpg`, below one folder more (`Images/`) where a data set has that, or below `train/`, `val/`, `test/`
(`trn`, `tst`). Lists of names (`train.txt`, `val.txt`, `test.txt`) say who belongs where; otherwise a hash of the name
does, so that a part of the classes or of the pictures is split as the whole is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, get_args

from pydantic import Field

from skysense_core import config
from skysense_core.data.annotated import size_of
from skysense_core.data.parts import shuffled
from skysense_core.data.sound import readable
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.paths import RASTERS, natural
from skysense_core.geo.raster import read_picture
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import PartName, Sample, Tags

Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
PARTS: dict[str, PartName] = {"train": "train", "trn": "train", "val": "val", "test": "test", "tst": "test"}
"""Names of folders by the part that they hold."""
OTHERS = {"images", "masks", "image", "mask", "labels", "label", "a", "b", "before", "after"}
"""Names that folders have in layouts of another kind; a class is hardly called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolders:
    """The `[data]` table of pictures in folders named by their class."""

    about: ClassVar[About] = About(
        tasks=("classification",),
        modalities=("hr", "others with --set data.modality"),
        classes="a folder each",
        split="train/ val/ test/, lists of names, or a hash of the names within each class",
        licence="of the data set at hand (AID, RESISC-45, UC Merced, EuroSAT, SAT-6, one's own)",
        where="the data set's own page",
    )
    looked_for: ClassVar[str] = "a folder with a folder of pictures for each class, at least two"
    generic: ClassVar[bool] = True

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    classes: tuple[str, ...] = ()
    """Folders that are used, in this order; not given: all, by name."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""
    train_share: Share | None = None
    """Of the pictures of each class, where no list and no folder says which; the rest tests. Not given: what val and
    test leave. The protocols of AID (0.2, 0.5) and RESISC-45 (0.1, 0.2) are this share."""
    val_share: Share = 0.2
    """Of the pictures of each class; with `train_share`, of those that would train."""
    test_share: Share = 0.2
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        names = {folder.name.lower() for folder in _folders(_root(path))} if path.is_dir() else set()
        return len(names) >= 2 and not names & OTHERS

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "ClassFoldersSplit":
        """The pictures of one part. Raises SkysenseError where a class or the part has none."""
        if set(modalities) != {self.modality}:
            raise UsageError(
                f"{self.path} holds {self.modality}, not {', '.join(modalities)}",
                fix=f"--modalities {self.modality}, or --set data.modality={next(iter(modalities))}",
            )
        table = {**self.read.get("", {}), **self.read.get(self.modality, {})}
        options = config.build(ReadOptions, table, f"data.read.{self.modality}")
        parts, notes = self._parts()
        if not parts[split]:
            raise SkysenseError(f"{self.path}: the {split} part is empty")
        classes = self.classes or tuple(sorted({one for _, one in sum(parts.values(), ())}, key=natural))
        sized = readable(parts[split], lambda picture: size_of(picture[0]))
        return ClassFoldersSplit(
            root=self.path,
            modality=modalities[self.modality],
            options=options,
            classes=classes,
            pictures=tuple(picture for picture, _ in sized),
            sizes=tuple(size for _, size in sized),
            notes=notes,
        )

    def _parts(self) -> tuple[dict[PartName, tuple[tuple[Path, str], ...]], tuple[str, ...]]:
        """Pictures with their classes, by part, and notes on how the parts were found."""
        root = _root(self.path)
        given = {PARTS[one.name]: self._pictures(one) for one in sorted(root.iterdir()) if one.name in PARTS}
        if given:
            if "train" not in given:
                raise SkysenseError(f"{root}: no train/ (or trn/) beside {', '.join(sorted(given))}/")
            parts = {name: tuple(given.get(name, ())) for name in get_args(PartName)}
            if parts["val"]:
                return parts, ()
            val, train = self._dealt(parts["train"], self.val_share)
            note = "no part validates: a share of the training pictures does, by a hash of their names"
            return parts | {"val": val, "train": train}, (note,)
        pictures = self._pictures(root)
        lists = {name: self.path / f"{name}.txt" for name in get_args(PartName)}
        if lists["train"].is_file():
            return self._listed(pictures, lists), ()
        share = self.test_share if self.train_share is None else 1 - self.train_share
        test, rest = self._dealt(pictures, share)
        of_rest = self.val_share if self.train_share is not None else self.val_share / (1 - self.test_share)
        val, train = self._dealt(rest, of_rest)
        return {"train": train, "val": val, "test": test}, ("split by a hash of the file names, class by class",)

    def _listed(
        self, pictures: tuple[tuple[Path, str], ...], lists: Mapping[PartName, Path]
    ) -> dict[PartName, tuple[tuple[Path, str], ...]]:
        by_name = {path.stem: (path, one) for path, one in pictures}
        parts: dict[PartName, tuple[tuple[Path, str], ...]] = {}
        for name, file in lists.items():
            lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            stems = [Path(line.strip()).stem for line in lines if line.strip()]
            if missing := [stem for stem in stems if stem not in by_name]:
                raise SkysenseError(f"{file}: no picture {missing[0]} ({len(missing)} such lines)")
            parts[name] = tuple(by_name[stem] for stem in stems)
        return parts

    def _pictures(self, root: Path) -> tuple[tuple[Path, str], ...]:
        folders = {folder.name: folder for folder in _folders(root)}
        if unknown := [name for name in self.classes if name not in folders]:
            raise SkysenseError(f"{root}: no folder {unknown[0]}", fix=f"There are {', '.join(folders)}.")
        found: list[tuple[Path, str]] = []
        for name in self.classes or sorted(folders, key=natural):
            inside = sorted(filter(_is_picture, folders[name].iterdir()), key=lambda path: natural(path.name))
            found += [(path, name) for path in inside]
        return tuple(found)

    def _dealt(
        self, pictures: tuple[tuple[Path, str], ...], share: float
    ) -> tuple[tuple[tuple[Path, str], ...], tuple[tuple[Path, str], ...]]:
        """A share of each class, at least one picture of a class that has two, and the rest."""
        first, rest = [], []
        for one in dict.fromkeys(name for _, name in pictures):
            mine = {path.name: (path, name) for path, name in pictures if name == one}
            order = [mine[name] for name in shuffled(mine, self.seed)]
            count = min(max(round(share * len(order)), 1), len(order) - 1)
            first += order[:count]
            rest += order[count:]
        return tuple(first), tuple(rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFoldersSplit:
    """The pictures of one part, as they are: no resampling."""

    root: Path
    modality: Modality
    options: ReadOptions
    classes: tuple[str, ...]
    pictures: tuple[tuple[Path, str], ...]
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        path, _ = self.pictures[index]
        bands = [band.names for band in self.modality.bands]
        image = read_picture(path, bands=bands, unit=self.modality.unit, options=self.options)
        footprint, lonlat = (None, None) if image.geobox is None else footprint_lonlat(image.geobox)
        return Sample(
            id=str(path.relative_to(self.root)),
            epochs=({self.modality.name: image},),
            footprint=footprint,
            lonlat=lonlat,
            label=self.label(index),
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def label(self, index: int) -> Tags:
        return Tags(codes=(self.classes.index(self.pictures[index][1]),))


def _root(path: Path) -> Path:
    """The folder of the classes: below those that hold nothing but one other folder (`Images/`)."""
    while len(inside := [item for item in path.iterdir() if item.is_dir()]) == 1:
        path = inside[0]
    return path


def _folders(root: Path) -> list[Path]:
    """Folders with pictures directly in them; those of the parts hold such folders instead."""
    inside = [item for item in root.iterdir() if item.is_dir()]
    if any(item.name in PARTS for item in inside):
        return [folder for item in inside if item.name in PARTS for folder in _folders(item)]
    return [item for item in inside if any(map(_is_picture, item.iterdir()))]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in RASTERS and not path.name.startswith(".")
