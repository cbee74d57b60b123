"""Samples become windows of one size with their targets: random ones to learn from, a fixed cover to measure on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from affine import Affine
from jaxtyping import Bool
from odc.geo.geobox import GeoBox
from pydantic import Field
from torch.utils.data import Dataset

from skysense_core import runtime
from skysense_core.data import labels, transforms
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.blocks import cover
from skysense_core.geo.windows import lattice_for
from skysense_core.modalities import Modality, align_of, finest
from skysense_core.types import Label, Sample, Split

Encode: TypeAlias = Callable[[Label, tuple[int, int]], np.ndarray]
"""A task's `encode`: the label and the (rows, columns) of the reference raster become a target."""

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]

KEEP = 2**29
"""Bytes of samples kept in memory, in each process that reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """The `[augment]` table."""

    turns: bool = True
    """Random flips and quarter turns."""
    swap: bool = False
    """Half of the time before and after change places: for change of any kind, where either order means the same."""
    contrast: Share = 0.0
    """Random gain and bias of every image, in normalised units; 0.1 is a mild choice."""
    colour: Share = 0.0
    """The same for every band on its own, as season, sensor and light change colours."""
    haze: Share = 0.0
    """Largest share of an image's light that becomes an even veil."""
    scale: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Ground is shown up to so many times larger or smaller; 1.25 is a mild choice."""
    dates: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance of every date of a series to be left out, as clouds would have it; one always stays."""


def window_of(modalities: Mapping[str, Modality], split: Split, *, whole: bool = False) -> int:
    """Side of a window in pixels of the reference modality: the modality's, or less where no sample is so large.

    The points of a table are 4 pixels wide: padded to 64 they would cost 256 times as much. With `whole` the window
    shows the largest sample as a whole. Raises UsageError where encoders cannot share the modality's window.
    """
    modality = modalities[finest(modalities)]
    unit = align_of(modalities)
    if modality.window % unit:
        raise UsageError(
            f"modalities.{modality.name}.window = {modality.window}: windows are multiples of {unit} pixels",
            fix=f"Use {max(round(modality.window / unit), 1) * unit}.",
        )
    largest = 0
    for index in range(len(split)):
        largest = max(largest, *split.size(index))
        if largest >= modality.window and not whole:  # mostly so with the first sample
            return modality.window
    return -(-largest // unit) * unit


class TrainingChips(Dataset[tuple[Sample, np.ndarray]]):
    """Random windows. `chips[index, draw]` depends on sample, draw and seed alone, whoever computes it and when."""

    def __init__(
        self,
        split: Split,
        modalities: Mapping[str, Modality],
        encode: Encode,
        *,
        augment: Augment,
        seed: int,
        whole: bool = False,
    ) -> None:
        """Raises SkysenseError where there is no sample to learn from."""
        if not len(split):
            raise SkysenseError("the training part of the data set is empty")
        self.split = Kept(split)
        self.modalities = modalities
        self.encode = encode
        self.augment = augment
        self.seed = seed
        self.window = window_of(modalities, split, whole=whole)
        if augment.swap and len(self.split[0].epochs) < 2:
            raise UsageError("augment.swap is for several epochs, and the samples have one", fix="Leave it out.")

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, np.ndarray]:
        index, draw = key
        rng = runtime.generator(self.seed, draw)
        sample, reference, augment = self.split[index], finest(self.modalities), self.augment
        if augment.scale > 1:
            sample = transforms.random_zoom(sample, reference, self.window, augment.scale, rng)
        else:
            sample = transforms.random_crop(sample, reference, self.window, rng)
        sample = transforms.subsample_dates(sample, _most_dates(self.modalities), rng)
        if augment.dates:
            sample = transforms.drop_dates(sample, augment.dates, rng)
        if augment.turns:
            sample = transforms.random_turn(sample, rng)
        if augment.swap and rng.random() < 0.5:
            sample = transforms.swap(sample)
        for change, strength in (
            (transforms.random_contrast, augment.contrast),
            (transforms.random_colour, augment.colour),
            (transforms.random_haze, augment.haze),
        ):
            if strength:
                sample = change(sample, self.modalities, strength, rng)
        unseen = _unseen(sample, reference)
        return sample, self.encode(labels.hidden(_label(sample), unseen), (self.window, self.window))


class EvaluationChips(Dataset[tuple[Sample, np.ndarray]]):
    """Windows that show every pixel of every sample; each counts once: what a window before had is `IGNORE`."""

    def __init__(
        self, split: Split, modalities: Mapping[str, Modality], encode: Encode, *, whole: bool = False
    ) -> None:
        """Raises SkysenseError where there is no sample to measure on."""
        if not len(split):
            raise SkysenseError("this part of the data set is empty: there is nothing to measure on")
        self.split = Kept(split)
        self.modalities = modalities
        self.encode = encode
        self.window = window_of(modalities, split, whole=whole)
        self._windows = [
            (index, row, col)
            for index in range(len(split))
            for row in cover(split.size(index)[0], self.window)
            for col in cover(split.size(index)[1], self.window)
        ]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> tuple[Sample, np.ndarray]:
        index, (row, seen_rows), (col, seen_cols) = self._windows[number]
        sample, reference = self.split[index], finest(self.modalities)
        sample = transforms.crop(sample, reference, row=row, col=col, height=self.window, width=self.window)
        sample = transforms.subsample_dates(sample, _most_dates(self.modalities))
        unseen = _unseen(sample, reference)
        unseen[:, :seen_rows] = unseen[:, :, :seen_cols] = True
        target = self.encode(labels.hidden(_label(sample), unseen), (self.window, self.window))
        return replace(sample, id=f"{sample.id}@{row},{col}"), target


class OverlappingChips(EvaluationChips):
    """Windows that overlap as those of a prediction do: an object that one window cuts is whole in the next.

    What is found in them is joined before it is measured against the truth of the whole sample.
    """

    def __init__(
        self, split: Split, modalities: Mapping[str, Modality], encode: Encode, *, whole: bool = False
    ) -> None:
        """Raises SkysenseError where there is no sample to measure on."""
        super().__init__(split, modalities, encode, whole=whole)
        self.reference = finest(modalities)
        grids = [GeoBox(split.size(index), Affine.identity(), None) for index in range(len(split))]
        lattices = [lattice_for(grid, self.window, align=align_of(modalities)) for grid in grids]
        self.places = [(index, one, window) for index, one in enumerate(lattices) for window in one.windows()]
        self._windows = [(index, (window.row, 0), (window.col, 0)) for index, _, window in self.places]

    def truth(self, index: int) -> np.ndarray:
        """The target of a whole sample."""
        return self.encode(self.split.split.label(index), self.split.split.size(index))


class Kept:
    """A split that remembers the samples it has read, until they fill `KEEP` bytes: small data sets are read once.

    What is there stays. Throwing out the oldest would help nobody: every epoch asks for each sample once.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self._samples: dict[int, Sample] = {}
        self._room = KEEP

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        if index in self._samples:
            return self._samples[index]
        sample = self.split[index]
        size = sum(r.pixels.nbytes + r.valid.nbytes for epoch in sample.epochs for r in epoch.values())
        if size <= self._room:
            self._room -= size
            self._samples[index] = sample
        return sample


def _most_dates(modalities: Mapping[str, Modality]) -> dict[str, int]:
    return {name: modality.dates for name, modality in modalities.items()}


def _unseen(sample: Sample, reference: str) -> Bool[np.ndarray, "e h w"]:
    """Where no image of an epoch shows anything."""
    return np.stack([~epoch[reference].valid.any(axis=0) for epoch in sample.epochs])


def _label(sample: Sample) -> Label:
    if sample.label is None:
        raise SkysenseError(f"sample {sample.id} has no label")
    return sample.label
