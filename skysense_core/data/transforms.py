"""What happens to a sample before it is stacked: crop, turn, choose dates. Pure functions, Sample in, Sample out.

Rows and columns are counted on the grid of the reference modality; every other raster and the label follow, each at
its own pixel size, so that the modalities of a sample always show the same ground.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from affine import Affine
from jaxtyping import Float, Int, Shaped
from odc.geo.geobox import GeoBox

from skysense_core.data import labels
from skysense_core.modalities import Modality
from skysense_core.types import ClassMaps, Raster, Sample

VEIL = 2.0
"""How bright haze is: standard deviations above a band's mean."""


def size(sample: Sample, reference: str) -> tuple[int, int]:
    """Rows and columns of the reference raster."""
    height, width = sample.epochs[0][reference].pixels.shape[-2:]
    return height, width


def stride(sample: Sample, reference: str) -> int:
    """Smallest step in reference pixels that is a whole number of pixels in every raster (32 for hr beside s2)."""
    sides = size(sample, reference)
    steps = {
        side // math.gcd(side, other)
        for epoch in sample.epochs
        for raster in epoch.values()
        for side, other in zip(sides, raster.pixels.shape[-2:], strict=True)
    }
    return math.lcm(*steps)


def crop(sample: Sample, reference: str, *, row: int, col: int, height: int, width: int) -> Sample:
    """The same rectangle of every raster and of the label; beyond the sample it is invalid, the label `IGNORE`.

    Row, col, height and width are multiples of `stride`; ValueError otherwise. The footprint is dropped (it was the
    whole sample's), lonlat stays: it chooses a region of hundreds of kilometres.
    """
    full = size(sample, reference)
    corner, shape = (row, col), (height, width)

    def cut(raster: Raster) -> Raster:
        own = raster.pixels.shape[-2:]
        at = _scaled(corner, own, full)
        to = _scaled(shape, own, full)
        return replace(
            raster,
            pixels=_window(raster.pixels, at, to, 0),
            valid=_window(raster.valid, at, to, False),
            geobox=None if raster.geobox is None else _moved(raster.geobox, Affine.translation(*at[::-1]), to),
        )

    def cut_map(array: Shaped[np.ndarray, "*n h w"], fill: Any) -> Shaped[np.ndarray, "*n h2 w2"]:
        return _window(array, corner, shape, fill)

    label = sample.label
    if label is not None:
        label = labels.moved(label, cut_map, Affine.translation(col, row), shape)
    return replace(_each_raster(sample, cut), label=label, footprint=None)


def random_crop(sample: Sample, reference: str, window: int, rng: np.random.Generator) -> Sample:
    """A random square of `window` reference pixels; a smaller sample is padded to it.

    `window` is a multiple of `stride`; ValueError otherwise.
    """
    step = stride(sample, reference)
    row, col = (step * int(rng.integers(max(side - window, 0) // step + 1)) for side in size(sample, reference))
    return crop(sample, reference, row=row, col=col, height=window, width=window)


def zoom(sample: Sample, reference: str, side: int) -> Sample:
    """A square sample with `side` reference pixels on the same ground; every raster and the label follow.

    Pixels are interpolated linearly, and valid where all that they are made of is; the label takes the nearest. `side`
    is a multiple of `stride`; ValueError otherwise.
    """
    full = size(sample, reference)
    if full[0] != full[1]:
        raise ValueError(f"a sample of {full[0]} x {full[1]} pixels is not square")

    def zoomed(raster: Raster) -> Raster:
        (own, _) = raster.pixels.shape[-2:]
        (new, _) = _scaled((side, side), (own, own), full)
        low, high, share = _between(own, new)
        pixels, valid = raster.pixels.astype(np.result_type(raster.pixels, np.float32)), raster.valid
        pixels = pixels[..., low, :] * (1 - share[:, None]) + pixels[..., high, :] * share[:, None]
        pixels = pixels[..., low] * (1 - share) + pixels[..., high] * share
        valid = valid[..., low, :] & valid[..., high, :]
        grid = None if raster.geobox is None else _moved(raster.geobox, Affine.scale(own / new), (new, new))
        return replace(raster, pixels=pixels, valid=valid[..., low] & valid[..., high], geobox=grid)

    nearest = ((np.arange(side) + 0.5) * full[0] / side).astype(np.int64)

    def zoomed_map(array: Shaped[np.ndarray, "*n h w"], _: object) -> Shaped[np.ndarray, "*n h2 w2"]:
        return array[..., nearest, :][..., nearest]

    label = sample.label
    if label is not None:
        label = labels.moved(label, zoomed_map, Affine.scale(full[0] / side), (side, side))
    return replace(_each_raster(sample, zoomed), label=label)


def random_zoom(sample: Sample, reference: str, window: int, most: float, rng: np.random.Generator) -> Sample:
    """A random square as `random_crop` takes it, but up to `most` times larger or smaller, brought to `window` pixels.

    Roofs, trees and fields come in many sizes; so do the pixels of a scene whose size is misstated.
    """
    step = stride(sample, reference)
    side = max(round(window * most ** rng.uniform(-1, 1) / step), 1) * step
    return zoom(random_crop(sample, reference, side, rng), reference, window)


def turn(sample: Sample, *, transpose: bool, flip_rows: bool, flip_cols: bool) -> Sample:
    """One of the eight symmetries of the square, the same for every raster and the label (transposed first)."""

    def turned(array: Shaped[np.ndarray, "*n h w"], fill: Any = None) -> Shaped[np.ndarray, "*n h2 w2"]:
        array = array.swapaxes(-1, -2) if transpose else array
        return array[..., :: -1 if flip_rows else 1, :: -1 if flip_cols else 1]

    def back(height: int, width: int) -> Affine:
        """A pixel of the turned grid, which has so many rows and columns, in the grid as it was."""
        # Read right to left: unflipped, then untransposed.
        move = Affine(0, 1, 0, 1, 0, 0) if transpose else Affine.identity()
        return move * Affine(
            -1 if flip_cols else 1, 0, width * flip_cols, 0, -1 if flip_rows else 1, height * flip_rows
        )

    def turned_raster(raster: Raster) -> Raster:
        pixels = turned(raster.pixels)
        shape = (pixels.shape[-2], pixels.shape[-1])
        grid = None if raster.geobox is None else _moved(raster.geobox, back(*shape), shape)
        return replace(raster, pixels=pixels, valid=turned(raster.valid), geobox=grid)

    sample = _each_raster(sample, turned_raster)
    if sample.label is None:
        return sample
    finest = max((raster.pixels.shape[-2:] for epoch in sample.epochs for raster in epoch.values()), key=math.prod)
    shape = (finest[0], finest[1])
    return replace(sample, label=labels.moved(sample.label, turned, back(*shape), shape))


def random_turn(sample: Sample, rng: np.random.Generator) -> Sample:
    """A random symmetry of the square: imagery from above has no up."""
    transpose, flip_rows, flip_cols = (bool(draw) for draw in rng.integers(0, 2, 3))
    return turn(sample, transpose=transpose, flip_rows=flip_rows, flip_cols=flip_cols)


def swap(sample: Sample) -> Sample:
    """The epochs in reverse order, and the maps of epochs with them: what has changed has changed either way."""
    label = sample.label
    if isinstance(label, ClassMaps):
        label = replace(label, codes=label.codes[::-1])
    return replace(sample, epochs=sample.epochs[::-1], label=label)


def subsample_dates(sample: Sample, most: Mapping[str, int], rng: np.random.Generator | None = None) -> Sample:
    """At most `most[name]` dates of each series, in order; dates without a valid pixel go first.

    Random with a generator (training), evenly spaced without (evaluation). One date always stays.
    """
    epochs = []
    for epoch in sample.epochs:
        chosen = {}
        for name, raster in epoch.items():
            seen = np.flatnonzero(raster.valid.any(axis=(1, 2)))
            if not len(seen):
                seen = np.array([0])
            count = min(most[name], len(seen))
            if rng is None:
                kept = seen[np.linspace(0, len(seen) - 1, count).round().astype(np.int64)]
            else:
                kept = np.sort(rng.choice(seen, count, replace=False))
            # Fancy indexing copies, also out of a memory map: only the chosen dates are read from disk.
            chosen[name] = raster if len(kept) == len(raster.days) else _dates(raster, kept)
        epochs.append(chosen)
    return replace(sample, epochs=tuple(epochs))


def drop_dates(sample: Sample, share: float, rng: np.random.Generator) -> Sample:
    """Every date of a series is left out with the chance `share`, as clouds would have it; one always stays."""

    def dropped(raster: Raster) -> Raster:
        kept = rng.random(len(raster.days)) >= share
        kept[rng.integers(len(kept))] |= not kept.any()
        return raster if kept.all() else _dates(raster, np.flatnonzero(kept))

    return _each_raster(sample, dropped)


def random_contrast(
    sample: Sample, modalities: Mapping[str, Modality], strength: float, rng: np.random.Generator
) -> Sample:
    """Every image with its own gain 1 +- strength and bias +- strength, drawn uniformly, in normalised units.

    A normalised pixel z becomes gain z + bias, whatever the modality's unit; pixels become float32.
    """

    def changed(z: Float[np.ndarray, "t c h w"]) -> Float[np.ndarray, "t c h w"]:
        change, bias = strength * rng.uniform(-1, 1, (2, len(z), 1, 1, 1))
        return z * (1 + change) + bias

    return _each_normalised(sample, modalities, changed)


def random_colour(
    sample: Sample, modalities: Mapping[str, Modality], strength: float, rng: np.random.Generator
) -> Sample:
    """As `random_contrast`, but every band on its own: what season, sensor and light do to colours."""

    def changed(z: Float[np.ndarray, "t c h w"]) -> Float[np.ndarray, "t c h w"]:
        change, bias = strength * rng.uniform(-1, 1, (2, *z.shape[:2], 1, 1))
        return z * (1 + change) + bias

    return _each_normalised(sample, modalities, changed)


def random_haze(sample: Sample, modalities: Mapping[str, Modality], most: float, rng: np.random.Generator) -> Sample:
    """Every image behind haze: up to the share `most` of its light becomes that of a bright, even veil."""

    def changed(z: Float[np.ndarray, "t c h w"]) -> Float[np.ndarray, "t c h w"]:
        share = most * rng.random((len(z), 1, 1, 1))
        return (1 - share) * z + share * VEIL

    return _each_normalised(sample, modalities, changed)


def _each_normalised(
    sample: Sample,
    modalities: Mapping[str, Modality],
    change: Callable[[Float[np.ndarray, "t c h w"]], Float[np.ndarray, "t c h w"]],
) -> Sample:
    """With every raster's pixels changed in normalised units; they become float32."""

    def changed(name: str, raster: Raster) -> Raster:
        mean, std = (
            values[:, None, None].astype(np.float32) for values in (modalities[name].mean, modalities[name].std)
        )
        pixels = change((raster.pixels - mean) / std) * std + mean
        return replace(raster, pixels=pixels.astype(np.float32))

    epochs = tuple({name: changed(name, raster) for name, raster in epoch.items()} for epoch in sample.epochs)
    return replace(sample, epochs=epochs)


def _each_raster(sample: Sample, change: Callable[[Raster], Raster]) -> Sample:
    epochs = tuple({name: change(raster) for name, raster in epoch.items()} for epoch in sample.epochs)
    return replace(sample, epochs=epochs)


def _scaled(lengths: tuple[int, int], own: tuple[int, ...], full: tuple[int, int]) -> tuple[int, int]:
    parts = [divmod(length * mine, whole) for length, mine, whole in zip(lengths, own, full, strict=True)]
    if any(rest for _, rest in parts):
        raise ValueError(f"{lengths} reference pixels of {full} are no whole pixels of a raster of {own}")
    return parts[0][0], parts[1][0]


def _between(own: int, new: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """For each of `new` pixels on the ground of `own`: the two that it lies between, and the share of the second."""
    at = np.clip((np.arange(new) + 0.5) * own / new - 0.5, 0, own - 1)
    low = np.minimum(at.astype(np.int64), max(own - 2, 0))
    return low, np.minimum(low + 1, own - 1), (at - low).astype(np.float32)


def _window(
    array: Shaped[np.ndarray, "*n h w"], at: tuple[int, int], shape: tuple[int, int], fill: Any
) -> Shaped[np.ndarray, "*n h2 w2"]:
    part = array[..., at[0] : at[0] + shape[0], at[1] : at[1] + shape[1]]
    missing = [wanted - got for wanted, got in zip(shape, part.shape[-2:], strict=True)]
    if not any(missing):
        return part
    widths = [(0, 0)] * (array.ndim - 2) + [(0, lack) for lack in missing]
    return np.pad(part, widths, constant_values=fill)


def _moved(geobox: GeoBox, move: Affine, shape: tuple[int, int]) -> GeoBox:
    return GeoBox(shape, geobox.affine * move, geobox.crs)


def _dates(raster: Raster, kept: Shaped[np.ndarray, "n"]) -> Raster:
    return replace(
        raster, pixels=raster.pixels[kept], valid=raster.valid[kept], days=raster.days[kept], dated=raster.dated[kept]
    )
