"""One contender of `predict.py`, in a process of its own: it predicts a scene and says how long that took.

A peer is its library's own engine between reading the scene with rasterio and writing the most probable class as a
tiled GeoTIFF. All call the model through the same function. The time includes loading the model, not importing
libraries; the memory of libraries, model and one batch is told apart from what comes on top.
"""

import importlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rasterio
import torch
from torch import Tensor

from skysense_core import runtime
from skysense_core.checkpoint import LoadedModel, load_model
from skysense_core.data.batch import Batch, Series
from skysense_core.predict import PredictConfig, predict

CPU = torch.device("cpu")
NODATA = 255
MEMORY = 0.9
"""Share of the machine's memory that a contender may take; it fails beyond, before the system ends something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one contender is to do."""

    contender: str
    scene: str
    out: str
    model: str
    window: int
    overlap: int
    """Pixels that neighbouring windows share."""
    batch_size: int
    precision: str
    defaults: bool
    """Every contender at its own overlap, batch size and, where it has one, window; `window` is the model's."""

    @property
    def stride(self) -> int:
        return self.window - self.overlap

    @property
    def trim(self) -> int:
        """Pixels cut off each side of a window before blending, as our lattice does."""
        return self.overlap // 8


class Scorer:
    """Pixels (b c h w, float32) to class probabilities (b k h w, float32); loads the model when it is first called."""

    def __init__(self, job: Job) -> None:
        self.windows = 0
        """How many it has seen."""
        self._job = job
        self._loaded: LoadedModel | None = None

    def forget(self) -> None:
        """Let go of the model."""
        self.windows, self._loaded = 0, None

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        model = self._loaded = self._loaded or load_model(Path(self._job.model), CPU)
        b, _, h, w = pixels.shape
        series = Series(
            pixels=pixels[:, None],
            valid=torch.ones(b, 1, h, w, dtype=torch.bool),
            day_of_year=torch.ones(b, 1, dtype=torch.long),
            dated=torch.zeros(b, 1, dtype=torch.bool),
        )
        batch = Batch(
            ids=("",) * b,
            epochs=({model.reference: series},),
            lonlat=torch.zeros(b, 2),
            located=torch.zeros(b, dtype=torch.bool),
        )
        self.windows += b
        with runtime.autocast(CPU, self._job.precision):
            return model.task.scores(model.model, batch)


def run_ours(job: Job, score: Scorer) -> None:
    same = {} if job.defaults else {"window": job.window, "overlap": job.overlap, "batch_size": job.batch_size}
    config = PredictConfig(
        inputs=(job.scene,),
        out=Path(job.out),
        model=Path(job.model),
        device="cpu",
        precision=job.precision,
        overwrite=True,
        **same,  # type: ignore[arg-type]
    )
    score.windows = predict(config).windows


def run_limit(job: Job, score: Scorer) -> None:
    """Nothing but the forward passes of the fewest windows that cover the scene."""
    runtime.keep_freed_memory()  # as ours does: the C library's ways are not what is compared
    with rasterio.open(job.scene) as dataset:
        windows = math.prod(math.ceil(max(side - job.window, 0) / job.stride) + 1 for side in dataset.shape)
    pixels = first_batch(job)
    for start in range(0, windows, job.batch_size):
        score(pixels[: windows - start])


def run_terratorch(job: Job, score: Scorer) -> None:
    from terratorch.tasks.tiled_inference import tiled_inference

    same = {"crop": job.window, "stride": job.stride, "delta": job.trim, "batch_size": job.batch_size}
    write_best(job, tiled_inference(score, read(job), **({} if job.defaults else same)))


def run_monai(job: Job, score: Scorer) -> None:
    from monai.inferers import SlidingWindowInferer

    same = {"sw_batch_size": job.batch_size, "overlap": job.overlap / job.window, "mode": "gaussian"}
    infer = SlidingWindowInferer(roi_size=(job.window, job.window), **({} if job.defaults else same))
    with torch.inference_mode():  # it changes the model's output in place
        write_best(job, infer(read(job), score))


def run_torchgeo(job: Job, score: Scorer) -> None:
    """TorchGeo has no engine: windows of its grid sampler through a loader, and the middle of each is kept."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    dataset = RasterDataset(job.scene)
    same = {"stride": job.stride}
    sampler = GridGeoSampler(dataset, size=job.window, **({} if job.defaults else same))
    edge, batch_size = (0, 1) if job.defaults else (job.overlap // 2, job.batch_size)
    with rasterio.open(job.scene) as scene:
        (height, width), transform = scene.shape, scene.transform
    codes = torch.full((height, width), NODATA, dtype=torch.uint8)
    places = iter(sampler)
    for batch in DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=stack_samples):
        for best in score(batch["image"]).max(dim=1).indices.to(torch.uint8):
            x, y, _ = next(places)
            left, top = (round(place) for place in ~transform * (x.start, y.stop))
            rows, cols = kept(top, job.window, edge, height), kept(left, job.window, edge, width)
            codes[rows, cols] = best[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    write(job, codes)


def kept(start: int, window: int, edge: int, side: int) -> slice:
    """Pixels of the scene that a window decides: without `edge` at either end, but up to the scene's border."""
    stop = start + window
    return slice(0 if start <= 0 else start + edge, side if stop >= side else stop - edge)


ENGINES: dict[str, Callable[[Job, Scorer], None]] = {
    "ours": run_ours,
    "limit": run_limit,
    "terratorch": run_terratorch,
    "monai": run_monai,
    "torchgeo": run_torchgeo,
}
PEERS = {"terratorch": "terratorch.tasks.tiled_inference", "monai": "monai.inferers", "torchgeo": "torchgeo.samplers"}
"""What is imported before the clock runs."""


def first_batch(job: Job) -> Tensor:
    """The scene's first window, as often as a batch is large."""
    with rasterio.open(job.scene) as dataset:
        pixels = dataset.read(window=((0, job.window), (0, job.window)), out_dtype="float32")
    return torch.from_numpy(pixels).expand(job.batch_size, *pixels.shape)


def read(job: Job) -> Tensor:
    """The whole scene as these engines take it."""
    with rasterio.open(job.scene) as dataset:
        return torch.from_numpy(dataset.read(out_dtype="float32"))[None]


def write_best(job: Job, scores: Tensor) -> None:
    write(job, scores[0].max(dim=0).indices.to(torch.uint8))  # four times as fast as argmax on a CPU


def write(job: Job, codes: Tensor) -> None:
    with rasterio.open(job.scene) as dataset:
        profile = {"driver": "GTiff", "crs": dataset.crs, "transform": dataset.transform, "count": 1, "dtype": "uint8"}
    profile |= {"height": codes.shape[0], "width": codes.shape[1], "nodata": NODATA, "compress": "deflate"}
    with rasterio.open(job.out, "w", tiled=True, blockxsize=512, blockysize=512, **profile) as dataset:
        dataset.write(codes.numpy(), 1)


def peak() -> int:
    """Highest resident memory so far, in bytes; `ru_maxrss` would begin with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    most = int(MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if job.contender in PEERS:
        try:
            importlib.import_module(PEERS[job.contender])
        except ModuleNotFoundError as error:
            if error.name != job.contender:
                raise
            print(json.dumps({"failed": "not installed"}))
            return
    score = Scorer(job)
    score(first_batch(job))  # warm-up
    own = peak()
    score.windows = 0
    if job.contender != "limit":
        score.forget()
    # GDAL's cache is the user's business: its 5 % of the machine's memory are not held against a peer.
    with rasterio.Env(**({"GDAL_CACHEMAX": 64} if job.contender in PEERS else {})):
        started, worked = time.perf_counter(), time.process_time()
        ENGINES[job.contender](job, score)
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    said = {"seconds": seconds, "cpu": cpu, "windows": score.windows, "peak": peak(), "own": own}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
