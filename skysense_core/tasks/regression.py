"""Regression: a value for every pixel of the reference modality's grid, learnt in units of its spread."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from skysense_core.data.batch import Batch
from skysense_core.data.statistics import spread
from skysense_core.errors import SkysenseError
from skysense_core.geo.windows import Lattice, Window
from skysense_core.losses import collectives
from skysense_core.merge.raster import RasterMerger
from skysense_core.metrics import ValueMetrics
from skysense_core.modalities import Modality
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import ValueOutput
from skysense_core.tasks.segmentation import DenseModel, Segmentation
from skysense_core.types import Label, Split, ValueMap

log = logging.getLogger(__name__)

MOST = 4096
"""Samples whose labels are looked at for mean and deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """The `[task]` table."""

    quantity: str = "value"
    """Name of what is mapped."""
    unit: str = "1"
    """Its unit."""
    mean: float = 0.0
    """Of the training labels; with `std` 0 both are measured."""
    std: float = 0.0
    head: Literal["auto", "upernet", "fcn"] = "auto"
    """auto: UperNet."""
    features: Literal["auto", "encoder", "fused"] = "auto"
    """What the head sees, as in segmentation."""
    width: int | None = None
    """Channels inside the head; not given: the preset's."""
    classes: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False

    @property
    def output(self) -> ValueOutput:
        """One value, in its unit."""
        return ValueOutput(name=self.quantity, unit=self.unit)

    def completed(self, train: Split) -> "Regression":
        """The task with mean and deviation of the training labels.

        Raises SkysenseError for labels that are no values or do not vary.
        """
        labels = [train.label(index) for index in spread(len(train), MOST)]
        known = [_values(label)[np.isfinite(_values(label))] for label in labels]
        values = np.concatenate([np.zeros(0), *known])
        if not len(values) or not values.std():
            raise SkysenseError("the training labels have no values, or one value everywhere", fix="Check the labels.")
        mean, std = (self.mean, self.std) if self.std else (float(values.mean()), float(values.std()))
        log.info("%s: mean %.4g %s, standard deviation %.4g", self.quantity, mean, self.unit, std)
        return replace(self, mean=mean, std=std)

    def fuses(self, modalities: Mapping[str, Modality]) -> bool:
        """Whether the head looks at the fused map."""
        return self._dense().fuses(modalities)

    def build_model(self, encoder: SkySense) -> DenseModel:
        """The encoder and a head with one channel."""
        return self._dense().build_model(encoder)

    def _dense(self) -> Segmentation:
        return Segmentation(classes=("",), head=self.head, features=self.features, width=self.width)

    def encode(self, label: Label, shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """The values, float32, NaN where unknown. Raises SkysenseError for labels that are no map of values."""
        values = _values(label)
        if values.shape != shape:
            raise SkysenseError(f"a label of {values.shape} pixels beside an image of {shape}")
        return values.astype(np.float32)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Smooth L1 in standard deviations over the known pixels; this process's part, see `collectives.mean`."""
        assert batch.target is not None
        known = batch.target.isfinite()
        wanted = torch.where(known, (batch.target - self.mean) / self.std, 0.0)
        each = F.smooth_l1_loss(model(batch).float()[:, 0], wanted, reduction="none")
        return {"smooth_l1": collectives.mean(each.flatten(), known.flatten().float())}

    def metrics(self) -> ValueMetrics:
        return ValueMetrics()

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b 1 h w"]:
        """Values in the unit of the labels, float32."""
        return model(batch).float() * self.std + self.mean

    def merger(self, lattice: Lattice, strip: Window, device: torch.device) -> RasterMerger:
        """Blends the values of overlapping windows."""
        return RasterMerger(lattice, strip, 1, device)

    def decode(self, scores: Float[Tensor, "1 h w"], valid: Bool[Tensor, "h w"]) -> Float[np.ndarray, "h w"]:
        """The values, NaN where the reference modality has no data."""
        return torch.where(valid, scores[0], torch.nan).cpu().numpy()


def _values(label: Label) -> Float[np.ndarray, "h w"]:
    if not isinstance(label, ValueMap):
        raise SkysenseError("regression needs maps of values as labels", fix="For classes: --task segmentation")
    return label.values
