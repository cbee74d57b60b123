"""Land cover: an UperNet on the fused map of several sensors, or on a lone one's levels (METHOD 4, Dynamic-MM)."""

from dataclasses import dataclass
from typing import Literal

from skysense_core.tasks.segmentation import Segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Landcover(Segmentation):
    """The `[task]` table: that of segmentation with other defaults."""

    head: Literal["auto", "upernet", "fcn"] = "upernet"
