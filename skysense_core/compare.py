"""Two class maps of one grid: where they agree, and what became of what."""

import colorsys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8

from skysense_core import runtime
from skysense_core.errors import UsageError
from skysense_core.geo import classmap, cog
from skysense_core.geo.cog import Product, RowWriter
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.mosaic import Result
from skysense_core.geo.windows import Window
from skysense_core.metrics import class_scores
from skysense_core.types import IGNORE

SAME = "unchanged"
OTHER = "other change"
MOST = 250
"""Kinds of change that the difference map tells apart; rarer ones are `other change`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """The settings of one comparison."""

    first: str
    second: str
    out: Path | None = None
    """A COG of the differences."""
    creation_options: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The ground that is one class on the first map and another one on the second."""

    before: str
    after: str
    hectares: float
    share: float
    """Of the ground that both maps show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult:
    """How two maps differ."""

    pixels: int
    """With a class on both."""
    agreement: float
    """Share of them, by pixels."""
    kappa: float | None
    confusion: tuple[tuple[int, ...], ...]
    """Pixels by class of the first map (row) and of the second (column)."""
    classes: tuple[str, ...]
    hectares: dict[str, tuple[float, float]]
    """By class, on the first and the second map, where both show something."""
    changes: tuple[Change, ...]
    """Largest first."""
    path: Path | None
    seconds: float


def compare(given: CompareConfig) -> CompareResult:
    """Compare two class maps of the same classes and grid, in memory that does not grow with their size.

    The difference map has class 0 where they agree and one class for each kind of change, `water -> forest`, largest
    first. Raises UsageError where classes or grids differ, or no pixel has a class on both.
    """
    started = time.perf_counter()
    first, second = classmap.open_class_map(given.first), classmap.open_class_map(given.second)
    classmap.check_same_classes(first, second)
    classmap.check_same_grid(first, second)
    if given.out is not None and (given.out.is_dir() or given.out.suffix.lower() not in (".tif", ".tiff")):
        raise UsageError(f"--out {given.out}: not the name of a GeoTIFF", fix="For example --out difference.tif")
    if given.out is not None and given.out.exists() and not given.overwrite:
        raise UsageError(f"{given.out} exists", fix="Use --overwrite to replace it.")
    names = first.product.classes
    counts, metres = _cross(first, second)
    if not counts.any():
        raise UsageError(f"{given.first} and {given.second}: no pixel has a class on both")
    changes = _changes(metres)
    if given.out is not None:
        with runtime.interruptible("comparison interrupted; nothing was written"):
            _write(given.out, first, second, changes, given.creation_options)
    scores = class_scores(torch.from_numpy(counts), names)
    total = metres.sum()
    return CompareResult(
        pixels=scores["support"],
        agreement=scores["oa"],
        kappa=scores["kappa"],
        confusion=tuple(map(tuple, counts.tolist())),
        classes=names,
        hectares={
            name: (float(metres[code].sum() / 1e4), float(metres[:, code].sum() / 1e4))
            for code, name in enumerate(names)
        },
        changes=tuple(
            Change(
                before=names[one],
                after=names[other],
                hectares=float(metres[one, other] / 1e4),
                share=float(metres[one, other] / total),
            )
            for one, other in changes
        ),
        path=given.out,
        seconds=time.perf_counter() - started,
    )


def _cross(first: Result, second: Result) -> tuple[Int64[np.ndarray, "k k"], Float64[np.ndarray, "k k"]]:
    """Pixels and square metres by class on the first (row) and on the second map (column)."""
    k = len(first.product.classes)
    counts, metres = np.zeros((k, k), dtype=np.int64), np.zeros((k, k))
    for (row, before), (_, after) in zip(classmap.rows_of(first), classmap.rows_of(second), strict=True):
        both = (before < k) & (after < k)
        pairs = before[both].astype(np.int64) * k + after[both]
        own = np.bincount(pairs, minlength=k * k).reshape(k, k)
        height, width = before.shape
        counts += own
        metres += own * ground_gsd(Window(row=row, col=0, height=height, width=width).geobox(first.grid)) ** 2
    return counts, metres


def _changes(metres: Float64[np.ndarray, "k k"]) -> list[tuple[int, int]]:
    """The kinds of change that occur, largest first."""
    k = len(metres)
    found = [(one, other) for one in range(k) for other in range(k) if one != other and metres[one, other] > 0]
    return sorted(found, key=lambda pair: -metres[pair])


def _write(
    out: Path, first: Result, second: Result, changes: Sequence[tuple[int, int]], options: Mapping[str, str]
) -> None:
    names = first.product.classes
    k = len(names)
    table = np.full((IGNORE + 1, IGNORE + 1), IGNORE, dtype=np.uint8)
    table[:k, :k] = min(len(changes), MOST) + 1
    table[range(k), range(k)] = 0
    for number, pair in enumerate(changes[:MOST], start=1):
        table[pair] = number
    kinds = [f"{names[one]} -> {names[other]}" for one, other in changes[:MOST]]
    kinds += [OTHER] if len(changes) > MOST else []
    product = Product(
        kind="classes",
        bands=("difference",),
        classes=(SAME, *kinds),
        colours=("#e8e8e8", *_hues(len(kinds))),
        tags={
            **first.product.tags,
            "FIRST": Path(first.path).name,
            "SECOND": Path(second.path).name,
        },
    )
    with cog.scratch_beside(out) as scratch:
        with RowWriter(scratch / "difference.tif", first.grid, product) as writer:
            for (row, before), (_, after) in zip(classmap.rows_of(first), classmap.rows_of(second), strict=True):
                codes: UInt8[np.ndarray, "n w"] = table[before, after]
                writer.write(Window(row=row, col=0, height=len(codes), width=codes.shape[1]), codes[None])
        cog.publish(cog.write_cog(scratch / "difference.tif", product, options), out)


def _hues(count: int) -> tuple[str, ...]:
    """Colours around the wheel, neighbours far apart (steps of the golden ratio)."""
    return tuple(
        "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(0.618034 * number % 1, 0.75, 0.85))
        for number in range(count)
    )
