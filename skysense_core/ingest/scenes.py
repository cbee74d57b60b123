"""From scenes to samples: the cells that the imagery covers, read shard by shard, each date once for all its cells.

What is read of a date is cut into cells at once and put aside, on disk where it is much, until all dates are there:
memory grows neither with the number of scenes nor with that of dates.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox
from shapely import Polygon

from skysense_core import config
from skysense_core.data.store import Facts
from skysense_core.errors import SkysenseError
from skysense_core.geo import units
from skysense_core.geo.cache import BLOCK, block_cache
from skysense_core.geo.fingerprint import fingerprint
from skysense_core.geo.grid import bounds_in
from skysense_core.geo.labels import Labels
from skysense_core.geo.raster import Stack
from skysense_core.ingest.grid import Cells, Lattice, footprints
from skysense_core.ingest.inputs import Failure, Found, Inputs
from skysense_core.ingest.pack import WORK, Legend, Packed
from skysense_core.ingest.reading import Aside, meets, overlap, read_date, rounded
from skysense_core.ingest.settings import IngestConfig
from skysense_core.types import IGNORE, ClassMap, Raster, Sample

HOW = ("inputs", "out", "jobs", "overwrite")
"""Settings that say where and how, not what; for the inputs stand the files that they mean."""
PIECE = 64 * 2**20
"""Bytes of one date that are read at once."""
WHOLE: dict[str, np.dtype] = {units.DISPLAY: np.dtype(np.uint8), "reflectance x 10000": np.dtype(np.uint16)}
"""Units that are counted in whole numbers, and the type that usually holds them: what is interpolated is rounded."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shard:
    """The cells of one shard, and the part of each."""

    cells: Cells
    splits: tuple[str, ...]
    labels: Labels | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneWork:
    """An ingest of scenes that is ready to start. Travels to other processes."""

    given: IngestConfig
    inputs: Inputs
    lattice: Lattice
    sides: Mapping[str, int]
    """Pixels along a cell."""
    reference: str
    """The finest modality: a sample is where it shows something, and labels lie on its grid."""
    shards: tuple[Shard, ...]
    legend: Legend
    facts: Mapping[str, Facts]
    notes: tuple[str, ...]

    @property
    def size(self) -> int | None:
        return self.lattice.size

    @property
    def found(self) -> tuple[Found, ...]:
        return self.inputs.found

    @property
    def failures(self) -> tuple[Failure, ...]:
        return self.inputs.failures

    @property
    def made_from(self) -> dict[str, Any]:
        """What the bytes of the store depend on."""
        given = {key: value for key, value in config.to_table(self.given).items() if key not in HOW}
        files = sorted({*self.inputs.paths, *((self.given.labels,) if self.given.labels else ())})
        files += [str(self.given.aoi)] if self.given.aoi else []
        places = hashlib.sha256()
        for shard in self.shards:
            places.update(shard.cells.crs.encode() + shard.cells.cols.tobytes() + shard.cells.rows.tobytes())
        paths = {name: list(stack.paths) for name, stack in self.inputs.stacks.items()}
        return {**given, "inputs": paths, "files": {path: _state(path) for path in files}, "cells": places.hexdigest()}

    def count(self, number: int) -> int:
        """Most samples of a shard."""
        return len(self.shards[number].cells)

    def estimate(self) -> tuple[int, dict[str, int], int]:
        """Most samples, images by modality, and bytes of pixels before compression."""
        images, size = {}, 0
        samples = sum(len(shard.cells) for shard in self.shards)
        for name, stack in self.inputs.stacks.items():
            grounds = [footprints([layer.geobox for layer, _ in date]) for date in stack.layers]
            outlines = np.concatenate([shard.cells.outlines() for shard in self.shards])
            images[name] = sum(int(shapely.intersects(ground, outlines).sum()) for ground in grounds)
            if self.given.max_dates is not None:
                images[name] = min(images[name], samples * self.given.max_dates)
            dtype = WHOLE.get(self.legend.modalities[name].unit, stack.dtype)
            size += images[name] * self.sides[name] ** 2 * len(stack.band_names) * dtype.itemsize
        return samples, images, size

    def samples(self, number: int, failures: list[Failure]) -> Iterator[Packed]:
        """The samples of a shard, by name. What cannot be read is noted in `failures` and taken for not valid."""
        shard = self.shards[number]
        # Shards follow each other from south to north, column by column, and share blocks with the next of both: the
        # columns of blocks that a shard meets are kept. Of one date: for the next one nothing of this is of use.
        columns = -(-shard.cells.grid(self.sides[self.reference]).shape.x // BLOCK) + 1
        height = self.inputs.stacks[self.reference].geobox.shape.y
        single = [replace(stack, days=stack.days[:1], dated=stack.dated[:1]) for stack in self.inputs.stacks.values()]
        with Aside(self.given.out / WORK) as aside, block_cache(single, height, columns):
            for name in self.inputs.stacks:
                self._read(shard.cells, name, aside, failures, number)
            places = zip(shard.cells.outlines(), *shard.cells.centres(), strict=True)
            for index, (outline, lon, lat) in enumerate(places):
                packed = self._sample(shard, index, aside, outline, (float(lon), float(lat)))
                if packed is not None:
                    yield packed

    def _read(self, cells: Cells, name: str, aside: Aside, failures: list[Failure], number: int) -> None:
        """Read one modality over the shard, date by date, in pieces of bounded size."""
        stack, side = self.inputs.stacks[name], self.sides[name]
        each = side**2 * len(stack.band_names) * 4
        positions = {cells.name(index): index for index in range(len(cells))}
        failed: dict[str, str] = {}
        pieces = cells.blocks(max(int((PIECE / each) ** 0.5), 1))
        for date in range(len(stack.days)):  # blocks that two pieces share are still in GDAL's cache then
            for piece in pieces:
                if not meets(stack, date, piece.grid(side)):
                    continue
                for cell, pixels, valid in _cut(stack, date, piece, side, failed):
                    if valid.any() and valid.mean() >= self.given.min_date_valid:
                        aside.put((positions[cell], name), date, pixels, valid)
        where = f"shard {number}"
        failures += [Failure(item=path, modality=name, where=where, error=text) for path, text in failed.items()]

    def _sample(
        self, shard: Shard, index: int, aside: Aside, outline: Polygon, lonlat: tuple[float, float]
    ) -> Packed | None:
        """One cell; None where the reference shows too little of it, or where it has no label though others have."""
        cell = shard.cells[np.array([index])]
        images: dict[str, Raster] = {}
        dates: dict[str, list[int]] = {}
        for name, stack in self.inputs.stacks.items():
            raster, dates[name] = self._series(aside, (index, name), stack, cell.grid(self.sides[name]))
            if raster is not None:
                images[name] = raster
        seen = images.get(self.reference)
        if seen is None or np.logical_or.reduce(seen.valid).mean() < self.given.min_valid:
            return None
        grid = cell.grid(self.sides[self.reference])
        label = None if shard.labels is None else ClassMap(codes=shard.labels.read(grid), geobox=grid)
        if label is not None and (label.codes == IGNORE).all():
            return None
        sample = Sample(id=shard.cells.name(index), epochs=(images,), footprint=outline, lonlat=lonlat, label=label)
        return Packed(sample=sample, split=shard.splits[index], items=self._items(grid, dates))

    def _series(
        self, aside: Aside, key: tuple[int, str], stack: Stack, grid: GeoBox
    ) -> tuple[Raster | None, list[int]]:
        kept = _spread(aside.dates(key), self.given.max_dates)
        found = [(date, *aside.take(key, date)) for date in kept]
        found = [item for at, item in enumerate(found) if not (at and _same(stack, found[at - 1], item))]
        if not found:
            return None, []
        dates = [date for date, _, _ in found]
        pixels = np.stack([one for _, one, _ in found])
        whole = WHOLE.get(self.legend.modalities[key[1]].unit)
        return Raster(
            pixels=pixels if whole is None else rounded(pixels, whole),
            valid=np.stack([one for _, _, one in found]),
            days=stack.days[dates],
            dated=stack.dated[dates],
            geobox=grid,
        ), dates

    def _items(self, grid: GeoBox, dates: Mapping[str, list[int]]) -> tuple[str, ...]:
        """Names of the files and products that a sample may show."""
        paths: set[str] = set()
        for name, some in dates.items():
            stack = self.inputs.stacks[name]
            reach = bounds_in(grid, stack.geobox.crs)
            paths |= {layer.path for date in some for layer, bounds in stack.layers[date] if overlap(bounds, reach)}
        return tuple(sorted({path.rstrip("/").rpartition("/")[2] for path in paths}))


def _cut(
    stack: Stack, date: int, piece: Cells, side: int, failed: dict[str, str]
) -> Iterator[tuple[str, Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]]:
    """The name, pixels and validity of every cell of a piece; {path: reason} of damaged files goes into `failed`.

    Where a block of a file is damaged, the cells are read one by one: those beside it lose nothing.
    """
    raster, damaged = read_date(stack, date, piece.grid(side))
    if damaged and len(piece) > 1:
        for index in range(len(piece)):
            yield from _cut(stack, date, piece[np.array([index])], side, failed)
        return
    failed.update({path: text for path, text in damaged if path not in failed})
    for index in range(len(piece)):
        window = piece.window(index, side)
        rows, cols = slice(window.row, window.row_stop), slice(window.col, window.col_stop)
        yield piece.name(index), raster.pixels[0, :, rows, cols], raster.valid[0, rows, cols]


def _spread(dates: Sequence[int], most: int | None) -> list[int]:
    """At most so many, evenly spaced."""
    if most is None or len(dates) <= most:
        return list(dates)
    return [dates[place] for place in np.linspace(0, len(dates) - 1, most).round().astype(int).tolist()]


def _same(stack: Stack, one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two images of one day are the same image twice."""
    dated = stack.dated[one[0]] and stack.dated[other[0]] and stack.days[one[0]] == stack.days[other[0]]
    return bool(dated) and all(np.array_equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


def _state(path: str) -> str:
    """A file that is damaged or gone is a state like any other: it is a failure of its own."""
    try:
        return fingerprint(path)
    except SkysenseError as error:
        return error.message
