"""`skysense convert`: published weights become a model folder to fine-tune from, and nothing is lost unsaid."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from skysense_core import config, modalities, runtime
from skysense_core.checkpoint import save_model
from skysense_core.description import TOML
from skysense_core.errors import UsageError, unknown
from skysense_core.modalities import Modality
from skysense_core.model.adapt import Adapted, from_timm, resize_positions
from skysense_core.model.files import load_tensors
from skysense_core.model.inputs import adapt_input, with_bands
from skysense_core.model.official import LoadReport, load_official, split_name
from skysense_core.model.parts import Part, join, part_of
from skysense_core.model.presets import ModelSpec
from skysense_core.model.sizes import sizes_of
from skysense_core.model.skysense import Normalise, SkySense
from skysense_core.model.vit import PATCH

log = logging.getLogger(__name__)

OFFICIAL = "non-commercial research only, as the authors of SkySense state for their weights"
UNSTATED = "not stated"
OPTIONS = ("fusion", "dates_on", "align", "class_token", "vit_eps", "pad_small_map")
"""Fields of the model's spec that the files do not settle."""
TIMM_HEAD = 64
"""Width of one attention head of timm's ViTs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """The settings of one conversion."""

    files: dict[str, tuple[Path, ...]]
    """By modality; under "" those that say themselves what they are."""
    out: Path
    """The model folder."""
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Bands to read instead of those of the weights, by modality; "" where there is one modality."""
    only: tuple[str, ...] = ()
    """Take these modalities and leave the others out; none named means all."""
    allow_missing: tuple[str, ...] = ()
    """Parts that need not fit: absent or broken ones start anew, and what has no place in the model is left out."""
    heads: dict[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    """Attention heads of a modality's ViT or of `fusion`, where no preset has that width and depth."""
    native: dict[str, Annotated[int, Field(ge=PATCH, multiple_of=PATCH)]] = field(default_factory=dict)
    """Side in pixels, by modality, that the position table of a ViT is resized to while loading."""
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields that differ from a modality's file."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's spec that no file settles: fusion, dates_on, align, class_token, vit_eps, pad_small_map."""
    licence: str | None = None
    """Of the weights; not given: that of the authors where the names are theirs."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What was written, and what became of every tensor."""

    folder: Path
    preset: str
    """Its name; `custom` where the sizes are no preset's."""
    modalities: dict[str, tuple[str, ...]]
    """Bands by modality."""
    fusion: bool
    parameters: int
    report: LoadReport
    notes: tuple[str, ...]
    """What was adapted, left out or starts anew."""
    licence: str
    seconds: float

    @property
    def ignored(self) -> dict[str, int]:
        """How many tensors of each last name have no place in the model."""
        return dict(Counter(key.rpartition(".")[2] for key in self.report.ignored))


def convert(given: ConvertConfig) -> ConvertResult:
    """Read the files, find out the sizes, account for every tensor, and write a model folder without a task.

    No code in the files is run. The folder appears whole or not at all. Raises UsageError for settings that do not
    fit the files or an existing folder, and SkysenseError for a file that cannot be trusted and for any gap, surplus
    or clash of shapes that `allow_missing` does not name.
    """
    started = time.perf_counter()
    check_folder(given.out, overwrite=given.overwrite)
    if stray := next((key for key in given.model if key not in OPTIONS), None):
        raise UsageError(f"model.{stray} follows from the files", fix=f"May be set: {', '.join(OPTIONS)}.")
    with runtime.interruptible("convert interrupted; nothing was written"):
        known = known_modalities(given)
        parts = [
            part_of(path, load_tensors(path), name, known) for name, paths in given.files.items() for path in paths
        ]
        tensors, notes = leave_out(join(parts), given)
        wanted = wanted_modalities(tensors, known, given)
        adapted = adapt(tensors, parts, known, wanted, given)
        spec = spec_of(adapted.tensors, parts, wanted, given)
        with torch.device("meta"):
            encoder = SkySense(spec, wanted)
        encoder.normalise = nn.ModuleDict({name: Normalise(one) for name, one in wanted.items()})
        refuse_unknown_parts(given, tensors, wanted)
        runtime.seed_step(0)
        report = load_official(
            encoder,
            adapted.tensors,
            allow_missing=given.allow_missing,
            ignore=adapted.unused,
            permuted=adapted.permuted,
        )
        fresh = fresh_modules(report)
        notes += [*adapted.notes, *([f"start anew: {', '.join(fresh)}"] if fresh else [])]
        theirs = any(part.timm is None for part in parts)
        result = ConvertResult(
            folder=given.out,
            preset="custom" if spec.custom else spec.preset,
            modalities={name: one.band_names for name, one in wanted.items()},
            fusion=spec.fusion,
            parameters=sum(parameter.numel() for parameter in encoder.parameters()),
            report=report,
            notes=tuple(notes),
            licence=given.licence or (OFFICIAL if theirs else UNSTATED),
            seconds=0.0,
        )
        save_model(
            given.out,
            nn.ModuleDict({"encoder": encoder}),
            None,
            name=given.out.resolve().name,
            training=facts(result, parts),
            metrics={},
            licence=result.licence,
            mapped=True,
        )
    return replace(result, seconds=time.perf_counter() - started)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError where something is in the way that may not be replaced."""
    if not folder.name:
        raise UsageError(f"--out {folder}: a model needs a folder of its own", fix="For example --out skysense-hr")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / TOML).is_file():
        raise UsageError(f"{folder} is no model, so it is not replaced", fix="Choose another --out.")
    if not overwrite:
        raise UsageError(f"{folder} exists", fix="Use --overwrite to replace it.")


def known_modalities(given: ConvertConfig) -> dict[str, Modality]:
    """Every modality that weights could be of, with the bands that the weights read."""
    names = dict.fromkeys((*modalities.packaged(), *given.modalities, *filter(None, given.files)))
    tables = {name: {k: v for k, v in given.modalities.get(name, {}).items() if k != "bands"} for name in names}
    return {name: modalities.load(name, table) for name, table in tables.items()}


def leave_out(tensors: dict[str, Tensor], given: ConvertConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Without the modalities, and without the fusion, that the user does not want; and a note on what that left out."""
    unwanted, parts = set(), {split_name(key)[0] for key in tensors}
    refuse_absent("--modalities", given.only, [p.partition("_")[2] for p in sorted(parts) if p.startswith("backbone_")])
    for part in parts:
        kind, _, modality = part.partition("_")
        if (modality and kind in ("backbone", "head") and given.only and modality not in given.only) or (
            kind in ("head", "fusion", "ctpe") and given.model.get("fusion") is False
        ):
            unwanted.add(part)
    kept = {key: tensor for key, tensor in tensors.items() if split_name(key)[0] not in unwanted}
    return kept, [f"left out: {', '.join(sorted(unwanted))}"] if unwanted else []


def wanted_modalities(
    tensors: Mapping[str, Tensor], known: Mapping[str, Modality], given: ConvertConfig
) -> dict[str, Modality]:
    """The modalities whose encoders are there, with the bands that the user wants.

    Raises UsageError where there is none, or where a setting names one that is not there.
    """
    backbones = dict.fromkeys(split_name(key)[0] for key in tensors if key.startswith("backbone_"))
    names = [part.partition("_")[2] for part in backbones]
    for name in names:
        if name not in known:
            raise unknown("modality", name, known)
    if not names:
        raise UsageError("no encoder is among the files", fix="Give at least one of the backbone files too.")
    vits = [name for name in names if known[name].encoder == "vit"]
    refuse_absent("--bands", filter(None, given.bands), names)
    refuse_absent("heads", given.heads, [*vits, "fusion"])
    refuse_absent("native", given.native, vits)
    if "" in given.bands and len(names) > 1:
        raise UsageError(
            f"--bands: of which modality? There are {', '.join(names)}",
            fix=f"Say it: --bands {names[0]}={','.join(given.bands[''])}",
        )
    wanted = {}
    for name in names:
        bands = given.bands.get(name, given.bands.get("", given.modalities.get(name, {}).get("bands")))
        wanted[name] = known[name] if bands is None else with_bands(known[name], bands)
    return wanted


def refuse_absent(setting: str, keys: Iterable[str], there: Sequence[str]) -> None:
    """Raise UsageError where a setting names a modality that the files do not hold."""
    for key in keys:
        if key not in there:
            raise UsageError(f"{setting}: {key} is not in the files", fix=f"There are {', '.join(there) or 'none'}.")


def adapt(
    tensors: dict[str, Tensor],
    parts: list[Part],
    known: Mapping[str, Modality],
    wanted: Mapping[str, Modality],
    given: ConvertConfig,
) -> Adapted:
    """All tensors for the bands and the picture size that are wanted, and those of timm in our order."""
    permuted, unused, notes = [], [], []
    for part in parts:
        if part.timm and part.modality in wanted:
            prefix = f"backbone_{part.modality}."
            bare = {key.removeprefix(prefix): tensor for key, tensor in part.tensors.items()}
            one = from_timm(part.timm, bare, wanted[part.modality].bands)
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
            tensors |= {prefix + name: tensor for name, tensor in one.tensors.items()}
            permuted += [prefix + name for name in one.permuted]
            unused += [prefix + name for name in one.unused]
            notes += [f"{part.modality}: {note}" for note in one.notes]
    for name in wanted:
        key = f"backbone_{name}.patch_embed.projection.weight"
        if key in tensors and tensors[key].ndim == 4:
            tensors[key], note = adapt_input(tensors[key], known[name], wanted[name])
            notes += [note] if note else []
    for name, side in given.native.items():
        key = f"backbone_{name}.pos_embed"
        if key in tensors and tensors[key].ndim == 3:
            before = tensors[key].shape[1] - 1
            tensors[key] = resize_positions(tensors[key], side // PATCH)
            notes.append(f"{name}: position table of {before} entries resized to {(side // PATCH) ** 2}")
    return Adapted(tensors=tensors, permuted=tuple(permuted), unused=tuple(unused), notes=tuple(notes))


def spec_of(
    tensors: Mapping[str, Tensor], parts: list[Part], wanted: Mapping[str, Modality], given: ConvertConfig
) -> ModelSpec:
    """What the model is built from: sizes from the shapes, the rest as the weights' origin and the user want it."""
    theirs = {name: f"backbone_{name}.patch_embed.proj.weight" for name in wanted if wanted[name].encoder == "vit"}
    vits = {name: (key in tensors, f"backbone_{name}.cls_token" in tensors) for name, key in theirs.items()}
    if len(set(vits.values())) > 1:
        raise UsageError(
            f"{', '.join(vits)}: ViTs of SkySense and of timm, or with and without a class token, make no one model",
            fix="Convert them one by one.",
        )
    options: dict[str, Any] = {"fusion": any(split_name(key)[0].startswith(("fusion", "head_")) for key in tensors)}
    heads = dict(given.heads)
    for name, (of_timm, class_token) in vits.items():
        if of_timm:
            width = tensors[theirs[name]].shape[0]
            options |= {"vit_eps": 1e-6, "class_token": class_token}
            heads |= {} if name in heads or width % TIMM_HEAD else {name: width // TIMM_HEAD}
    sizes = {key: tensor for key, tensor in tensors.items() if split_name(key)[0] in sized_parts(wanted)}
    name, custom = sizes_of(sizes, {name: one.encoder for name, one in wanted.items()}, heads)
    return config.build(ModelSpec, {"preset": name, "custom": custom, **options, **given.model}, "model")


def refuse_unknown_parts(given: ConvertConfig, tensors: Mapping[str, Tensor], wanted: Mapping[str, Modality]) -> None:
    """Raise UsageError where `allow_missing` names what neither the files nor the model have."""
    known = sized_parts(wanted) | {"ctpe"} | {split_name(key)[0] for key in tensors}
    for part in given.allow_missing:
        if part not in known:
            raise unknown("part", part, known)


def sized_parts(wanted: Mapping[str, Modality]) -> set[str]:
    return {f"{kind}_{name}" for kind in ("backbone", "head") for name in wanted} | {"fusion"}


def fresh_modules(report: LoadReport) -> list[str]:
    """Where tensors start anew, each module once: `encoders.hr.norms.0`, `fusion`."""
    found = (name.rpartition(".")[0] if name.startswith("encoders") else name.split(".")[0] for name in report.fresh)
    return list(dict.fromkeys(found))


def facts(result: ConvertResult, parts: list[Part]) -> dict[str, Any]:
    """What the model folder says of its origin."""
    report = result.report
    counts = {"matched": report.matched, "renamed": report.renamed, "permuted": report.permuted}
    return {
        "converted_from": ", ".join(part.path.name for part in parts),
        "tensors": ", ".join(f"{count} {what}" for what, count in {**counts, "ignored": len(report.ignored)}.items()),
        **({"adapted": "; ".join(result.notes)} if result.notes else {}),
    }
