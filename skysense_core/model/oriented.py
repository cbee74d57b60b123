"""Oriented R-CNN [Xie et al., ICCV 2021]: upright anchors, rotated proposals by midpoint offsets, rotated RoI features.

Rotated boxes are (x, y, w, h, angle), as in `losses.boxes`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou

from skysense_core.geo import boxes
from skysense_core.losses.boxes import (
    bounds_of,
    corners_of,
    decode_midpoints,
    decode_rotated,
    encode_midpoints,
    encode_rotated,
    rotated_iou,
    rotated_of,
)
from skysense_core.model.detectors import LEVELS, RATIOS, SMALLEST, Found, Maps, Truth, anchors_of

SIDE, SAMPLES = 7, 2
"""Cells along a side of a RoI, and places along a side of a cell where the map is read."""
CANONICAL = 56
"""Pixels: RoIs whose mean side is less than twice this (for a finest stride of 4) are read from the finest map."""


class OrientedRcnn(nn.Module):
    """Boxes of any direction."""

    def __init__(
        self, width: int, classes: int, *, stride: int, scale: float, score: float, overlap: float, most: int
    ) -> None:
        """As `FasterRcnn`."""
        super().__init__()
        self.proposer = Proposer(width, stride=stride, scale=scale)
        self.stride, self.classes = stride, classes
        self.box_head = TwoMLPHead(width * SIDE**2, 4 * width)
        self.classifier = nn.Linear(4 * width, classes + 1)
        self.regressor = nn.Linear(4 * width, 5)
        self.matcher = Matcher(0.5, 0.5, allow_low_quality_matches=False)
        self.sampler = BalancedPositiveNegativeSampler(512, 0.25)
        self.score, self.overlap, self.most = score, overlap, most

    def forward(
        self, maps: Maps, images: ImageList, truths: Sequence[Truth] | None
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """Detections, or losses."""
        known = None if truths is None else [_rotated(truth) for truth in truths]
        proposals, losses = self.proposer(maps, images, None if known is None else [one for one, _ in known])
        if known is None:
            return self._find(maps, proposals), {}
        return [], {**losses, **self._learn(maps, proposals, known)}

    def _answers(self, maps: Maps, rois: list[Float[Tensor, "_ 5"]]) -> tuple[Tensor, Tensor]:
        features = self.box_head(rotated_align(maps, rois, stride=self.stride))
        return self.classifier(features), self.regressor(features)

    def _learn(
        self, maps: Maps, proposals: list[Float[Tensor, "_ 5"]], known: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        rois, labels, targets = [], [], []
        for proposed, (true, codes) in zip(proposals, known, strict=True):
            candidates = torch.cat([proposed, true])
            if len(true):
                matched = self.matcher(rotated_iou(true, candidates))
                label = torch.where(matched >= 0, codes[matched.clamp(min=0)] + 1, 0)
                target = true[matched.clamp(min=0)]
            else:
                label, target = torch.zeros(len(candidates), dtype=torch.int64, device=proposed.device), candidates
            chosen = torch.cat([mask[0].nonzero()[:, 0] for mask in self.sampler([label])])
            rois.append(candidates[chosen])
            labels.append(label[chosen])
            targets.append(target[chosen])
        logits, deltas = self._answers(maps, rois)
        label, count = torch.cat(labels), max(sum(map(len, labels)), 1)
        hits = label > 0
        wanted = encode_rotated(torch.cat(rois)[hits], torch.cat(targets)[hits])
        return {
            "loss_classifier": F.cross_entropy(logits, label, reduction="sum") / count,
            "loss_box_reg": F.smooth_l1_loss(deltas[hits], wanted, reduction="sum") / count,
        }

    def _find(self, maps: Maps, proposals: list[Float[Tensor, "_ 5"]]) -> list[Found]:
        logits, deltas = self._answers(maps, proposals)
        scores = logits.softmax(dim=1)[:, 1:]
        rotated, found, counts = decode_rotated(torch.cat(proposals), deltas), [], [len(one) for one in proposals]
        for box, score in zip(rotated.split(counts), scores.split(counts), strict=True):
            row, code = (score > self.score).nonzero(as_tuple=True)
            wide = box[row, 2:4].amin(dim=1) > SMALLEST
            row, code = row[wide], code[wide]
            corners, score = corners_of(box[row]), score[row, code]
            best = boxes.suppress(
                corners.double().cpu().numpy(), score.double().cpu().numpy(), code.cpu().numpy(), self.overlap
            )
            kept = torch.from_numpy(best[: self.most]).to(code.device)
            found.append(Found(corners=corners[kept], codes=code[kept], scores=score[kept]))
        return found


class Proposer(nn.Module):
    """The region proposal network: upright anchors become rotated boxes, judged by the boxes about them."""

    def __init__(self, width: int, *, stride: int, scale: float, most: int = 2000) -> None:
        super().__init__()
        self.anchors = anchors_of(stride, scale)
        self.convolution = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.objectness = nn.Conv2d(width, len(RATIOS), kernel_size=1)
        self.deltas = nn.Conv2d(width, len(RATIOS) * 6, kernel_size=1)
        self.matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        self.sampler = BalancedPositiveNegativeSampler(256, 0.5)
        self.most = most
        for layer in (self.convolution, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # these have one

    def forward(
        self, maps: Maps, images: ImageList, truths: list[Float[Tensor, "_ 5"]] | None
    ) -> tuple[list[Float[Tensor, "_ 5"]], dict[str, Tensor]]:
        """At most `most` proposals per image, best first, and losses where the objects are given."""
        hidden = [F.relu(self.convolution(x)) for x in maps.values()]
        objectness = [rearrange(self.objectness(x), "b a h w -> b (h w a)") for x in hidden]
        deltas = [rearrange(self.deltas(x), "b (a n) h w -> b (h w a) n", n=6) for x in hidden]
        counts = [level.shape[1] for level in objectness]
        anchors: Float[Tensor, "n 4"] = self.anchors(images, list(maps.values()))[0]
        logits, offsets = torch.cat(objectness, dim=1), torch.cat(deltas, dim=1)
        size, level = (
            images.image_sizes[0],
            torch.arange(LEVELS, device=logits.device).repeat_interleave(torch.tensor(counts, device=logits.device)),
        )
        proposals = [
            self._best(anchors, one.detach(), offset.detach(), level, counts, size)
            for one, offset in zip(logits, offsets, strict=True)
        ]
        return proposals, {} if truths is None else self._losses(anchors, logits, offsets, truths)

    def _best(
        self,
        anchors: Float[Tensor, "n 4"],
        logits: Float[Tensor, "n"],
        deltas: Float[Tensor, "n 6"],
        level: Int[Tensor, "n"],
        counts: list[int],
        size: tuple[int, int],
    ) -> Float[Tensor, "m 5"]:
        starts = [sum(counts[:number]) for number in range(LEVELS)]
        index = torch.cat(
            [
                part.topk(min(self.most, len(part))).indices + start
                for part, start in zip(logits.split(counts), starts, strict=True)
            ]
        )
        rotated = decode_midpoints(anchors[index], deltas[index])
        inside = (rotated[:, :2] >= 0).all(dim=1) & (rotated[:, 0] < size[1]) & (rotated[:, 1] < size[0])
        kept = inside & (rotated[:, 2:4] > SMALLEST).all(dim=1)
        index, rotated = index[kept], rotated[kept]
        best = batched_nms(bounds_of(corners_of(rotated)), logits[index], level[index], 0.8)
        return rotated[best[: self.most]]

    def _losses(
        self,
        anchors: Float[Tensor, "n 4"],
        logits: Float[Tensor, "b n"],
        deltas: Float[Tensor, "b n 6"],
        truths: list[Float[Tensor, "_ 5"]],
    ) -> dict[str, Tensor]:
        judged, regressed, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for one, delta, true in zip(logits, deltas, truths, strict=True):
            corners = corners_of(true)
            if len(true):
                matched = self.matcher(box_iou(bounds_of(corners), anchors))
                label = torch.where(matched >= 0, 1.0, torch.where(matched == Matcher.BELOW_LOW_THRESHOLD, 0.0, -1.0))
            else:
                label, matched = torch.zeros_like(one), torch.zeros_like(one, dtype=torch.int64)
            hit, miss = (mask[0].nonzero()[:, 0] for mask in self.sampler([label]))
            chosen = torch.cat([hit, miss])
            judged = judged + F.binary_cross_entropy_with_logits(one[chosen], label[chosen], reduction="sum")
            wanted = encode_midpoints(anchors[hit], corners[matched[hit]])
            regressed = regressed + F.smooth_l1_loss(delta[hit], wanted, beta=1 / 9, reduction="sum")
            count += len(chosen)
        return {"loss_objectness": judged / max(count, 1), "loss_rpn_box_reg": regressed / max(count, 1)}


def rotated_align(maps: Maps, rois: Sequence[Float[Tensor, "_ 5"]], *, stride: int) -> Float[Tensor, "n d side side"]:
    """RoI features of rotated boxes, in their own axes: `SIDE` x `SIDE` cells, each the mean of 2 x 2 bilinear
    samples, from the map that suits the box's size. Boxes of the images one after another."""
    names = list(maps)[: LEVELS - 1]
    made = []
    steps = (torch.arange(SIDE * SAMPLES, device=rois[0].device) + 0.5) / (SIDE * SAMPLES) - 0.5
    for image, boxes_ in enumerate(rois):
        x, y, w, h, a = (part[:, None, None] for part in boxes_.unbind(1))
        along, across = w * steps[None, None, :], h * steps[None, :, None]
        cos, sin = a.cos(), a.sin()
        places = torch.stack([x + along * cos - across * sin, y + along * sin + across * cos], dim=-1)
        side = (boxes_[:, 2] * boxes_[:, 3]).clamp(min=1e-6).sqrt()
        level = (side * 4 / (CANONICAL * stride)).log2().floor().clamp(0, len(names) - 1)
        features = places.new_zeros(len(boxes_), maps[names[0]].shape[1], SIDE, SIDE)
        for number, name in enumerate(names):
            mine = (level == number).nonzero()[:, 0]
            if len(mine):
                features = features.index_copy(0, mine, _sampled(maps[name][image], places[mine] / stride / 2**number))
        made.append(features)
    return torch.cat(made)


def _sampled(
    features: Float[Tensor, "d h w"], places: Float[Tensor, "n side2 side2 2"]
) -> Float[Tensor, "n d side side"]:
    """Means of bilinear samples of a map at places (x, y) in its pixels, counted from its corner."""
    h, w = features.shape[-2:]
    grid = places / torch.tensor([w, h], device=places.device) * 2 - 1
    flat = rearrange(grid, "n r c two -> 1 n (r c) two")
    read = F.grid_sample(features[None], flat, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return reduce(read, "d n (r i c j) -> n d r c", "mean", r=SIDE, i=SAMPLES, c=SIDE, j=SAMPLES)


def _rotated(truth: Truth) -> tuple[Float[Tensor, "n 5"], Int[Tensor, "n"]]:
    """The objects that have an area, as rotated boxes with their classes."""
    rotated = rotated_of(truth.corners)
    kept = rotated[:, 3] > SMALLEST
    return rotated[kept], truth.codes[kept]
