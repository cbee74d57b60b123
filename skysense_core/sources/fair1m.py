"""FAIR1M: large pictures with boxes of any direction in 37 fine classes, an XML file each.

train/part1/images/0.tif   train/part1/labelXml/0.xml   (part2 too; or without part folders)
validation/images/...      validation/labelXml/...      (or labelXmls/, as some of its archives are called)
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from skysense_core.data.annotated import Drawn, ObjectPictures, Picture, pictures_of, refuse_others
from skysense_core.data.parts import deal
from skysense_core.errors import SkysenseError
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import PartName

CLASSES = (
    "Boeing737", "Boeing747", "Boeing777", "Boeing787", "C919", "A220", "A321", "A330", "A350", "ARJ21",
    "other-airplane", "Passenger Ship", "Motorboat", "Fishing Boat", "Tugboat", "Engineering Ship",
    "Liquid Cargo Ship", "Dry Cargo Ship", "Warship", "other-ship", "Small Car", "Bus", "Cargo Truck", "Dump Truck",
    "Van", "Trailer", "Tractor", "Excavator", "Truck Tractor", "other-vehicle", "Basketball Court", "Tennis Court",
    "Football Field", "Baseball Field", "Intersection", "Roundabout", "Bridge",
)  # fmt: skip
LABELS, SUFFIXES = ("labelXml", "labelXmls"), (".tif", ".tiff", ".png", ".jpg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fair1m:
    """The `[data]` table of FAIR1M."""

    looked_for: ClassVar[str] = "FAIR1M: a folder with train/part1/images/ and train/part1/labelXml/, and validation/"
    about: ClassVar[About] = About(
        tasks=("oriented_detection", "detection"),
        modalities=("hr",),
        classes="37",
        split="train and validation as published",
        licence="CC BY-NC-SA 3.0, academic use only",
        where="gaofen-challenge.com",
    )

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    classes: tuple[str, ...] = CLASSES
    """Those of the data set; others for data of one's own in this layout."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""
    val_share: float = 0.1
    """Of the training pictures: the validation part tests, for the labels of the test part are not public."""
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        return any(_labels(part) for part in _parts(path / "train"))

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> ObjectPictures:
        """The pictures of one part. Raises SkysenseError naming what is missing or odd."""
        refuse_others(self.path, self.modality, modalities)
        folder = self.path / ("validation" if split == "test" else "train")
        pictures = [picture for part in _parts(folder) for picture in _pictures(part)]
        if not pictures:
            raise SkysenseError(f"{folder}: no images/ beside {LABELS[0]}/", fix=f"Expected {self.looked_for}.")
        notes = ["the test labels of FAIR1M are not public: the validation part tests, a share of train validates"]
        if split != "test":
            parts = deal(
                (_name(one, self.path) for one in pictures), val_share=self.val_share, test_share=0.0, seed=self.seed
            )
            pictures = [one for one in pictures if parts[_name(one, self.path)] == split]
        return ObjectPictures.of(
            pictures, classes=self.classes, modality=modalities[self.modality], read=self.read, notes=notes
        )


def _name(picture: Picture, root: Path) -> str:
    """The same wherever the data set lies."""
    return picture.image.relative_to(root).as_posix()


def _parts(folder: Path) -> list[Path]:
    """The folders with pictures of a part."""
    return [one for one in (folder, *sorted(folder.glob("part*"))) if _labels(one) or (one / "images").is_dir()]


def _labels(folder: Path) -> Path | None:
    return next((folder / name for name in LABELS if (folder / name).is_dir()), None)


def _pictures(folder: Path) -> Iterator[Picture]:
    labels = _labels(folder)
    if labels is None:
        raise SkysenseError(f"{folder}: no {LABELS[0]}/ beside images/", fix="Unpack its annotations too.")
    for name, image in pictures_of(folder / "images", SUFFIXES).items():
        path = labels / f"{name}.xml"
        yield Picture(image=image, drawn=tuple(_drawn(path)), annotation=str(path))


def _drawn(path: Path) -> Iterator[Drawn]:
    """The objects of one file: the first possible class, and four of five points (the last closes the ring)."""
    try:
        for one in ET.parse(path).getroot().iter("object"):
            points = [point.text or "" for point in one.iter("point")][:4]
            corners = tuple(float(number) for point in points for number in point.split(","))
            if len(corners) != 8:
                raise ValueError(f"an object of {len(points)} points")
            yield Drawn(corners=corners, name=(one.findtext("possibleresult/name") or "").strip())
    except (OSError, ET.ParseError, ValueError) as error:
        raise SkysenseError(
            f"{path}: cannot be read: {error}", fix="Expected an annotation as FAIR1M has it."
        ) from None
