"""Encoders in timm's naming as ours want them, and tables for another size of picture.

Everything that is changed is said in a note, for the model card.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from skysense_core.errors import SkysenseError
from skysense_core.modalities import Band
from skysense_core.model.inputs import RGB, spread_rgb
from skysense_core.model.vit import PATCH, resize_table

CLASSIFIER = re.compile(r"^(head|fc_norm)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """One encoder in timm's naming as our encoders want it, the names aside."""

    tensors: dict[str, Tensor]
    permuted: tuple[str, ...] = ()
    """Names of those whose columns were reordered."""
    unused: tuple[str, ...] = ()
    """Names of those that have no place in an encoder: classifiers, the ViT's final norm."""
    notes: tuple[str, ...] = ()


def from_timm(kind: str, tensors: Mapping[str, Tensor], bands: Sequence[Band]) -> Adapted:
    """A Swin V2 ("swin") or ViT ("vit") of timm for the bands of a modality."""
    adapted = swin_from_timm(tensors) if kind == "swin" else vit_from_timm(tensors)
    key = "patch_embed.proj.weight"
    if key not in tensors:
        raise SkysenseError(f"{key} is missing: there is no input layer", fix="Give the whole state dict.")
    weight, notes = tensors[key], []
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[1] not in (len(RGB), len(bands)):
        raise SkysenseError(
            f"{key} has shape {tuple(weight.shape)}: not square patches of red, green, blue", fix="Use other weights."
        )
    if weight.shape[2] != PATCH:
        notes.append(f"patches of {weight.shape[2]} x {weight.shape[3]} pixels resized to {PATCH} x {PATCH}")
        weight = resize_patches(weight)
    if tuple(band.name for band in bands) != RGB and weight.shape[1] == len(RGB):
        weight, note = spread_rgb(weight, bands)
        notes.append(note)
    return Adapted(
        tensors=adapted.tensors | {key: weight},
        permuted=adapted.permuted,
        unused=(*adapted.unused, *(name for name in tensors if CLASSIFIER.search(name))),
        notes=(*notes, *adapted.notes),
    )


def swin_from_timm(tensors: Mapping[str, Tensor]) -> Adapted:
    """Merging at the start of a stage, where older files have it at the end, and in channel-major order."""
    late = any(name.startswith("layers.0.downsample.") for name in tensors)
    found, permuted, notes = {}, [], []
    for name, tensor in tensors.items():
        if late and (match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name)):
            name = f"layers.{int(match[1]) + 1}.downsample.{match[2]}"
        if name.endswith(".downsample.reduction.weight") and tensor.ndim == 2 and tensor.shape[1] % 4 == 0:
            tensor = rearrange(tensor, "e (j i d) -> e (d i j)", i=2, j=2)
            permuted.append(name)
        if name.endswith("relative_coords_table") and tensor.ndim == 4 and (window := (tensor.shape[1] + 1) // 2) != 8:
            notes.append(f"trained with windows of {window} x {window} tokens, used with 8 x 8")
        found[name] = tensor
    return Adapted(tensors=found, permuted=tuple(permuted), notes=tuple(dict.fromkeys(notes)))


def vit_from_timm(tensors: Mapping[str, Tensor]) -> Adapted:
    """With an entry for the class token in front of the position table, used or not; without the final norm."""
    found, notes = dict(tensors), ["the final norm is left out"]
    table = tensors.get("pos_embed")
    if table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        found["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
        notes.append("no class token")
    return Adapted(
        tensors=found, unused=tuple(name for name in tensors if re.match(r"norm\.", name)), notes=tuple(notes)
    )


def resize_patches(weight: Float[Tensor, "d c p p"]) -> Float[Tensor, "d c 4 4"]:
    """A patch weight for 4 x 4 pixels: bicubic, with the same response to a constant picture."""
    small = F.interpolate(weight, size=(PATCH, PATCH), mode="bicubic", antialias=True)
    sums = [reduce(one, "d c p q -> d c 1 1", "sum") for one in (weight, small)]
    return small + (sums[0] - sums[1]) / PATCH**2


def resize_positions(table: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """A position table for side x side patches; the class token's entry stays as it is."""
    return torch.cat((table[:, :1], resize_table(table[:, 1:], side, side)), dim=1)
