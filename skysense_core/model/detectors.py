"""Detectors: an encoder, a pyramid of its levels, and a head that finds objects; and Faster R-CNN's head.

Torchvision's parts are put together without its transform: pixels are normalised once, by the encoder, and have the
size that the scene gives them. Coordinates are float32: bfloat16 has 8 bits, too few for the columns of a window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from skysense_core.data.batch import Batch
from skysense_core.losses.boxes import bounds_of
from skysense_core.model.pyramid import Pyramid
from skysense_core.model.skysense import SkySense

Maps: TypeAlias = Mapping[str, Float[Tensor, "b d _ _"]]
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors at every place."""
LEVELS = 5
SMALLEST = 1e-2
"""Pixels: boxes with a shorter side teach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The objects of one image."""

    corners: Float[Tensor, "n 4 2"]
    codes: Int[Tensor, "n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Detections in one image, best first."""

    corners: Float[Tensor, "n 4 2"]
    codes: Int[Tensor, "n"]
    scores: Float[Tensor, "n"]


class Detector(nn.Module):
    """Encoder, and pyramid and finder as its head. `finder(maps, images, truths)` returns (found, losses)."""

    def __init__(self, encoder: SkySense, pyramid: Pyramid, finder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.ModuleDict({"pyramid": pyramid, "finder": finder})

    def forward(self, batch: Batch, truths: Sequence[Truth] | None = None) -> tuple[list[Found], dict[str, Tensor]]:
        """Detections of every sample or, where its objects are given, the losses."""
        images, pyramid = batch.epochs[0], self.head["pyramid"]
        reference = images[self.encoder.reference]
        features = self.encoder(images, batch.lonlat, batch.located, fuse=pyramid.fuse)
        maps = pyramid(features, reference)
        # Torchvision's parts ask this flag whether to learn or to find; nothing else in the head depends on it.
        self.head["finder"].train(truths is not None)
        with torch.autocast(reference.pixels.device.type, enabled=False):
            maps = {name: x.float() for name, x in maps.items()}
            return self.head["finder"](maps, image_list(reference.pixels[:, 0]), truths)


class FasterRcnn(nn.Module):
    """Upright boxes [Ren et al., 2015], as torchvision has them, on a pyramid [FPN]."""

    def __init__(
        self, width: int, classes: int, *, stride: int, scale: float, score: float, overlap: float, most: int
    ) -> None:
        """`stride` is that of the finest map, `scale` the side of a square anchor in strides of its map; `score`,
        `overlap` and `most` choose what is found."""
        super().__init__()
        anchors = anchors_of(stride, scale)
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(width, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi = RoIHeads(
            MultiScaleRoIAlign([str(number) for number in range(LEVELS - 1)], output_size=7, sampling_ratio=2),
            TwoMLPHead(width * 7 * 7, 4 * width),
            FastRCNNPredictor(4 * width, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score,
            nms_thresh=overlap,
            detections_per_img=most,
        )

    def forward(
        self, maps: Maps, images: ImageList, truths: Sequence[Truth] | None
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """Boxes within the images, or losses."""
        targets = None if truths is None else [_upright(truth, images.image_sizes[0]) for truth in truths]
        proposals, losses = self.rpn(images, dict(maps), targets)
        found, more = self.roi(dict(maps), proposals, images.image_sizes, targets)
        return [
            Found(corners=corners_of_bounds(one["boxes"]), codes=one["labels"] - 1, scores=one["scores"])
            for one in found
        ], {**losses, **more}


def corners_of_bounds(bounds: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4 2"]:
    """Upright boxes (left, top, right, bottom) as corners, clockwise from the upper left one."""
    left, top, right, bottom = bounds.unbind(1)
    return torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).reshape(-1, 4, 2)


def anchors_of(stride: int, scale: float) -> AnchorGenerator:
    """Upright anchors at every place of the five maps: of one size, `scale` strides, and of the `RATIOS`."""
    sizes = tuple((scale * stride * 2**level,) for level in range(LEVELS))
    return AnchorGenerator(sizes, (RATIOS,) * LEVELS)


def image_list(pixels: Float[Tensor, "b c h w"]) -> ImageList:
    """What torchvision's parts know of the images: their sizes."""
    h, w = pixels.shape[-2:]
    return ImageList(pixels, [(h, w)] * len(pixels))


def _upright(truth: Truth, size: tuple[int, int]) -> dict[str, Tensor]:
    """Torchvision's form of the truth: boxes cut to the image, classes from 1 on."""
    bounds = clip_boxes_to_image(bounds_of(truth.corners), size)
    sides = bounds[:, 2:] - bounds[:, :2]
    kept = (sides > SMALLEST).all(dim=1)
    return {"boxes": bounds[kept], "labels": truth.codes[kept] + 1}
