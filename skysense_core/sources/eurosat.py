"""EuroSAT (Helber et al. 2019): 27,000 patches of 64 x 64 px at 10 m in 10 classes of land use, Sentinel-2.

Layout: `AnnualCrop/AnnualCrop_1.tif`, the multispectral version (13 bands of L1C, digital numbers), or `.jpg`, the RGB
one, in a folder for each class. No split is published with it: lists (`train.txt`, `val.txt`, `test.txt`) or a hash of
the names say the parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from skysense_core import modalities as modality_files
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.sources.class_folders import ClassFolders, ClassFoldersSplit
from skysense_core.types import PartName

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""In the order of the files, where B8A comes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eurosat(ClassFolders):
    """The `[data]` table of EuroSAT; `modality` is what the files are, s2 or hr."""

    looked_for: ClassVar[str] = "EuroSAT: a folder with AnnualCrop/AnnualCrop_1.tif (or .jpg) and so on"
    about: ClassVar[About] = About(
        tasks=("classification",),
        modalities=("s2", "hr"),
        classes="10",
        split="lists, or a hash of the names",
        licence="MIT",
        where="github.com/phelber/EuroSAT",
    )

    @staticmethod
    def detect(path: Path) -> bool:
        return path.is_dir() and any(True for _ in path.glob("**/AnnualCrop/AnnualCrop_*.*"))

    def available(self) -> tuple[str, ...]:
        multispectral = any(True for _ in self.path.glob("**/AnnualCrop/AnnualCrop_*.tif"))
        return ("s2",) if multispectral else ("hr",)

    def described(self) -> dict[str, Modality]:
        """s2 as top-of-atmosphere reflectance, or hr at 10 m."""
        (name,) = self.available()
        fields: dict[str, Any] = {"level": "L1C"} if name == "s2" else {"gsd": 10.0}
        return {name: modality_files.load(name, fields)}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> ClassFoldersSplit:
        """The patches of one part, with names for the bands of the files."""
        (name,) = self.available()
        read = {"s2": {"bands": BANDS, **self.read.get("s2", {})}} if name == "s2" else self.read
        return ClassFolders.open(replace(self, modality=name, read=read), split, modalities)
