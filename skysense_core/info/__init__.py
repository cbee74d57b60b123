"""`skysense info`: what a path holds, be it a store, a model, a run or a raster, without changing or computing much.

`sources`, where no such path is there, stands for the data sets that can be read.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from skysense_core import config, sources
from skysense_core.checkpoint import TOML, WEIGHTS, Description, find_model, load_description, packaged_models
from skysense_core.data import store
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.footprints import check_map, write_map
from skysense_core.info.machine import MachineInfo
from skysense_core.info.scene import RasterInfo, look_at
from skysense_core.modalities import Modality
from skysense_core.model.exported import SUFFIXES
from skysense_core.runs import CONFIG, LOG

EQUAL_AREA = "EPSG:6933"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One modality in a store."""

    modality: Modality
    samples: int
    images: int
    """All dates of all samples."""
    undated: int
    valid: float
    """Mean share of valid pixels."""
    months: dict[str, int]
    """Images by month, `2018-05`, from the first to the last."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What a store holds."""

    path: Path
    version: int
    samples: int
    area_km2: float
    """Of the ground that samples show, which counts once where they overlap."""
    crs: dict[str, int]
    """Samples by CRS."""
    splits: dict[str, int]
    """Samples by part; "" is none."""
    modalities: dict[str, Content]
    labels: dict[str, int]
    """Pixels by class."""
    shards: int
    bytes: int
    failures: int
    """Inputs that could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model folder or an exported model says of itself."""

    path: Path
    name: str
    task: str | None
    classes: tuple[str, ...]
    modalities: dict[str, Modality]
    spec: dict[str, Any]
    parameters: int | None
    """None for an exported model, which is not opened for it."""
    training: dict[str, Any]
    metrics: dict[str, Any]
    licence: str
    digest: str
    skysense: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run has reached."""

    path: Path
    verb: str
    """finetune or pretrain."""
    data: str
    steps: int
    """To be done in all."""
    step: int
    """The last one in the log."""
    metrics: dict[str, dict[str, Any]]
    """The last line of the log of each kind (train, val)."""
    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesInfo:
    """The data sets that can be read."""

    table: dict[str, sources.About]
    """By the name of `--source`."""


Info = StoreInfo | ModelInfo | RunInfo | RasterInfo | SourcesInfo | MachineInfo
SOURCES = "sources"
"""Stands for the data sets that can be read."""


def info(path: str, map_to: Path | None = None, model: Path | None = None) -> Info:
    """What lies at a path, URL or glob, or the packaged model of that name; `map_to` takes a map of a store's samples.

    A raster is held against the packaged modalities and models, and against `model`.

    `sources` is the table of data sets. Raises SkysenseError where nothing lies there or it cannot be read, and
    UsageError for what is none of these.
    """
    found = _look(path, map_to, model)
    if model is not None and not isinstance(found, RasterInfo):
        raise UsageError(f"--model: {path} is no raster", fix="Only a raster is held against a model.")
    return found


def _look(path: str, map_to: Path | None, model: Path | None) -> Info:
    folder = Path(path)
    if map_to is not None:
        check_map(map_to)
        if not (folder / store.DESCRIPTION).is_file():
            raise UsageError(f"--map: {path} is no store", fix="Only the samples of a store can be drawn.")
    if (folder / store.DESCRIPTION).is_file():
        return _store(folder, map_to)
    if (folder / CONFIG).is_file():
        return _run(folder)
    exported = folder.suffix.lower() in SUFFIXES and folder.is_file()
    if exported or (folder / TOML).is_file() or (not folder.exists() and path in packaged_models()):
        return _model(find_model(folder))
    if path == SOURCES and not folder.exists():
        return SourcesInfo(table=sources.abouts())
    folders = [*packaged_models().values(), *([find_model(model)] if model is not None else [])]
    return look_at(path, {_called(one): one.modalities for one in map(load_description, folders)})


def _called(model: Description) -> str:
    """What to give as `--model`: the name of a packaged one, the place of another."""
    return model.name if packaged_models().get(model.name) == model.folder else str(model.folder)


def _store(folder: Path, map_to: Path | None) -> StoreInfo:
    description = store.load_description(folder)
    table = store.read_index(folder)
    frame = table.drop_columns(["geometry"]).to_pandas()
    geometry = gpd.GeoSeries.from_wkb(table["geometry"].to_pandas(), crs="EPSG:4326")
    placed = gpd.GeoDataFrame(frame, geometry=geometry)
    if map_to is not None:
        write_map(map_to, placed, folder.name)
    ground = geometry[~(geometry.isna() | geometry.is_empty)].to_crs(EQUAL_AREA)
    pixels = np.zeros(len(description.classes), dtype=np.int64)
    for counts in frame["label_counts"]:
        pixels[: len(counts)] += np.asarray(counts, dtype=np.int64)
    failures = folder / store.FAILURES
    return StoreInfo(
        path=folder,
        version=description.version,
        samples=len(frame),
        area_km2=float(ground.union_all().area / 1e6) if len(ground) else 0.0,
        crs=_counts(frame["crs"]),
        splits=_counts(frame["split"]),
        modalities={
            name: _content(frame, modality, description.facts[name].notes if name in description.facts else ())
            for name, modality in description.modalities.items()
        },
        labels=dict(zip(description.classes, pixels.tolist(), strict=True)),
        shards=sum(1 for _ in (folder / store.SHARDS).glob("*.tar")),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        failures=len(failures.read_text(encoding="utf-8").splitlines()) if failures.is_file() else 0,
    )


def _counts(column: "pd.Series[str]") -> dict[str, int]:
    return {str(name): int(count) for name, count in column.fillna("").value_counts().items()}


def _content(frame: pd.DataFrame, modality: Modality, notes: Sequence[str]) -> Content:
    own = frame[frame[f"{modality.name}_size"] > 0]
    days = [str(day) for days in own[f"{modality.name}_dates"] for day in days]
    months = Counter(day[:7] for day in days if day)
    first, last = (min(months), max(months)) if months else ("1970-01", "1969-12")
    span = np.arange(np.datetime64(first, "M"), np.datetime64(last, "M") + 1).astype(str).tolist()
    return Content(
        modality=modality,
        samples=len(own),
        images=len(days),
        undated=days.count(""),
        valid=float(own[f"{modality.name}_valid"].mean()) if len(own) else 0.0,
        months={month: months[month] for month in span},
        notes=tuple(notes),
    )


def _model(folder: Path) -> ModelInfo:
    described = load_description(folder)
    file = folder if described.export else folder / WEIGHTS
    return ModelInfo(
        path=folder,
        name=described.name,
        task=described.task_name,
        classes=described.classes,
        modalities=described.modalities,
        spec=described.spec,
        parameters=None if described.export else _parameters(file),
        training=described.training,
        metrics=described.metrics,
        licence=described.licence,
        digest=described.digest,
        skysense=described.version,
        bytes=file.stat().st_size,
    )


def _parameters(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SkysenseError(f"{file}: cannot be read: {error}", fix="Copy or train it again.") from None


def _run(folder: Path) -> RunInfo:
    settings = config.load_toml(folder / CONFIG)
    data = settings.get("data", {})
    log = folder / LOG
    metrics: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # a kill cut the last line short
            continue
        metrics[str(entry.pop("kind", ""))] = entry
    return RunInfo(
        path=folder,
        verb="finetune" if "task" in settings else "pretrain",
        data=f"{data.get('source', '?')} {data.get('path', '')}".strip(),
        steps=int(settings.get("train", {}).get("steps", 0)),
        step=max((int(entry.get("step", 0)) for entry in metrics.values()), default=0),
        metrics=metrics,
        models=tuple(_model(folder / name) for name in ("best", "last") if (folder / name / TOML).is_file()),
    )


def next_command(found: Info) -> str | None:
    """What one would run next, with what is found; capitals stand for what only the user knows."""
    match found:
        case StoreInfo() if found.labels:
            return f"skysense finetune --task segmentation --data {found.path} --out RUN"
        case StoreInfo():
            return f"skysense pretrain --data {found.path} --out RUN"
        case ModelInfo(task=None):
            return f"skysense finetune --task TASK --data DATA --init {found.path} --out RUN"
        case ModelInfo():
            return f"skysense predict SCENE --model {found.path} --out map.tif"
        case RunInfo() if found.step < found.steps:
            return f"skysense {found.verb} --config {found.path / CONFIG} --out {found.path} --resume"
        case RunInfo(verb="finetune"):
            return f"skysense predict SCENE --model {found.path} --out map.tif"
        case RunInfo():
            return f"skysense finetune --task TASK --data DATA --init {found.path} --out RUN"
        case RasterInfo():
            return _use(found)
        case _:
            return None


def _use(scene: RasterInfo) -> str:
    """With a model that reads it, else as training data, else with its bands named."""
    reading = [fit for fit in scene.fits if fit.refused is None]
    model = next((fit.model for fit in reading if fit.model is not None), None)
    if model is not None:
        return f"skysense predict {scene.path} --model {model} --out map.tif"
    if reading:
        return (
            f"skysense finetune --task segmentation --data {reading[0].modality}={scene.path} --labels LABELS --out RUN"
        )
    return f"skysense predict {scene.path} --bands NAMES --model MODEL --out map.tif"


def as_table(found: Info) -> dict[str, Any]:
    """Everything, for JSON; `kind` says what it is, `next` what to run."""
    kind = type(found).__name__.removesuffix("Info").lower()
    return {"kind": kind, **config.to_table(found), "next": next_command(found)}
