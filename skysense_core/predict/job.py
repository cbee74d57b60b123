"""A prediction that is ready to start: the model is loaded, the scene is checked against it, the work is cut."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from odc.geo.geobox import GeoBox
from torch import Tensor

from skysense_core import config, runtime
from skysense_core.checkpoint import LoadedModel, load_model
from skysense_core.data.batch import Batch, collate
from skysense_core.data.epochs import compare_epochs
from skysense_core.data.scene import model_grid, open_epochs, open_stacks
from skysense_core.description import Description, load_description, packaged_models
from skysense_core.errors import UsageError
from skysense_core.geo.cache import block_cache
from skysense_core.geo.cog import BLOCK, Product
from skysense_core.geo.fingerprint import fingerprint
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.windows import Window
from skysense_core.inference import STRIP_BYTES, Meter, plan_sweep, strip_width, sweep, write_behind
from skysense_core.merge import Merger
from skysense_core.predict import objects
from skysense_core.predict.products import Encode, encoder, products_of, refuse_without_classes, within
from skysense_core.predict.settings import Estimate, PredictConfig
from skysense_core.predict.shards import (
    Plan,
    Shard,
    Shards,
    ShardWriter,
    grid_table,
    over,
    runs,
    shard_rows,
    stored_plan,
)
from skysense_core.tasks import ObjectOutput


class Job:
    """A prediction that is ready to start: everything is checked, nothing is written."""

    block: ClassVar[int] = BLOCK
    """Side of a block of the products; shards are whole blocks."""

    def __init__(self, given: PredictConfig, model: LoadedModel | None = None) -> None:
        self.config = given
        self.device = runtime.choose_device(given.device)
        runtime.keep_freed_memory()
        description, self.notes = describe(given) if model is None else (model, [])
        self.model = model or load_model(description.folder, self.device)
        stacks, *later = open_epochs(given.inputs, self.model.modalities, given.read, self.model.task.output.epochs)
        self.plan = plan_sweep(
            stacks,
            self.model.modalities,
            window=given.window,
            shared=given.overlap,
            bbox=given.bbox,
            bbox_crs=given.bbox_crs,
            aoi=given.aoi,
            region=given.region,
            like=given.like,
            cell=self.model.task.output.cell,
            later=later,
            whole=self.model.task.whole,
        )
        self.precision = _precision(given, self.model)
        self.bf16 = runtime.uses_bfloat16(self.device, self.precision)
        self.notes += [*self.plan.notes, *self._notes()]
        # Polygons and report show confidence, whether its raster is wanted or not.
        self.confidence = given.confidence or ("max" if given.polygons or given.report else None)
        old = stored_plan(given.out)
        self.batch_size, self.shard = self._sizes(old)
        # The last bits of a product of matrices depend on them, as they do on the batch.
        self.threads = _threads(given, self.device, old)
        self.products = self._products()
        refuse_without_classes(given, self.products, self.model.task.output.said)
        if given.compile:
            # Before any work: a signal in the middle of compiling would come out as the compiler's failure.
            self.model.model.compile()
            self._forward(self.batch_size)

    @property
    def megapixels(self) -> float:
        """Of the grid that the model sees."""
        region = self.plan.region
        return region.height * region.width * self.plan.scene.cell**2 / 1e6

    @property
    def ground(self) -> GeoBox:
        """The grid of the predicted region."""
        return self.plan.region.geobox(self.plan.scene.cells)

    def scores_from(self) -> dict[str, Any]:
        """What the scores come from: scene, model, and how it is run."""
        plan = self.plan
        paths = sorted({path for stack in plan.scene.every_stack for path in stack.paths})
        area = plan.scene.area
        return {
            "skysense": version("skysense"),
            "model": self.model.digest,
            "inputs": {path: fingerprint(path) for path in paths},
            "read": {name: config.to_table(options) for name, options in self.config.read.items()},
            "lattice": asdict(plan.lattice),
            "area": None if area is None else hashlib.sha256(b"".join(area.geometry.to_wkb())).hexdigest(),
            "device": self.device.type,
            "bf16": self.bf16,
        }

    def shard_plan(self) -> Plan:
        """What the bytes of the result depend on."""
        plan, given = self.plan, self.config
        made_by = {
            **self.scores_from(),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "confidence": self.confidence,
            "unsure": given.unsure,
            "compile": given.compile,
        }
        products = {name: asdict(product) for name, product in self.products.items()}
        grids = grid_table(self.ground), grid_table(plan.target)
        return Plan(
            made_by=made_by,
            grid=grids[0],
            target=grids[1],
            products=products,
            shard=self.shard,
            sieve_pixels=math.ceil(given.min_area / ground_gsd(plan.target) ** 2),
        )

    def compute(self, store: Shards, wanted: Sequence[Shard]) -> tuple[int, int, float]:
        """Compute these shards, those that follow each other in one sweep.

        Returns the number of windows that were predicted and that were empty, and the seconds waited for data.
        """
        region, scene, lattice = self.plan.region, self.plan.scene, self.plan.lattice
        sweeps = runs(wanted)
        strips = [over(run).shifted(region.row, region.col) for run in sweeps]
        cuts = sorted({region.row + shard.window.row for shard in store.shards})[1:]
        encode = within(self._encoder(), self.products, scene.cells, scene.area)
        score = self._score()
        readers = self.config.jobs or min(4, os.cpu_count() or 1)
        with ExitStack() as context:
            context.enter_context(runtime.threads(self.threads))
            context.enter_context(block_cache(scene.every_stack, self.shard[1] * scene.cell, readers))
            windows = sum(len(lattice.windows(strip)) for strip in strips)
            pixels = sum(strip.height * strip.width for strip in strips) * scene.cell**2
            meter = context.enter_context(Meter(windows, pixels))
            for run, strip in zip(sweeps, strips, strict=True):
                swept = sweep(
                    scene,
                    lattice,
                    [strip],
                    score,
                    self._merger,
                    on=self.device,
                    batch_size=self.batch_size,
                    readers=readers,
                    meter=meter,
                    cuts=cuts,
                    padded=self.config.compile,
                )
                with closing(swept), ShardWriter(store, run) as writer:
                    parts = ((part.window.shifted(-region.row, -region.col), encode(part)) for part in swept)
                    write_behind(parts, writer.take)
        return meter.windows, meter.skipped, meter.waited

    def estimate(self) -> Estimate:
        """What it would take, from one batch of the middle of the scene."""
        plan, old = self.plan, stored_plan(self.config.out)
        store = Shards(self.config.out, self.shard_plan())
        reused = len(store.finished()) if old is not None and old.digest == store.plan.digest else 0
        left = runs(store.missing() if reused else store.shards)
        strips = [over(run).shifted(plan.region.row, plan.region.col) for run in left]
        windows = sum(len(plan.lattice.windows(strip)) for strip in strips)
        started = time.perf_counter()
        self._forward(self.batch_size)
        seconds = (time.perf_counter() - started) * windows / self.batch_size
        height, width = self.ground.shape
        each = sum(len(product.bands) * np.dtype(product.pixel).itemsize for product in self.products.values())
        scores = self._column() * self.shard[1]
        return Estimate(
            windows=windows,
            shards=len(store.shards),
            reused=reused,
            megapixels=self.megapixels,
            batch_size=self.batch_size,
            memory=runtime.peak_memory() + 2 * scores + each * self.shard[1] * self.block,
            disk=round(each * (height * width + 4 / 3 * plan.target.shape.y * plan.target.shape.x)),
            seconds=seconds,
        )

    def _sizes(self, old: Plan | None) -> tuple[int, tuple[int, int]]:
        """Windows per batch, and rows and columns of a shard: as given, as before, or as memory allows."""
        given, plan = self.config, self.plan
        width, scores = plan.region.width, STRIP_BYTES
        batch_size = plan.batch_size(self.device)
        if old is not None:
            return given.batch_size or old.made_by["batch_size"], given.shard or old.shard
        if given.max_memory is not None or self.device.type == "cuda":
            free = runtime.free_memory(self.device) if given.max_memory is None else given.max_memory
            if self.device.type == "cpu":
                free -= runtime.resident_memory()
            scores = min(scores, max(free, 0) // 4)
            each = runtime.working_memory(self.device, lambda: self._forward(1))
            fitting = int(0.8 * (free - scores)) // max(each, 1)
            if fitting < 1 and given.max_memory is not None:
                needs = given.max_memory - free + scores + 1.3 * each
                raise UsageError(
                    f"--max-memory: one window takes {each / 2**20:,.0f} MiB beside model and scores",
                    fix=f"Allow at least {needs / 2**30:.1f}G, or use a smaller --window.",
                )
            batch_size = max(min(fitting, batch_size if self.device.type == "cpu" else 128), 1)
        cell = plan.scene.cell
        columns = strip_width(self._column(), width, scores, block=self.block, cell=cell)
        rows = shard_rows(plan.lattice.window, self.block, cell)
        return given.batch_size or batch_size, given.shard or (rows, columns)

    def _column(self) -> int:
        """Bytes of scores that a column of a strip holds."""
        return 4 * self.model.task.output.channels * self.plan.lattice.window

    def _forward(self, windows: int) -> None:
        """Predict the middle of the scene so many times at once, for its time and memory."""
        plan = self.plan
        grid, side = plan.region, plan.lattice.window
        middle = Window(
            row=max(grid.row + (grid.height - side) // 2, 0),
            col=max(grid.col + (grid.width - side) // 2, 0),
            height=side,
            width=side,
        )
        sample = plan.scene.read(middle, blank=True)
        assert sample is not None
        self._score()(collate([sample] * windows).to(self.device)).sum().item()  # .item() waits for the device

    def _score(self) -> Callable[[Batch], Tensor]:
        model = self.model.model

        @torch.inference_mode()
        def score(batch: Batch) -> Tensor:
            with runtime.autocast(self.device, self.precision):
                return self.model.task.scores(model, batch)

        return score

    def _merger(self, strip: Window) -> Merger:
        return self.model.task.merger(self.plan.lattice, strip, self.device)

    def _products(self) -> dict[str, Product]:
        """What is written, by name; the main one first."""
        given, output = self.config, self.model.task.output
        if isinstance(output, ObjectOutput):
            return {objects.NAME: objects.product(output, self._tags())}
        return products_of(
            self.model.task,
            confidence=self.confidence,
            unsure=given.unsure is not None,
            probabilities=given.probabilities,
            observations=given.observations,
            tags=self._tags(),
        )

    def _encoder(self) -> Encode:
        """What turns finished rows into them."""
        scene, task = self.plan.scene, self.model.task
        if objects.NAME in self.products:
            return objects.encoder(task, self.plan.region, objects.in_pixels(scene.area, scene.cells))
        return encoder(task, self.products, self.confidence, self.config.unsure)

    def _notes(self) -> list[str]:
        stacks, model = self.plan.scene.stacks, self.model
        notes = [f"{name} is not given: predicted without it" for name in model.modalities if name not in stacks]
        for name, stack in stacks.items():
            most = model.modalities[name].dates
            if len(stack.days) > most:
                notes.append(f"{name}: {len(stack.days)} dates, the model reads {most}: evenly spaced ones are used")
            notes += [f"{name}: {note}" for note in stack.notes]
        return notes + compare_epochs(self.plan.scene)

    def _tags(self) -> dict[str, str]:
        lattice, cell = self.plan.lattice, self.plan.scene.cell
        window, stride, trim, blend = (
            side * cell for side in (lattice.window, lattice.stride, lattice.trim, lattice.overlap)
        )
        return {
            "TIFFTAG_SOFTWARE": f"skysense {version('skysense')}",
            "MODEL": self.model.name,
            "MODEL_DIGEST": self.model.digest,
            "INPUTS": " ".join(self.config.inputs),
            "WINDOWS": f"{window} px, stride {stride}, trim {trim}, blend {blend}",
            "DEVICE": f"{self.device.type}, {'bf16' if self.bf16 else 'fp32'}",
        }


def _precision(given: PredictConfig, model: Description) -> str:
    """As given; an exported file computes in float32, whatever the hardware has."""
    if not model.export:
        return given.precision
    if given.compile or given.precision not in ("auto", "fp32"):
        raise UsageError(
            f"{model.folder}: an exported model runs as it is, in fp32", fix="Leave out --compile and --precision."
        )
    return "fp32"


def _threads(given: PredictConfig, device: torch.device, old: Plan | None) -> int:
    """Threads of a forward pass on a CPU: those of before, one per worker of a cluster, or what the machine has."""
    if device.type != "cpu":
        return 0
    if old is not None:
        return old.made_by["threads"]
    return 1 if given.cluster else torch.get_num_threads()


def describe(config: PredictConfig) -> tuple[Description, list[str]]:
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
