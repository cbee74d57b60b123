"""BigEarthNet v1 and v2 (Sumbul et al. 2021; Clasen et al. 2024): European patches of 1.2 km, one date of S2 and of S1.

Layout: folders of patches, in any order of subfolders. `S2x_MSIL2A_..._<row>_<column>/` holds `<patch>_B02.tif` and so
on (digital numbers of L2A, 10, 20 and 60 m), `S1x_IW_GRDH_1SDV_..._<tile>_<row>_<column>/` holds `<patch>_VV.tif` and
`<patch>_VH.tif` (dB, 10 m). Which of them belong together is said by `metadata.parquet` (v2; it also says the part of
each) or by `<patch>_labels_metadata.json` in the folders of S1 (v1). The labels are sets of classes of a whole patch:
in `metadata.parquet` (v2, 19 classes) or in the json file of each patch (v1, 43 classes of CORINE, which become the 19
of Sumbul et al. 2021). The parts of v1 are lists of patches, `train.csv`, `val.csv` and `test.csv`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pyarrow.parquet

from skysense_core.data.scene import read_place
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import scaled
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.raster import ReadOptions, open_stack
from skysense_core.modalities import Modality, finest
from skysense_core.sources import About
from skysense_core.types import PartName, Sample, Tags

SIDE, PIXEL = 120, 10.0
PATCHES = {
    "s2": re.compile(r"S2[A-C]_MSIL2A_\d{8}T\d{6}(_N\d{4}_R\d{3}_T\w{5})?_\d+_\d+"),
    "s1": re.compile(r"S1[A-C]_IW_GRDH_1SDV_\d{8}T\d{6}_\w{5}_\d+_\d+"),
}
READ = {"s2": ReadOptions(nodata=0.0), "s1": ReadOptions(unit="dB")}
"""0 is the nodata value of Sentinel-2 products, which v1 does not declare; no file of S1 states its dB."""
DEPTH = 3
"""Most folders between the data set and a patch."""
METADATA = "metadata.parquet"
LIST = "{}.csv"
MAPS = "Reference_Maps"
"""Folder of v2 whose subfolders have the names of the patches of S2."""
PARTS: dict[str, PartName] = {"train": "train", "validation": "val", "test": "test"}
"""The parts of the metadata, and ours."""
CLASSES: dict[str, tuple[str, ...]] = {
    "Urban fabric": ("Continuous urban fabric", "Discontinuous urban fabric"),
    "Industrial or commercial units": ("Industrial or commercial units",),
    "Arable land": ("Non-irrigated arable land", "Permanently irrigated land", "Rice fields"),
    "Permanent crops": (
        *("Vineyards", "Fruit trees and berry plantations", "Olive groves"),
        "Annual crops associated with permanent crops",
    ),
    "Pastures": ("Pastures",),
    "Complex cultivation patterns": ("Complex cultivation patterns",),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    "Agro-forestry areas": ("Agro-forestry areas",),
    "Broad-leaved forest": ("Broad-leaved forest",),
    "Coniferous forest": ("Coniferous forest",),
    "Mixed forest": ("Mixed forest",),
    "Natural grassland and sparsely vegetated areas": ("Natural grassland", "Sparsely vegetated areas"),
    "Moors, heathland and sclerophyllous vegetation": ("Moors and heathland", "Sclerophyllous vegetation"),
    "Transitional woodland, shrub": ("Transitional woodland/shrub",),
    "Beaches, dunes, sands": ("Beaches, dunes, sands",),
    "Inland wetlands": ("Inland marshes", "Peatbogs"),
    "Coastal wetlands": ("Salt marshes", "Salines"),
    "Inland waters": ("Water courses", "Water bodies"),
    "Marine waters": ("Coastal lagoons", "Estuaries", "Sea and ocean"),
}
"""The 19 classes, and those of CORINE's 43 that each is made of."""
DROPPED = (
    *("Road and rail networks and associated land", "Port areas", "Airports", "Mineral extraction sites", "Dump sites"),
    *("Construction sites", "Green urban areas", "Sport and leisure facilities", "Bare rock", "Burnt areas"),
    "Intertidal flats",
)
"""Classes of the 43 that belong to none of the 19."""
CORINE = (*(name for parts in CLASSES.values() for name in parts), *DROPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bigearthnet:
    """The `[data]` table of a BigEarthNet folder."""

    looked_for: ClassVar[str] = "a folder with patch folders S2A_MSIL2A_... or S1A_IW_GRDH_... (BigEarthNet v1, v2)"
    about: ClassVar[About] = About(
        tasks=("multilabel", "pretrain"),
        modalities=("s2", "s1"),
        classes="19, or 43 of v1",
        split="metadata.parquet (v2), train.csv, val.csv, test.csv (v1)",
        licence="CDLA-Permissive-1.0",
        where="bigearth.net",
    )

    path: Path
    classes: Literal[19, 43] = 19
    """Number of classes; v2 has 19."""

    @staticmethod
    def detect(path: Path) -> bool:
        return path.is_dir() and any(True for _ in _patches(path, most=3))

    def available(self) -> tuple[str, ...]:
        kinds = {name for name, _ in _patches(self.path)}
        return tuple(name for name in PATCHES if name in kinds)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "BigearthnetSplit":
        """The patches of one part that have any of the modalities; where nothing says the parts all of them train.

        Raises UsageError where the modalities are not those of the files.
        """
        found: dict[str, dict[str, Path]] = {name: {} for name in PATCHES}
        for name, folder in _patches(self.path):
            found[name][folder.name] = folder
        for name, modality in modalities.items():
            if not found.get(name):
                raise UsageError(
                    f"{self.path} has no {name}", fix=f"It has {', '.join(k for k, v in found.items() if v)}."
                )
            if name == "s2" and modality.level != "L2A":
                raise UsageError(f"{self.path} is L2A, and s2 is {modality.level}", fix="--set modalities.s2.level=L2A")
            if not 0.9 <= modality.gsd / PIXEL <= 1.1:
                raise UsageError(
                    f"the patches have pixels of {PIXEL:g} m, and {name} is {modality.gsd:g} m",
                    fix=f"--set modalities.{name}.gsd={PIXEL:g}",
                )
        partners, parts, tags = self._metadata(found["s1"])
        pairs = []
        for id, folder in found["s2"].items():
            partner = found["s1"].pop(partners.get(id, ""), None)
            pairs.append({"s2": folder} if partner is None else {"s2": folder, "s1": partner})
        pairs += [{"s1": folder} for folder in found["s1"].values()]
        pairs = [{name: pair[name] for name in modalities if name in pair} for pair in pairs]
        pairs = [pair for pair in pairs if pair]
        counts = Counter(" and ".join(pair) for pair in pairs)
        notes = ["patches with " + ", ".join(f"{names}: {count}" for names, count in counts.items())]
        if not parts:
            notes.append(f"neither {METADATA} nor train.csv says the parts: all patches train")
        unlisted = None if (self.path / LIST.format("train")).is_file() else "train"
        places = [pair for pair in pairs if parts.get(next(iter(pair.values())).name, unlisted) == split]
        told = bool(tags) or any(_labels_file(folder).is_file() for pair in pairs for folder in pair.values())
        return BigearthnetSplit(
            patches=tuple(sorted(places, key=lambda pair: [folder.name for folder in pair.values()])),
            modalities=dict(modalities),
            notes=tuple(notes),
            classes=(tuple(CLASSES) if self.classes == 19 else CORINE) if told else (),
            tags=tags,
        )

    def _metadata(
        self, radar: Mapping[str, Path]
    ) -> tuple[dict[str, str], dict[str, PartName], dict[str, tuple[str, ...]]]:
        """{S2 patch: its S1 patch}, the part of each patch of both, and their labels; empty where nothing says it."""
        path = self.path / METADATA
        if not path.is_file():
            return {_partner(folder): id for id, folder in radar.items()}, self._lists(), {}
        parts: dict[str, PartName] = {}
        tags: dict[str, tuple[str, ...]] = {}
        try:
            told = ["labels"] if "labels" in pyarrow.parquet.read_schema(path).names else []
            table = pyarrow.parquet.read_table(path, columns=["patch_id", "s1_name", "split", *told]).to_pylist()
            for row in table:
                for key in ("patch_id", "s1_name"):
                    parts[row[key]] = PARTS[row["split"]]
                    tags |= {row[key]: tuple(row["labels"])} if told else {}
        except (KeyError, ValueError, OSError) as error:
            raise SkysenseError(f"{path}: not the metadata of BigEarthNet v2: {error}") from None
        if tags and self.classes == 43:
            raise UsageError(f"{path} has labels of 19 classes, not of 43", fix="--set data.classes=19")
        return {row["patch_id"]: row["s1_name"] for row in table}, parts, tags

    def _lists(self) -> dict[str, PartName]:
        """The part of each patch that a list names: one name in a line, or a pair of them."""
        files = {part: self.path / LIST.format(part) for part in get_args(PartName)}
        lines = {part: file.read_text("utf-8").split() for part, file in files.items() if file.is_file()}
        return {name.strip(): part for part, some in lines.items() for line in some for name in line.split(",")}


@dataclass(frozen=True, slots=True, kw_only=True)
class BigearthnetSplit:
    """The patches of one part; one without a partner has one modality."""

    patches: tuple[Mapping[str, Path], ...]
    """Folder by modality."""
    modalities: Mapping[str, Modality]
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    """None where there are no labels at all."""
    tags: Mapping[str, tuple[str, ...]]
    """Names of classes by patch, where the metadata hold them; otherwise the files of the patches do."""
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Sample:
        stacks = {}
        for name, folder in self.patches[index].items():
            modality = self.modalities[name]
            files = sorted([*folder.glob(f"{folder.name}_*.tif"), *folder.glob(f"{folder.name}_*.tiff")])
            if not files:
                raise SkysenseError(f"{folder}: no {folder.name}_*.tif", fix="Unpack it again, or remove the folder.")
            bands = [band.names for band in modality.bands]
            stacks[name] = open_stack(files, bands=bands, unit=modality.unit, options=READ[name])
        names = [name for name in (finest(self.modalities), *stacks) if name in stacks]
        grid = scaled(stacks[names[0]].geobox, (SIDE, SIDE))
        footprint, lonlat = footprint_lonlat(grid)
        return Sample(
            id=next(iter(self.patches[index].values())).name,
            epochs=(read_place(stacks, self.modalities, grid),),
            footprint=footprint,
            lonlat=lonlat,
            label=self.label(index) if self.classes and self._names(index) is not None else None,
        )

    def size(self, index: int) -> tuple[int, int]:
        return SIDE, SIDE

    def label(self, index: int) -> Tags:
        """The classes of the patch; those of CORINE that belong to none of the 19 are left out.

        Raises SkysenseError where no file says them, and for names that are no class.
        """
        names = self._names(index)
        folder = next(iter(self.patches[index].values()))
        if names is None:
            raise SkysenseError(
                f"{folder}: nothing says its classes",
                fix=f"v1 has {_labels_file(folder).name} in each folder, v2 has {METADATA} beside the folders.",
            )
        coarse = {name: new for new, parts in CLASSES.items() for name in (*parts, new)}
        known = dict.fromkeys(DROPPED) | coarse if self.classes == tuple(CLASSES) else {name: name for name in CORINE}
        if strange := [name for name in names if name not in known]:
            raise SkysenseError(f"{folder}: {strange[0]} is none of the {len(self.classes)} classes")
        found = {known[name] for name in names} - {None}
        return Tags(codes=tuple(code for code, name in enumerate(self.classes) if name in found))

    def _names(self, index: int) -> tuple[str, ...] | None:
        """The classes as they are stored; None where nothing says them."""
        for folder in self.patches[index].values():
            if folder.name in self.tags:
                return self.tags[folder.name]
            path = _labels_file(folder)
            if path.is_file():
                return tuple(_entry(path, "labels"))
        return None


def _patches(path: Path, depth: int = 0, most: int | None = None) -> Iterator[tuple[str, Path]]:
    """The modality and the folder of every patch; `most` looks into so many folders of each level only."""
    inner = (item for item in path.iterdir() if item.is_dir() and item.name != MAPS)
    for folder in islice(inner, most):
        name = next((name for name, pattern in PATCHES.items() if pattern.fullmatch(folder.name)), None)
        if name is not None:
            yield name, folder
        elif depth + 1 < DEPTH:
            yield from _patches(folder, depth + 1, most)


def _labels_file(folder: Path) -> Path:
    return folder / f"{folder.name}_labels_metadata.json"


def _partner(folder: Path) -> str:
    """The S2 patch of an S1 patch of v1; empty where nothing says it. Raises SkysenseError for a damaged file."""
    path = _labels_file(folder)
    return str(_entry(path, "corresponding_s2_patch")) if path.is_file() else ""


def _entry(path: Path, key: str) -> Any:
    """What the file of a patch of v1 says. Raises SkysenseError where it is damaged or does not say it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError) as error:
        raise SkysenseError(f"{path}: not the metadata of a patch of BigEarthNet v1: {error}") from None
