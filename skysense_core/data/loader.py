"""Batches in an order that can be repeated and resumed exactly, whatever reads them.

The n-th sample of a training depends on (seed, n) alone: n // len is the epoch and its permutation, n % len the place
in it. Batch size, number of processes and workers decide who reads it, never what it is.

Workers come from a fork server: a plain fork would copy GDAL's open files and locks and torch's threads in whatever
state they are in, which deadlocks or mixes up reads; the server is a fresh process that has neither.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from skysense_core import runtime
from skysense_core.data.batch import Batch, collate
from skysense_core.data.chips import EvaluationChips, TrainingChips
from skysense_core.data.views import ViewChips
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.types import ClassMap, Sample, Split


class Order(Sampler[list[tuple[int, int]]]):
    """Endless lists of (sample, draw), one per batch, from batch `start` on.

    `draw` counts the samples of the whole training; a batch of all `world` processes is a stretch of it, and each
    process takes its own part of the stretch.
    """

    def __init__(self, samples: int, *, batch_size: int, seed: int, start: int, rank: int = 0, world: int = 1) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        first = (self.start * self.world + self.rank) * self.batch_size
        while True:
            keys = []
            for draw in range(first, first + self.batch_size):
                if draw // self.samples != epoch:
                    epoch = draw // self.samples
                    permutation = runtime.generator(self.seed, epoch).permutation(self.samples)
                keys.append((int(permutation[draw % self.samples]), draw))
            yield keys
            first += self.batch_size * self.world


def training_loader(
    chips: TrainingChips | ViewChips, *, batch_size: int, start: int, workers: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless batches from the start-th on; see `Order`. Raises SkysenseError as soon as a sample cannot be read."""
    order = Order(len(chips), batch_size=batch_size, seed=chips.seed, start=start, rank=rank, world=world)
    return _batches(chips, order, workers)


def evaluation_loader(chips: EvaluationChips, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Every window once, in order; the last batch may be smaller."""
    keys = [list(range(first, min(first + batch_size, len(chips)))) for first in range(0, len(chips), batch_size)]
    return _batches(chips, keys, workers)


def _batches(chips: Any, order: Sampler[list[Any]] | Sequence[list[Any]], workers: int) -> Iterator[Batch]:
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # torch is imported once, by the server
    loader = DataLoader(
        _Stacked(chips),
        sampler=order,
        batch_size=None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # otherwise it draws from the one that a training step has seeded
        num_workers=workers,
        multiprocessing_context=context,
    )
    for batch in loader:
        if isinstance(batch, SkysenseError):
            raise batch
        yield batch


class _Stacked(Dataset[Batch | SkysenseError]):
    """Whole batches. An error the user can act on travels as a value: torch would bury it under a traceback."""

    def __init__(self, chips: Any) -> None:
        self.chips = chips

    def __getitem__(self, keys: list[Any]) -> Batch | SkysenseError:
        try:
            samples, targets = zip(*(self.chips[key] for key in keys), strict=True)
            return collate(samples, targets)
        except SkysenseError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


class Part:
    """Some samples of a split, in its own order; a Split itself."""

    def __init__(self, split: Split, indices: Sequence[int]) -> None:
        self.split = split
        self.indices = indices
        self.classes = split.classes
        self.colours = split.colours
        self.notes = split.notes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.split[self.indices[index]]

    def size(self, index: int) -> tuple[int, int]:
        return self.split.size(self.indices[index])

    def label(self, index: int) -> ClassMap:
        return self.split.label(self.indices[index])


def label_fraction(split: Split, fraction: float, *, seed: int) -> Part:
    """A random share of the samples, at least one; a smaller share of the same seed lies within a larger one.

    Raises UsageError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--label-fraction {fraction:g}: expected a share above 0 and at most 1")
    order = runtime.generator(seed).permutation(len(split))
    return Part(split, sorted(order[: max(round(fraction * len(split)), 1)].tolist()))
