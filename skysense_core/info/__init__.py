"""`skysense info`: what a path holds, be it a store, a model, a run, a data set or a raster, without changing anything.

`sources`, where no such path is there, stands for the data sets that can be read. Nothing here imports torch unless a
model is measured, and tables only where there is one: looking at a raster shall not wait for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skysense_core import config, sources
from skysense_core.description import EXPORTS, TOML, Description, find_model, load_description, packaged_models
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import RASTERS, is_plain
from skysense_core.info.dataset import DatasetInfo, look_at_dataset, training_command
from skysense_core.info.machine import MachineInfo
from skysense_core.info.scene import RasterInfo, look_at
from skysense_core.info.stored import StoreInfo, training_from_store
from skysense_core.info.trained import ModelInfo, RunInfo, look_at_model, look_at_run
from skysense_core.runs import CONFIG

CANNOT = (
    "info shows stores, models (folders, .pt2, .onnx), runs, data sets, and what predict reads: rasters, products, "
    "cubes."
)
PICTURES = "images"
"""The layout of any folder of pictures: the reader of rasters is asked first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesInfo:
    """The data sets that can be read."""

    table: dict[str, sources.About]
    """By the name of `--source`."""


Info = StoreInfo | ModelInfo | RunInfo | DatasetInfo | RasterInfo | SourcesInfo | MachineInfo
SOURCES = "sources"
"""Stands for the data sets that can be read."""


def info(
    path: str,
    map_to: Path | None = None,
    model: Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    every: bool = False,
    speed: bool | None = None,
) -> Info:
    """What lies at a path, URL or glob, or the packaged model of that name; `map_to` takes a map of a store's samples.

    A raster is held against the packaged modalities and models, and against `model`. Of a data set `settings` (the
    `data` and `modalities` tables of a training) say what its layout does not, and `every` sample is read. The `speed`
    of a model is measured; None: of small ones only.

    `sources` is the table of data sets. Raises SkysenseError where nothing lies there or it cannot be read, and
    UsageError for what is none of these.
    """
    found = _look(path, map_to, model, settings or {}, every=every, speed=speed)
    for option, given, kind, what in (
        ("--model", model, RasterInfo, "raster"),
        ("--source, --classes, --set", settings, DatasetInfo, "data set"),
        ("--all", every, DatasetInfo, "data set"),
        ("--speed", speed, ModelInfo, "model"),
    ):
        if given and not isinstance(found, kind):
            raise UsageError(f"{option}: {path} is no {what}", fix="Leave it out.")
    return found


def _look(
    path: str,
    map_to: Path | None,
    model: Path | None,
    settings: Mapping[str, Any],
    *,
    every: bool,
    speed: bool | None,
) -> Info:
    folder = Path(path)
    if folder.is_dir() or map_to is not None:
        from skysense_core.info.index import is_store, look_at_store

        if is_store(folder, map_to):
            return look_at_store(folder, map_to)
    if (folder / CONFIG).is_file():
        return look_at_run(folder)
    exported = folder.suffix.lower() in EXPORTS and folder.is_file()
    if exported or (folder / TOML).is_file() or (not folder.exists() and path in packaged_models()):
        return look_at_model(find_model(folder), speed)
    if path == SOURCES and not folder.exists():
        return SourcesInfo(table=sources.abouts())
    layout, looked_for = _layout(path, settings)
    if layout is not None and (layout != PICTURES or settings):
        return look_at_dataset(folder, settings, every=every)
    folders = [*packaged_models().values(), *([find_model(model)] if model is not None else [])]
    try:
        scene = look_at(path, {_called(one): one.modalities for one in map(load_description, folders)})
    except SkysenseError as error:
        if layout is None and is_plain(path) and folder.exists():
            message = f"{path}: neither a store, a model nor a run, and no raster: {error.message}{looked_for}"
            raise UsageError(message, fix=CANNOT) from None
        if layout is None:
            raise
    else:
        if layout is None or scene.crs is not None or scene.files == 1:
            return scene
    return look_at_dataset(folder, settings, every=every)  # pictures that are not of one place


def _layout(path: str, settings: Mapping[str, Any]) -> tuple[str | None, str]:
    """The data set whose layout a path has, or else what was looked for."""
    folder = Path(path)
    if "source" in settings.get("data", {}):
        return str(settings["data"]["source"]), ""
    if not is_plain(path) or not folder.exists() or folder.suffix.lower() in RASTERS:
        return None, ""
    try:
        return sources.detect(folder), ""
    except UsageError as error:
        return None, f"\n{error.message}" if folder.is_dir() else ""


def _called(model: Description) -> str:
    """What to give as `--model`: the name of a packaged one, the place of another."""
    return model.name if packaged_models().get(model.name) == model.folder else str(model.folder)


def next_command(found: Info) -> str | None:
    """What one would run next, with what is found; capitals stand for what only the user knows."""
    match found:
        case StoreInfo():
            return training_from_store(found.path, labelled=bool(found.labels))
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
        case DatasetInfo():
            return training_command(found)
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
