"""The authors' released tensors into our model: renamed, counted, and refused where anything is left over (METHOD 5).

Nothing needs to be permuted: our patch merging keeps the authors' channel-major order (swin.PatchMerging).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skysense_core.errors import SkysenseError
from skysense_core.model.skysense import SkySense
from skysense_core.model.swin import SwinTransformer
from skysense_core.model.vit import resize_table

SWIN_NAMES = {
    r"\.attn\.w_msa\.": ".attn.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
    r"^norm(\d+)\.": r"norms.\1.",
}
LAYER_NAMES = {
    r"\.ln(\d)\.": r".norm\1.",
    r"\.attn\.attn\.(in_proj_|Wqkv\.)": ".attn.qkv.",
    r"\.attn\.attn\.out_proj\.": ".attn.proj.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
}
VIT_NAMES = LAYER_NAMES | {
    r"^patch_embed\.projection\.": "projection.",
    r"^pos_embed$": "positions",
    r"^cls_token$": "class_token",
}
FUSION_NAMES = LAYER_NAMES | {r"^porj_linear\.": "project.", r"^cls_token$": "extra_token"}
HEAD_NAMES = {r"^decoder\.0\.": "projection."}

UNUSED = re.compile(r"(^|\.)(mask_token|relative_coords_table|relative_position_index)$")
"""A leftover of the authors' experiments, and two tables that are recomputed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of the tensors."""

    matched: int
    """Tensors of the model that were filled."""
    renamed: int
    """How many of them have another name in the file, its part's prefix aside."""
    ignored: tuple[str, ...]
    """Tensors of the file that have no place here: mask tokens, recomputed buffers, what the spec switches off."""
    fresh: tuple[str, ...]
    """Tensors of the model that the file lacks and that start anew: norms of the finer Swin levels, allowed parts."""


def load_official(model: SkySense, tensors: Mapping[str, Any], *, allow_missing: Collection[str] = ()) -> LoadReport:
    """Fill a model from the one-file checkpoint, or from split files joined by `with_part`.

    Parts are `backbone_X` and `head_X` for each modality X, `fusion`, and `ctpe` (the dates). Wrapping levels
    (`model`, `state_dict`) and a `module.` prefix are accepted. `allow_missing` names parts that may be absent as a
    whole, from the file or from the model. Norms of the Swin levels above the last one start at 1 and 0 where the file
    has none; statistics and prototypes of the model are left alone.

    Raises SkysenseError for any other gap, for a tensor without a place, and for shapes that differ; the model is
    unchanged then.
    """
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith(("normalise.", "prototypes."))}
    parts = {official_part(name) for name in wanted}
    found: dict[str, Tensor] = {}
    ignored, surplus, renamed = [], [], 0
    for key, tensor in unwrap(tensors).items():
        part, _, name = ("ctpe", "", "ctpe") if key == "ctpe" else key.partition(".")
        part = part.replace("backbone_gep", "backbone_hr")
        target = our_name(model, part, name) if part in parts else None
        if target in wanted and target not in found:
            found[target] = tensor
            renamed += not target.endswith(f".{name}")
        elif (
            UNUSED.search(name)
            or (part in allow_missing and part not in parts)
            # What the spec switches off: dates, and the class token of the ViTs.
            or part == "ctpe"
            or (part in parts and name == "cls_token")
        ):
            ignored.append(key)
        else:
            surplus.append(key)

    missing = [name for name in wanted if name not in found]
    absent = parts - {official_part(name) for name in found}
    fresh = [n for n in missing if official_part(n) in absent & set(allow_missing) or is_finer_norm(model, n)]
    clashes = [
        f"{name} is {tuple(found[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in found
        if found[name].shape != wanted[name].shape
    ]
    for problem, names in (
        ("tensors of the model are not in the file", [name for name in missing if name not in fresh]),
        ("tensors of the file have no place in the model", surplus),
        ("tensors have another shape", clashes),
    ):
        if names:
            raise mismatch(problem, names, parts)

    norms = [name for name in fresh if is_finer_norm(model, name)]
    starts = {name: torch.full_like(wanted[name], float(name.endswith("weight"))) for name in norms}
    model.load_state_dict(found | starts, strict=False)
    return LoadReport(matched=len(found), renamed=renamed, ignored=tuple(ignored), fresh=tuple(fresh))


def unwrap(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a loaded file without wrapping levels and `module.` prefixes.

    Raises SkysenseError where something else than tensors is left.
    """
    while inner := next((tensors[k] for k in ("model", "state_dict") if isinstance(tensors.get(k), Mapping)), None):
        tensors = inner
    foreign = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if foreign:
        raise SkysenseError(f"not a checkpoint of SkySense: {foreign[0]!r} is no tensor")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def with_part(part: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """A split file's tensors under its part's prefix, e.g. `with_part("backbone_s2", file)`; join several with `|`."""
    bare = {key.removeprefix("backbone."): value for key, value in unwrap(tensors).items()}
    return {key if key == "ctpe" else f"{part}.{key}": value for key, value in bare.items()}


def our_name(model: SkySense, part: str, name: str) -> str:
    """The model's name of a tensor of a part that the model has."""
    kind, _, modality = part.partition("_")
    if part == "ctpe":
        return "dates.table"
    if part == "fusion":
        place, rules = "fusion", FUSION_NAMES
    elif kind == "head":
        place, rules = f"rise.{modality}", HEAD_NAMES
    else:
        place = f"encoders.{modality}"
        rules = SWIN_NAMES if isinstance(model.encoder(modality), SwinTransformer) else VIT_NAMES
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return f"{place}.{name}"


def official_part(name: str) -> str:
    """The authors' part that one of our tensors belongs to."""
    module, modality, *_ = name.split(".")
    return {"encoders": f"backbone_{modality}", "rise": f"head_{modality}", "dates": "ctpe"}.get(module, module)


def is_finer_norm(model: SkySense, name: str) -> bool:
    """Whether this is an output norm of a Swin level above the last: released files hold the last one only."""
    match = re.fullmatch(r"encoders\.(\w+)\.norms\.(\d+)\.(weight|bias)", name)
    return match is not None and int(match[2]) < max(model.encoder(match[1]).levels)


def mismatch(problem: str, names: Sequence[str], parts: Collection[str]) -> SkysenseError:
    """The refusal of a checkpoint, with the first few names."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return SkysenseError(
        f"the checkpoint does not fit: {len(names)} {problem}: {shown}",
        fix=f"The model has the parts {', '.join(sorted(parts))}; name those that may be missing, or change the sizes.",
    )


def append_nir(weight: Float[Tensor, "d 3 p q"]) -> Float[Tensor, "d 4 p q"]:
    """A patch weight for red, green, blue as one for red, green, blue, near infrared: red's weights once more."""
    return torch.cat((weight, weight[:, :1]), dim=1)


def select_bands(weight: Float[Tensor, "d c p q"], bands: Sequence[int]) -> Float[Tensor, "d c2 p q"]:
    """A patch weight for some of its bands (B02 B03 B04 B08 are 0, 1, 2, 6), scaled to the same sum of inputs."""
    return weight[:, list(bands)] * (weight.shape[1] / len(bands))


def resize_positions(table: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """A position table for side x side patches; the class token's entry stays as it is."""
    return torch.cat((table[:, :1], resize_table(table[:, 1:], side, side)), dim=1)
