"""Where the time of a pre-training step goes.

    python benchmarks/pretrain.py [--preset nano] [--modalities s2,s1] [--batch-size 4] [--steps 6]
    python benchmarks/pretrain.py --preset huge --modalities hr,s2,s1 --batch-size 8 --dates 20 --repeats 1 \\
        --try checkpoint checkpoint,unfused checkpoint,tf32 checkpoint,compile checkpoint,compile,batch=16

Samples are noise of 240 m in memory, seen in two global and four local views with all losses. Three things take turns,
`--repeats` times: whole steps of the trainer on batches that are ready; the bare forward and backward passes they
contain (student: all views, forward and backward; teacher: global views, forward; both with their heads); and the
loader alone (views drawn and stacked in this process, nothing read from disk). The bars on two CPU cores: a step is at
most 1.25 bare ones, and the loader takes at most 5 % of a step.

Prints one JSON object with medians for every `--try`: words with commas between them, of `checkpoint` (activations),
`compile` (layers), `unfused` (AdamW as on a CPU), `tf32` (for what is left in float32) and `batch=N`, or `plain`.
`parts_ms` is one step taken apart. On a GPU whose peak is known there is MFU: student forward and backward and teacher
forward, no recomputation counted. What does not fit into memory says so.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from skysense_core import modalities, runtime
from skysense_core.data.batch import Batch
from skysense_core.data.loader import training_loader
from skysense_core.data.views import ViewChips, ViewConfig
from skysense_core.modalities import Modality
from skysense_core.model.maps import maps_of_views
from skysense_core.model.presets import ModelSpec
from skysense_core.model.selfsupervised import MethodConfig, SelfSupervised
from skysense_core.model.skysense import SkySense
from skysense_core.pretrain import PretrainOptim, Unlabelled
from skysense_core.trainer import TrainConfig, Trainer
from skysense_core.types import Raster, Sample

CELLS = 24
"""Side of a sample in pixels of Sentinel-2."""
VIEWS = ViewConfig()
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One `--try`."""

    name: str
    batch_size: int
    checkpoint: bool
    compile: bool
    unfused: bool
    tf32: bool

    @staticmethod
    def of(name: str, batch_size: int) -> "Tried":
        words = dict(word.partition("=")[::2] for word in name.split(","))
        batch_size = int(words.pop("batch", batch_size))
        if unknown := words.keys() - {"plain", "checkpoint", "compile", "unfused", "tf32"}:
            raise SystemExit(f"--try {name}: {', '.join(unknown)} is no word of it")
        flags = {word: word in words for word in ("checkpoint", "compile", "unfused", "tf32")}
        return Tried(name=name, batch_size=batch_size, **flags)


class Noise:
    """A split of samples that lie in memory."""

    classes, colours, notes = (), None, ()

    def __init__(self, known: dict[str, Modality], count: int, dates: int) -> None:
        rng = np.random.default_rng(0)
        self.samples = [
            Sample(
                id=str(n),
                epochs=({name: noise(one, rng, dates) for name, one in known.items()},),
                lonlat=(10.0 * n, 45.0),
            )
            for n in range(count)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def noise(modality: Modality, rng: np.random.Generator, most: int) -> Raster:
    side = CELLS * (32 if modality.encoder == "swin" else 1)
    dates = min(modality.dates, most)
    mean, std = (values[:, None, None] for values in (modality.mean, modality.std))
    return Raster(
        pixels=(mean + std * rng.normal(size=(dates, len(modality.bands), side, side))).astype(np.float32),
        valid=np.ones((dates, side, side), dtype=bool),
        days=17000 + 30 * np.arange(dates),
        dated=np.ones(dates, dtype=bool),
    )


def rows_of_heads(learning: SelfSupervised, batch: Batch) -> dict[str, Tensor]:
    """Noise of the shapes that the heads get to see in a step."""
    found: dict[str, Tensor] = {}

    def note(key: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: found.update({key: torch.randn_like(inputs[0], dtype=torch.float32)})

    hooks = [head.register_forward_pre_hook(note(key)) for key, head in learning.heads.items()]
    with torch.no_grad():
        Unlabelled(learning, VIEWS).eval()(batch)
    for hook in hooks:
        hook.remove()
    return found


def answered(head: torch.nn.Module, rows: Tensor) -> Tensor:
    unit, directions = head(rows)
    return unit @ directions.mT


def bare_step(
    learning: SelfSupervised, batch: Batch, rows: dict[str, Tensor], device: torch.device, precision: str
) -> None:
    """The passes of one step through encoders, fusion and heads, with a plain mean in place of the losses."""

    def total(maps: dict) -> Tensor:
        return torch.stack([seen.tensor.float().mean() for seen in maps.values()]).sum()

    where = (batch.lonlat, batch.located)
    with runtime.autocast(device, precision):
        loss = torch.stack([total(maps) for maps in maps_of_views(learning.student, batch.epochs, *where)]).sum()
        for key, noisy in rows.items():
            loss = loss + answered(learning.heads[key], noisy.requires_grad_()).mean()
        with torch.no_grad():
            maps_of_views(learning.teacher, batch.epochs[: VIEWS.global_views], *where)
            for key, noisy in rows.items():
                answered(learning.teacher_heads[key], noisy)
    loss.backward()
    learning.zero_grad(set_to_none=True)


def seconds(work: Iterator[None], device: torch.device) -> float:
    """Median time of what each turn of an iterator does."""
    taken = []
    while True:
        start = time.perf_counter()
        if next(work, ...) is ...:
            return statistics.median(taken)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)


class Bench(Trainer):
    """A trainer that keeps no state (that of `huge` is 50 GB) and counts the operations of a batch size once."""

    counted: ClassVar[dict[int, float]] = {}

    def _count(self, batch: Batch) -> float:
        size = len(batch.ids)
        if size not in self.counted:
            self.counted[size] = super()._count(batch)
        return self.counted[size]

    def _save(self, step: int) -> None:
        """Nothing."""


def whole_steps(
    learning: SelfSupervised, batches: Sequence[Batch], given: argparse.Namespace, tried: Tried, device: torch.device
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """What the log says of each step after the first two, which warm up; and the milliseconds of a step's parts."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Bench(
            Unlabelled(learning, VIEWS),
            batches=lambda start: islice(cycle(batches), start, None),
            depth=lambda _: 0,
            top=0,
            folder=Path(folder),
            steps=given.steps + 2,
            config=TrainConfig(
                batch_size=tried.batch_size,
                log_every=1,
                save_every=10**9,
                validate_every=10**9,
                precision=given.precision,
                checkpoint_activations=tried.checkpoint,
                compile=tried.compile,
            ),
            optim_config=PretrainOptim().completed(tried.batch_size),
            device=device,
            settings={},
            written={},
            validate=dict,
            best=None,
            export=lambda *_: None,
        )
        if tried.unfused:
            for group in trainer.optimizer.param_groups:
                group["fused"] = None
        trainer.run()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"][2:], parts_of_step(trainer, batches[0], given.precision)


def parts_of_step(trainer: Trainer, batch: Batch, precision: str) -> dict[str, float]:
    """Milliseconds of each part of one step, taken one after the other; the losses take what is left of the forward."""
    device, objective = trainer.device, trainer.objective
    learning: SelfSupervised = objective.learning  # type: ignore[assignment]
    where = (batch.lonlat, batch.located)
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        synchronise(device)
        start = time.perf_counter()
        found = work()
        synchronise(device)
        taken[name] = round(1000 * (time.perf_counter() - start), 1)
        return found

    def teach() -> None:
        with torch.no_grad():
            maps_of_views(learning.teacher, batch.epochs[: VIEWS.global_views], *where)

    def total() -> Tensor:
        return torch.stack(list(objective(batch).values())).sum()

    objective.train()
    with runtime.autocast(device, precision):
        timed("teacher", teach)
        timed("student", lambda: maps_of_views(learning.student, batch.epochs, *where))
        loss = timed("forward", total)
    timed("backward", loss.backward)
    timed("clip", lambda: torch.nn.utils.clip_grad_norm_(objective.parameters(), 3.0))
    timed("optimizer", trainer.optimizer.step)
    trainer.optimizer.zero_grad(set_to_none=True)
    timed("moving averages", lambda: trainer.objective.after_step(1))
    taken["pairs, heads, losses"] = round(taken.pop("forward") - taken["teacher"] - taken["student"], 1)
    return taken


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(tried: Tried, given: argparse.Namespace, known: dict[str, Modality], device: torch.device) -> dict:
    """The report of one variant."""
    chips = ViewChips(Noise(known, tried.batch_size, given.dates), known, VIEWS, seed=0)
    loader = training_loader(chips, batch_size=tried.batch_size, start=0, workers=0)
    batches = [batch.to(device) for batch in islice(loader, 1 if given.no_bare else 2)]
    spec = ModelSpec(preset=given.preset, prototypes=True)
    torch.set_float32_matmul_precision("high" if tried.tf32 else "highest")

    found: dict[str, list[float]] = {"step_s": [], "bare_s": [], "loader_s": []}
    for _ in range(given.repeats):
        with torch.device(device):
            learning = SelfSupervised(SkySense(spec, known), MethodConfig(), steps=10**6)
        if not given.no_bare:
            rows = rows_of_heads(learning, batches[0])
            passes = (bare_step(learning, batches[n % 2], rows, device, given.precision) for n in range(given.steps))
            found["bare_s"].append(seconds(passes, device))
            found["loader_s"].append(seconds((None for _ in islice(loader, given.steps)), device))
        lines, parts = whole_steps(learning, batches, given, tried, device)
        found["step_s"].append(statistics.median(tried.batch_size / line["samples_per_s"] for line in lines))
        del learning
    step = statistics.median(found["step_s"])
    report = {
        "try": tried.name,
        "batch_size": tried.batch_size,
        "step_s": round(step, 4),
        "samples_per_s": round(tried.batch_size / step, 2),
        "memory_gib": round(lines[-1]["memory_gib"], 2),
        "mfu": round(statistics.median(line["mfu"] for line in lines), 4) if "mfu" in lines[0] else "peak not known",
        "parts_ms": parts,
        "loss": [round(line["loss"], 3) for line in lines],
    }
    if not given.no_bare:
        bare, load = statistics.median(found["bare_s"]), statistics.median(found["loader_s"])
        report |= {
            "bare_s": round(bare, 4),
            "step_over_bare": round(step / bare, 3),
            "loader_share": round(load / (load + step), 4),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--modalities", default="s2,s1")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dates", type=int, default=4, help="at most so many of each modality")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--try", dest="tries", nargs="+", default=["plain"])
    parser.add_argument("--no-bare", action="store_true", help="leave out the bare passes and the loader")
    given = parser.parse_args()

    device = runtime.choose_device()
    known = {name: modalities.load(name) for name in given.modalities.split(",")}
    known |= {name: modalities.load(name, {"gsd": gsd}) for name, gsd in modalities.meeting(known).items()}
    where = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{key: getattr(given, key) for key in ("preset", "modalities", "dates", "precision")},
    }
    for tried in [Tried.of(name, given.batch_size) for name in given.tries]:
        try:
            report = measured(tried, given, known, device)
        except torch.cuda.OutOfMemoryError as error:
            report = {"try": tried.name, "batch_size": tried.batch_size, "out_of_memory": str(error).splitlines()[0]}
        print(json.dumps({**where, **report}), flush=True)
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
