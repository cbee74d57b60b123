"""BigEarthNet v1 and v2 (Sumbul et al. 2021; Clasen et al. 2024): European patches of 1.2 km, one date of S2 and of S1.

Layout: folders of patches, in any order of subfolders. `S2x_MSIL2A_..._<row>_<column>/` holds `<patch>_B02.tif` and so
on (digital numbers of L2A, 10, 20 and 60 m), `S1x_IW_GRDH_1SDV_..._<tile>_<row>_<column>/` holds `<patch>_VV.tif` and
`<patch>_VH.tif` (dB, 10 m). Which of them belong together is said by `metadata.parquet` (v2; it also says the part of
each) or by `<patch>_labels_metadata.json` in the folders of S1 (v1). The labels are sets of classes of a whole patch.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet

from skysense_core.data.scene import read_place
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import scaled
from skysense_core.geo.raster import ReadOptions, open_stack
from skysense_core.geo.vector import footprint_lonlat
from skysense_core.modalities import Modality, finest
from skysense_core.types import ClassMap, PartName, Sample

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
MAPS = "Reference_Maps"
"""Folder of v2 whose subfolders have the names of the patches of S2."""
PARTS = {"train": "train", "validation": "val", "test": "test"}
"""The parts of the metadata, and ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bigearthnet:
    """The `[data]` table of a BigEarthNet folder."""

    looked_for: ClassVar[str] = "a folder with patch folders S2A_MSIL2A_... or S1A_IW_GRDH_... (BigEarthNet v1, v2)"

    path: Path

    @staticmethod
    def detect(path: Path) -> bool:
        return path.is_dir() and any(True for _ in _patches(path, most=3))

    def available(self) -> tuple[str, ...]:
        kinds = {name for name, _ in _patches(self.path)}
        return tuple(name for name in PATCHES if name in kinds)

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "BigearthnetSplit":
        """The patches of one part that have any of the modalities; without metadata all of them train.

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
        partners, parts = self._metadata(found["s1"])
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
            notes.append(f"no {METADATA}, which says the parts: all patches train")
        places = (pair for pair in pairs if parts.get(next(iter(pair.values())).name, "train") == split)
        return BigearthnetSplit(
            patches=tuple(sorted(places, key=lambda pair: [folder.name for folder in pair.values()])),
            modalities=dict(modalities),
            notes=tuple(notes),
        )

    def _metadata(self, radar: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, PartName]]:
        """{S2 patch: its S1 patch} and the part of each patch of both; no part where nothing says it."""
        path = self.path / METADATA
        if not path.is_file():
            return {_partner(folder): id for id, folder in radar.items()}, {}
        try:
            table = pyarrow.parquet.read_table(path, columns=["patch_id", "s1_name", "split"]).to_pylist()
            parts = {row[key]: PARTS[row["split"]] for row in table for key in ("patch_id", "s1_name")}
        except (KeyError, ValueError, OSError) as error:
            raise SkysenseError(f"{path}: not the metadata of BigEarthNet v2: {error}") from None
        return {row["patch_id"]: row["s1_name"] for row in table}, parts  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class BigearthnetSplit:
    """The patches of one part; one without a partner has one modality."""

    patches: tuple[Mapping[str, Path], ...]
    """Folder by modality."""
    modalities: Mapping[str, Modality]
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()
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
        )

    def size(self, index: int) -> tuple[int, int]:
        return SIDE, SIDE

    def label(self, index: int) -> ClassMap:
        """Raises SkysenseError: a set of classes of a whole patch is no map."""
        raise SkysenseError(
            "the labels of BigEarthNet are sets of classes of a whole patch, not maps: no task here learns them",
            fix="skysense pretrain learns from the imagery without them.",
        )


def _patches(path: Path, depth: int = 0, most: int | None = None) -> Iterator[tuple[str, Path]]:
    """The modality and the folder of every patch; `most` looks into so many folders of each level only."""
    inner = (item for item in path.iterdir() if item.is_dir() and item.name != MAPS)
    for folder in islice(inner, most):
        name = next((name for name, pattern in PATCHES.items() if pattern.fullmatch(folder.name)), None)
        if name is not None:
            yield name, folder
        elif depth + 1 < DEPTH:
            yield from _patches(folder, depth + 1, most)


def _partner(folder: Path) -> str:
    """The S2 patch of an S1 patch of v1; empty where nothing says it. Raises SkysenseError for a damaged file."""
    path = folder / f"{folder.name}_labels_metadata.json"
    if not path.is_file():
        return ""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["corresponding_s2_patch"])
    except (ValueError, KeyError) as error:
        raise SkysenseError(f"{path}: not the metadata of an S1 patch of BigEarthNet v1: {error}") from None
