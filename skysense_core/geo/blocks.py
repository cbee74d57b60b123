"""Cutting a labelled scene in space: into blocks that belong to one part of a data set, and blocks into windows.

Neighbouring pixels are alike, so a random split of windows would test on what was trained on. Whole blocks are dealt
out instead, and no window leaves its block.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from skysense_core.geo.windows import Window


def starts(side: int, window: int, step: int) -> list[int]:
    """Where windows begin that cover `side` pixels, `step` apart; the last one is moved back inside.

    One window where the side is shorter than it: that one reaches beyond.
    """
    return [*range(0, side - window, step), max(side - window, 0)]


def cover(side: int, window: int) -> list[tuple[int, int]]:
    """Windows over `side` pixels as (start, pixels that the window before has shown already)."""
    begins = starts(side, window, window)
    ends = [0, *(begin + window for begin in begins)]
    return [(begin, end - begin) for begin, end in zip(begins, ends, strict=False)]


def cut(area: Window, side: int) -> list[Window]:
    """The area in blocks of `side` pixels; a remainder belongs to the last block, so that none is smaller."""
    rows, cols = _edges(area.row, area.height, side), _edges(area.col, area.width, side)
    return [Window(row=row, col=col, height=height, width=width) for row, height in rows for col, width in cols]


def _edges(start: int, length: int, side: int) -> list[tuple[int, int]]:
    count = max(length // side, 1)
    last = (count - 1) * side
    return [*((start + number * side, side) for number in range(count - 1)), (start + last, length - last)]


def halves(area: Window, *, across: bool) -> tuple[Window, Window]:
    """The left and right half of an area, or the upper and lower one."""
    if across:
        half = area.width // 2
        return (
            Window(row=area.row, col=area.col, height=area.height, width=half),
            Window(row=area.row, col=area.col + half, height=area.height, width=area.width - half),
        )
    half = area.height // 2
    return (
        Window(row=area.row, col=area.col, height=half, width=area.width),
        Window(row=area.row + half, col=area.col, height=area.height - half, width=area.width),
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A window of a scene by its first pixel, and how many of its first rows and columns others have shown."""

    row: int
    col: int
    seen_rows: int = 0
    seen_cols: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Pixels that stay together, and the windows in them that have a labelled pixel."""

    scene: str
    area: Window
    part: str | None
    """train, val or test where the user says so; None: any."""
    dense: tuple[Place, ...]
    """Half a window apart, to learn from."""
    once: tuple[Place, ...]
    """Side by side, to measure on: every pixel is new in one of them."""

    @classmethod
    def of(cls, known: Bool[np.ndarray, "h w"], window: int, *, scene: str, area: Window, part: str | None) -> "Block":
        """A block by where its pixels are labelled; windows of `window` pixels."""

        def labelled(place: Place) -> bool:
            rows, cols = (slice(first + seen, first + window) for first, seen in
                          ((place.row, place.seen_rows), (place.col, place.seen_cols)))  # fmt: skip
            return bool(known[rows, cols].any())

        height, width = known.shape
        rows, cols = starts(height, window, window // 2), starts(width, window, window // 2)
        dense = [Place(row, col) for row in rows for col in cols]
        once = [
            Place(row, col, seen_rows, seen_cols)
            for row, seen_rows in cover(height, window)
            for col, seen_cols in cover(width, window)
        ]
        return cls(
            scene=scene,
            area=area,
            part=part,
            dense=tuple(_moved(place, area) for place in dense if labelled(place)),
            once=tuple(_moved(place, area) for place in once if labelled(place)),
        )


def _moved(place: Place, area: Window) -> Place:
    return replace(place, row=area.row + place.row, col=area.col + place.col)


def deal(found: Iterable[Block], *, val_share: float, test_share: float, seed: int) -> dict[str, list[Block]]:
    """The blocks of train, val and test: those that belong somewhere, and shares of the others.

    Where nothing else validates, a share of the training blocks does. The order in which blocks are drawn depends on
    the place of each and the seed alone, so that a block more or less changes little.
    """

    def draw(block: Block) -> bytes:
        key = (seed, block.scene, block.area.row, block.area.col)
        return hashlib.blake2b(repr(key).encode(), digest_size=8).digest()

    order = sorted(found, key=draw)
    free = [block for block in order if block.part is None]
    test, val = (max(round(share * len(free)), 1) for share in (test_share, val_share))
    parts = {name: [block for block in order if block.part == name] for name in ("train", "val", "test")}
    parts["test"] += free[:test]
    parts["val"] += free[test : test + val]
    parts["train"] += free[test + val :]
    if not parts["val"]:
        val = max(round(val_share * len(parts["train"])), 1)
        parts["val"], parts["train"] = parts["train"][:val], parts["train"][val:]
    return {
        name: sorted(dealt, key=lambda block: (block.scene, block.area.row, block.area.col))
        for name, dealt in parts.items()
    }
