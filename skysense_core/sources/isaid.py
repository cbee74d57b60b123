"""iSAID (Waqas Zamir et al. 2019): the pictures of DOTA with a class for every pixel, 15 kinds of objects.

Layout: `{train,val}/images/<name>.png` with `<name>_instance_color_RGB.png` beside it; pictures and masks that were cut
into pieces under the same naming are read as well. The masks of the published test part are withheld: as in the
publications, `test` is the published validation part here, and a share of the training pictures validates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from skysense_core.data.parts import validating
from skysense_core.data.pictures import PicturesSplit, Place, colours_of, legend_of_colours, open_places
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import natural
from skysense_core.modalities import Modality, load
from skysense_core.sources import About
from skysense_core.types import PartName

MASK, INSTANCES = "_instance_color_RGB", "_instance_id_RGB"
COLOURS = {
    "#000000": "background",
    "#00003f": "ship",
    "#003f3f": "storage tank",
    "#003f00": "baseball diamond",
    "#003f7f": "tennis court",
    "#003fbf": "basketball court",
    "#003fff": "ground track field",
    "#007f3f": "bridge",
    "#007f7f": "large vehicle",
    "#00007f": "small vehicle",
    "#0000bf": "helicopter",
    "#0000ff": "swimming pool",
    "#00bf7f": "roundabout",
    "#007fbf": "soccer ball field",
    "#007fff": "plane",
    "#00649b": "harbour",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Isaid:
    """The `[data]` table of iSAID."""

    looked_for: ClassVar[str] = f"a folder with train/images/<name>.png and <name>{MASK}.png beside it"
    about: ClassVar[About] = About(
        tasks=("segmentation",),
        modalities=("hr",),
        classes="16",
        split="train and val as published, val is the test; a share of train validates",
        licence="academic use only",
        where="captain-whu.github.io/iSAID, pictures from DOTA",
    )

    path: Path
    gsd: float = 0.3
    """Metres of a pixel; the pictures differ and do not say theirs."""
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the training pictures."""
    seed: int = 0
    """Of the hash that chooses those."""

    @staticmethod
    def detect(path: Path) -> bool:
        return next((path / "train" / "images").glob(f"*{MASK}.png"), None) is not None

    def available(self) -> tuple[str, ...]:
        return ("hr",)

    def described(self) -> dict[str, Modality]:
        """The packaged modality at the stated pixel size."""
        return {"hr": load("hr", {"gsd": self.gsd})}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> PicturesSplit:
        """The pictures of one part. Raises SkysenseError where picture or mask is missing or of another size."""
        if set(modalities) != {"hr"}:
            raise UsageError(f"{self.path} holds hr, not {', '.join(modalities)}", fix="--modalities hr")
        folder = self.path / ("val" if split == "test" else "train") / "images"
        names = self._names(folder)
        notes: tuple[str, ...] = ()
        if split != "test":
            # The pieces of one picture stay together.
            whole, note = validating((_whole(name) for name in names), split, val_share=self.val_share, seed=self.seed)
            names, notes = [name for name in names if _whole(name) in whole], (note,)
        places = tuple(
            Place(id=name, epochs=({"hr": folder / f"{name}.png"},), masks=(folder / f"{name}{MASK}.png",))
            for name in names
        )
        return open_places(
            places,
            modalities,
            folder=self.path,
            part=split,
            legend=legend_of_colours(COLOURS),
            values=colours_of,
            notes=notes,
            colours=tuple(COLOURS),
        )

    def _names(self, folder: Path) -> list[str]:
        found = {path.stem for path in folder.glob("*.png")}
        pictures = sorted((name for name in found if not name.endswith((MASK, INSTANCES))), key=natural)
        if not pictures:
            raise SkysenseError(f"{folder}: no picture", fix="The pictures are those of DOTA, the masks lie beside.")
        lonely = [name for name in pictures if f"{name}{MASK}" not in found]
        if lonely:
            raise SkysenseError(f"{folder}: no {lonely[0]}{MASK}.png beside {lonely[0]}.png ({len(lonely)} such)")
        return pictures


def _whole(name: str) -> str:
    """The picture that a piece comes from: P0002_0_896_0_896 is of P0002."""
    return name.split("_")[0]
