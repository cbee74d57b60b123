"""Change detection: which pixels differ between two dates of a place (METHOD 4, LEVIR-CD and OSCD).

One encoder sees both dates, each by itself, with the same weights. The decoder takes, at every level, the features of
both and how far they are apart. With early fusion the encoder sees one image, mixed from both dates band by band.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from skysense_core.data.batch import Batch, Series
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

    fusion: Literal["siamese", "early"] = "siamese"
    """Where the dates meet: in the decoder, or before the encoder, by a linear layer over the bands of both."""

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
        if self.fusion == "early" and any(len(one.pixels) != 1 for epoch in train[0].epochs for one in epoch.values()):
            raise UsageError(
                "task.fusion = early mixes two images, and the samples have series of dates", fix="Use siamese."
            )
        if len(train.classes) != 2:
            raise UsageError(
                f"change has two classes, and the data have {len(train.classes)}: {', '.join(train.classes)}",
                fix="--task semantic_change compares maps of several classes.",
            )
        return super(Change, self).completed(train)  # type: ignore[return-value]

    def build_model(self, encoder: SkySense) -> DenseModel:
        """The encoder and a head: on three maps for each of its own, before, after and their distance, or on its own
        of a mixed image."""
        kind, maps = (SiameseModel, 3) if self.fusion == "siamese" else (MixedModel, 1)
        head, levels = self.build_head(encoder, maps=maps)
        auxiliary = self.build_auxiliary(encoder, maps=maps)
        return kind(encoder, head, fuse=self.fuses(encoder.modalities), levels=levels, auxiliary=auxiliary)

    def metrics(self) -> "ChangeMetrics":
        return ChangeMetrics(self.classes)


class SiameseModel(DenseModel):
    """Two epochs through one encoder, and a head on both."""

    def seen(self, batch: Batch) -> tuple[list[Float[Tensor, "b _ _ _"]], float]:
        (before, stride), (after, _) = (self.maps(batch, images) for images in batch.epochs)
        return [torch.cat([a, b, (a - b).abs()], dim=1) for a, b in zip(before, after, strict=True)], stride


class MixedModel(DenseModel):
    """One image of each modality, mixed from two epochs by a linear layer over their bands, and a head on it.

    The layer begins with the difference of the dates, after less before, in standard deviations of each band.
    """

    def __init__(self, encoder: SkySense, head: nn.Module, **given: Any) -> None:
        super().__init__(encoder, head, **given)
        self.mixers = nn.ModuleDict()
        for name, modality in encoder.modalities.items():
            bands = len(modality.bands)
            self.mixers[name] = mixer = nn.Conv2d(2 * bands, bands, kernel_size=1)
            with torch.no_grad():
                mixer.weight.copy_(torch.cat([-torch.eye(bands), torch.eye(bands)], dim=1)[:, :, None, None])
            nn.init.zeros_(mixer.bias)  # type: ignore[arg-type]

    def seen(self, batch: Batch) -> tuple[list[Float[Tensor, "b _ _ _"]], float]:
        before, after = batch.epochs
        return self.maps(batch, {name: self._mixed(name, before[name], after[name]) for name in before})

    def _mixed(self, name: str, before: Series, after: Series) -> Series:
        """Both images as one in the modality's unit, valid where both are."""
        modality, device = self.encoder.modalities[name], after.pixels.device
        mean, std = (
            torch.as_tensor(values, dtype=torch.float32, device=device)[:, None, None]
            for values in (modality.mean, modality.std)
        )
        valid = before.valid & after.valid
        both = [torch.where(valid[:, :, None], (one.pixels - mean) / std, 0.0) for one in (before, after)]
        mixed = self.mixers[name](rearrange(both, "e b 1 c h w -> b (e c) h w")).float()
        return replace(after, pixels=mixed[:, None] * std + mean, valid=valid)


class ChangeMetrics(ClassMapMetrics):
    """Scores of a class map, and those of the changed class by themselves."""

    best: ClassVar[str] = "f1"

    def compute(self) -> dict[str, Any]:
        """`f1`, `iou`, `precision` and `recall` of the changed class beside all else; what is 0/0 counts as 0."""
        scores = super().compute()
        changed = scores["classes"][self.classes[1]]
        return {key: changed[key] or 0.0 for key in ("f1", "iou", "precision", "recall")} | scores
