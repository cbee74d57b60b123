"""Predict DataArrays: imagery in memory, or lazily in dask arrays, becomes a map with the same coordinates and CRS.

A lazy map is cut into chunks that are predicted each by itself, on the window lattice of the whole scene: it is the
map that the scene gives at once, and what it does not need is never computed.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Num

from skysense_core import runtime
from skysense_core.checkpoint import LoadedModel, load_model
from skysense_core.data.batch import Batch
from skysense_core.data.scene import of_level
from skysense_core.errors import UsageError, unknown
from skysense_core.geo.array import Values, hold, layer_of, like, needed, onto, open_array
from skysense_core.geo.raster import ReadOptions, Stack
from skysense_core.geo.windows import Window, window_over
from skysense_core.inference import MARGIN, Meter, Plan, plan_sweep, strip_width, strips_of, sweep
from skysense_core.merge.raster import Part
from skysense_core.modalities import Modality, finest
from skysense_core.tasks import ObjectOutput, RasterOutput
from skysense_core.types import IGNORE

CHUNK = 2048
"""Least side in pixels of a lazy map's chunks: windows astride two chunks are computed for both."""
Arrays = dict[str, Num[np.ndarray, "_ h w"]]
"""What is wanted: classes (1, h, w) uint8, confidence (1, h, w), probabilities or other scores (k, h, w) float32."""


def predict_array(
    scene: xr.DataArray | Mapping[str, xr.DataArray],
    model: str | Path | LoadedModel,
    *,
    confidence: bool = False,
    probabilities: bool = False,
    read: Mapping[str, ReadOptions] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    jobs: int | None = None,
) -> xr.DataArray | xr.Dataset:
    """The class of every pixel of a scene, uint8, 255 where there is no data, on the scene's grid.

    `scene` has dimensions y, x and maybe band and time, coordinates and a CRS (as rioxarray writes it), and is the
    array of the model's one modality, or {modality: array}. Bands are found by name, as in files: by the coordinate
    of `band` or by `long_name`. NaN and the stated nodata are no data. With dask arrays the map is lazy too.
    With `confidence` (the highest probability) or `probabilities` the result is a Dataset of `classes` and these,
    float32, NaN where there is no data. The other settings are those of `predict.PredictConfig`; where a message
    names an option of the command line, `--bands r,g,b` is `read={"": ReadOptions(bands=("r", "g", "b"))}` here.

    Raises UsageError and SkysenseError for what does not fit together; what is lazy is not read for that, but for a
    little where the unit of the values has to be judged.
    """
    on = runtime.choose_device(device)
    loaded = model if isinstance(model, LoadedModel) else load_model(Path(model), on)
    loaded.model.to(on)
    if loaded.task.output.epochs > 1:
        raise UsageError(
            f"{loaded.name} compares {loaded.task.output.epochs} dates, and arrays are imagery of one",
            fix="Write them as files, and use predict: before, then after.",
        )
    if isinstance(loaded.task.output, ObjectOutput):
        raise UsageError(f"{loaded.name} finds objects, no map", fix="skysense predict SCENE --out objects.gpkg")
    arrays = _by_modality(scene, loaded.modalities)
    stacks = {name: open_modality(array, loaded.modalities[name], read or {}) for name, array in arrays.items()}
    if type(loaded.task.output) is not RasterOutput:
        raise UsageError(
            f"{loaded.name} makes no map of classes: {loaded.task.output.said}", fix="Write a file: skysense predict."
        )
    plan = plan_sweep(stacks, loaded.modalities, window=window, shared=overlap, whole=loaded.task.whole)
    settings = Settings(
        wanted=("classes", *["confidence"] * confidence, *["probabilities"] * probabilities),
        device=str(on),
        batch_size=batch_size or plan.batch_size(on),
        precision=precision,
        readers=jobs or min(4, os.cpu_count() or 1),
    )
    lazy = any(array.chunks is not None for array in arrays.values())
    made = _lazily(plan, loaded, settings) if lazy else predict_plan(plan, loaded, settings)
    drawn = {name: _drawn(name, values, arrays[plan.scene.reference], plan, loaded) for name, values in made.items()}
    return drawn["classes"] if len(drawn) == 1 else xr.Dataset(drawn)


def _by_modality(
    scene: xr.DataArray | Mapping[str, xr.DataArray], modalities: Mapping[str, Modality]
) -> Mapping[str, xr.DataArray]:
    reference = finest(modalities)
    if isinstance(scene, xr.DataArray):
        if len(modalities) > 1:
            fix = f'Give {{"{reference}": array}}.'
            raise UsageError(f"the model reads {', '.join(modalities)}: which is this array?", fix=fix)
        return {reference: scene}
    for name in scene:
        if name not in modalities:
            raise unknown("modality", name, modalities)
    if reference not in scene:
        raise UsageError(f"no array for {reference}, on whose grid the map is made", fix=f'Add "{reference}": array.')
    return scene


def open_modality(array: xr.DataArray, modality: Modality, read: Mapping[str, ReadOptions]) -> Stack:
    options = read.get(modality.name, read.get("", ReadOptions()))
    names = [band.names for band in modality.bands]
    return of_level(open_array(array, modality.name, bands=names, unit=modality.unit, options=options), modality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a plan is carried out; travels to dask's workers."""

    wanted: tuple[str, ...]
    device: str
    batch_size: int
    precision: str
    readers: int


def predict_plan(plan: Plan, model: LoadedModel, settings: Settings) -> Arrays:
    """The plan's target, from pixels that are at hand."""
    on, region, classes = torch.device(settings.device), plan.region, model.task.output.channels

    @torch.inference_mode()
    def score(batch: Batch) -> torch.Tensor:
        with runtime.autocast(on, settings.precision):
            return model.task.scores(model.model, batch)

    made: Arrays = {}
    with Meter(len(plan.lattice.windows(region)), region.height * region.width) as meter:
        for part in sweep(
            plan.scene,
            plan.lattice,
            strips_of(region, strip_width(4 * classes * plan.lattice.window, region.width)),
            score,
            lambda strip: model.task.merger(plan.lattice, strip, on),
            on=on,
            batch_size=settings.batch_size,
            readers=settings.readers,
            meter=meter,
        ):
            at = part.window.shifted(-region.row, -region.col)
            for name, values in _values(part, model, settings.wanted).items():
                whole = made.setdefault(name, np.empty((len(values), region.height, region.width), values.dtype))
                whole[:, at.row : at.row_stop, at.col : at.col_stop] = values
    if plan.warped:
        ground = region.geobox(plan.scene.grid)
        made = {name: onto(values, ground, plan.target, _nodata(name)) for name, values in made.items()}
    return made


def _values(part: Part, model: LoadedModel, wanted: Sequence[str]) -> Arrays:
    made: Arrays = {}
    if "classes" in wanted:
        made["classes"] = model.task.decode(part.scores, part.valid)[None]
    scores = part.scores.masked_fill(~part.valid, torch.nan)
    if "confidence" in wanted:
        made["confidence"] = scores.amax(dim=0, keepdim=True).cpu().numpy()
    for name in {"probabilities", "scores"} & set(wanted):
        made[name] = scores.cpu().numpy()
    return made


def _nodata(name: str) -> float:
    return float(IGNORE) if name == "classes" else math.nan


def _lazily(plan: Plan, loaded: LoadedModel, settings: Settings) -> dict[str, Values]:
    """The plan's target as dask arrays, each chunk a task of its own that reads no more of the scene than it needs."""
    import dask
    import dask.array

    scene = plan.scene
    values = {name: dask.array.asarray(layer_of(stack).values) for name, stack in scene.stacks.items()}
    # In the graph once, and not once per chunk.
    shared = dask.delayed(loaded, traverse=False)
    bare = {name: hold(stack, None, (0, 0)) for name, stack in scene.stacks.items()}
    bands = {"classes": 1, "confidence": 1, "probabilities": len(loaded.classes)}
    blocks: dict[str, list[list[Values]]] = {name: [] for name in settings.wanted}
    rows, cols = map(_cut, plan.target.shape, values[scene.reference].chunks[2:])
    for row, height in rows:
        for line in blocks.values():
            line.append([])
        for col, width in cols:
            target = Window(row=row, col=col, height=height, width=width).geobox(plan.target)
            region = window_over(scene.grid, target, margin=MARGIN * plan.warped)
            part = replace(plan, scene=replace(scene, stacks=bare), region=region, target=target)
            places = _needed(plan, region)
            pieces = {name: _piece(values[name][:, :, *place]) for name, place in places.items()}
            firsts = {name: (place[0].start, place[1].start) for name, place in places.items()}
            predicted = dask.delayed(partial(_predict_piece, part, settings, firsts), traverse=False)(pieces, shared)
            for name, line in blocks.items():
                shape = bands[name], height, width
                dtype = np.uint8 if name == "classes" else np.float32
                line[-1].append(dask.array.from_delayed(predicted[name], shape, dtype))
    return {name: dask.array.block(lines) for name, lines in blocks.items()}


def _cut(size: int, chunks: tuple[int, ...]) -> list[tuple[int, int]]:
    """Starts and lengths of a lazy map's chunks along an axis: whole chunks of the scene, at least CHUNK pixels."""
    side = math.ceil(CHUNK / chunks[0]) * chunks[0]
    return [(start, min(side, size - start)) for start in range(0, size, side)]


def _needed(plan: Plan, region: Window) -> dict[str, tuple[slice, slice]]:
    """Rows and columns of every array that the windows of a region are read from."""
    windows = plan.lattice.windows(region)
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    bottom, right = max(window.row_stop for window in windows), max(window.col_stop for window in windows)
    hull = Window(row=row, col=col, height=bottom - row, width=right - col)
    return {name: needed(stack, plan.scene.footprint(hull, name)) for name, stack in plan.scene.stacks.items()}


def _piece(values: Values) -> Values:
    """A part of a dask array as a task of its own, on the chunks that its neighbours share."""
    return (
        values.rechunk(values.shape).to_delayed(optimize_graph=False).item() if values.size else np.empty(values.shape)
    )


def _predict_piece(
    plan: Plan,
    settings: Settings,
    firsts: Mapping[str, tuple[int, int]],
    pieces: Mapping[str, np.ndarray],
    model: LoadedModel,
) -> Arrays:
    held = {name: hold(stack, pieces[name], firsts[name]) for name, stack in plan.scene.stacks.items()}
    return predict_plan(replace(plan, scene=replace(plan.scene, stacks=held)), model, settings)


def _drawn(name: str, values: Values, scene: xr.DataArray, plan: Plan, model: LoadedModel) -> xr.DataArray:
    stack, output = plan.scene.stacks[plan.scene.reference], model.task.output
    notes = [*plan.notes, *(f"{key}: {note}" for key, one in plan.scene.stacks.items() for note in one.notes)]
    notes += [f"{key} is not given: predicted without it" for key in model.modalities if key not in plan.scene.stacks]
    made_by = {"model": model.name, "model_digest": model.digest, **({"notes": "; ".join(notes)} if notes else {})}
    if name == "probabilities":
        coords = {"class": list(model.classes)}
        return like(scene, stack, values, ("class",), name=name, coords=coords, attrs=made_by)
    if name == "confidence":
        return like(scene, stack, values[0], name=name, attrs=made_by)
    attributes = {
        "_FillValue": IGNORE,
        "flag_values": np.arange(len(output.classes), dtype=np.uint8),
        "flag_meanings": " ".join(label.replace(" ", "_") for label in output.classes),
        "class_names": list(output.classes),
        "class_colours": list(output.colours),
        **made_by,
    }
    return like(scene, stack, values[0], name=name, attrs=attributes)
