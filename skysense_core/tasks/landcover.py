"""Land cover from several sensors: an UperNet on the fused map (on a lone modality's levels), as the paper does on Dynamic-MM (METHOD 4)."""

from dataclasses import dataclass
from typing import Literal

from skysense_core.tasks.segmentation import Segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Landcover(Segmentation):
    """The `[task]` table: that of segmentation with other defaults."""

    head: Literal["auto", "upernet", "fcn"] = "upernet"
