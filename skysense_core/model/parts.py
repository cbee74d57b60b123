"""Which of the authors' parts a file of weights holds: told from its tensors, and from its name where these do not say.

A file is the one-file checkpoint or one part, in the authors' naming, or an encoder in timm's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from skysense_core.errors import SkysenseError, UsageError, unknown
from skysense_core.modalities import Modality
from skysense_core.model.official import split_name, unwrap, with_part

PREFIXED = re.compile(r"(backbone_\w+|head_\w+|fusion)\.")
CONTENTS = {
    "fusion": re.compile(r"porj_linear\."),
    "head": re.compile(r"decoder\.0\."),
    "swin": re.compile(r"stages\.\d+\.blocks\."),
    "swin of timm": re.compile(r"layers\.\d+\.blocks\."),
    "vit of timm": re.compile(r"blocks\.\d+\.attn\.qkv\."),
    "vit": re.compile(r"layers\.\d+\.attn\.attn\."),
}
"""Kinds of part, and names of tensors that only such a part has."""
REPEATED = 2**34
"""Bytes that tensors which repeat their numbers may take beyond the file: twice the largest model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file's tensors, named as in the one-file checkpoint."""

    path: Path
    tensors: dict[str, Tensor]
    timm: str | None = None
    """The kind of encoder where the naming is timm's: swin or vit."""
    modality: str = ""
    """Of a file with one encoder or head."""


def part_of(path: Path, loaded: Mapping[str, Any], named: str, known: Mapping[str, Modality]) -> Part:
    """What a file holds. `named` is the modality that the user gave for it, or empty; `known` are all there are.

    Raises UsageError where the modality must be named, and SkysenseError for a file of something else.
    """
    try:
        tensors = unwrap(loaded)
    except SkysenseError as error:
        raise SkysenseError(f"{path}: {error.message}", fix=error.fix) from error
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > max(path.stat().st_size, REPEATED):
        raise SkysenseError(
            f"{path}: its tensors would take {claimed / 2**30:,.0f} GiB: no model is so large",
            fix="It is no file of weights; get it again from its authors.",
        )
    if any(PREFIXED.match(key) for key in tensors):
        if named:
            raise UsageError(f"{path} names its parts itself", fix=f"Give it without {named}=")
        return Part(path=path, tensors={rename(key): tensor for key, tensor in tensors.items()})
    bare = [key.removeprefix("backbone.") for key in tensors]
    kind = next((kind for kind, pattern in CONTENTS.items() if any(map(pattern.match, bare))), None)
    if kind == "fusion" or bare == ["ctpe"]:
        return Part(path=path, tensors=with_part("fusion", tensors))
    if kind is None:
        shown = ", ".join(bare[:3]) or "nothing"
        raise SkysenseError(
            f"{path}: no part of SkySense, nor a Swin V2 or ViT of timm: it has {shown}",
            fix="Give the published files as they are, or weights in the naming of timm.",
        )
    encoder = kind.split()[0]
    modality = modality_of(path, encoder, input_bands(tensors), named, known)
    part = f"{'head' if kind == 'head' else 'backbone'}_{modality}"
    timm = encoder if kind.endswith("timm") else None
    return Part(path=path, tensors=with_part(part, tensors), timm=timm, modality=modality)


def modality_of(path: Path, kind: str, bands: int | None, named: str, known: Mapping[str, Modality]) -> str:
    """The modality of an encoder or head: as named by the user, the only one of its kind, by file name, by bands."""
    encoder = "vit" if kind == "head" else kind
    fitting = [name for name, one in known.items() if one.encoder == encoder]
    if named:
        if named not in known:
            raise unknown("modality", named, known)
        if named not in fitting:
            raise UsageError(
                f"{path} holds a {kind}, and {named} is read by a {known[named].encoder}",
                fix=f"Give it as one of {', '.join(fitting)}.",
            )
        return named
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    for choice in (fitting, [n for n in fitting if n in words], [n for n in fitting if len(known[n].bands) == bands]):
        if len(choice) == 1:
            return choice[0]
    raise UsageError(
        f"{path}: neither its name nor its tensors say of which modality it is: {', '.join(fitting)}",
        fix=f"Say it: {fitting[0] if fitting else 'NAME'}={path}",
    )


def input_bands(tensors: Mapping[str, Tensor]) -> int | None:
    """How many bands an encoder reads."""
    found = [t for key, t in tensors.items() if re.search(r"patch_embed\.proj(ection)?\.weight$", key)]
    return found[0].shape[1] if found and found[0].ndim == 4 else None


def rename(key: str) -> str:
    """A name of the one-file checkpoint, with the present name of the part."""
    part, name = split_name(key)
    return key if part == name else f"{part}.{name}"


def join(parts: list[Part]) -> dict[str, Tensor]:
    """The tensors of several files. The dates may be in many of them, equal.

    Raises UsageError where two files hold the same tensor, SkysenseError where their dates differ.
    """
    joined: dict[str, Tensor] = {}
    owner: dict[str, Path] = {}
    for part in parts:
        for key, tensor in part.tensors.items():
            if key in joined and key != "ctpe":
                raise UsageError(f"{part.path} and {owner[key]} both hold {key}", fix="Give one of them.")
            if key in joined and not (joined[key].shape == tensor.shape and bool((joined[key] == tensor).all())):
                raise SkysenseError(
                    f"{part.path} and {owner[key]} hold different dates (ctpe): they are of different models",
                    fix="Give the files of one model.",
                )
            joined[key], owner[key] = tensor, part.path
    return joined
