"""ISPRS Potsdam (Rottensteiner et al. 2012): 38 orthophotos of 6000 x 6000 pixels of 5 cm with six classes.

Layout: `2_Ortho_RGB/top_potsdam_<row>_<column>_RGB.tif` and `5_Labels_all/top_potsdam_<row>_<column>_label.tif`, or
the masks without boundaries, `5_Labels_all_noBoundary/top_potsdam_<row>_<column>_label_noBoundary.tif`. 24 tiles train
and 14 test, as published. Clutter is neither learnt nor scored (METHOD 4), nor are the boundaries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Num
from pydantic import Field

from skysense_core.data.parts import validating
from skysense_core.data.pictures import PicturesSplit, Place, colours_of, legend_of_colours, open_places
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import natural
from skysense_core.modalities import Modality, load
from skysense_core.sources import About
from skysense_core.types import PartName, Raster

IMAGES = "2_Ortho_RGB"
MASKS = ("5_Labels_all", "5_Labels_all_noBoundary")
TEST = ("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13")
"""Tiles whose labels were published last."""
COLOURS = {
    "#ffffff": "impervious surface",
    "#0000ff": "building",
    "#00ffff": "low vegetation",
    "#00ff00": "tree",
    "#ffff00": "car",
    "#ff0000": "ignore",  # clutter
    "#000000": "ignore",  # boundaries
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Potsdam:
    """The `[data]` table of Potsdam."""

    looked_for: ClassVar[str] = f"a folder with {IMAGES}/top_potsdam_2_10_RGB.tif and so on, and {MASKS[0]}/"
    about: ClassVar[About] = About(
        tasks=("segmentation",),
        modalities=("hr",),
        classes="5",
        split="24 and 14 tiles as published; a share of the 24 validates",
        licence="research only; see its page",
        where="isprs.org, benchmark on semantic labelling",
    )

    path: Path
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the training tiles."""
    seed: int = 0
    """Of the hash that chooses those."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / IMAGES).is_dir() and any((path / folder).is_dir() for folder in MASKS)

    def available(self) -> tuple[str, ...]:
        return ("hr",)

    def described(self) -> dict[str, Modality]:
        """The packaged modality at 5 cm."""
        return {"hr": load("hr", {"gsd": 0.05})}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> PicturesSplit:
        """The tiles of one part. Raises SkysenseError where a mask is missing or of another size."""
        if set(modalities) != {"hr"}:
            raise UsageError(f"{self.path} holds hr, not {', '.join(modalities)}", fix="--modalities hr")
        tiles = {path.stem.split("potsdam_")[1].removesuffix("_RGB"): path for path in self._files()}
        test = [tile for tile in tiles if tile in TEST]
        note, names = "", test
        if split != "test":
            rest = [tile for tile in tiles if tile not in TEST]
            names, note = validating(rest, split, val_share=self.val_share, seed=self.seed) if rest else ([], "")
        places = tuple(
            Place(id=tile, epochs=({"hr": tiles[tile]},), masks=(self._mask(tile),))
            for tile in sorted(names, key=natural)
        )
        return open_places(
            places,
            modalities,
            folder=self.path,
            part=split,
            legend=legend_of_colours(COLOURS),
            values=corners_of,
            notes=(note,) if note else (),
            colours=tuple(colour for colour, name in COLOURS.items() if name != "ignore"),
        )

    def _files(self) -> list[Path]:
        found = sorted((self.path / IMAGES).glob("top_potsdam_*_RGB.tif"))
        if not found:
            raise SkysenseError(f"{self.path / IMAGES}: no top_potsdam_<row>_<column>_RGB.tif")
        return found

    def _mask(self, tile: str) -> Path:
        names = (f"{MASKS[0]}/top_potsdam_{tile}_label.tif", f"{MASKS[1]}/top_potsdam_{tile}_label_noBoundary.tif")
        found = [path for name in names if (path := self.path / name).is_file()]
        if not found:
            raise SkysenseError(f"{self.path}: no mask of tile {tile}", fix=f"Looked for {' and '.join(names)}.")
        return found[0]


def corners_of(mask: Raster, path: Path) -> Num[np.ndarray, "h w"]:
    """Colours as numbers, each channel 0 or 255: some published masks have 252 where 255 is meant."""
    pixels = np.where(mask.pixels >= 128, 255, 0).astype(mask.pixels.dtype)
    return colours_of(Raster(pixels=pixels, valid=mask.valid, days=mask.days, dated=mask.dated), path)
