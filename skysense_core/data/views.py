"""Views of a sample for self-supervised training: crops that look different and know which places they show (METHOD 3).

    sample -> one window of it, some dates -> per view: crop, turn, picture changes, date jitter

All views of a sample come from one window and share its dates in their order; the modalities of a view share its crop
and its turn. A cell is a position of the fusion grid: a pixel of the finest ViT modality, else the patch of 32 pixels
that a Swin feature stands for. Crops are snapped to cells, so that cells of two views show the same place or do not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from skysense_core import runtime
from skysense_core.data import transforms
from skysense_core.data.chips import Kept
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import CELL, CELLS, Modality, finest
from skysense_core.types import Raster, Sample, Split

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Cells: TypeAlias = Annotated[int, Field(ge=CELLS, multiple_of=CELLS)]

PLACES = "#places"
"""No modality's name: under it the numbers of a sample's cells travel as a raster, moved by whatever moves rasters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """The `[views]` table. All values are decisions of this project [A]; METHOD 3 gives what they follow."""

    global_views: Annotated[int, Field(ge=2)] = 2
    """Large crops, seen by student and teacher."""
    local_views: Count = 4
    """Small crops, seen by the student alone."""
    global_cells: Cells = 16
    """Side of a large crop in cells: 160 m."""
    local_cells: Cells = 8
    """Side of a small crop."""
    window_cells: Cells = 24
    """Side of the window that all crops of a sample are taken from; two large crops of 16 overlap by 8 at least."""
    turns: bool = True
    """Flips and quarter turns, of all modalities of a view together."""
    blur: Share = 0.5
    """How often an image of a Swin modality is blurred, by a Gaussian of 0.1 to 2 pixels."""
    solarise: Share = 0.2
    """How often what is brighter than the modality's mean is mirrored at it."""
    colour: Share = 0.8
    """How often brightness, contrast, saturation and the balance of the bands change."""
    colour_strength: Annotated[float, Field(ge=0, lt=1)] = 0.4
    grey: Share = 0.2
    """How often all bands show their mean."""
    date_jitter: Count = 5
    """Most days by which the date of an image is moved."""

    def __post_init__(self) -> None:
        if not self.local_cells <= self.global_cells <= self.window_cells:
            raise UsageError(
                f"views.local_cells = {self.local_cells}, global_cells = {self.global_cells},"
                f" window_cells = {self.window_cells}",
                fix="Each is at most as large as the next.",
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """Side in cells of each view, the global ones first."""
        return (self.global_cells,) * self.global_views + (self.local_cells,) * self.local_views


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A sample as seen several times."""

    sample: Sample
    """Its epochs are the views, the global ones first; without label."""
    places: tuple[Int[np.ndarray, "_ _"], ...]
    """Per view: the number of each cell in the sample's own grid of cells, -1 beyond the sample."""


def draw_views(
    sample: Sample, modalities: Mapping[str, Modality], config: ViewConfig, rng: np.random.Generator
) -> Views:
    """Views of a sample with one epoch and any subset of the modalities; they depend on the sample and `rng` alone.

    Crops reach beyond a sample that is smaller than they are; there nothing is valid. Raises UsageError where crops
    of the wanted sides would cut pixels of a modality.
    """
    most = {name: modality.dates for name, modality in modalities.items()}
    window = _random_part(_numbered(sample, modalities), config.window_cells, rng, beyond=False)
    window = transforms.subsample_dates(window, most | {PLACES: 1}, rng)

    views = [_random_part(window, side, rng, beyond=True) for side in config.sides]
    if config.turns:
        views = [transforms.random_turn(view, rng) for view in views]
    rasters, places = [], []
    for view in views:
        shown = dict(view.epochs[0])
        numbers = shown.pop(PLACES)
        places.append(np.where(numbers.valid[0], numbers.pixels[0, 0], -1))
        rasters.append({name: _changed(raster, modalities[name], config, rng) for name, raster in shown.items()})
    return Views(sample=replace(window, epochs=tuple(rasters)), places=tuple(places))


class ViewChips(Dataset[tuple[Sample, np.ndarray]]):
    """Views of the samples of a split. `chips[index, draw]` depends on sample, draw and seed alone.

    The target is the places of all views, one after the other; `places_of` takes them apart again.
    """

    def __init__(self, split: Split, modalities: Mapping[str, Modality], config: ViewConfig, *, seed: int) -> None:
        """Raises SkysenseError where there is no sample to learn from."""
        if not len(split):
            raise SkysenseError("the training part of the data set is empty")
        self.split = Kept(split)
        self.modalities = modalities
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, np.ndarray]:
        index, draw = key
        views = draw_views(self.split[index], self.modalities, self.config, runtime.generator(self.seed, draw))
        return views.sample, np.concatenate([places.ravel() for places in views.places])


def places_of(target: Int[Tensor, "b n"], config: ViewConfig) -> list[Int[Tensor, "b _ _"]]:
    """The places of each view of a batch, from its target."""
    parts = target.split([side**2 for side in config.sides], dim=1)
    return [part.unflatten(1, (side, side)) for part, side in zip(parts, config.sides, strict=True)]


def _numbered(sample: Sample, modalities: Mapping[str, Modality]) -> Sample:
    """With the numbers of its cells as one more raster, and without what is left of a sample after whole cells."""
    (epoch,) = sample.epochs
    here = {name: modalities[name] for name in epoch}
    name = finest({name: one for name, one in here.items() if CELL[one.encoder] == 1} or here)
    side = CELL[here[name].encoder]
    unit = math.lcm(side, transforms.stride(sample, name))
    height, width = (max(length // unit, 1) * unit for length in transforms.size(sample, name))
    sample = transforms.crop(replace(sample, label=None), name, row=0, col=0, height=height, width=width)
    rows, columns = height // side, width // side
    places = Raster(
        pixels=np.arange(rows * columns).reshape(1, 1, rows, columns),
        valid=np.ones((1, rows, columns), dtype=bool),
        days=np.zeros(1, dtype=np.int64),
        dated=np.zeros(1, dtype=bool),
    )
    return replace(sample, epochs=(sample.epochs[0] | {PLACES: places},))


def _random_part(sample: Sample, side: int, rng: np.random.Generator, *, beyond: bool) -> Sample:
    """A random square of `side` cells; in a smaller sample all there is, or with `beyond` the square that holds it."""
    cells = transforms.size(sample, PLACES)
    step = transforms.stride(sample, PLACES)
    lengths = [side if beyond else min(side, length) for length in cells]
    if any(length % step for length in lengths):
        raise UsageError(
            f"sample {sample.id}: a crop of {side} cells cuts pixels, whose borders meet every {step} cells only",
            fix=f"Make the sides in [views] multiples of {math.lcm(step, CELLS)} cells.",
        )
    (row, height), (col, width) = (
        (step * int(rng.integers(max(length - wanted, 0) // step + 1)), wanted)
        for length, wanted in zip(cells, lengths, strict=True)
    )
    return transforms.crop(sample, PLACES, row=row, col=col, height=height, width=width)


def _changed(raster: Raster, modality: Modality, config: ViewConfig, rng: np.random.Generator) -> Raster:
    """Each image with its own changes, those of pictures for Swin modalities only; a date moves by a few days."""
    jitter = rng.integers(-config.date_jitter, config.date_jitter, len(raster.days), endpoint=True)
    raster = replace(raster, days=raster.days + jitter)
    if modality.encoder != "swin":
        return raster
    mean, std = (values[:, None, None].astype(np.float32) for values in (modality.mean, modality.std))
    images = [
        picture((pixels - mean) / std, valid, config, rng) * std + mean
        for pixels, valid in zip(raster.pixels.astype(np.float32), raster.valid, strict=True)
    ]
    return replace(raster, pixels=np.stack(images))


def picture(
    image: Float[np.ndarray, "c h w"], valid: Bool[np.ndarray, "h w"], config: ViewConfig, rng: np.random.Generator
) -> Float[np.ndarray, "c h w"]:
    """One image, in normalised units, after those changes of colour, grey, blur and solarisation that were drawn."""
    colour, grey, blurred, solarised = rng.random(4) < (config.colour, config.grey, config.blur, config.solarise)
    strength = config.colour_strength
    contrast, brightness, saturation = rng.uniform(-strength, strength, 3).astype(np.float32)
    balance = rng.uniform(-strength / 4, strength / 4, (len(image), 1, 1)).astype(np.float32)
    sigma = rng.uniform(0.1, 2.0)
    if colour:
        image = _saturated(image, 1 + saturation) * (1 + contrast) + brightness + balance
    if grey:
        image = _saturated(image, np.float32(0))
    if blurred:
        image = blur(image, valid, sigma)
    return np.where(image > 0, -image, image) if solarised else image


def blur(image: Float[np.ndarray, "c h w"], valid: Bool[np.ndarray, "h w"], sigma: float) -> Float[np.ndarray, "c h w"]:
    """A Gaussian of `sigma` pixels over valid pixels only; what is invalid, or beyond the border, adds nothing."""
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    known = valid[None].astype(np.float32)
    total, weight = np.where(valid, image, np.float32(0)), known
    for axis in (1, 2):
        total, weight = _smoothed(total, kernel, axis), _smoothed(weight, kernel, axis)
    return np.where(valid, total / np.maximum(weight, np.finfo(np.float32).tiny), image)


def _smoothed(
    image: Float[np.ndarray, "c h w"], kernel: Float[np.ndarray, "k"], axis: int
) -> Float[np.ndarray, "c h w"]:
    reach = len(kernel) // 2
    padded = np.pad(image, [(reach, reach) if axis == own else (0, 0) for own in range(3)])
    windows = np.moveaxis(padded, axis, 0)
    found = np.zeros_like(np.moveaxis(image, axis, 0))
    for offset, weight in enumerate(kernel):
        found += weight * windows[offset : offset + len(found)]
    return np.moveaxis(found, 0, axis)


def _saturated(image: Float[np.ndarray, "c h w"], saturation: np.float32) -> Float[np.ndarray, "c h w"]:
    grey = image.mean(axis=0, keepdims=True)
    return grey + saturation * (image - grey)
