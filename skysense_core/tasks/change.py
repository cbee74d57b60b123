"""Change detection: which pixels differ between two dates of a place (METHOD 4, LEVIR-CD and OSCD).

One encoder sees both dates, each by itself, with the same weights. The decoder takes, at every level, the features of
both and how far they are apart.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from skysense_core.data.batch import Batch
from skysense_core.errors import UsageError
from skysense_core.metrics import ClassMapMetrics
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import RasterOutput, default_colours
from skysense_core.tasks.segmentation import DenseModel, Segmentation
from skysense_core.types import Split

EPOCHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Segmentation):
    """The `[task]` table: that of segmentation. The second class is the change."""

    @property
    def output(self) -> RasterOutput:
        """Of two epochs of imagery."""
        colours = self.colours or ("#d9d9d9", default_colours(self.classes)[1])
        return RasterOutput(classes=self.classes, colours=colours, epochs=EPOCHS)

    def completed(self, train: Split) -> "Change":
        """As for segmentation. Raises UsageError where the data are no pairs of dates with two classes."""
        epochs = len(train[0].epochs)
        if epochs != EPOCHS:
            raise UsageError(
                f"change compares two dates, and the samples have {epochs}",
                fix="Use a source of pairs, or another --task.",
            )
        if len(train.classes) != 2:
            raise UsageError(
                f"change has two classes, and the data have {len(train.classes)}: {', '.join(train.classes)}",
                fix="--task semantic_change compares maps of several classes.",
            )
        return super(Change, self).completed(train)  # type: ignore[return-value]

    def build_model(self, encoder: SkySense) -> "SiameseModel":
        """The encoder and a head on three maps for each of its own: before, after and their distance."""
        head, levels = self.build_head(encoder, maps=3)
        return SiameseModel(encoder, head, fuse=self.fuses(encoder.modalities), levels=levels)

    def metrics(self) -> "ChangeMetrics":
        return ChangeMetrics(self.classes)


class SiameseModel(DenseModel):
    """Two epochs through one encoder, and a head on both."""

    def forward(self, batch: Batch) -> Float[Tensor, "b k h w"]:
        (before, stride), (after, _) = (self.maps(batch, images) for images in batch.epochs)
        both = [torch.cat([a, b, (a - b).abs()], dim=1) for a, b in zip(before, after, strict=True)]
        return self.drawn(both, stride, batch)


class ChangeMetrics(ClassMapMetrics):
    """Scores of a class map, and those of the changed class by themselves."""

    best: ClassVar[str] = "f1"

    def compute(self) -> dict[str, Any]:
        """`f1`, `iou`, `precision` and `recall` of the changed class beside all else; what is 0/0 counts as 0."""
        scores = super().compute()
        changed = scores["classes"][self.classes[1]]
        return {key: changed[key] or 0.0 for key in ("f1", "iou", "precision", "recall")} | scores
