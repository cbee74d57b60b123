"""Boxes in COCO's format: pictures, and JSON files of images, categories and annotations.

One JSON file for all pictures, which are dealt to the parts by a hash of their names, or one for each part: its name
holds `train`, `val` (or `valid`) or `test`, or it lies in a folder of that name. Pictures lie beside it, in `images/`,
or in a folder named after the part (`train/`, `train2017/`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, get_args

from pydantic import Field

from skysense_core.data.annotated import Drawn, ObjectPictures, Picture, refuse_others, upright
from skysense_core.data.parts import deal
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import PartName

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
NAMES: dict[PartName, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coco:
    """The `[data]` table of boxes in COCO's format."""

    looked_for: ClassVar[str] = "a folder with COCO annotations: *.json with images, annotations and categories"
    about: ClassVar[About] = About(
        tasks=("detection",),
        modalities=("hr",),
        classes="those of the file",
        split="a file for each part, or a hash of the names",
        licence="yours",
        where="any boxes in COCO's format",
    )

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    classes: tuple[str, ...] | None = None
    """Categories that are learnt, in this order, others are left out; not given: all, in the order of their numbers."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""
    val_share: Share = 0.2
    test_share: Share = 0.2
    """Of the pictures, where one file describes them all."""
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        return path.is_dir() and any(_is_coco(file) for file in _files(path))

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> ObjectPictures:
        """The pictures of one part. Raises SkysenseError naming what is missing or odd."""
        refuse_others(self.path, self.modality, modalities)
        files = [file for file in _files(self.path) if _is_coco(file)]
        if not files:
            raise SkysenseError(f"{self.path}: no COCO annotations", fix=f"Expected {self.looked_for}.")
        by_part = {part: [file for file in files if _part_of(file, self.path) == part] for part in get_args(PartName)}
        notes: tuple[str, ...] = ()
        if len(files) == 1:
            tables = [_load(files[0])]
            names = [str(image["file_name"]) for image in tables[0]["images"]]
            parts = deal(names, val_share=self.val_share, test_share=self.test_share, seed=self.seed)
            kept = {name for name, part in parts.items() if part == split}
            notes = ("split by a hash of the file names: where pictures are neighbours, a file per part is honest",)
        else:
            if not by_part[split]:
                raise SkysenseError(
                    f"{self.path}: no annotations of the {split} part",
                    fix=f"Looked for a .json with {split} in its name or folder.",
                )
            files, kept = by_part[split], None
            tables = [_load(file) for file in files]
        categories = [one for table in tables for one in sorted(table["categories"], key=lambda one: int(one["id"]))]
        classes = self._classes(tuple(dict.fromkeys(str(one["name"]) for one in categories)))
        pictures = [
            picture
            for file, table in zip(files, tables, strict=True)
            for picture in self._pictures(file, table, classes, kept)
        ]
        if not pictures:
            raise SkysenseError(f"{self.path}: the {split} part is empty")
        return ObjectPictures.of(
            pictures, classes=classes, modality=modalities[self.modality], read=self.read, notes=notes
        )

    def _classes(self, found: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in self.classes or () if name not in found]:
            raise UsageError(f"data.classes: {', '.join(unknown)}: no category", fix=f"There are {', '.join(found)}.")
        return self.classes or found

    def _pictures(
        self, file: Path, table: Mapping[str, Any], classes: tuple[str, ...], kept: set[str] | None
    ) -> Iterator[Picture]:
        names = {one["id"]: str(one["name"]) for one in table["categories"]}
        images = {one["id"]: str(one["file_name"]) for one in table["images"]}
        drawn: dict[Any, list[Drawn]] = {number: [] for number in images}
        for one in table["annotations"]:
            if one["image_id"] not in images or one["category_id"] not in names:
                raise SkysenseError(
                    f"{file}: annotation {one.get('id')} is of image {one['image_id']} and category "
                    f"{one['category_id']}, one of which is not listed"
                )
            if names[one["category_id"]] in classes:
                left, top, width, height = (float(number) for number in one["bbox"])
                box = upright(left, top, left + width, top + height)
                drawn[one["image_id"]].append(
                    Drawn(corners=box, name=names[one["category_id"]], difficult=bool(one.get("iscrowd")))
                )
        for number, name in images.items():
            if kept is None or name in kept:
                image = _image(file, self.path, name)
                yield Picture(image=image, drawn=tuple(drawn[number]), annotation=f"{file}: {name}")


def _files(path: Path) -> list[Path]:
    """JSON files in a folder, and in those just below it."""
    return sorted([*path.glob("*.json"), *path.glob("*/*.json")])


def _is_coco(file: Path) -> bool:
    """Whether a file begins as annotations do; the whole may have gigabytes."""
    try:
        with file.open(encoding="utf-8") as text:
            head = text.read(2**16)
    except (OSError, UnicodeDecodeError):
        return False
    lists = any(f'"{key}"' in head for key in ("images", "annotations", "categories"))
    return lists and any(f'"{key}"' in head for key in ("file_name", "bbox", "supercategory"))


def _part_of(file: Path, root: Path) -> PartName | None:
    words = file.relative_to(root).with_suffix("").as_posix().lower().replace("/", "_").split("_")
    for part, names in NAMES.items():
        if any(word.rstrip("0123456789") in names for word in words):
            return part
    return None


def _load(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        for key, inner in (("images", "file_name"), ("categories", "name"), ("annotations", "bbox")):
            if not all(inner in one and "id" in one for one in table[key]):
                raise SkysenseError(f"{file}: an entry of {key} has no id or no {inner}")
    except (ValueError, KeyError, TypeError) as error:
        raise SkysenseError(f"{file}: no COCO annotations: {error!r}") from None
    if not table["annotations"]:
        raise SkysenseError(f"{file}: no annotation in it", fix="Is it the file of a test part that is kept secret?")
    return table


def _image(file: Path, root: Path, name: str) -> Path:
    part = _part_of(file, root)
    near = [file.parent / "images", root / "images", file.parent, root]
    near += [folder for word in NAMES.get(part or "train", ()) for folder in sorted(root.glob(f"{word}*"))]
    near += [folder / "images" for folder in near]
    for folder in near:
        if (folder / name).is_file():
            return folder / name
    raise SkysenseError(
        f"{file}: picture {name} is not there", fix=f"Looked in {', '.join(str(one) for one in near[:4])}."
    )
