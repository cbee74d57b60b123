"""The sizes of a model, from the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.model.official import our_name, split_name
from skysense_core.model.presets import PRESETS, FusionSpec, Preset, SwinSpec, VitSpec
from skysense_core.model.rise import SCALE
from skysense_core.model.vit import PATCH

Shapes = dict[str, tuple[int, ...]]

DIMENSIONS = {
    "patch_embed.projection.weight": 4,
    "projection.weight": 4,
    "project.weight": 2,
    "positions": 3,
    "attn.logit_scale": 3,
}
"""Of the tensors that the sizes are read from."""


def sizes_of(
    tensors: Mapping[str, Tensor], encoders: Mapping[str, str], heads: Mapping[str, int]
) -> tuple[str, Preset | None]:
    """The preset that tensors belong to; where it is none, the nearest one's name and the sizes.

    `tensors` are those of a one-file checkpoint, `encoders` maps modalities to the kind of their encoder, and `heads`
    says how many attention heads a modality's ViT or the fusion has, which no shape tells; not given, it is what the
    preset of that width and depth has.

    Raises UsageError where heads must be given, SkysenseError where a tensor is missing that a size follows from.
    """
    shapes: dict[str, Shapes] = {}
    for key, tensor in tensors.items():
        part, name = split_name(key)
        place = our_name(part, name, encoders.get(part.partition("_")[2], ""))
        shapes.setdefault(part, {})[place.removeprefix(place_of(part))] = tuple(tensor.shape)
    swin, vits, fusion, channels = None, {}, None, None
    for modality, encoder in encoders.items():
        found = shapes[f"backbone_{modality}"]
        if encoder == "swin":
            swin = swin_sizes(modality, found)
            channels = swin.widths[-1]
        else:
            vits[modality] = vit_sizes(modality, found, heads)
    for part, found in shapes.items():
        if part.startswith("head_") and channels is None:
            channels = dimension(part, found, "projection.weight", 0) // SCALE**2
    if "fusion" in shapes:
        width = dimension("fusion", shapes["fusion"], "project.weight", 0)
        depth = count(shapes["fusion"], r"layers\.(\d+)\.")
        fusion = FusionSpec(width=width, depth=depth, heads=heads_of("fusion", width, depth, heads))
        channels = channels or dimension("fusion", shapes["fusion"], "project.weight", 1)
    refuse_unknown_heads({**vits, **({"fusion": fusion} if fusion else {})})
    return preset_of(swin, vits, fusion, channels)


def preset_of(
    swin: SwinSpec | None, vits: Mapping[str, VitSpec], fusion: FusionSpec | None, channels: int | None
) -> tuple[str, Preset | None]:
    """The preset with these sizes, None meaning any; else the nearest one's name and a preset of their own."""
    for name, one in PRESETS.items():
        fits = swin in (None, one.swin) and all(vit == one.vit for vit in vits.values())
        if fits and fusion in (None, one.fusion) and channels in (None, one.channels):
            return name, None
    width = next((vit.width for vit in vits.values()), 0)
    name = min(PRESETS, key=lambda n: abs(PRESETS[n].channels - channels if channels else PRESETS[n].vit.width - width))
    nearest = PRESETS[name]
    if swin is None:
        swin = (
            replace(nearest.swin, embed=channels // 2 ** (len(nearest.swin.depths) - 1)) if channels else nearest.swin
        )
    vit = next(iter(vits.values()), nearest.vit)
    own = {modality: one for modality, one in vits.items() if one != vit}
    return name, replace(nearest, swin=swin, vit=vit, fusion=fusion or nearest.fusion, own=own)


def swin_sizes(modality: str, shapes: Shapes) -> SwinSpec:
    """Sizes of a Swin V2. The interval of the extra norms shows where the first one is; without any, none is built."""
    stages = count(shapes, r"stages\.(\d+)\.")
    depths = tuple(count(shapes, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages))
    if len(depths) != 4 or not all(depths):
        raise SkysenseError(f"{modality}: {len(depths)} stages, not the four of a Swin V2", fix="Give the whole file.")
    heads = tuple(
        dimension(modality, shapes, f"stages.{stage}.blocks.0.attn.logit_scale", 0) for stage in range(stages)
    )
    extra = [
        int(match[1]) for name in shapes if (match := re.fullmatch(r"stages\.\d+\.blocks\.(\d+)\.norm3\.\w+", name))
    ]
    return SwinSpec(
        embed=dimension(modality, shapes, "patch_embed.projection.weight", 0),
        depths=depths,
        heads=heads,
        extra_norm_every=min(extra) + 1 if extra else max(6, max(depths) + 1),
    )


def vit_sizes(modality: str, shapes: Shapes, heads: Mapping[str, int]) -> VitSpec:
    """Sizes of a ViT; its native size is that of the position table."""
    width = dimension(modality, shapes, "projection.weight", 0)
    depth = count(shapes, r"layers\.(\d+)\.")
    entries = dimension(modality, shapes, "positions", 1) - 1
    side = math.isqrt(max(entries, 0))
    if not depth or side == 0 or side**2 != entries:
        raise SkysenseError(
            f"{modality}: {depth} layers and a position table of {entries + 1} entries, not 1 + a square",
            fix="Give the whole file of a plain ViT.",
        )
    return VitSpec(width=width, depth=depth, heads=heads_of(modality, width, depth, heads), native=PATCH * side)


def heads_of(place: str, width: int, depth: int, heads: Mapping[str, int]) -> int:
    """Attention heads: as given, else those of the preset with this width and depth; 0 where there is none."""
    known = {(one.width, one.depth): one.heads for preset in PRESETS.values() for one in (preset.vit, preset.fusion)}
    number = heads.get(place, known.get((width, depth), 0))
    if number and width % number:
        raise UsageError(f"heads.{place}: {number} does not divide the width {width}", fix="Look it up once more.")
    return number


def refuse_unknown_heads(specs: Mapping[str, VitSpec | FusionSpec]) -> None:
    """Raise UsageError, with all options that are wanting, where numbers of heads are known from nowhere."""
    unknown = {place: spec for place, spec in specs.items() if not spec.heads}
    if unknown:
        sizes = ", ".join(f"{place} ({spec.depth} layers of width {spec.width})" for place, spec in unknown.items())
        options = " ".join(f"--set heads.{place}=N" for place in unknown)
        raise UsageError(
            f"no file says how many attention heads these have, and their sizes are no preset's: {sizes}",
            fix=f"Look it up and give it: {options}",
        )


def dimension(place: str, shapes: Shapes, name: str, axis: int) -> int:
    """The length of one axis of a tensor."""
    shape = shapes.get(name, ())
    wanted = next(number for end, number in DIMENSIONS.items() if name.endswith(end))
    if len(shape) != wanted or not shape[axis]:
        was = f"has shape {shape}" if name in shapes else "is missing"
        raise SkysenseError(f"{place}: {name} {was}, so its size cannot be told", fix="Give the whole file.")
    return shape[axis]


def count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the names have at the group of a pattern."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def place_of(part: str) -> str:
    """Where our model has a part, as a prefix of names."""
    return our_name(part, "", "")
