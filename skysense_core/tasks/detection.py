"""Object detection: an upright box about every object [Faster R-CNN with FPN, on the encoder's levels]."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skysense_core.average_precision import ObjectMetrics
from skysense_core.data.batch import Batch
from skysense_core.data.statistics import count_classes
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import boxes
from skysense_core.geo.windows import Lattice, Window
from skysense_core.merge.vector import ObjectMerger
from skysense_core.modalities import Modality, finest
from skysense_core.model.detectors import Detector, FasterRcnn, Found, Truth
from skysense_core.model.pyramid import Pyramid
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import ObjectOutput, default_colours
from skysense_core.types import Label, Objects, Split

log = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The `[task]` table."""

    whole: ClassVar[bool] = False
    oriented: ClassVar[bool] = False
    finder: ClassVar[type[nn.Module]] = FasterRcnn

    classes: tuple[str, ...] = ()
    """Filled from the data set."""
    colours: tuple[str, ...] = ()
    """`#rrggbb` per class; not given: the data set's own, or chosen by name."""
    width: int | None = None
    """Channels of the pyramid (256 in the paper's experiments); not given: the preset's."""
    anchor_scale: Annotated[float, Field(gt=0)] = 8.0
    """Side of a square anchor in strides of its map: with 8 from 32 px on (hr); less for smaller objects."""
    min_score: Share = 0.05
    """Detections below are left out, in measuring and on maps."""
    overlap: Share = 0.5
    """Of two detections of one class that overlap more than this the better one stays."""
    most: Annotated[int, Field(ge=1)] = 1000
    """Detections in one window."""

    @property
    def output(self) -> ObjectOutput:
        """Classes and one colour for each, and how objects of neighbouring windows are told apart."""
        return ObjectOutput(
            classes=self.classes,
            colours=self.colours or default_colours(self.classes),
            overlap=self.overlap,
            oriented=self.oriented,
        )

    def completed(self, train: Split) -> "Detection":
        """The task with what the data say. Logs the objects of each class.

        Raises UsageError where `classes` are set otherwise or the labels are no objects, and SkysenseError where there
        is no object to learn from.
        """
        if self.classes not in ((), train.classes):
            raise UsageError(f"task.classes are not the classes of the data: {', '.join(train.classes)}")
        objects_of(train.label(0))
        counts = count_classes(train)
        if not counts.sum():
            raise SkysenseError("the training part has no object", fix="Check annotations, classes and split.")
        for name, count in zip(train.classes, counts.tolist(), strict=True):
            log.info("class %s: %d objects", name, count)
        if absent := [name for name, count in zip(train.classes, counts, strict=True) if not count]:
            log.warning("classes without a training object, which cannot be learnt: %s", ", ".join(absent))
        return replace(self, classes=train.classes, colours=self.colours or train.colours or ())

    def fuses(self, modalities: Mapping[str, Modality]) -> bool:
        """Whether the fused map is needed: by several modalities, or the series of a ViT."""
        modality = modalities[finest(modalities)]
        return len(modalities) > 1 or (modality.dates > 1 and modality.encoder == "vit")

    def build_model(self, encoder: SkySense) -> Detector:
        """The encoder, a pyramid of its levels, and what finds objects on it."""
        width = self.width or encoder.spec.sizes.decoder_width
        pyramid = Pyramid(encoder, width, fuse=self.fuses(encoder.modalities))
        finder = self.finder(
            width,
            len(self.classes),
            stride=pyramid.stride,
            scale=self.anchor_scale,
            score=self.min_score,
            overlap=self.overlap,
            most=self.most,
        )
        return Detector(encoder, pyramid, finder)

    def encode(self, label: Label, shape: tuple[int, int]) -> Float32[np.ndarray, "n 10"]:
        """Rows of 8 corner numbers, code, and 1 where the object is difficult; upright boxes about the objects."""
        found = objects_of(label)
        return np.concatenate(
            [self.shaped(found.corners).reshape(-1, 8), found.codes[:, None], found.difficult[:, None]], axis=1
        ).astype(np.float32)

    def shaped(self, corners: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n 4 2"]:
        """The boxes that are learnt, about quadrangles."""
        return boxes.upright(corners)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Objectness and place of proposals, class and place of objects; means over what each process has drawn."""
        assert batch.target is not None
        truths = [
            Truth(corners=rows[:, :8].reshape(-1, 4, 2).float(), codes=rows[:, 8].long())
            for rows in (one[~one[:, 8].isnan()] for one in batch.target)
        ]
        _, losses = model(batch, truths)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}

    def metrics(self) -> ObjectMetrics:
        return ObjectMetrics(self.classes, coco=not self.oriented)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b n 10"]:
        """Rows of 8 corner numbers, code and score, best first; NaN rows fill up."""
        found, _ = model(batch)
        return pad_sequence([_rows(one) for one in found], batch_first=True, padding_value=float("nan"))

    def merger(self, lattice: Lattice, strip: Window, device: torch.device) -> ObjectMerger:
        """Collects what each window is to answer for."""
        return ObjectMerger(lattice, strip)

    def decode(self, scores: Float64[np.ndarray, "n 11"], valid: Tensor) -> Float64[np.ndarray, "n 11"]:
        """The merger's rows as they are: neighbouring strips are still to be joined."""
        return scores


def objects_of(label: Label) -> Objects:
    """A label, if it is objects; raises UsageError otherwise."""
    if not isinstance(label, Objects):
        raise UsageError(
            "detection learns from objects, and these labels are none",
            fix="For example --source coco, dota or vector_boxes; maps of classes are for --task segmentation.",
        )
    return label


def _rows(found: Found) -> Float[Tensor, "n 10"]:
    return torch.cat([found.corners.flatten(1), found.codes[:, None], found.scores[:, None]], dim=1).float()
