"""DIOR: 23,463 pictures of 800 x 800 px with upright boxes of 20 classes, an XML file each.

JPEGImages-trainval/00001.jpg        JPEGImages-test/11726.jpg
Annotations/Horizontal Bounding Boxes/00001.xml
ImageSets/Main/train.txt  val.txt  test.txt
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from skysense_core.data.annotated import Drawn, ObjectPictures, Picture, refuse_others, upright
from skysense_core.errors import SkysenseError
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import PartName

CLASSES = (
    "airplane", "airport", "baseballfield", "basketballcourt", "bridge", "chimney", "dam", "Expressway-Service-area",
    "Expressway-toll-station", "golffield", "groundtrackfield", "harbor", "overpass", "ship", "stadium", "storagetank",
    "tenniscourt", "trainstation", "vehicle", "windmill",
)  # fmt: skip
IMAGES = ("JPEGImages-trainval", "JPEGImages-test", "JPEGImages")
ORDER = ("left_top", "right_top", "right_bottom", "left_bottom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dior:
    """The `[data]` table of DIOR."""

    looked_for: ClassVar[str] = "DIOR: a folder with JPEGImages-trainval/, ImageSets/Main/ and Annotations/"
    about: ClassVar[About] = About(
        tasks=("detection",),
        modalities=("hr",),
        classes="20",
        split="trainval and test as published",
        licence="see its page",
        where="gcheng-nwpu.github.io",
    )
    boxes: ClassVar[str] = "Horizontal Bounding Boxes"
    """Folder of the annotations."""

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    classes: tuple[str, ...] = CLASSES
    """Those of the data set; others for data of one's own in this layout."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / IMAGES[0]).is_dir() and (path / "Annotations" / Dior.boxes).is_dir()

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> ObjectPictures:
        """The pictures of an official part. Raises SkysenseError naming what is missing or odd."""
        refuse_others(self.path, self.modality, modalities)
        names = self.path / "ImageSets" / "Main" / f"{split}.txt"
        if not names.is_file():
            raise SkysenseError(f"{names}: no such file", fix=f"Expected {self.looked_for}.")
        folder = self.path / "Annotations" / self.boxes
        if not folder.is_dir():
            raise SkysenseError(f"{folder}: no such folder", fix=f"Expected {self.looked_for}.")
        listed = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not listed:
            raise SkysenseError(f"{names}: the {split} part is empty")
        pictures = [
            Picture(
                image=self._image(name), drawn=tuple(_drawn(folder / f"{name}.xml")), annotation=f"{folder}/{name}.xml"
            )
            for name in listed
        ]
        return ObjectPictures.of(pictures, classes=self.classes, modality=modalities[self.modality], read=self.read)

    def _image(self, name: str) -> Path:
        for folder in IMAGES:
            for suffix in (".jpg", ".png", ".tif"):
                if (self.path / folder / f"{name}{suffix}").is_file():
                    return self.path / folder / f"{name}{suffix}"
        raise SkysenseError(f"{self.path}: picture {name} is not there", fix=f"Looked in {', '.join(IMAGES)}.")


def _drawn(path: Path) -> Iterator[Drawn]:
    """The objects of one file, upright (`bndbox`) or oriented (`robndbox`)."""
    try:
        root = ET.parse(path).getroot()
        for one in root.iter("object"):
            box, turned = one.find("bndbox"), one.find("robndbox")
            if turned is not None:
                corners = tuple(_number(turned, f"{axis}_{where}") for where in ORDER for axis in ("x", "y"))
            elif box is not None:
                left, top, right, bottom = (_number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
                corners = upright(left, top, right, bottom)
            else:
                raise ValueError("an object without bndbox or robndbox")
            difficult = (one.findtext("difficult") or "0").strip() not in ("0", "")
            yield Drawn(corners=corners, name=(one.findtext("name") or "").strip(), difficult=difficult)
    except (OSError, ET.ParseError, ValueError) as error:
        raise SkysenseError(f"{path}: cannot be read: {error}", fix="Expected an annotation as VOC has it.") from None


def _number(box: ET.Element, key: str) -> float:
    text = box.findtext(key)
    if text is None:
        raise ValueError(f"a box without {key}")
    return float(text)
