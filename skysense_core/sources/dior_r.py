"""DIOR-R: the pictures of DIOR with boxes of any direction, in `Annotations/Oriented Bounding Boxes/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from skysense_core.sources import About
from skysense_core.sources.dior import Dior


@dataclass(frozen=True, slots=True, kw_only=True)
class DiorR(Dior):
    """The `[data]` table of DIOR-R."""

    looked_for: ClassVar[str] = "DIOR-R: DIOR with Annotations/Oriented Bounding Boxes/, named with --source dior_r"
    about: ClassVar[About] = About(
        tasks=("oriented_detection",),
        modalities=("hr",),
        classes="20",
        split="trainval and test as published",
        licence="see its page",
        where="gcheng-nwpu.github.io",
    )
    boxes: ClassVar[str] = "Oriented Bounding Boxes"

    @staticmethod
    def detect(path: Path) -> bool:
        """A folder of both has the layout of DIOR; only where there are no upright boxes is it surely this one."""
        return (path / "Annotations" / DiorR.boxes).is_dir() and not (path / "Annotations" / Dior.boxes).is_dir()
