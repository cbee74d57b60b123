"""OMBRIA (Drakonakis et al. 2022): floods before and after in 8-bit pictures of Sentinel-1 and Sentinel-2, 256 x 256.

Layout: `OmbriaS1/{train,test}/{BEFORE,AFTER,MASK}/S1_{before,after,mask}_<number>.png`, and the same below `OmbriaS2`,
which may lack its masks: they are those of S1. The part that validates is taken from the training pictures by a hash
of their numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from skysense_core.data.parts import validating
from skysense_core.data.pictures import PicturesSplit, Place, open_places
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.options import ReadOptions
from skysense_core.modalities import Band, Modality
from skysense_core.sources import About
from skysense_core.types import PartName

FOLDERS = {"s2": "OmbriaS2", "s1": "OmbriaS1"}
BANDS = {"s2": ("channel 1", "channel 2", "channel 3"), "s1": ("backscatter",)}
"""Our names of the pictures' channels, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ombria:
    """The `[data]` table of OMBRIA."""

    looked_for: ClassVar[str] = "a folder with OmbriaS1/train/BEFORE/ and, or, OmbriaS2/train/BEFORE/"
    about: ClassVar[About] = About(
        tasks=("change",),
        modalities=("s2", "s1"),
        classes="2",
        split="train and test as published; a share of train validates",
        licence="see its page",
        where="github.com/geodrak/OMBRIA",
    )

    path: Path
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the training pictures."""
    seed: int = 0
    """Of the hash that chooses those."""

    @staticmethod
    def detect(path: Path) -> bool:
        return any((path / folder / "train" / "BEFORE").is_dir() for folder in FOLDERS.values())

    def available(self) -> tuple[str, ...]:
        return tuple(name for name, folder in FOLDERS.items() if (self.path / folder).is_dir())

    def described(self) -> dict[str, Modality]:
        """Pictures of 8 bits, whose statistics training measures."""
        return {
            name: Modality(
                name=name,
                title=f"OMBRIA, {folder.removeprefix('Ombria')} as 8-bit picture",
                encoder="vit",
                level="8-bit",
                unit="0-255",
                gsd=10.0,
                window=64,
                dates=1,
                bands=tuple(Band(name=band, mean=127.5, std=64.0) for band in BANDS[name]),
            )
            for name, folder in FOLDERS.items()
            if name in self.available()
        }

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> PicturesSplit:
        """The pictures of one part, before and after. Raises UsageError for modalities that are not there."""
        for name in modalities:
            if name not in self.available():
                raise UsageError(f"{self.path} has no {name}", fix=f"It has {', '.join(self.available())}.")
        part = "test" if split == "test" else "train"
        numbers = self._numbers(part, next(iter(modalities)))
        notes: tuple[str, ...] = ()
        if part == "train":
            numbers, note = validating(numbers, split, val_share=self.val_share, seed=self.seed)
            notes = (note,)
        places = tuple(self._place(part, number, modalities) for number in numbers)
        read = {name: ReadOptions(bands=BANDS[name]) for name in modalities}
        return open_places(places, modalities, folder=self.path, part=split, read=read, notes=notes)

    def _numbers(self, part: str, name: str) -> list[str]:
        folder = self.path / FOLDERS[name] / part / "BEFORE"
        prefix = f"{name.upper()}_before_"
        numbers = sorted(path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png"))
        if not numbers:
            raise SkysenseError(f"{folder}: no {prefix}<number>.png")
        return numbers

    def _place(self, part: str, number: str, modalities: Mapping[str, Modality]) -> Place:
        def file(name: str, kind: str) -> Path:
            return self.path / FOLDERS[name] / part / kind.upper() / f"{name.upper()}_{kind}_{number}.png"

        masks = [path for name in (*modalities, *FOLDERS) if (path := file(name, "mask")).is_file()]
        if not masks:
            raise SkysenseError(f"{file('s1', 'mask')}: no such file", fix=f"The mask of picture {number} is needed.")
        epochs = tuple({name: file(name, kind) for name in modalities} for kind in ("before", "after"))
        return Place(id=number, epochs=epochs, masks=(masks[0],))
