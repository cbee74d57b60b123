"""Semantic segmentation: a class for every pixel of the reference modality's grid."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from skysense_core import runtime
from skysense_core.data.batch import Batch, Series
from skysense_core.data.labels import class_map
from skysense_core.data.statistics import count_classes, refuse_one_class
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.windows import Lattice, Window
from skysense_core.losses import collectives
from skysense_core.merge.raster import RasterMerger
from skysense_core.metrics import ClassMapMetrics
from skysense_core.modalities import Modality, finest
from skysense_core.model.decoders import Fcn, FeaturePyramid, LevelPyramid, UperNet, resize
from skysense_core.model.pyramid import over_dates
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import RasterOutput, default_colours
from skysense_core.types import IGNORE, Label, Split

log = logging.getLogger(__name__)

RAREST = 1e-4
"""Share of the pixels below which a class is not weighted any higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """The `[task]` table."""

    classes: tuple[str, ...] = ()
    """Filled from the data set."""
    colours: tuple[str, ...] = ()
    """`#rrggbb` per class; not given: the data set's own, or chosen by name."""
    head: Literal["auto", "upernet", "fcn"] = "auto"
    """auto: UperNet."""
    features: Literal["auto", "encoder", "fused"] = "auto"
    """What the head sees: four levels of the lone modality's encoder, or the fused map (METHOD 4). auto: the levels
    where there is nothing to fuse, which is one modality (of a single date, where its encoder is a ViT)."""
    width: int | None = None
    """Channels inside the head; not given: the preset's."""
    class_balance: Literal["none", "sqrt", "inverse"] = "sqrt"
    """Weight of a class in the loss: the same, or falling with (the root of) its share of the training pixels."""
    class_weights: tuple[float, ...] = ()
    """Not given: from the training labels, by `class_balance`."""
    label_smoothing: float = 0.0
    auxiliary: Annotated[float, Field(ge=0)] = 0.0
    """Weight in the loss of an FCN on the third level, of stride 16 (METHOD 4, iSAID: 0.4); 0 is none. It helps
    training only."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Logits are divided by it; training fits it on the validation part, so that a confidence means what it says."""
    whole: ClassVar[bool] = False

    @property
    def output(self) -> RasterOutput:
        """Classes and one colour for each."""
        return RasterOutput(classes=self.classes, colours=self.colours or default_colours(self.classes))

    def completed(self, train: Split) -> "Segmentation":
        """The task with what the data say, and with a weight per class. Logs each class's share of the labels.

        Raises UsageError where `classes` are set otherwise, and SkysenseError where the labels teach nothing.
        """
        classes, pixels = train.classes, count_classes(train)
        if self.classes not in ((), classes):
            raise UsageError(f"task.classes are not the classes of the data: {', '.join(classes)}")
        if len(classes) < 2:
            raise SkysenseError(
                f"the labels have one class ({', '.join(classes)}): nothing to tell apart",
                fix="Give what lies outside a class of its own: --unlabelled background",
            )
        if not pixels.sum():
            raise SkysenseError("the training part has no labelled pixel", fix="Check labels, classes and split.")
        refuse_one_class(classes, pixels)
        shares = pixels / pixels.sum()
        weights = self.class_weights or self.weights(shares)
        for name, share, weight in zip(classes, shares, weights, strict=True):
            if share:
                log.info("class %s: %.2f %% of the labelled pixels, weight %.2f", name, 100 * share, weight)
        return replace(self, classes=classes, colours=self.colours or train.colours or (), class_weights=weights)

    def weights(self, shares: Float[np.ndarray, "k"]) -> tuple[float, ...]:
        """Weights of classes with these shares of the pixels; the mean weight of a pixel is 1."""
        power = {"none": 0.0, "sqrt": -0.5, "inverse": -1.0}[self.class_balance]
        weights = np.maximum(shares, RAREST) ** power
        return tuple((weights / (shares @ weights)).tolist())

    def fuses(self, modalities: Mapping[str, Modality]) -> bool:
        """Whether the head looks at the fused map. Raises UsageError where it cannot do what the settings say."""
        modality = modalities[finest(modalities)]
        lone, static = len(modalities) == 1, modality.dates == 1 or modality.encoder == "swin"
        if self.features == "encoder" and (self.head == "fcn" or not lone):
            raise UsageError(
                "task.features = encoder is for an UperNet on one modality", fix="Use --set task.features=fused."
            )
        alone = self.features == "encoder" or (self.features == "auto" and lone and static)
        return self.head == "fcn" or not alone

    def build_model(self, encoder: SkySense) -> "DenseModel":
        """The encoder and a head on it."""
        head, levels = self.build_head(encoder)
        auxiliary = self.build_auxiliary(encoder)
        return DenseModel(encoder, head, fuse=self.fuses(encoder.modalities), levels=levels, auxiliary=auxiliary)

    def build_auxiliary(self, encoder: SkySense, maps: int = 1) -> Fcn | None:
        """The head that helps training, on so many maps side by side. Raises UsageError without levels."""
        if not self.auxiliary:
            return None
        if encoder.modalities[encoder.reference].encoder != "swin" or self.head == "fcn":
            raise UsageError(
                "task.auxiliary is for an UperNet on the levels of a Swin encoder, those of hr",
                fix="Leave it out: --set task.auxiliary=0",
            )
        sizes = encoder.spec.sizes
        return Fcn(maps * sizes.swin.widths[2], self.width or sizes.decoder_width, len(self.classes))

    def build_head(self, encoder: SkySense, maps: int = 1) -> tuple[nn.Module, bool]:
        """A head on so many maps of each kind side by side, and whether it takes levels or the fused map alone."""
        sizes, modality = encoder.spec.sizes, encoder.modalities[encoder.reference]
        width, classes, fuse = self.width or sizes.decoder_width, len(self.classes), self.fuses(encoder.modalities)
        fused = maps * sizes.fusion.width * (2 if encoder.spec.prototypes else 1)
        if self.head == "fcn":
            return Fcn(fused, width, classes), False
        if modality.encoder == "swin":
            *finer, coarsest = (maps * channels for channels in sizes.swin.widths)
            return UperNet([*finer, fused if fuse else coarsest], width, classes), True
        vit = maps * sizes.own.get(modality.name, sizes.vit).width
        pyramid = FeaturePyramid(fused, width) if fuse else LevelPyramid(vit, width)
        return nn.Sequential(pyramid, UperNet([width] * 4, width, classes)), not fuse

    def encode(self, label: Label, shape: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        """The label's codes. Raises SkysenseError where it is no map on the (rows, columns) of the reference."""
        codes = class_map(label).codes
        if codes.shape != shape:
            raise SkysenseError(f"a label of {codes.shape} pixels beside an image of {shape}")
        return codes

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted cross-entropy over the labelled pixels of all processes' batches; 0 where there are none. The same
        of the auxiliary head, where there is one.

        This process's part; see `collectives.mean`.
        """
        logits, helping = model.both(batch) if isinstance(model, DenseModel) else (model(batch), None)
        losses = {"cross_entropy": self._cross_entropy(logits, batch)}
        if helping is not None:
            losses["auxiliary"] = self.auxiliary * self._cross_entropy(helping, batch)
        return losses

    def _cross_entropy(self, logits: Float[Tensor, "b k ..."], batch: Batch) -> Float[Tensor, ""]:
        assert batch.target is not None
        target = batch.target.long()
        weights = torch.tensor(self.class_weights or (1.0,) * len(self.classes), device=logits.device)
        total = F.cross_entropy(
            logits.float(),
            target,
            weights,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        weight = collectives.summed(weights[target[target != IGNORE]].sum())
        return total * runtime.world() / weight.clamp(min=torch.finfo(torch.float32).tiny)

    def metrics(self) -> ClassMapMetrics:
        return ClassMapMetrics(self.classes)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        """Probabilities, float32."""
        return (model(batch).float() / self.temperature).softmax(dim=1)

    def merger(self, lattice: Lattice, strip: Window, device: torch.device) -> RasterMerger:
        """Blends the probabilities of overlapping windows."""
        return RasterMerger(lattice, strip, len(self.classes), device)

    def decode(self, scores: Float[Tensor, "k h w"], valid: Bool[Tensor, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The most probable class of every pixel, `IGNORE` where the reference modality has no data."""
        codes = scores.max(dim=0).indices.to(torch.uint8)  # four times as fast as argmax on a CPU
        return torch.where(valid, codes, IGNORE).to(torch.uint8).cpu().numpy()


class DenseModel(nn.Module):
    """Encoder and head: a batch to logits on the grid of the reference modality.

    With `levels` the head takes the reference's four levels, the last one replaced by the fused map where that is
    computed; without, it takes the fused map alone. `auxiliary` sees the third level, and only in training.
    """

    def __init__(
        self, encoder: SkySense, head: nn.Module, *, fuse: bool, levels: bool, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.fuse = fuse
        self.levels = levels
        self.auxiliary = auxiliary

    def forward(self, batch: Batch) -> Float[Tensor, "b k h w"]:
        maps, stride = self.seen(batch)
        return self.drawn(self.head, maps, stride, batch)

    def both(self, batch: Batch) -> tuple[Float[Tensor, "b k ..."], Float[Tensor, "b k h w"] | None]:
        """The logits of the head and of the auxiliary one, if any."""
        if self.auxiliary is None:
            return self(batch), None
        maps, stride = self.seen(batch)
        helping = self.drawn(self.auxiliary, maps, stride, batch, level=2)
        return self.drawn(self.head, maps, stride, batch), helping

    def seen(self, batch: Batch) -> tuple[list[Float[Tensor, "b _ _ _"]], float]:
        """What the heads take of a batch, finest first, and the finest one's stride."""
        return self.maps(batch, batch.epochs[0])

    def maps(self, batch: Batch, images: dict[str, Series]) -> tuple[list[Float[Tensor, "b _ _ _"]], float]:
        """The same of the images of one epoch.

        The reference's levels are the mean over the dates that show anything.
        """
        features = self.encoder(images, batch.lonlat, batch.located, fuse=self.fuse)
        if not self.levels:
            assert features.fused is not None
            return [features.fused.tensor[:, 0]], features.fused.stride
        seen = reduce(images[self.encoder.reference].valid, "b t h w -> b t", "max")
        finest, *_ = features.levels[self.encoder.reference]
        levels = [over_dates(level, seen) for level in features.levels[self.encoder.reference]]
        return levels if features.fused is None else [*levels[:3], features.fused.tensor[:, 0]], finest.stride

    def drawn(
        self,
        head: nn.Module,
        maps: list[Float[Tensor, "b _ _ _"]],
        stride: float,
        batch: Batch,
        level: int | None = None,
    ) -> Float[Tensor, "b k h w"]:
        """A head's logits of these maps, or of one level of them, on the pixels of the reference."""
        logits = head(maps[level] if level is not None else maps if self.levels else maps[0])
        # Where pixels are no whole number of patches, the maps reach beyond them.
        extent = [side * int(stride) if stride.is_integer() else round(side * stride) for side in maps[0].shape[-2:]]
        h, w = batch.epochs[0][self.encoder.reference].pixels.shape[-2:]
        # Exact and class by class while they are few: what follows is as large as the image and its cost is memory.
        return resize(logits.float().contiguous(), extent)[..., :h, :w]
