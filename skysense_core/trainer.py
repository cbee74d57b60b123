"""The one training loop: fine-tuning and pre-training differ only in their objective.

A run is a folder: `config.toml`, `metrics.jsonl`, `tensorboard/`, `state/` (what an exact resume needs) and the models
that the caller exports. Everything that happens in step n depends on the state before it, the seed and n alone, so a
run that was killed goes on exactly as if it had not been. All processes of a training run this loop; process 0 writes.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skysense_core import optim, parallel, runtime
from skysense_core.data.batch import Batch
from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.flops import count_flops
from skysense_core.optim import OptimConfig
from skysense_core.progress import Bar
from skysense_core.runstate import RunLog, RunState, begin

log = logging.getLogger(__name__)

Positive: TypeAlias = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The `[train]` table."""

    steps: Positive | None = None
    """Optimiser steps; not given: from `epochs`, or else 2000."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training samples."""
    batch_size: Positive = 8
    """Samples that a step learns from, of all processes together."""
    micro_batch: Positive | None = None
    """Samples per forward pass, of all processes together; each takes an equal, contiguous part of them. Where it is
    smaller than batch_size a step takes several passes. Not given: one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware has it."""
    seed: int = 0
    validate_every: Positive | None = None
    """Steps; not given: ten times in a run."""
    save_every: Positive | None = None
    """Steps between states for resuming; not given: at every validation."""
    log_every: Positive = 10
    keep: Positive = 1
    """States kept."""
    shard_model: bool = False
    """Spread every parameter over the processes (FSDP2), for models that do not fit into each."""
    checkpoint_activations: bool = False
    """Keep the inputs of layers only and compute the rest again in the backward pass."""
    compile: bool = False
    """Compile the layers, each on its own."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """What the device can do per second, for the share of it that is used; not given: known for some GPUs in bf16."""

    @property
    def per_pass(self) -> int:
        """Samples of all processes in a forward pass."""
        return self.micro_batch or self.batch_size

    @property
    def passes(self) -> int:
        """Forward passes per step."""
        return self.batch_size // self.per_pass

    def own_part(self) -> int:
        """Samples per forward pass of this process. Raises UsageError where a step has no whole number of passes, or
        the processes cannot share one evenly."""
        processes = runtime.world()
        if self.batch_size % self.per_pass:
            raise UsageError(
                f"train.batch_size = {self.batch_size} is no multiple of train.micro_batch = {self.per_pass}",
                fix=f"--batch-size {math.ceil(self.batch_size / self.per_pass) * self.per_pass}",
            )
        if self.per_pass % processes:
            even = math.ceil(self.per_pass / processes) * processes
            name = "batch_size" if self.micro_batch is None else "micro_batch"
            raise UsageError(
                f"train.{name} = {self.per_pass} samples cannot be shared evenly by {processes} processes",
                fix=f"--batch-size {even}" if self.micro_batch is None else f"--set train.micro_batch={even}",
            )
        return self.per_pass // processes

    def steps_for(self, samples: int) -> int:
        """Steps of a training on so many samples. Raises UsageError where `steps` and `epochs` are both given."""
        if self.steps is not None and self.epochs is not None:
            raise UsageError("train.steps and train.epochs are both given", fix="Give one of them.")
        if self.epochs is not None:
            return max(math.ceil(self.epochs * samples / self.batch_size), 1)
        return self.steps or 2000


class Objective(nn.Module, ABC):
    """What is minimised. Its state is all that training changes."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, already weighted: their sum is minimised."""

    def blocks(self) -> list[nn.Module]:
        """The layers that are recomputed, compiled and (of a model spread over processes) gathered one by one."""
        return []

    def parts(self) -> list[nn.Module]:
        """What is gathered one by one beside the blocks: all that validation calls without the objective."""
        return []

    def after_step(self, step: int) -> None:
        """Called when the optimiser has finished step 1..steps; moving averages live here."""


class Trainer:
    """Minimises an objective over endless batches.

    `batches(start)` yields this process's part of the batches from the start-th on, always the same ones for the same
    start. `validate` returns numbers; `export("last")` writes the model, and `export("best")` where the number called
    `best` is higher than ever (without `best`, never); every `export_every` steps it writes `exports/STEP` too.
    `settings` is what must not change between the runs of one training, `written` what `config.toml` will say: nothing
    is written before the first batch is there. Process 0 validates and exports; a model that is spread over processes
    needs all of them for it.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        batches: Callable[[int], Iterable[Batch]],
        depth: Callable[[str], int],
        top: int,
        folder: Path,
        steps: int,
        config: TrainConfig,
        optim_config: OptimConfig,
        device: torch.device,
        settings: Mapping[str, Any],
        written: Mapping[str, Any],
        validate: Callable[[], Mapping[str, float]],
        best: str | None,
        export: Callable[[str, Mapping[str, float]], None],
        export_every: int | None = None,
    ) -> None:
        self.objective = objective.to(device)
        if config.checkpoint_activations:
            for block in objective.blocks():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if config.compile:
            for block in objective.blocks():
                block.compile()
        if config.shard_model:
            parallel.shard(self.objective, [*objective.blocks(), *objective.parts()])
        self.validates = runtime.rank() == 0 or config.shard_model
        self.batches = batches
        self.folder = folder
        self.written = written
        self.steps = steps
        self.config = config
        self.optim_config = optim_config
        self.device = device
        self.validate = validate
        self.best = best
        self.export = export
        self.export_every = export_every
        self.optimizer = optim.build_optimizer(self.objective, optim_config, depth=depth, top=top)
        self.state = RunState(folder / "state", settings, keep=config.keep)

    def run(self, *, resume: bool = False) -> None:
        """Train to the last step.

        Raises SkysenseError where a loss or gradient is not finite (naming the samples) or where a resumed run has
        other settings, and Interrupted after SIGTERM or SIGINT, when the state is saved.
        """
        config = self.config
        step = self.state.load(self.objective, self.optimizer) if resume else 0
        validate_every = config.validate_every or max(self.steps // 10, 1)
        save_every = config.save_every or validate_every
        if step:
            log.info("resuming after step %d of %d", step, self.steps)
        batches = iter(self.batches(step * config.passes))
        first = list(islice(batches, 1 if step < self.steps else 0))
        begin(self.folder, self.written, resume=resume)
        runtime.keep_freed_memory()
        peak = config.peak_tflops * 1e12 if config.peak_tflops else runtime.peak_flops(self.device, config.precision)
        counted = first and parallel.highest(int(peak is not None), self.device)
        flops = self._count(first[0]) if counted else 0.0
        batches, first = chain(first, batches), []
        model = self.objective if config.shard_model else parallel.copies(self.objective)
        with (
            RunLog(self.folder, after=step, peak=peak) as run_log,
            Bar(total=self.steps, initial=step, unit="step", shown=runtime.rank() == 0) as bar,
            runtime.noted_signals() as signals,
        ):
            while step < self.steps:
                if signal := parallel.highest(max(signals, default=0), self.device):
                    self._save(step)
                    del batches  # ends the processes that prepare them
                    message = f"stopped after step {step} of {self.steps}; the run is kept in {self.folder}"
                    raise Interrupted(signal, f"{message}\nRun the same command with --resume to go on.")
                with run_log.stepping():
                    record = self._step(step, model, batches, run_log, flops)
                step += 1
                bar.update()
                if step % config.log_every == 0 or step == self.steps:
                    numbers = run_log.train(step, record, self.device)
                    bar.set_postfix_str(f"loss {numbers['loss']:.3f}, {numbers['samples_per_s']:.1f} samples/s")
                if self.validates and (step % validate_every == 0 or step == self.steps):
                    self._validate(step, run_log)
                if self.validates and self.export_every is not None and step % self.export_every == 0:
                    self.export(f"exports/{step:09d}", {})
                if step % save_every == 0 or step == self.steps:
                    self._save(step)
        parallel.wait()

    def _step(
        self, step: int, model: nn.Module, batches: Iterator[Batch], run_log: RunLog, flops: float
    ) -> dict[str, float]:
        config = self.config
        runtime.seed_step(config.seed, step, runtime.rank())
        self.objective.train()
        sums: dict[str, Tensor] = {}
        ids: list[tuple[str, ...]] = []
        totals: list[Float[Tensor, ""]] = []
        for number in range(config.passes):
            with run_log.waiting():
                batch = next(batches).to(self.device)
            with parallel.gathering(model, last=number == config.passes - 1):
                with runtime.autocast(self.device, config.precision):
                    losses = model(batch)
                total = torch.stack(list(losses.values())).sum()
                (total / config.passes).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / config.passes
            ids.append(batch.ids)
            totals.append(total.detach())
            run_log.count(len(batch.ids) * runtime.world(), flops)
        sums = dict(zip(sums, parallel.mean(torch.stack(list(sums.values()))), strict=True))
        clip = self.optim_config.clip or float("inf")
        norm = parallel.whole(nn.utils.clip_grad_norm_(self.objective.parameters(), clip))
        if not torch.isfinite(norm):
            self._refuse(step, sums, ids, totals)
        rate = optim.learning_rate(self.optim_config, step, self.steps)
        optim.set_rates(self.optimizer, rate, optim.weight_decay(self.optim_config, step, self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(step + 1)
        values = {name: float(value) for name, value in sums.items()}
        return {"loss": sum(values.values()), **values, "lr": rate, "grad_norm": float(norm)}

    def _count(self, batch: Batch) -> float:
        """Operations of one forward and backward pass of this process; nothing of it stays."""
        self.objective.eval()

        def forward() -> Tensor:
            with runtime.autocast(self.device, self.config.precision):
                return torch.stack(list(self.objective(batch.to(self.device)).values())).sum()

        flops = count_flops(forward)
        self.optimizer.zero_grad(set_to_none=True)
        return flops

    def _refuse(
        self, step: int, sums: Mapping[str, Tensor], ids: list[tuple[str, ...]], totals: list[Float[Tensor, ""]]
    ) -> None:
        spoilt = [names for names, total in zip(ids, totals, strict=True) if not torch.isfinite(total)]
        named = ", ".join(parallel.told(chain(*spoilt)) or parallel.told(chain(*ids)))
        wrong = ", ".join(name for name, value in sums.items() if not torch.isfinite(value)) or "the gradient"
        raise SkysenseError(
            f"step {step + 1}: {wrong} is not finite; the samples were {named}",
            fix=f"Look at these samples, or lower optim.lr (now {self.optim_config.lr:g}) and train again.",
        )

    def _validate(self, step: int, run_log: RunLog) -> None:
        self.objective.eval()
        scores = self.validate()
        run_log.validation(step, scores)
        better = self.best is not None and scores[self.best] > self.state.best
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        log.info("step %d of %d: %s%s", step, self.steps, shown, " (best so far)" if better else "")
        if self.best is not None and better:
            self.state.best = scores[self.best]
            self.export("best", scores)
        self.export("last", scores)

    def _save(self, step: int) -> None:
        self.state.save(step, self.objective, self.optimizer)
