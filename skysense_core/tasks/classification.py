"""Scene classification: one class for a whole sample, by a linear head on its mean feature [P Table 3]."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from skysense_core import runtime
from skysense_core.data.batch import Batch
from skysense_core.data.labels import class_map
from skysense_core.data.statistics import count_classes, refuse_one_class
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.windows import Lattice, Window
from skysense_core.losses import collectives
from skysense_core.merge.raster import RasterMerger
from skysense_core.metrics import ImageMetrics
from skysense_core.modalities import Modality
from skysense_core.model.pyramid import over_dates
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import RasterOutput, default_colours
from skysense_core.tasks.segmentation import Segmentation
from skysense_core.types import IGNORE, Label, Split, Tags

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The `[task]` table."""

    classes: tuple[str, ...] = ()
    """Filled from the data set."""
    colours: tuple[str, ...] = ()
    """`#rrggbb` per class; not given: the data set's own, or chosen by name."""
    features: Literal["auto", "encoder", "fused"] = "auto"
    """What is averaged: the deepest level of a lone encoder, or the fused map. auto: the former where there is nothing
    to fuse, which is one modality (of a single date, where its encoder is a ViT)."""
    label_smoothing: float = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Logits are divided by it; training fits it on the validation part, so that a confidence means what it says."""
    whole: ClassVar[bool] = True

    @property
    def output(self) -> RasterOutput:
        """A class for every window."""
        return RasterOutput(classes=self.classes, colours=self.colours or default_colours(self.classes))

    def completed(self, train: Split) -> "Classification":
        """The task with the classes of the data. Logs how many samples each has.

        Raises UsageError where `classes` are set otherwise, and SkysenseError where the labels teach nothing.
        """
        if self.classes not in ((), train.classes):
            raise UsageError(f"task.classes are not the classes of the data: {', '.join(train.classes)}")
        if len(train.classes) < 2:
            raise SkysenseError(
                f"the labels have one class ({', '.join(train.classes)}): nothing to tell apart",
                fix="Add samples of another class.",
            )
        counts = count_classes(train)
        if not counts.sum():
            raise SkysenseError("the training part has no labelled sample", fix="Check labels, classes and split.")
        refuse_one_class(train.classes, counts)
        log.info("samples: %s", ", ".join(f"{n} {name}" for name, n in zip(train.classes, counts, strict=True)))
        return replace(self, classes=train.classes, colours=self.colours or train.colours or ())

    def fuses(self, modalities: Mapping[str, Modality]) -> bool:
        """Whether the head looks at the fused map."""
        return Segmentation(features=self.features).fuses(modalities)

    def build_model(self, encoder: SkySense) -> "PooledModel":
        """The encoder and a linear head."""
        return PooledModel(encoder, len(self.classes), fuse=self.fuses(encoder.modalities))

    def encode(self, label: Label, shape: tuple[int, int]) -> UInt8[np.ndarray, ""]:
        """The code of the sample's one class, `IGNORE` where it has none.

        A map of classes, as points of a table have it, counts where it shows a single class. Raises SkysenseError
        where a sample has several.
        """
        codes = set(label.codes if isinstance(label, Tags) else np.unique(class_map(label).codes).tolist()) - {IGNORE}
        if len(codes) > 1:
            raise SkysenseError(
                f"a sample of {len(codes)} classes, where one is expected", fix="Use --task multilabel."
            )
        return np.array(min(codes, default=IGNORE), dtype=np.uint8)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over the labelled samples of all processes; this process's part, see `collectives.mean`."""
        assert batch.target is not None
        target = batch.target.long()
        total = F.cross_entropy(
            model(batch).float(),
            target,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        count = collectives.summed((target != IGNORE).sum().float())
        return {"cross_entropy": total * runtime.world() / count.clamp(min=1)}

    def metrics(self) -> ImageMetrics:
        return ImageMetrics(self.classes)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k 1 1"]:
        """Probabilities, float32."""
        return rearrange((model(batch).float() / self.temperature).softmax(dim=1), "b k -> b k 1 1")

    def merger(self, lattice: Lattice, strip: Window, device: torch.device) -> RasterMerger:
        """Puts windows side by side."""
        return RasterMerger(lattice, strip, len(self.classes), device)

    def decode(self, scores: Float[Tensor, "k h w"], valid: Bool[Tensor, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The most probable class of every window, `IGNORE` where the reference modality has no data."""
        return torch.where(valid, scores.argmax(dim=0), IGNORE).to(torch.uint8).cpu().numpy()


class PooledModel(nn.Module):
    """Encoder and a linear head on the mean feature of a sample, over what the reference modality shows of it."""

    def __init__(self, encoder: SkySense, channels: int, *, fuse: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.fuse = fuse
        reference, sizes = encoder.modalities[encoder.reference], encoder.spec.sizes
        vit = sizes.own.get(reference.name, sizes.vit).width
        lone = sizes.swin.widths[3] if reference.encoder == "swin" else vit
        width = sizes.fusion.width * (2 if encoder.spec.prototypes else 1) if fuse else lone
        # Encoders end without a norm, each at a scale of its own.
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))

    def forward(self, batch: Batch) -> Float[Tensor, "b k"]:
        images = batch.epochs[0]
        reference = images[self.encoder.reference]
        features = self.encoder(images, batch.lonlat, batch.located, fuse=self.fuse)
        if features.fused is not None and self.fuse:
            x = features.fused.tensor[:, 0]
        else:
            seen = reduce(reference.valid, "b t h w -> b t", "max")
            x = over_dates(features.levels[self.encoder.reference][-1], seen)
        share = reduce(reference.valid, "b t h w -> b 1 h w", "max").to(x.dtype)
        weight = F.adaptive_avg_pool2d(share, (x.shape[-2], x.shape[-1]))
        total = reduce(x * weight, "b d h w -> b d", "sum")
        return self.head(total / reduce(weight, "b 1 h w -> b 1", "sum").clamp(min=1e-6))
