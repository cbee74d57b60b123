"""From a scene to a georeferenced map: choose the model, check the scene against it, sweep, write COGs.

The map lies on the reference modality's own grid, or on the grid of another raster (`like`). Where the scene's pixels
are not the model's, the model works on a resampled grid and its map is warped back.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8

from skysense_core import runtime
from skysense_core.checkpoint import Description, LoadedModel, load_description, load_model, packaged_models
from skysense_core.data.batch import Batch
from skysense_core.data.scene import model_grid, open_stacks
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import cog, vector
from skysense_core.geo.cache import block_cache
from skysense_core.geo.cog import Product
from skysense_core.geo.raster import ReadOptions
from skysense_core.geo.windows import Window
from skysense_core.inference import Meter, Plan, plan_sweep, strip_width, strips_of, sweep, write_behind
from skysense_core.merge.raster import Part
from skysense_core.preview import write_preview
from skysense_core.types import IGNORE

LEVELS = 254
"""Steps in which a probability is stored in a byte: probability = number / 254; 255 is nodata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictConfig:
    """The settings of one prediction."""

    inputs: tuple[str, ...]
    """`scene.tif`, or `hr=ortho.tif s2=series/` where a model reads several modalities; several of one are joined."""
    out: Path
    """The class map; others appear beside it as OUT_confidence.tif and OUT_probabilities.tif."""
    model: Path | None = None
    """A model or run folder or a packaged model's name; not given: the packaged one that reads such bands."""
    bbox: tuple[float, float, float, float] | None = None
    """xmin, ymin, xmax, ymax: predict this part only."""
    bbox_crs: str | None = None
    """CRS of `bbox`; not given: the scene's."""
    aoi: Path | None = None
    """Polygons; nothing is predicted outside."""
    like: Path | None = None
    """A raster whose grid the map takes."""
    confidence: bool = False
    probabilities: bool = False
    preview: Path | None = None
    """A PNG of image, map and legend."""
    window: int | None = None
    """Side of a window in pixels of the reference modality; not given: the model's."""
    overlap: int | None = None
    """Pixels that two neighbouring windows share; not given: 5/16 of the window."""
    batch_size: int | None = None
    """Windows per forward pass; not given: by their size."""
    max_strip: int | None = None
    """Width in pixels at which a scene is cut into strips; not given: by memory."""
    device: str = "auto"
    precision: str = "auto"
    jobs: int | None = None
    """Threads that read ahead."""
    read: Mapping[str, ReadOptions] = field(default_factory=dict)
    """How a modality's files are read; the key "" stands for every modality that is not named."""
    creation_options: Mapping[str, str] = field(default_factory=dict)
    """Of GDAL's COG driver."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassArea:
    """How much of the map one class takes."""

    name: str
    square_metres: float
    share: float
    """Of all pixels with a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """What was written, and how long it took."""

    paths: tuple[Path, ...]
    model: str
    digest: str
    windows: int
    skipped: int
    """Windows without a valid pixel."""
    megapixels: float
    """Of the grid that the model saw."""
    seconds: float
    waited: float
    """Seconds that the model waited for data."""
    classes: tuple[ClassArea, ...]
    notes: tuple[str, ...]


def predict(config: PredictConfig) -> PredictResult:
    """Predict a scene and write the maps.

    Raises UsageError and SkysenseError for everything that does not fit together, before any window is read where
    that can be known, and Interrupted on a signal. Files appear complete or not at all.
    """
    started = time.perf_counter()
    outs = _outputs(config)
    device = runtime.choose_device(config.device)
    description, notes = _describe(config)
    stacks = open_stacks(config.inputs, description.modalities, config.read)
    model = load_model(description.folder, device)
    plan = plan_sweep(
        stacks,
        model.modalities,
        window=config.window,
        shared=config.overlap,
        bbox=config.bbox,
        bbox_crs=config.bbox_crs,
        aoi=config.aoi,
        like=config.like,
    )
    missing = [f"{name} is not given: predicted without it" for name in model.modalities if name not in stacks]
    read = [f"{name}: {note}" for name, stack in stacks.items() for note in stack.notes]
    products = _products(config, model, plan)

    with ExitStack() as context:
        context.enter_context(runtime.interruptible("prediction interrupted; nothing was written"))
        scratch = context.enter_context(cog.scratch_beside(config.out))
        drafts = {name: scratch / path.name for name, path in outs.items()}
        meter = _sweep(config, model, plan, products, drafts, device)
        if not meter.windows:
            raise SkysenseError(f"{', '.join(config.inputs)}: no valid pixel there: nothing to predict")
        finished = {}
        for name, draft in drafts.items():
            if plan.warped:
                draft = cog.warp(draft, plan.target, products[name])
            finished[name] = cog.write_cog(draft, products[name], config.creation_options)
        areas = _areas(finished["classes"], model.classes)
        for name, copy in finished.items():
            cog.publish(copy, outs[name])
    if config.preview is not None:
        write_preview(
            config.preview,
            image=stacks[model.reference],
            modality=model.modalities[model.reference],
            codes=config.out,
            classes=model.classes,
            colours=model.task.output.colours,
        )
    return PredictResult(
        paths=(*outs.values(), *([] if config.preview is None else [config.preview])),
        model=model.name,
        digest=model.digest,
        windows=meter.windows,
        skipped=meter.skipped,
        megapixels=plan.region.height * plan.region.width / 1e6,
        seconds=time.perf_counter() - started,
        waited=meter.waited,
        classes=areas,
        notes=(*notes, *plan.notes, *missing, *read),
    )


def _outputs(config: PredictConfig) -> dict[str, Path]:
    out = config.out
    outs = {"classes": out}
    outs |= {"confidence": out.with_name(f"{out.stem}_confidence.tif")} if config.confidence else {}
    outs |= {"probabilities": out.with_name(f"{out.stem}_probabilities.tif")} if config.probabilities else {}
    if out.is_dir() or out.suffix.lower() not in (".tif", ".tiff"):
        raise UsageError(f"--out {out}: not the name of a GeoTIFF", fix="For example --out map.tif")
    for path in (*outs.values(), *([] if config.preview is None else [config.preview])):
        if not path.parent.is_dir():
            raise SkysenseError(f"{path.parent}: no such folder", fix="Make it, or write to another one.")
        if path.exists() and not config.overwrite:
            raise UsageError(f"{path} exists", fix="Use --overwrite to replace it.")
    return outs


def _describe(config: PredictConfig) -> tuple[Description, list[str]]:
    """The model that was asked for, or the packaged one that reads these inputs."""
    if config.model is not None:
        return load_description(config.model), []
    fitting, reasons = [], []
    for name, folder in packaged_models().items():
        description = load_description(folder)
        try:
            stacks = open_stacks(config.inputs, description.modalities, config.read)
            reference = description.modalities[description.reference]
            model_grid(stacks[description.reference].geobox, reference)
            fitting.append(description)
        except UsageError as error:
            reasons.append(f"  {name}: {error.message}")
    if len(fitting) == 1:
        bands = ", ".join(fitting[0].modalities[fitting[0].reference].band_names)
        return fitting[0], [f"model {fitting[0].name}: the packaged one for {bands}; another with --model"]
    if fitting:
        names = ", ".join(description.name for description in fitting)
        raise UsageError(f"several packaged models read this scene: {names}", fix="Choose one with --model.")
    listed = "\n".join(reasons) or "  there is none"
    raise UsageError(f"no packaged model reads this scene:\n{listed}", fix="Give your own with --model RUN.")


def _products(config: PredictConfig, model: LoadedModel, plan: Plan) -> dict[str, Product]:
    lattice = plan.lattice
    tags = {
        "TIFFTAG_SOFTWARE": f"skysense {version('skysense')}",
        "MODEL": model.name,
        "MODEL_DIGEST": model.digest,
        "INPUTS": " ".join(config.inputs),
        "WINDOWS": f"{lattice.window} px, stride {lattice.stride}, trim {lattice.trim}, blend {lattice.overlap}",
        "DEVICE": f"{config.device}, {config.precision}",
    }
    values = Product(kind="continuous", bands=("confidence",), scale=1 / LEVELS, tags=tags)
    return {
        "classes": Product(
            kind="classes",
            bands=("class",),
            nodata=float(IGNORE),
            classes=model.task.output.classes,
            colours=model.task.output.colours,
            tags=tags,
        ),
        "confidence": values,
        "probabilities": replace(values, bands=tuple(f"probability of {name}" for name in model.classes)),
    }


Arrays: TypeAlias = dict[str, UInt8[np.ndarray, "c n w"]]


def _sweep(
    config: PredictConfig,
    model: LoadedModel,
    plan: Plan,
    products: Mapping[str, Product],
    drafts: Mapping[str, Path],
    device: torch.device,
) -> Meter:
    """Predict the plan's region into one draft per product."""
    region, scene = plan.region, plan.scene
    strips = strips_of(region, config.max_strip or strip_width(plan.lattice, len(model.classes)))
    arrays = _arrays(model, plan, tuple(drafts))
    ground = region.geobox(scene.grid)

    @torch.inference_mode()
    def score(batch: Batch) -> torch.Tensor:
        with runtime.autocast(device, config.precision):
            return model.task.scores(model.model, batch)

    readers = config.jobs or min(4, os.cpu_count() or 1)

    with ExitStack() as context:
        context.enter_context(block_cache(scene.stacks.values(), strips[0].width, readers))
        writers = {
            name: context.enter_context(cog.RowWriter(path, ground, products[name])) for name, path in drafts.items()
        }
        windows = sum(len(plan.lattice.windows(strip)) for strip in strips)
        meter = context.enter_context(Meter(windows, region.height * region.width))
        swept = sweep(
            scene,
            plan.lattice,
            strips,
            score,
            lambda strip: model.task.merger(plan.lattice, strip, device),
            on=device,
            batch_size=config.batch_size or plan.batch_size(device),
            readers=readers,
            meter=meter,
        )
        parts = context.enter_context(closing(swept))

        def write(item: tuple[Window, Arrays]) -> None:
            for name, rows in item[1].items():
                writers[name].write(item[0], rows)

        write_behind((arrays(part) for part in parts), write)
    return meter


def _arrays(model: LoadedModel, plan: Plan, wanted: tuple[str, ...]) -> Callable[[Part], tuple[Window, Arrays]]:
    """What turns a finished part into the bytes of each product; windows are counted within the plan's region."""

    def arrays(part: Part) -> tuple[Window, Arrays]:
        made = {"classes": model.task.decode(part.scores, part.valid)[None]}
        if "confidence" in wanted:
            made["confidence"] = _bytes(part.scores.amax(dim=0, keepdim=True), part.valid)
        if "probabilities" in wanted:
            made["probabilities"] = _bytes(part.scores, part.valid)
        if plan.scene.area is not None:
            area, place = plan.scene.area, part.window.geobox(plan.scene.grid)
            outside = vector.rasterize(area, np.zeros(len(area), int), place, fill=1) == 1
            for rows in made.values():
                rows[:, outside] = IGNORE
        window = part.window
        return replace(window, row=window.row - plan.region.row, col=window.col - plan.region.col), made

    return arrays


def _bytes(scores: torch.Tensor, valid: torch.Tensor) -> UInt8[np.ndarray, "c n w"]:
    steps = (scores * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)
    return steps.masked_fill(~valid, IGNORE).cpu().numpy()


def _areas(path: Path, classes: tuple[str, ...]) -> tuple[ClassArea, ...]:
    areas = cog.class_areas(path, len(classes))
    total = sum(areas)
    return tuple(
        ClassArea(name=name, square_metres=area, share=area / total if total else 0.0)
        for name, area in zip(classes, areas, strict=True)
    )
