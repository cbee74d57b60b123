"""How fast a model is on this machine: some windows of noise go through it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core import runtime
from skysense_core.checkpoint import load_bare, load_model
from skysense_core.data.batch import Batch
from skysense_core.description import Description, load_description
from skysense_core.geo.windows import lattice_for
from skysense_core.info.trained import Speed
from skysense_core.modalities import align_of, side_beside
from skysense_core.model.graph import example

SECONDS = 1.0
"""The model runs until so much time has passed, once at least."""
ON_GPU = 16
"""Windows at a time on a GPU, which one alone does not fill."""


def measure(path: Path) -> Speed:
    """The speed of a model or an encoder at its own window, in the precision that `predict` would choose.

    A first pass is not counted. Raises as `load_model` does.
    """
    device = runtime.choose_device()
    runtime.keep_freed_memory()
    said = load_description(path)
    run, epochs, whole = _runner(said, device)
    sides = _sides(said)
    dates = max(one.dates for one in said.modalities.values())
    count = ON_GPU if device.type == "cuda" else 1
    batch = example(said.modalities, sides, b=count, t=dates, seed=0)
    batch = replace(batch, epochs=batch.epochs * epochs).to(device)
    precision = "fp32" if said.export else "auto"
    seconds = _seconds(run, batch, device, precision) / count
    side = sides[said.reference]
    grid = GeoBox((side, side), Affine.identity(), None)
    stride = side if whole else lattice_for(grid, side, align=align_of(said.modalities)).stride
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        precision="bf16" if runtime.uses_bfloat16(device, precision) else "fp32",
        window=side,
        dates=dates,
        windows_per_s=1 / seconds,
        megapixels_per_s=stride**2 / seconds / 1e6,
    )


def _runner(said: Description, device: torch.device) -> tuple[Callable[[Batch], Any], int, bool]:
    """What a batch goes through, how many epochs it has, and whether windows lie side by side."""
    if said.task_name is None:
        _, encoder = load_bare(said.folder, device)
        return lambda batch: encoder(batch.epochs[0], batch.lonlat, batch.located), 1, False
    loaded = load_model(said.folder, device)
    return lambda batch: loaded.task.scores(loaded.model, batch), loaded.task.output.epochs, loaded.task.whole


def _sides(said: Description) -> dict[str, int]:
    """Pixels along a window, by modality; those of an exported file are fixed."""
    if "sides" in said.export:
        return dict(said.export["sides"])
    reference = said.modalities[said.reference]
    return {
        name: reference.window if name == said.reference else side_beside(reference, one, reference.window)
        for name, one in said.modalities.items()
    }


def _seconds(run: Callable[[Batch], Any], batch: Batch, device: torch.device, precision: str) -> float:
    """Of one pass over the batch: the median of those within the time."""

    @torch.inference_mode()
    def once() -> float:
        started = time.perf_counter()
        with runtime.autocast(device, precision):
            run(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    taken = [once()]
    while sum(taken) < SECONDS:
        taken.append(once())
    return statistics.median(taken)
