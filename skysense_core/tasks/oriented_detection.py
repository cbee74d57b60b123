"""Oriented detection: a box of any direction about every object [Oriented R-CNN]."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import nn

from skysense_core.geo import boxes
from skysense_core.model.oriented import OrientedRcnn
from skysense_core.tasks.detection import Detection, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class OrientedDetection(Detection):
    """The `[task]` table: that of detection. Oriented boxes of neighbours hardly overlap, so less is allowed."""

    oriented: ClassVar[bool] = True
    finder: ClassVar[type[nn.Module]] = OrientedRcnn

    overlap: Share = 0.1
    most: int = 2000

    def shaped(self, corners: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n 4 2"]:
        """The smallest rectangles of any direction about quadrangles."""
        return boxes.rectangles(corners)
