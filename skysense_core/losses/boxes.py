"""Oriented boxes as numbers that a network can learn [Oriented R-CNN, Xie et al., ICCV 2021], and their overlap.

A rotated box is (x, y, w, h, a): centre, sides, and the angle in radians from the x axis to the side w, clockwise as
seen (y grows downwards). One rectangle has several such descriptions; `regular` chooses w >= h, -pi/2 <= a < pi/2.
"""

import math

import numpy as np
import shapely
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

STEEPEST = math.log(1000 / 16)
"""Most by which the logarithm of a side changes, as in torchvision: exp of anything more may overflow."""
TINY = 1e-6
"""Square pixels."""
UPRIGHT = 0.99
"""Share of the upright box about it from which on a box is an upright one: which of its two upper corners is the
highest would be chance."""
DELTA_STD = (0.1, 0.1, 0.2, 0.2, 0.1)
"""Deltas are divided by these, so that all five weigh about the same (mmrotate's values for Oriented R-CNN)."""


def corners_of(rotated: Float[Tensor, "n 5"]) -> Float[Tensor, "n 4 2"]:
    """Corners, clockwise as seen."""
    x, y, w, h, a = rotated.unbind(1)
    cos, sin = a.cos(), a.sin()
    along = torch.stack([cos * w, sin * w], dim=1) / 2
    across = torch.stack([-sin * h, cos * h], dim=1) / 2
    centre = torch.stack([x, y], dim=1)
    corners = [centre - along - across, centre + along - across, centre + along + across, centre - along + across]
    return torch.stack(corners, dim=1)


def rotated_of(corners: Float[Tensor, "n 4 2"]) -> Float[Tensor, "n 5"]:
    """The rotated box of a rectangle's corners (clockwise)."""
    centre = corners.mean(dim=1)
    along, across = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
    w, h = along.norm(dim=1), across.norm(dim=1)
    # Of a rectangle without a width the other side knows the direction.
    a = torch.where(w >= h, torch.atan2(along[:, 1], along[:, 0]), torch.atan2(-across[:, 0], across[:, 1]))
    return regular(torch.stack([centre[:, 0], centre[:, 1], w, h, a], dim=1))


def regular(rotated: Float[Tensor, "n 5"]) -> Float[Tensor, "n 5"]:
    """The description with w >= h and -pi/2 <= a < pi/2."""
    x, y, w, h, a = rotated.unbind(1)
    a = torch.where(w < h, a + math.pi / 2, a)
    return torch.stack([x, y, torch.maximum(w, h), torch.minimum(w, h), wrapped(a, math.pi)], dim=1)


def wrapped(angle: Float[Tensor, "*n"], period: float) -> Float[Tensor, "*n"]:
    """The angle in [-period/2, period/2)."""
    return torch.remainder(angle + period / 2, period) - period / 2


def bounds_of(corners: Float[Tensor, "n 4 2"]) -> Float[Tensor, "n 4"]:
    """The axis-aligned box (left, top, right, bottom) about corners."""
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def encode_midpoints(anchors: Float[Tensor, "n 4"], corners: Float[Tensor, "n 4 2"]) -> Float[Tensor, "n 6"]:
    """Rectangles beside upright anchors (left, top, right, bottom): deltas of the box about them, then how far its
    highest corner lies from the middle of the upper side, and its rightmost one from the middle of the right side, as
    shares of width and height [Oriented R-CNN, Eq. 1]."""
    outer = bounds_of(corners)
    ax, ay, aw, ah = _centred(anchors)
    x, y, w, h = _centred(outer)
    sides = (corners[:, 1] - corners[:, 0]).norm(dim=1), (corners[:, 3] - corners[:, 0]).norm(dim=1)
    upright = sides[0] * sides[1] > UPRIGHT * w * h
    first = torch.where(upright, corners.sum(dim=2).argmin(dim=1), corners[..., 1].argmin(dim=1))
    index = torch.arange(len(corners), device=corners.device)
    top, right = corners[index, first], corners[index, (first + 1) % 4]
    shifts = (x - ax) / aw, (y - ay) / ah, (w / aw).log(), (h / ah).log(), (top[:, 0] - x) / w, (right[:, 1] - y) / h
    return torch.stack(shifts, dim=1)


def decode_midpoints(anchors: Float[Tensor, "n 4"], deltas: Float[Tensor, "n 6"]) -> Float[Tensor, "n 5"]:
    """The rotated boxes that such numbers mean: the parallelogram's shorter diagonal grows to the longer one."""
    ax, ay, aw, ah = _centred(anchors)
    dx, dy, dw, dh, alpha, beta = deltas.unbind(1)
    x, y = ax + dx * aw, ay + dy * ah
    w, h = aw * dw.clamp(max=STEEPEST).exp(), ah * dh.clamp(max=STEEPEST).exp()
    alpha, beta = alpha.clamp(-0.5, 0.5) * w, beta.clamp(-0.5, 0.5) * h
    top, right = torch.stack([alpha, -h / 2], dim=1), torch.stack([w / 2, beta], dim=1)
    lengths = torch.stack([top.norm(dim=1), right.norm(dim=1)], dim=1).clamp(min=1e-6)
    longest = lengths.amax(dim=1)
    top, right = top * (longest / lengths[:, 0])[:, None], right * (longest / lengths[:, 1])[:, None]
    centre = torch.stack([x, y], dim=1)
    return rotated_of(torch.stack([centre + top, centre + right, centre - top, centre - right], dim=1))


def encode_rotated(proposals: Float[Tensor, "n 5"], targets: Float[Tensor, "n 5"]) -> Float[Tensor, "n 5"]:
    """Rotated boxes beside rotated proposals, in the proposals' own axes. Of the descriptions of the target the one
    counts whose angle is nearest."""
    x, y, w, h, a = targets.unbind(1)
    px, py, pw, ph, pa = proposals.unbind(1)
    turn = wrapped(a - pa, math.pi)
    swapped = wrapped(a + math.pi / 2 - pa, math.pi)
    swap = swapped.abs() < turn.abs()
    w, h, turn = torch.where(swap, h, w), torch.where(swap, w, h), torch.where(swap, swapped, turn)
    cos, sin, dx, dy = pa.cos(), pa.sin(), x - px, y - py
    deltas = ((cos * dx + sin * dy) / pw, (cos * dy - sin * dx) / ph, (w / pw).log(), (h / ph).log(), turn)
    return torch.stack(deltas, dim=1) / torch.tensor(DELTA_STD, device=proposals.device)


def decode_rotated(proposals: Float[Tensor, "n 5"], deltas: Float[Tensor, "n 5"]) -> Float[Tensor, "n 5"]:
    """The rotated boxes that deltas beside proposals mean."""
    dx, dy, dw, dh, turn = (deltas * torch.tensor(DELTA_STD, device=deltas.device)).unbind(1)
    px, py, pw, ph, pa = proposals.unbind(1)
    dx, dy = dx * pw, dy * ph
    x, y = px + dx * pa.cos() - dy * pa.sin(), py + dx * pa.sin() + dy * pa.cos()
    w, h = pw * dw.clamp(max=STEEPEST).exp(), ph * dh.clamp(max=STEEPEST).exp()
    return regular(torch.stack([x, y, w, h, pa + turn], dim=1))


def rotated_iou(one: Float[Tensor, "n 5"], other: Float[Tensor, "m 5"]) -> Float[Tensor, "n m"]:
    """Intersection over union of every rotated box with every other."""
    if native():
        degrees = (torch.tensor([1, 1, 1, 1, -180 / math.pi], device=one.device) for _ in range(2))
        return box_iou(*(rotated * scale for rotated, scale in zip((one, other), degrees, strict=True)), fmt="cxcywhr")
    left, right = (shapely.polygons(corners_of(rotated).detach().cpu().double().numpy()) for rotated in (one, other))
    common = shapely.area(shapely.intersection(left[:, None], right))
    union = shapely.area(left)[:, None] + shapely.area(right) - common
    return torch.from_numpy(common / np.maximum(union, TINY)).to(one)


def native() -> bool:
    """Whether torchvision computes the overlap of rotated boxes: from 0.27 on."""
    return hasattr(torch.ops.torchvision, "box_iou_rotated")


def _centred(bounds: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "n"], ...]:
    left, top, right, bottom = rearrange(bounds, "n c -> c n")
    w, h = right - left, bottom - top
    return left + w / 2, top + h / 2, w, h
