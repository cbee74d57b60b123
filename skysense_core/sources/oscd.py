"""OSCD (Daudt et al. 2018): 24 cities before and after in Sentinel-2 L1C, all bands resampled to 10 m, without CRS.

Layout, `Onera Satellite Change Detection dataset - ` before each folder's name: `Images/{train,test}.txt` (names of
cities, comma separated), `Images/<city>/imgs_{1,2}_rect/B02.tif` and so on, and
`{Train,Test} Labels/<city>/cm/<city>-cm.tif` (1 unchanged, 2 changed). The part that validates is taken from the
training cities by a hash of their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from skysense_core.data.parts import validating
from skysense_core.data.pictures import PicturesSplit, Place, open_places
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.labels import Legend
from skysense_core.modalities import Modality, load
from skysense_core.sources import About
from skysense_core.types import PartName

PREFIX = "Onera Satellite Change Detection dataset - "
IMAGES = f"{PREFIX}Images"
LABELS = {"train": f"{PREFIX}Train Labels", "test": f"{PREFIX}Test Labels"}
LEGEND = Legend(classes=("unchanged", "changed"), codes={"1": 0, "2": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Oscd:
    """The `[data]` table of OSCD."""

    looked_for: ClassVar[str] = f"a folder with '{IMAGES}/train.txt'"
    about: ClassVar[About] = About(
        tasks=("change",),
        modalities=("s2",),
        classes="2",
        split="train and test cities as published; a share of train validates",
        licence="see its page",
        where="rcdaudt.github.io/oscd",
    )

    path: Path
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the training cities."""
    seed: int = 0
    """Of the hash that chooses those."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / IMAGES / "train.txt").is_file()

    def available(self) -> tuple[str, ...]:
        return ("s2",)

    def described(self) -> dict[str, Modality]:
        """Sentinel-2 of one date, whose values are those of L1C."""
        return {"s2": load("s2", {"level": "L1C", "dates": 1})}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> PicturesSplit:
        """The cities of one part. Raises SkysenseError where a date or a map of change is missing."""
        if set(modalities) != {"s2"}:
            raise UsageError(f"{self.path} holds s2, not {', '.join(modalities)}", fix="--modalities s2")
        part = "test" if split == "test" else "train"
        cities = self._cities(part)
        notes: tuple[str, ...] = ()
        if part == "train":
            cities, note = validating(cities, split, val_share=self.val_share, seed=self.seed)
            notes = (note,)
        places = tuple(self._place(part, city) for city in cities)
        return open_places(places, modalities, folder=self.path, part=split, legend=LEGEND, notes=notes)

    def _cities(self, part: str) -> list[str]:
        path = self.path / IMAGES / f"{part}.txt"
        if not path.is_file():
            raise SkysenseError(f"{path}: no such file", fix="It names the cities of this part, comma separated.")
        return sorted(name for item in path.read_text(encoding="utf-8").split(",") if (name := item.strip()))

    def _place(self, part: str, city: str) -> Place:
        mask = self.path / LABELS[part] / city / "cm" / f"{city}-cm.tif"
        epochs = tuple({"s2": self.path / IMAGES / city / f"imgs_{number}_rect"} for number in (1, 2))
        return Place(id=city, epochs=epochs, masks=(mask,))
