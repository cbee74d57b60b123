"""DOTA: pictures with boxes of any direction, a text file each; v1.0, v1.5, v2.0, whole or cut into patches.

    train/images/P0000.png   train/labelTxt/P0000.txt   (or labelTxt-v1.5, annfiles as other toolkits name it)
    val/...                  test/images/...

A line is `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`; lines such as `imagesource:GoogleEarth` come first. Patches are
named `P0000__1024__0___824.png` (scale, left, top). The test part has no labels in public.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

from skysense_core.data.annotated import Drawn, ObjectPictures, Picture, pictures_of, refuse_others
from skysense_core.data.parts import deal
from skysense_core.errors import SkysenseError
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import PartName

CLASSES = (
    "plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship",
    "tennis-court", "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool",
    "helicopter",
)  # fmt: skip
"""Of version 1.0."""
LATER = {"1.0": (), "1.5": ("container-crane",), "2.0": ("container-crane", "airport", "helipad")}
LABELS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labelTxt-v2.0", "annfiles")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dota:
    """The `[data]` table of DOTA."""

    looked_for: ClassVar[str] = "DOTA: a folder with train/images/ and train/labelTxt/ (or annfiles/)"
    about: ClassVar[About] = About(
        tasks=("oriented_detection", "detection"),
        modalities=("hr",),
        classes="15 to 18",
        split="train and val as published",
        licence="academic use only",
        where="captain-whu.github.io/DOTA",
    )

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    version: str = "1.0"
    """1.0, 1.5 or 2.0: which classes there are."""
    classes: tuple[str, ...] | None = None
    """Other classes, for data sets of one's own in this layout."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the pictures are read: fields of `geo.options.ReadOptions` under the modality's name, or under ""."""
    val_share: float = 0.2
    """Of the training scenes, where there is no val/ folder; a scene's patches stay together."""
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / "train" / "images").is_dir() and _labels(path / "train") is not None

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> ObjectPictures:
        """The pictures of one part; where no test labels are there, the validation part tests.

        Raises SkysenseError naming the picture, the file or the line that is missing or odd.
        """
        refuse_others(self.path, self.modality, modalities)
        if self.version not in LATER:
            raise SkysenseError(f"DOTA {self.version}: unknown", fix=f"Known: {', '.join(LATER)}.")
        there = [part for part in get_args(PartName) if _labels(self.path / part) is not None]
        folder, notes, dealt = split, [], "val" not in there
        if split == "test" and "test" not in there:
            if dealt:
                raise SkysenseError(f"{self.path}: no labels of a test or val part", fix=f"Expected {self.looked_for}.")
            folder, notes = "val", ["the test labels of DOTA are not public: the val part tests"]
        dealt = dealt and split != "test"
        pictures = list(self._pictures(self.path / ("train" if dealt else folder)))
        if dealt:
            scenes = (picture.image.stem.partition("__")[0] for picture in pictures)
            parts = deal(scenes, val_share=self.val_share, test_share=0.0, seed=self.seed)
            pictures = [one for one in pictures if parts[one.image.stem.partition("__")[0]] == split]
            notes.append("there is no val part: a share of the training scenes validates")
        if not pictures:
            raise SkysenseError(f"{self.path}: the {split} part is empty")
        classes = self.classes or (*CLASSES, *LATER[self.version])
        return ObjectPictures.of(
            pictures, classes=classes, modality=modalities[self.modality], read=self.read, notes=notes
        )

    def _pictures(self, folder: Path) -> Iterator[Picture]:
        images, labels = pictures_of(folder / "images", SUFFIXES), _labels(folder)
        if labels is None:
            raise SkysenseError(f"{folder}: no labelTxt/ and no annfiles/", fix=f"Expected {self.looked_for}.")
        texts = {path.stem: path for path in labels.glob("*.txt")}
        for one, other, where in ((images, texts, labels), (texts, images, folder / "images")):
            if lonely := sorted(one.keys() - other.keys()):
                raise SkysenseError(f"{where}: nothing of {lonely[0]} ({len(lonely)} missing)", fix=self.looked_for)
        for name, image in images.items():
            yield Picture(image=image, drawn=tuple(_drawn(texts[name])), annotation=str(texts[name]))


def _labels(folder: Path) -> Path | None:
    return next((folder / name for name in LABELS if (folder / name).is_dir()), None)


def _drawn(path: Path) -> Iterator[Drawn]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words or ":" in words[0]:  # imagesource:GoogleEarth, gsd:0.146
            continue
        try:
            corners = tuple(float(word) for word in words[:8])
            name, difficult = words[8], len(words) > 9 and int(words[9]) > 0
        except (ValueError, IndexError):
            raise SkysenseError(
                f"{path}, line {number}: {line!r}", fix="Expected: x1 y1 x2 y2 x3 y3 x4 y4 class difficult"
            ) from None
        yield Drawn(corners=corners, name=name, difficult=difficult)
