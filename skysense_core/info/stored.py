"""What there is to say of a store; `index` reads it."""

from dataclasses import dataclass
from pathlib import Path

from skysense_core.modalities import Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One modality in a store."""

    modality: Modality
    samples: int
    images: int
    """All dates of all samples."""
    undated: int
    valid: float
    """Mean share of valid pixels."""
    months: dict[str, int]
    """Images by month, `2018-05`, from the first to the last."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What a store holds."""

    path: Path
    version: int
    samples: int
    area_km2: float
    """Of the ground that samples show, which counts once where they overlap."""
    crs: dict[str, int]
    """Samples by CRS."""
    splits: dict[str, int]
    """Samples by part; "" is none."""
    modalities: dict[str, Content]
    labels: dict[str, int]
    """Pixels by class."""
    shards: int
    bytes: int
    failures: int
    """Inputs that could not be read."""


def training_from_store(store: Path, *, labelled: bool) -> str:
    """The training that could follow."""
    verb = "finetune --task segmentation" if labelled else "pretrain"
    return f"skysense {verb} --data {store} --out RUN"
