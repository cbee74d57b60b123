"""Pairs of pictures and masks of change, as LEVIR-CD (Chen and Shi 2020) has them: `A/` before, `B/` after, `label/`.

Layout: `{train,val,test}/{A,B,label}/<name>.png`, or `{A,B,label}/<name>.png` with the names of each part, one per
line, in `list/{train,val,test}.txt`. Masks are 0 and 255. LEVIR-CD: 637 pairs of 1024 x 1024 RGB pixels of 0.5 m.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from skysense_core.data.pictures import PicturesSplit, Place, open_places
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import RASTERS, natural
from skysense_core.modalities import Modality, load
from skysense_core.sources import About
from skysense_core.types import PartName

BEFORE, AFTER, LABEL, LIST = "A", "B", "label", "list"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevirCd:
    """The `[data]` table of pairs of pictures."""

    looked_for: ClassVar[str] = "a folder with train/A/, train/B/ and train/label/, or with A/, B/, label/ and list/"
    about: ClassVar[About] = About(
        tasks=("change",),
        modalities=("hr",),
        classes="2",
        split="folders or lists, as published",
        licence="academic use only; yours for your own pairs",
        where="justchenhao.github.io/LEVIR, or your own pairs",
    )

    path: Path
    modality: str = "hr"
    """What the pictures are."""
    gsd: float = 0.5
    """Metres of a pixel; of LEVIR-CD by default."""

    @staticmethod
    def detect(path: Path) -> bool:
        return any(all((root / name).is_dir() for name in (BEFORE, AFTER, LABEL)) for root in (path, path / "train"))

    def available(self) -> tuple[str, ...]:
        return (self.modality,)

    def described(self) -> dict[str, Modality]:
        """The packaged modality at the pictures' pixel size."""
        return {self.modality: load(self.modality, {"gsd": self.gsd})}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> PicturesSplit:
        """The pairs of one part. Raises SkysenseError where a date or a mask is missing or of another size."""
        if set(modalities) != {self.modality}:
            raise UsageError(
                f"{self.path} holds {self.modality}, not {', '.join(modalities)}",
                fix=f"--modalities {self.modality}, or --set data.modality={next(iter(modalities))}",
            )
        root, names = self._names(split)
        places = tuple(self._place(root, name) for name in names)
        return open_places(places, modalities, folder=self.path, part=split)

    def _names(self, split: PartName) -> tuple[Path, list[str]]:
        """Where the pictures of a part are, and their names with or without extension."""
        root = self.path / split
        if (root / BEFORE).is_dir():
            found = (path for path in (root / BEFORE).iterdir() if path.suffix.lower() in RASTERS)
            return root, sorted((path.name for path in found if not path.name.startswith(".")), key=natural)
        names = self.path / LIST / f"{split}.txt"
        if not names.is_file():
            raise SkysenseError(f"{self.path}: no {split} part", fix=f"Looked for {split}/{BEFORE}/ and {names}.")
        return self.path, [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]

    def _place(self, root: Path, name: str) -> Place:
        before, after, mask = (_file(root / folder, name) for folder in (BEFORE, AFTER, LABEL))
        return Place(id=Path(name).stem, epochs=({self.modality: before}, {self.modality: after}), masks=(mask,))


def _file(folder: Path, name: str) -> Path:
    """The picture of a name, whose extension may be left out or be another one in this folder."""
    if (folder / name).is_file():
        return folder / name
    found = sorted(path for path in folder.glob(f"{Path(name).stem}.*") if path.suffix.lower() in RASTERS)
    if len(found) != 1:
        what = "no picture" if not found else "several pictures"
        raise SkysenseError(f"{folder}: {what} {name}", fix=f"{BEFORE}, {AFTER} and {LABEL} hold the same names.")
    return found[0]
