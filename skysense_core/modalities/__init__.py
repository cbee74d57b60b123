"""A modality is data: bands, product level, unit, pixel size, statistics and encoder, in a TOML file.

The packaged files stand beside this one; a data set or a user may bring another (a band subset, RGB+NIR, 8-bit SAR),
and every model folder holds the copy that it was trained with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skysense_core import config
from skysense_core.errors import unknown

CELL = {"swin": 32, "vit": 1}
"""Side of one fusion cell in pixels of each encoder (METHOD 2, Alignment)."""
CELLS = 4
"""Windows are multiples of so many fusion cells, the patch of the ViT (METHOD 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One band: its name, what else files call it, and its statistics in the modality's unit."""

    name: str
    aliases: tuple[str, ...] = ()
    mean: float
    std: float

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a file may use, the own one first."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """What a sensor delivers and which encoder reads it."""

    name: str
    """Key in every dictionary of modalities: hr, s2, s1 or an own one."""
    title: str
    encoder: Literal["swin", "vit"]
    level: str
    """Product level, e.g. L2A or L1C; a scene that states another one is refused."""
    unit: str
    gsd: float
    """Metres per pixel that the encoder expects."""
    window: int
    """Side of a training crop and of a prediction window, in this modality's own pixels."""
    dates: int
    """Most dates of a series drawn in training."""
    bands: tuple[Band, ...]

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @property
    def mean(self) -> Float[np.ndarray, "c"]:
        return np.array([band.mean for band in self.bands], dtype=np.float64)

    @property
    def std(self) -> Float[np.ndarray, "c"]:
        return np.array([band.std for band in self.bands], dtype=np.float64)

    def with_statistics(self, mean: Float[np.ndarray, "c"], std: Float[np.ndarray, "c"]) -> "Modality":
        """A copy with a data set's own mean and standard deviation per band."""
        pairs = zip(self.bands, mean.tolist(), std.tolist(), strict=True)
        return replace(self, bands=tuple(replace(band, mean=m, std=s) for band, m, s in pairs))

    def with_bands(self, names: tuple[str, ...]) -> "Modality":
        """A copy with these bands in this order, each known by its name or an alias. Raises UsageError otherwise."""
        by_name = {name.lower(): band for band in self.bands for name in band.names}
        for name in names:
            if name.lower() not in by_name:
                raise unknown(f"band of {self.name}", name, [band.name for band in self.bands])
        return replace(self, bands=tuple(by_name[name.lower()] for name in names))


def packaged() -> tuple[str, ...]:
    """Names of the modality files that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.toml")))


def load(name: str, overrides: Mapping[str, Any] | None = None, described: Modality | None = None) -> Modality:
    """The modality `name` as the data set has `described` it, else the packaged one, with some fields overridden.

    `overrides` is the user's `[modalities.NAME]` table: any field, `bands` as a list of names to select some, or
    `file` for a TOML file that takes the packaged one's place. Raises UsageError for an unknown name or field.
    """
    table = dict(overrides or {})
    if "file" in table:
        base = config.load_toml(Path(table.pop("file")))
    elif described is not None:
        base = config.to_table(described)
    elif name in packaged():
        base = config.load_toml(Path(__file__).parent / f"{name}.toml")
    else:
        raise unknown("modality", name, packaged())
    selected = table.pop("bands", None)
    if selected is not None and not all(isinstance(item, str) for item in selected):
        table["bands"], selected = selected, None
    modality = config.build(Modality, {"name": name, **base, **table}, f"modalities.{name}")
    return modality if selected is None else modality.with_bands(tuple(selected))


def from_table(table: Mapping[str, Any]) -> Modality:
    """A modality from the copy that a model folder holds."""
    return config.build(Modality, table, f"modalities.{table.get('name', '?')}")


def finest(modalities: Mapping[str, Modality]) -> str:
    """Name of the reference modality: the smallest gsd, the first of equals. Labels and outputs lie on its grid."""
    return min(modalities, key=lambda name: modalities[name].gsd)


def meeting(modalities: Mapping[str, Modality]) -> dict[str, float]:
    """Pixel sizes at which the cells of Swin modalities are the pixels of the finest ViT modality, where there is one.

    32 Swin pixels are one ViT pixel then (METHOD 2, Alignment).
    """
    finest_vit = min((one.gsd for one in modalities.values() if one.encoder == "vit"), default=None)
    if finest_vit is None:
        return {}
    return {name: finest_vit * CELL["vit"] / CELL["swin"] for name, one in modalities.items() if one.encoder == "swin"}


def side_beside(reference: Modality, modality: Modality, side: int) -> int:
    """Pixels of a modality along `side` pixels of the reference, in whole tokens of the fusion grid."""
    return max(round(side / pixels_beside(reference, modality) / CELLS), 1) * CELLS


def pixels_beside(reference: Modality, modality: Modality) -> float:
    """Pixels of the reference along one of a modality.

    The pixel sizes' ratio, where it is about 32 exactly that of the encoders' grids (0.3 m beside 10 m; METHOD 2,
    Alignment).
    """
    ratio, cells = modality.gsd / reference.gsd, CELL[reference.encoder] / CELL[modality.encoder]
    return cells if abs(ratio / cells - 1) <= 0.1 else ratio


def align_of(given: Mapping[str, Modality]) -> int:
    """Pixels of the finest of some modalities of which windows are multiples.

    A lone Swin encoder has patches of 32 px at its coarsest; otherwise windows are cut in tokens of the fusion grid.
    """
    encoder = given[finest(given)].encoder
    return CELL[encoder] * (1 if len(given) == 1 and encoder == "swin" else CELLS)
