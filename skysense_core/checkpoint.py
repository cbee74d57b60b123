"""A model is a folder that explains itself: `model.safetensors`, `model.toml`, and two cards: `README.md` for people
and `stac-item.json` for catalogues.

`model.toml` holds everything that prediction needs besides the weights: task and classes, the spec of the model, and a
complete copy of every modality with its statistics. A file that `skysense export` wrote has it inside. Pickles are
never read: reading one can run code.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from skysense_core import config, parallel, registry, runtime
from skysense_core.cards import card, check_item, stac_item
from skysense_core.description import CARD, FORMAT, ITEM, TOML, WEIGHTS, Description, load_description
from skysense_core.errors import SkysenseError
from skysense_core.model.exported import load_exported
from skysense_core.model.files import digest_of, fill, refuse_clash, save_file
from skysense_core.model.skysense import ModelSpec, SkySense
from skysense_core.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel(Description):
    """A model ready to run, in evaluation mode."""

    model: nn.Module
    task: Task


def save_model(
    folder: Path,
    model: nn.Module,
    task: Task | None,
    *,
    name: str,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    licence: str,
    mapped: bool = False,
) -> None:
    """Write the folder whole or not at all, in place of an older model there; without a task it is a starting point.

    `mapped` is for large weights that still lie in the files they come from; see `save_file`.

    Called by process 0, or by all where the model is spread over them. Raises SkysenseError where it cannot be written;
    nothing half-written stays.
    """
    encoder: SkySense = model.encoder  # type: ignore[assignment]
    tensors, output = parallel.whole_state(model), task.output if task else None
    if runtime.rank() != 0:
        return
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill may have left
    try:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / WEIGHTS, mapped=mapped)
        table: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "skysense": version("skysense"),
            "digest": digest_of(temporary / WEIGHTS),
            "licence": licence,
            **({"task": {"name": type(task).__module__.rpartition(".")[2], **config.to_table(task)}} if task else {}),
            "model": config.to_table(encoder.spec),
            "modalities": {key: config.to_table(modality) for key, modality in encoder.modalities.items()},
            "training": training,
            "metrics": metrics,
        }
        config.write_toml(temporary / TOML, table)
        facts: dict[str, Any] = {
            "name": name,
            "task": table["task"]["name"] if task else None,
            "version": table["skysense"],
            "modalities": encoder.modalities,
            "training": training,
            "licence": licence,
        }
        item = stac_item(
            **facts,
            kind=output.kind if output else None,
            classes=output.classes if output else (),
            colours=output.colours if output else (),
            digest=table["digest"],
            size=(temporary / WEIGHTS).stat().st_size,
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            written=datetime.now(UTC),
        )
        (temporary / CARD).write_text(
            card(**facts, output=output.said if output else "", metrics=metrics), encoding="utf-8"
        )
        (temporary / ITEM).write_text(json.dumps(item, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _replace(temporary, folder)
    except OSError as error:
        raise SkysenseError(f"{folder}: the model could not be written: {error}", fix="Make room there.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    # Folders cannot be exchanged in one call; the old one is moved aside for the instant between the two renames.
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """A model from a model folder, run folder, packaged name or exported file.

    Raises SkysenseError for what `load_description` refuses, no or an unknown task, weights that are missing, altered
    or unreadable, and weights that contradict `model.toml`; UsageError where a value in `model.toml` is not allowed.
    """
    description = load_description(path)
    if description.task_name is None:
        raise SkysenseError(
            f"{description.folder}: an encoder without a task: it is a start for training and makes no maps",
            fix=f"Train a model from it: skysense finetune --init {description.folder} --task ... --data ...",
        )
    task = config.build(registry.load("tasks", description.task_name), description.settings, "task")
    said = {field.name: getattr(description, field.name) for field in fields(description)}
    if description.export:
        graph = load_exported(description.folder, description.export, description.modalities, device)
        return LoadedModel(model=graph, task=task, **said)
    tensors = _load_weights(description)
    check_item(description.folder / ITEM, description.digest)
    model = task.build_model(_empty_encoder(description))
    fill(model, description.folder / WEIGHTS, tensors)
    return LoadedModel(model=model.to(device).eval(), task=task, **said)


def _load_weights(description: Description) -> dict[str, torch.Tensor]:
    if description.export:
        raise SkysenseError(
            f"{description.folder}: an exported file, which has no weights to start from",
            fix=f"Give the folder of {description.name}, from which it was made.",
        )
    weights = description.folder / WEIGHTS
    fix = "Copy the whole folder again."
    if not weights.is_file():
        raise SkysenseError(f"{description.folder}: {WEIGHTS} is missing", fix=fix)
    if digest_of(weights) != description.digest:
        raise SkysenseError(f"{weights}: damaged or altered: its digest is not the one in {TOML}", fix=fix)
    try:
        return load_file(weights)
    except SafetensorError as error:
        raise SkysenseError(f"{weights}: not safetensors: {error}", fix=fix) from error


def load_bare(path: Path, device: torch.device) -> tuple[Description, SkySense]:
    """The encoder of a model folder, run folder or packaged name, ready to run; a task that it has is left out.

    Raises as `load_model` does, but for a missing task.
    """
    description = load_description(path)
    tensors = _encoder_tensors(description)
    encoder = _empty_encoder(description)
    fill(encoder, description.folder / WEIGHTS, tensors)
    return description, encoder.to(device).eval()


def _empty_encoder(description: Description) -> SkySense:
    """Without numbers: drawing them takes longer than reading the file, and as much memory again."""
    spec = config.build(ModelSpec, description.spec, "model")
    with torch.device("meta"):
        return SkySense(spec, description.modalities)


def _encoder_tensors(start: Description) -> dict[str, torch.Tensor]:
    return {key.removeprefix("encoder."): t for key, t in _load_weights(start).items() if key.startswith("encoder.")}


def load_encoder(encoder: SkySense, path: Path) -> str:
    """Take the weights of another model's encoder and say, tensor for tensor, what came of them.

    Statistics stay the encoder's own. Parts that the other model lacks (a further modality, fusion) stay as they are.
    Raises SkysenseError for what `load_model` refuses, where a part that both have differs in names or shapes, and
    where they have no part in common.
    """
    start = load_description(path)
    found = _encoder_tensors(start)
    expected = encoder.state_dict()
    shared = {_part(key) for key in found} & {_part(key) for key in expected} - {"normalise"}
    if not shared:
        raise SkysenseError(
            f"{start.name} has nothing for {', '.join(encoder.modalities)}: it knows {', '.join(start.modalities)}",
            fix="Start from another model, or from scratch.",
        )
    taken = {key: tensor for key, tensor in found.items() if _part(key) in shared}
    refuse_clash(
        start.folder / WEIGHTS, taken, {key: tensor for key, tensor in expected.items() if _part(key) in shared}
    )
    encoder.load_state_dict(taken, strict=False)
    report = [f"{len(taken)} tensors of the encoder taken from {start.name}"]
    for what, keys in (("new", expected.keys() - taken.keys()), ("not needed", found.keys() - taken.keys())):
        parts = Counter(_part(key) for key in keys)
        report += [f"{what}: {part} ({count} tensors)" for part, count in sorted(parts.items()) if part != "normalise"]
    return "; ".join(report)


def _part(key: str) -> str:
    """`encoders.s2` or `rise.s2` of what belongs to a modality, otherwise `fusion`, `dates` ..."""
    first, second = key.split(".")[:2]
    return f"{first}.{second}" if first in ("encoders", "rise") else first
