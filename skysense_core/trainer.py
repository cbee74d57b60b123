"""The one training loop: fine-tuning and pre-training differ only in their objective.

A run is a folder: `config.toml`, `metrics.jsonl`, `tensorboard/`, `state/` (what an exact resume needs) and the models
that the caller exports. Everything that happens in step n depends on the state before it, the seed and n alone, so a
run that was killed goes on exactly as if it had not been.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from skysense_core import optim, runtime
from skysense_core.data.batch import Batch
from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.optim import OptimConfig
from skysense_core.runs import RunLog, RunState

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
    """Samples per forward pass."""
    accumulate: Positive = 1
    """Forward passes per step; a step learns from batch_size x accumulate samples."""
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

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.accumulate

    def steps_for(self, samples: int) -> int:
        """Steps of a training on so many samples. Raises UsageError where `steps` and `epochs` are both given."""
        if self.steps is not None and self.epochs is not None:
            raise UsageError("train.steps and train.epochs are both given", fix="Give one of them.")
        if self.epochs is not None:
            return max(math.ceil(self.epochs * samples / self.samples_per_step), 1)
        return self.steps or 2000


class Objective(nn.Module, ABC):
    """What is minimised. Its state is all that training changes."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, already weighted: their sum is minimised."""

    def after_step(self, step: int) -> None:
        """Called when the optimiser has finished step 1..steps; moving averages live here."""


class Trainer:
    """Minimises an objective over endless batches.

    `batches(start)` yields batches from the start-th on, always the same ones for the same start. `validate` returns
    numbers; `export("last")` writes the model, and `export("best")` where the number called `best` is higher than ever
    (without `best`, never). `settings` is what must
    not change between the runs of one training.
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
        validate: Callable[[], Mapping[str, float]],
        best: str | None,
        export: Callable[[str, Mapping[str, float]], None],
    ) -> None:
        self.objective = objective.to(device)
        self.batches = batches
        self.folder = folder
        self.steps = steps
        self.config = config
        self.optim_config = optim_config
        self.device = device
        self.validate = validate
        self.best = best
        self.export = export
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
        batches = iter(self.batches(step * config.accumulate))
        with (
            RunLog(self.folder, after=step) as run_log,
            tqdm(total=self.steps, initial=step, unit="step", disable=None) as bar,
            runtime.noted_signals() as signals,
        ):
            while step < self.steps:
                if signals:
                    self._save(step)
                    message = f"stopped after step {step} of {self.steps}; the run is kept in {self.folder}"
                    raise Interrupted(signals[0], f"{message}\nRun the same command with --resume to go on.")
                with run_log.stepping():
                    record = self._step(step, batches, run_log)
                step += 1
                bar.update()
                if step % config.log_every == 0 or step == self.steps:
                    numbers = run_log.train(step, record, self.device)
                    bar.set_postfix_str(f"loss {numbers['loss']:.3f}, {numbers['samples_per_s']:.1f} samples/s")
                if step % validate_every == 0 or step == self.steps:
                    self._validate(step, run_log)
                if step % save_every == 0 or step == self.steps:
                    self._save(step)

    def _step(self, step: int, batches: Iterator[Batch], run_log: RunLog) -> dict[str, float]:
        config = self.config
        runtime.seed_step(config.seed, step)
        self.objective.train()
        sums: dict[str, Tensor] = {}
        ids: list[tuple[str, ...]] = []
        totals: list[Float[Tensor, ""]] = []
        for _ in range(config.accumulate):
            with run_log.waiting():
                batch = next(batches).to(self.device)
            with runtime.autocast(self.device, config.precision):
                losses = self.objective(batch)
            total = torch.stack(list(losses.values())).sum()
            (total / config.accumulate).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / config.accumulate
            ids.append(batch.ids)
            totals.append(total.detach())
            run_log.count(len(batch.ids))
        clip = self.optim_config.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), clip)
        if not torch.isfinite(norm):
            self._refuse(step, sums, ids, totals)
        rate = optim.learning_rate(self.optim_config, step, self.steps)
        optim.set_rates(self.optimizer, rate, optim.weight_decay(self.optim_config, step, self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(step + 1)
        values = {name: float(value) for name, value in sums.items()}
        return {"loss": sum(values.values()), **values, "lr": rate, "grad_norm": float(norm)}

    def _refuse(
        self, step: int, sums: Mapping[str, Tensor], ids: list[tuple[str, ...]], totals: list[Float[Tensor, ""]]
    ) -> None:
        spoilt = [names for names, total in zip(ids, totals, strict=True) if not torch.isfinite(total)]
        named = ", ".join(name for names in (spoilt or ids) for name in names)
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
