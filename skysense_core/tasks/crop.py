"""Crop mapping from series of several sensors: an FCN on the fused map, as the paper does on PASTIS-MM (METHOD 4)."""

from dataclasses import dataclass
from typing import Literal

from skysense_core.tasks.segmentation import Segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop(Segmentation):
    """The `[task]` table: that of segmentation with other defaults."""

    head: Literal["auto", "upernet", "fcn"] = "fcn"
    features: Literal["auto", "encoder", "fused"] = "fused"
