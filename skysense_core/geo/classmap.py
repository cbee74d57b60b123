"""A class map that is finished: its classes, its rows, random pixels of each class, the class at a place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from jaxtyping import Float, Int, Int64, UInt8
from rasterio.windows import Window as RasterioWindow

from skysense_core.errors import UsageError
from skysense_core.geo.cog import BLOCK, class_areas
from skysense_core.geo.grid import differ, place
from skysense_core.geo.mosaic import Result, open_result
from skysense_core.types import IGNORE


def open_class_map(path: str) -> Result:
    """What a class map is, from what the file carries.

    Raises SkysenseError where it cannot be read and UsageError where it is no class map of predict.
    """
    result = open_result(path)
    if result.product.kind != "classes":
        raise UsageError(f"{path}: not a class map", fix="It holds values; name the map that predict wrote beside it.")
    return result


def rows_of(result: Result) -> Iterator[tuple[int, UInt8[np.ndarray, "n w"]]]:
    """The first row and the codes of one row of blocks after the other."""
    with rasterio.open(result.path) as dataset:
        for row in range(0, dataset.height, BLOCK):
            height = min(BLOCK, dataset.height - row)
            yield row, dataset.read(1, window=RasterioWindow(0, row, dataset.width, height))


def areas(result: Result) -> Float[np.ndarray, "k"]:
    """Square metres on the ground of each class."""
    return np.array(list(class_areas(Path(result.path), len(result.product.classes))))


def pixels(result: Result) -> Int64[np.ndarray, "k"]:
    """Pixels of each class."""
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    for _, codes in rows_of(result):
        counts += np.bincount(codes.ravel(), minlength=IGNORE + 1)
    return counts[: len(result.product.classes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Random pixels of a map, by their centres in its CRS."""

    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    codes: Int[np.ndarray, "n"]
    """The class that the map shows there."""


def draw(result: Result, wanted: Sequence[int], sizes: Sequence[int], seed: int) -> Drawn:
    """`wanted` random pixels of each class out of `sizes`, none twice, in random order."""
    rng = np.random.default_rng(seed)
    # The ranks of the drawn pixels among those of their class, in the order of the rows.
    ranks = [np.sort(rng.choice(size, count, replace=False)) for count, size in zip(wanted, sizes, strict=True)]
    passed = [0] * len(ranks)
    found: list[tuple[int, int, int]] = []
    for row, codes in rows_of(result):
        for code, own in enumerate(ranks):
            here = np.flatnonzero(codes == code)
            first, last = np.searchsorted(own, [passed[code], passed[code] + len(here)])
            for flat in here[own[first:last] - passed[code]]:
                found.append((row + int(flat) // codes.shape[1], int(flat) % codes.shape[1], code))
            passed[code] += len(here)
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    table = table[rng.permutation(len(table))]
    x, y = place(result.grid.affine, table[:, 1] + 0.5, table[:, 0] + 0.5)
    return Drawn(x=x, y=y, codes=table[:, 2])


def codes_at(result: Result, x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The code at each place in the map's CRS; `IGNORE` outside of the map and where it has no data."""
    with rasterio.open(result.path) as dataset:
        read = dataset.sample(np.column_stack([x, y]), indexes=1, masked=True)
        return np.array([IGNORE if one.mask.any() else int(one[0]) for one in read], dtype=np.int64)


def check_same_classes(first: Result, second: Result) -> None:
    """Raises UsageError where two maps do not have the same classes."""
    if first.product.classes != second.product.classes:
        texts = [f"{one.path}: {', '.join(one.product.classes)}" for one in (first, second)]
        raise UsageError(f"two maps of different classes: {'; '.join(texts)}", fix="Compare maps of the same classes.")


def check_same_grid(first: Result, second: Result) -> None:
    """Raises UsageError where two maps are not the same pixels."""
    if differ(first.grid, second.grid):
        texts = [
            f"{one.path}: {one.grid.shape.x} x {one.grid.shape.y} pixels from {one.grid.affine.c:.10g}, "
            f"{one.grid.affine.f:.10g} in {one.grid.crs}"
            for one in (first, second)
        ]
        raise UsageError(
            f"two maps on different grids: {'; '.join(texts)}",
            fix=f"Predict the second one with --like {first.path}.",
        )
