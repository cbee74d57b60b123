"""A folder of pictures, each with one answer as a whole, to a table of probabilities."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from skysense_core import registry, runtime
from skysense_core.checkpoint import LoadedModel, load_model
from skysense_core.data import transforms
from skysense_core.data.batch import collate
from skysense_core.description import load_description
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.paths import RASTERS, natural
from skysense_core.geo.raster import read_picture
from skysense_core.modalities import Modality
from skysense_core.predict.settings import PredictConfig
from skysense_core.types import Sample

log = logging.getLogger(__name__)

FORMATS = (".csv", ".parquet")
BATCH = 16
FAILURES = "failures.jsonl"
"""Beside the table: a line for each picture that failed."""
ELSEWHERE = ("bbox", "aoi", "like", "confidence", "observations", "polygons", "preview", "cluster", "array", "overlap")
"""Settings of maps, which mean nothing here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsResult:
    """What was written of a folder of pictures."""

    path: Path
    model: str
    digest: str
    pictures: int
    classes: dict[str, int]
    """Pictures of which each class is the most probable."""
    failed: tuple[str, ...]
    """Pictures that could not be read."""


def are_chips(given: PredictConfig) -> bool:
    """Whether a table of whole pictures is asked for: a table to be written, and a model with one answer for each."""
    if given.model is None or given.out.suffix.lower() not in FORMATS:
        return False
    name = load_description(given.model).task_name
    return name is not None and bool(registry.load("tasks", name).whole is True)


def predict_chips(given: PredictConfig, *, keep_going: bool = False) -> ChipsResult:
    """A row for every picture below a folder: its path, its most probable class, and the probability of each.

    With `keep_going` a picture that cannot be read is noted in `failures.jsonl` beside the table and the next one
    follows; otherwise nothing is written. Raises UsageError for what does not fit and SkysenseError for such a picture.
    """
    default = PredictConfig(inputs=given.inputs, out=given.out)
    if odd := [name for name in ELSEWHERE if getattr(given, name) != getattr(default, name)]:
        raise UsageError(f"--{odd[0]} is for maps, and {given.out} is a table of pictures", fix="Leave it out.")
    if given.out.exists() and not given.overwrite:
        raise UsageError(f"{given.out} exists", fix="Use --overwrite to replace it.")
    device = runtime.choose_device(given.device)
    assert given.model is not None
    model = load_model(given.model, device)
    folder, pictures = _pictures(given, model)
    modality = model.modalities[model.reference]
    options = given.read.get(modality.name, given.read.get("", ReadOptions()))
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    with tqdm(total=len(pictures), unit="picture", disable=None) as bar:
        left = iter(pictures)
        while chunk := list(islice(left, given.batch_size or BATCH)):
            samples = []
            for path in chunk:
                name = str(path.relative_to(folder))
                try:
                    samples.append(_sample(path, name, modality, options))
                except SkysenseError as error:
                    if not keep_going:
                        raise
                    log.warning("%s: %s", name, error.message)
                    failures.append({"path": name, "error": str(error)})
            rows += _answers(model, samples, device, given.precision) if samples else []
            bar.update(len(chunk))
    if not rows:
        raise SkysenseError(f"{folder}: none of {len(pictures)} pictures could be read")
    table = pd.DataFrame(rows)
    _write(table, given.out)
    (given.out.parent / FAILURES).unlink(missing_ok=True)
    if failures:
        lines = "".join(json.dumps(one) + "\n" for one in failures)
        (given.out.parent / FAILURES).write_text(lines, encoding="utf-8")
    return ChipsResult(
        path=given.out,
        model=model.name,
        digest=model.digest,
        pictures=len(rows),
        classes={name: int((table["class"] == name).sum()) for name in model.task.classes},
        failed=tuple(one["path"] for one in failures),
    )


def _pictures(given: PredictConfig, model: LoadedModel) -> tuple[Path, list[Path]]:
    """The folder, and the pictures in it and below it."""
    if len(model.modalities) > 1:
        raise UsageError(
            f"{model.name} reads {', '.join(model.modalities)}, and a folder of pictures has one kind",
            fix="Use a model of one modality.",
        )
    folder = Path(given.inputs[0].removeprefix(f"{model.reference}="))
    if len(given.inputs) > 1 or not folder.is_dir():
        raise UsageError(
            f"{' '.join(given.inputs)}: a table is made of one folder of pictures", fix="A scene: --out map.tif"
        )
    found = [path for path in folder.rglob("*") if path.suffix.lower() in RASTERS and not path.name.startswith(".")]
    if not found:
        raise SkysenseError(f"{folder}: no picture in this folder or below it")
    return folder, sorted(found, key=lambda path: natural(str(path)))


def _sample(path: Path, name: str, modality: Modality, options: ReadOptions) -> Sample:
    """A picture in a window of the model. Raises SkysenseError where it is larger, or cannot be read."""
    bands = [band.names for band in modality.bands]
    image = read_picture(path, bands=bands, unit=modality.unit, options=options)
    height, width = image.pixels.shape[-2:]
    side = modality.window
    if max(height, width) > side:
        raise SkysenseError(
            f"{path}: {height} x {width} pixels, and the model sees {side} at a time",
            fix="It is a scene: skysense predict SCENE --out map.tif",
        )
    lonlat = None if image.geobox is None else footprint_lonlat(image.geobox)[1]
    whole = Sample(id=name, epochs=({modality.name: image},), lonlat=lonlat)
    return transforms.crop(whole, modality.name, row=0, col=0, height=side, width=side)


def _answers(
    model: LoadedModel, samples: Sequence[Sample], device: torch.device, precision: str
) -> list[dict[str, Any]]:
    with torch.inference_mode(), runtime.autocast(device, precision):
        scores = model.task.scores(model.model, collate(samples).to(device))
    return [
        {"path": sample.id, "class": model.task.classes[int(own.argmax())]}
        | {f"probability of {name}": float(value) for name, value in zip(model.task.classes, own, strict=True)}
        for sample, own in zip(samples, scores[..., 0, 0].float().cpu(), strict=True)
    ]


def _write(table: pd.DataFrame, out: Path) -> None:
    """The table, whole or not at all."""
    if not out.parent.is_dir():
        raise SkysenseError(f"{out.parent}: no such folder", fix="Make it, or write to another one.")
    draft = out.with_name(f".{out.name}.tmp")
    if out.suffix.lower() == ".csv":
        table.to_csv(draft, index=False, float_format="%.6g")
    else:
        table.to_parquet(draft, index=False)
    draft.replace(out)
