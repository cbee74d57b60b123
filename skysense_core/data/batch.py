"""Samples become a batch: the one place where numpy turns into torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from skysense_core.types import Raster, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One modality of a batch: images in the modality's unit, padded in time with `valid=False`."""

    pixels: Float[Tensor, "b t c h w"]
    valid: Bool[Tensor, "b t h w"]
    day_of_year: Int[Tensor, "b t"]
    """1..366; meaningful where `dated`."""
    dated: Bool[Tensor, "b t"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Aligned samples as tensors. A modality that some samples lack is invalid there."""

    ids: tuple[str, ...]
    epochs: tuple[dict[str, Series], ...]
    lonlat: Float[Tensor, "b 2"]
    """Degrees; meaningful where `located`."""
    located: Bool[Tensor, "b"]
    target: Tensor | None = None
    """What the task made of the labels, stacked; its shape is the task's own. Where samples have more or fewer rows,
    the missing ones are NaN."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            epochs=tuple(
                {
                    name: Series(
                        pixels=move(series.pixels),
                        valid=move(series.valid),
                        day_of_year=move(series.day_of_year),
                        dated=move(series.dated),
                    )
                    for name, series in epoch.items()
                }
                for epoch in self.epochs
            ),
            lonlat=move(self.lonlat),
            located=move(self.located),
            target=None if self.target is None else move(self.target),
        )


def collate(samples: Sequence[Sample], targets: Sequence[np.ndarray] | None = None) -> Batch:
    """Stack samples of equal footprint size; series are padded to the longest, absent modalities are invalid.

    Raises ValueError where two rasters of one modality differ in bands or size.
    """
    epochs = []
    for number in range(len(samples[0].epochs)):
        names = sorted({name for sample in samples for name in sample.epochs[number]})
        epochs.append({name: _series([sample.epochs[number].get(name) for sample in samples]) for name in names})
    lonlat = [sample.lonlat or (0.0, 0.0) for sample in samples]
    return Batch(
        ids=tuple(sample.id for sample in samples),
        epochs=tuple(epochs),
        lonlat=torch.tensor(lonlat, dtype=torch.float32),
        located=torch.tensor([sample.lonlat is not None for sample in samples]),
        target=None if targets is None else torch.from_numpy(_stacked(targets)),
    )


def _stacked(targets: Sequence[Num[np.ndarray, "..."]]) -> Num[np.ndarray, "b ..."]:
    most = max(target.shape[:1] for target in targets)
    if all(target.shape[:1] == most for target in targets):
        return np.stack(targets)
    rows = np.full((len(targets), *most, *targets[0].shape[1:]), np.nan, dtype=targets[0].dtype)
    for index, target in enumerate(targets):
        rows[index, : len(target)] = target
    return rows


def joined(series: Sequence[Series]) -> Series:
    """Series of one shape as one batch, one after the other."""
    return Series(
        pixels=torch.cat([one.pixels for one in series]),
        valid=torch.cat([one.valid for one in series]),
        day_of_year=torch.cat([one.day_of_year for one in series]),
        dated=torch.cat([one.dated for one in series]),
    )


def _series(rasters: Sequence[Raster | None]) -> Series:
    shapes = {raster.pixels.shape[1:] for raster in rasters if raster is not None}
    if len(shapes) != 1:
        raise ValueError(f"rasters of one modality differ in (bands, rows, columns): {sorted(shapes)}")
    (c, h, w) = shapes.pop()
    b, t = len(rasters), max(len(raster.pixels) for raster in rasters if raster is not None)
    whole = all(raster is not None and len(raster.pixels) == t for raster in rasters)
    pixels = (np.empty if whole else np.zeros)((b, t, c, h, w), dtype=np.float32)
    valid = np.zeros((b, t, h, w), dtype=bool)
    day_of_year = np.ones((b, t), dtype=np.int64)
    dated = np.zeros((b, t), dtype=bool)
    for i, raster in enumerate(rasters):
        if raster is None:
            continue
        n = len(raster.pixels)
        pixels[i, :n], valid[i, :n] = raster.pixels, raster.valid
        day_of_year[i, :n], dated[i, :n] = _day_of_year(raster.days), raster.dated
    return Series(
        pixels=torch.from_numpy(pixels),
        valid=torch.from_numpy(valid),
        day_of_year=torch.from_numpy(day_of_year),
        dated=torch.from_numpy(dated),
    )


def _day_of_year(days: Int[np.ndarray, "t"]) -> Int[np.ndarray, "t"]:
    dates = days.astype("datetime64[D]")
    return (dates - dates.astype("datetime64[Y]")).astype(np.int64) + 1
