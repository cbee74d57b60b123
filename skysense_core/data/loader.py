"""Batches in an order that can be repeated and resumed exactly, whatever reads them.

The n-th sample of a training depends on (seed, n) alone: n // len is the epoch and its permutation, n % len the place
in it. Batch size, number of processes and workers decide who reads it, never what it is.

Workers come from a fork server: a plain fork would copy GDAL's open files and locks and torch's threads in whatever
state they are in, which deadlocks or mixes up reads; the server is a fresh process that has neither.
"""

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from skysense_core import runtime
from skysense_core.data.batch import Batch, Series, collate
from skysense_core.data.chips import EvaluationChips, TrainingChips
from skysense_core.data.views import ViewChips
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import Modality, side_beside
from skysense_core.types import Label, Sample, Split

GRACE = 20


class Order(Sampler[list[tuple[int, int]]]):
    """Endless lists of (sample, draw), one per batch, from batch `start` on; `batch_size` is that of one process.

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
    """Endless batches from the start-th on; see `Order`. Every batch has every modality, if only as invalid images.

    So the processes of one training, whose batches differ, run the same layers and exchange the same things. Raises
    SkysenseError as soon as a sample cannot be read.
    """
    order = Order(len(chips), batch_size=batch_size, seed=chips.seed, start=start, rank=rank, world=world)
    return _batches(chips, order, workers, chips.modalities)


def evaluation_loader(chips: EvaluationChips, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Every window once, in order; the last batch may be smaller."""
    keys = [list(range(first, min(first + batch_size, len(chips)))) for first in range(0, len(chips), batch_size)]
    return _batches(chips, keys, workers, {})


def _batches(
    chips: Any, order: Sampler[list[Any]] | Sequence[list[Any]], workers: int, wanted: Mapping[str, Modality]
) -> Iterator[Batch]:
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # torch is imported once, by the server
    loader = DataLoader(
        _Stacked(chips, wanted),
        sampler=order,
        batch_size=None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # otherwise it draws from the one that a training step has seeded
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=_leave_signals,
    )
    for batch in loader:
        if isinstance(batch, SkysenseError):
            raise batch
        yield batch


class _Stacked(Dataset[Batch | SkysenseError]):
    """Whole batches. An error the user can act on travels as a value: torch would bury it under a traceback."""

    def __init__(self, chips: Any, wanted: Mapping[str, Modality]) -> None:
        self.chips = chips
        self.wanted = wanted

    def __getitem__(self, keys: list[Any]) -> Batch | SkysenseError:
        try:
            samples, targets = zip(*(self.chips[key] for key in keys), strict=True)
            return completed(collate(samples, targets), self.wanted)
        except SkysenseError as error:
            return error


def completed(batch: Batch, modalities: Mapping[str, Modality]) -> Batch:
    """With one invalid image of each modality that no sample of the batch has, on the footprint of the others."""
    epochs = []
    for epoch in batch.epochs:
        missing = {}
        for name in modalities.keys() - epoch.keys():
            reference, series = next((modalities[known], epoch[known]) for known in epoch if known in modalities)
            b, _, _, *sides = series.pixels.shape
            h, w = (side_beside(reference, modalities[name], side) for side in sides)
            missing[name] = Series(
                pixels=torch.zeros(b, 1, len(modalities[name].bands), h, w),
                valid=torch.zeros(b, 1, h, w, dtype=torch.bool),
                day_of_year=torch.ones(b, 1, dtype=torch.int64),
                dated=torch.zeros(b, 1, dtype=torch.bool),
            )
        epochs.append(dict(sorted((epoch | missing).items())))
    return replace(batch, epochs=tuple(epochs))


def _leave_signals(_worker: int) -> None:
    """A signal to the whole group of processes is for the training itself, which saves first and then ends these.

    One that is still there `GRACE` seconds after it was told to end does so: otherwise it would outlive a training
    that has left it alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


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

    def label(self, index: int) -> Label:
        return self.split.label(self.indices[index])


def label_fraction(split: Split, fraction: float, *, seed: int) -> Part:
    """A random share of the samples, at least one; a smaller share of the same seed lies within a larger one.

    Raises UsageError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--label-fraction {fraction:g}: expected a share above 0 and at most 1")
    order = runtime.generator(seed).permutation(len(split))
    return Part(split, sorted(order[: max(round(fraction * len(split)), 1)].tolist()))
