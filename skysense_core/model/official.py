"""Released tensors into our model: renamed, counted, and refused where anything is left over (METHOD 5).

The names are the authors' or timm's. The authors' tensors need no permutation: our patch merging keeps their
channel-major order (swin.PatchMerging). Timm's are adapted before (model.adapt).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skysense_core.errors import SkysenseError
from skysense_core.model.skysense import SkySense, initialise

SWIN_NAMES = {
    r"\.attn\.w_msa\.": ".attn.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
    r"^norm(\d+)\.": r"norms.\1.",
    r"^layers\.": "stages.",  # timm's, from here on
    r"^patch_embed\.proj\.": "patch_embed.projection.",
    r"^norm\.": "norms.3.",
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
    r"^blocks\.": "layers.",  # timm's, from here on
    r"^patch_embed\.proj\.": "projection.",
}
FUSION_NAMES = LAYER_NAMES | {r"^porj_linear\.": "project.", r"^cls_token$": "extra_token"}
HEAD_NAMES = {r"^decoder\.0\.": "projection."}

UNUSED = re.compile(r"(^|\.)(mask_token|relative_coords_table|relative_position_index|k_bias|attn_mask)$")
"""A leftover of the authors' experiments, and tables and zeros that are recomputed here."""
NUMBERS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""Types that weights may have."""
LEVELS = 4
"""Most wrapping levels around the tensors of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What became of the tensors of one of the authors' parts."""

    matched: int
    """Tensors of the model that were filled."""
    renamed: int
    """How many of them have another name in the file, its part's prefix aside."""
    permuted: int
    """How many of them have their numbers in another order in the file."""
    ignored: tuple[str, ...]
    """Tensors of the file that have no place here: mask tokens, recomputed buffers, what the spec switches off."""
    fresh: tuple[str, ...]
    """Tensors of the model that the file lacks and that start anew: norms of the finer Swin levels, allowed parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of all tensors, part by part."""

    parts: dict[str, PartReport]

    @property
    def matched(self) -> int:
        return sum(part.matched for part in self.parts.values())

    @property
    def renamed(self) -> int:
        return sum(part.renamed for part in self.parts.values())

    @property
    def permuted(self) -> int:
        return sum(part.permuted for part in self.parts.values())

    @property
    def ignored(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts.values() for name in part.ignored)

    @property
    def fresh(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts.values() for name in part.fresh)


def load_official(
    model: SkySense,
    tensors: Mapping[str, Any],
    *,
    allow_missing: Collection[str] = (),
    ignore: Collection[str] = (),
    permuted: Collection[str] = (),
) -> LoadReport:
    """Fill a model from the one-file checkpoint, or from split files joined by `with_part`.

    Parts are `backbone_X` and `head_X` for each modality X, `fusion`, and `ctpe` (the dates). Wrapping levels
    (`model`, `state_dict`) and a `module.` prefix are accepted. `allow_missing` names parts that need not fit: what the
    model has no place for is left out, and a head, the fusion or the dates start anew as a whole where a tensor is
    missing or has another shape. An encoder is never taken in half. `ignore` names tensors of the file that nothing is
    made of, and `permuted` those that were reordered before. Norms of the Swin levels above the last one start at 1 and
    0 where the file has none; statistics and prototypes of the model are left alone.

    A model on the meta device takes the tensors themselves, so that what is mapped stays on disk.

    Raises SkysenseError for any other gap, for a tensor without a place, and for shapes or types that differ; the model
    is unchanged then.
    """
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith(("normalise.", "prototypes."))}
    parts = tuple(dict.fromkeys(official_part(name) for name in wanted))
    given = unwrap(tensors)
    seen = dict.fromkeys((*parts, *(split_name(key)[0] for key in given)))
    found: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    ignored, surplus = [], []
    for key, tensor in given.items():
        part, name = split_name(key)
        target = our_name(part, name, encoder_of(model, part)) if part in parts else None
        if key in ignore:
            ignored.append(key)
        elif target in wanted and target not in found:
            found[target], keys[target] = tensor, key
        elif (
            UNUSED.search(name)
            or part in allow_missing
            # What the spec switches off: dates, and the class token of the ViTs.
            or part == "ctpe"
            or (part in parts and name == "cls_token")
        ):
            ignored.append(key)
        else:
            surplus.append(key)

    unfit = {official_part(n) for n in wanted if n not in found or found[n].shape != wanted[n].shape}
    anew = {part for part in unfit & set(allow_missing) if not part.startswith("backbone_")}
    for target in [name for name in found if official_part(name) in anew]:
        ignored.append(keys[target])
        del found[target]
    missing = [name for name in wanted if name not in found]
    absent = set(parts) - {official_part(name) for name in found}
    fresh = [n for n in missing if official_part(n) in absent & set(allow_missing) or is_finer_norm(model, n)]
    refuse_mismatch([name for name in missing if name not in fresh], absent, surplus, found, wanted)
    fill(model, found, fresh)
    report = {}
    for part in seen:
        filled = [name for name in found if official_part(name) == part]
        report[part] = PartReport(
            matched=len(filled),
            renamed=sum(not name.endswith(f".{split_name(keys[name])[1]}") for name in filled),
            permuted=sum(keys[name] in permuted for name in filled),
            ignored=tuple(key for key in ignored if split_name(key)[0] == part),
            fresh=tuple(name for name in fresh if official_part(name) == part),
        )
    return LoadReport(parts=report)


def fill(model: SkySense, found: Mapping[str, Tensor], fresh: Collection[str]) -> None:
    """Put the tensors in; norms that start anew are 1 and 0, other parts start as in a training from scratch."""
    on_meta = next(model.parameters()).is_meta
    state = model.state_dict()
    norms = [name for name in fresh if is_finer_norm(model, name)]
    starts = {name: torch.full(state[name].shape, float(name.endswith("weight"))) for name in norms}
    model.load_state_dict({**found, **starts}, strict=False, assign=on_meta)
    modules = {".".join(name.split(".")[: 2 if name.startswith("rise") else 1]) for name in fresh if name not in norms}
    for name in sorted(modules) if on_meta else ():
        module = model.get_submodule(name).to_empty(device="cpu")
        for one in module.modules():
            reset = getattr(one, "reset_parameters", None)
            if reset is not None:
                reset()
        module.apply(initialise)


def unwrap(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a loaded file without wrapping levels and `module.` prefixes.

    Raises SkysenseError where something else than dense floating-point tensors and tables is left.
    """
    for _ in range(LEVELS):
        tensors = next((tensors[k] for k in ("model", "state_dict") if isinstance(tensors.get(k), Mapping)), tensors)
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise SkysenseError(f"not a checkpoint of SkySense: {key!r} is no tensor", fix="Give a state dict.")
        if value.is_meta or value.layout != torch.strided:
            raise SkysenseError(f"{key} holds no numbers of its own", fix="Give the file that holds the weights.")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def with_part(part: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """A split file's tensors under its part's prefix, e.g. `with_part("backbone_s2", file)`; join several with `|`."""
    bare = {key.removeprefix("backbone."): value for key, value in unwrap(tensors).items()}
    return {key if key == "ctpe" else f"{part}.{key}": value for key, value in bare.items()}


def split_name(key: str) -> tuple[str, str]:
    """The part and the name in it of a tensor of the one-file checkpoint."""
    part, _, name = key.partition(".")
    return part.replace("backbone_gep", "backbone_hr"), name or part


def encoder_of(model: SkySense, part: str) -> str:
    """The kind of encoder of a part's modality; empty where it is of none."""
    modality = model.modalities.get(part.partition("_")[2])
    return modality.encoder if modality else ""


def our_name(part: str, name: str, encoder: str) -> str:
    """Our model's name of a tensor of a part; `encoder` is the kind of its modality."""
    kind, _, modality = part.partition("_")
    if part == "ctpe":
        return "dates.table"
    if part == "fusion":
        place, rules = "fusion", FUSION_NAMES
    elif kind == "head":
        place, rules = f"rise.{modality}", HEAD_NAMES
    else:
        place, rules = f"encoders.{modality}", SWIN_NAMES if encoder == "swin" else VIT_NAMES
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


def refuse_mismatch(
    missing: Sequence[str],
    absent: Collection[str],
    surplus: Sequence[str],
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> None:
    """Raise SkysenseError for a gap, a tensor without a place, or one of another shape; names the first few."""
    clashes = [
        f"{name} is {tuple(found[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in found
        if found[name].shape != wanted[name].shape
    ]
    odd = [name for name in found if found[name].dtype not in NUMBERS]

    def anew(names: Sequence[str]) -> str:
        parts = [part for part in dict.fromkeys(map(official_part, names)) if not part.startswith("backbone_")]
        return f", or let it start anew: --allow-missing {','.join(parts)}" if parts else ""

    whole = [part for part in dict.fromkeys(map(official_part, missing)) if part in absent]
    gap = f"Give the file of {', '.join(whole)} too" if whole else "Get the file again; it is not whole"
    left = ",".join(dict.fromkeys(split_name(key)[0] for key in surplus))
    for problem, names, fix in (
        ("tensors of the model are not in the file", missing, f"{gap}{anew(missing)}."),
        ("tensors of the file have no place in the model", surplus, f"To leave them out: --allow-missing {left}"),
        ("tensors have another shape", clashes, f"Name the bands that the file reads, or get it again{anew(clashes)}."),
        ("tensors are not of floating-point numbers of 16 bits and more", odd, "Use weights that are not quantised."),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise SkysenseError(f"the checkpoint does not fit: {len(names)} {problem}: {shown}", fix=fix)
