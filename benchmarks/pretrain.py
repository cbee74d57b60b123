"""Where the time of a pre-training step goes.

    python benchmarks/pretrain.py [--preset nano] [--modalities s2,s1] [--batch-size 4] [--steps 6]
    python benchmarks/pretrain.py --preset huge --modalities hr,s2,s1 --batch-size 8 --checkpoint-activations

Samples are noise of 240 m in memory, seen in two global and four local views with all losses. Three things take turns,
`--repeats` times: whole steps of the trainer on batches that are ready; the bare forward and backward passes they
contain (student: all views, forward and backward; teacher: global views, forward; both with their heads); and the
loader alone (views drawn and stacked in this process, nothing read from disk). Prints one JSON object with medians. On
a GPU whose peak is known it includes MFU: student forward and backward and teacher forward, no recomputation counted.
The bars on two CPU cores: a step is at most 1.25 bare ones, and the loader takes at most 5 % of a step.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

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


class Noise:
    """A split of samples that lie in memory."""

    classes, colours, notes = (), None, ()

    def __init__(self, known: dict[str, Modality], count: int) -> None:
        rng = np.random.default_rng(0)
        self.samples = [
            Sample(id=str(n), epochs=({name: noise(one, rng) for name, one in known.items()},), lonlat=(10.0 * n, 45.0))
            for n in range(count)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def noise(modality: Modality, rng: np.random.Generator) -> Raster:
    side = CELLS * (32 if modality.encoder == "swin" else 1)
    dates = min(modality.dates, 4)
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


def whole_steps(
    learning: SelfSupervised, batches: Sequence[Batch], given: argparse.Namespace, device: torch.device
) -> list[dict[str, float]]:
    """What the log says of each step after the first two, which warm up."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            Unlabelled(learning, VIEWS),
            batches=lambda start: islice(cycle(batches), start, None),
            depth=lambda _: 0,
            top=0,
            folder=Path(folder),
            steps=given.steps + 2,
            config=TrainConfig(
                batch_size=given.batch_size,
                log_every=1,
                save_every=10**9,
                validate_every=10**9,
                precision=given.precision,
                checkpoint_activations=given.checkpoint_activations,
                compile=given.compile,
            ),
            optim_config=PretrainOptim(),
            device=device,
            settings={},
            written={},
            validate=dict,
            best=None,
            export=lambda *_: None,
        ).run()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"][2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--modalities", default="s2,s1")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()

    device = runtime.choose_device()
    known = {name: modalities.load(name) for name in given.modalities.split(",")}
    known |= {name: modalities.load(name, {"gsd": gsd}) for name, gsd in modalities.meeting(known).items()}
    chips = ViewChips(Noise(known, 2 * given.batch_size), known, VIEWS, seed=0)
    loader = training_loader(chips, batch_size=given.batch_size, start=0, workers=0)
    batches = [batch.to(device) for batch in islice(loader, 2)]
    spec = ModelSpec(preset=given.preset, prototypes=True)

    found: dict[str, list[float]] = {"step_s": [], "bare_s": [], "loader_s": []}
    for _ in range(given.repeats):
        learning = SelfSupervised(SkySense(spec, known), MethodConfig(), steps=10**6).to(device)
        rows = rows_of_heads(learning, batches[0])
        passes = (bare_step(learning, batches[n % 2], rows, device, given.precision) for n in range(given.steps))
        found["bare_s"].append(seconds(passes, device))
        lines = whole_steps(learning, batches, given, device)
        found["step_s"].append(statistics.median(given.batch_size / line["samples_per_s"] for line in lines))
        found["loader_s"].append(seconds((None for _ in islice(loader, given.steps)), device))
    step, bare, load = (statistics.median(values) for values in found.values())
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **{key: value for key, value in vars(given).items() if key not in ("steps", "repeats")},
        "step_s": round(step, 4),
        "bare_s": round(bare, 4),
        "step_over_bare": round(step / bare, 3),
        "loader_share": round(load / (load + step), 4),
        "samples_per_s": round(given.batch_size / step, 2),
        "memory_gib": round(lines[-1]["memory_gib"], 2),
        "mfu": round(lines[-1]["mfu"], 4) if "mfu" in lines[-1] else "not known: no GPU of a known peak",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
