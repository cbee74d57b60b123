"""Cutting a labelled scene in space: into blocks that belong to one part of a data set, and blocks into windows.

Neighbouring pixels are alike, so a random split of windows would test on what was trained on. Whole blocks are dealt
out instead, and no window leaves its block.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool
from shapely import Polygon, STRtree

from skysense_core.geo.windows import Window
from skysense_core.types import PartName


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
    ground: Polygon
    """Its outline in EPSG:4326: two scenes may show the same ground."""
    part: PartName | None
    """Where it belongs by its place; None: anywhere."""
    chosen: bool
    """Whether the user named the part for this scene."""
    dense: tuple[Place, ...]
    """Half a window apart, to learn from."""
    once: tuple[Place, ...]
    """Side by side, to measure on: every pixel is new in one of them."""

    @classmethod
    def of(cls, known: Bool[np.ndarray, "h w"], window: int, **place: Any) -> "Block":
        """A block by where its pixels are labelled; windows of `window` pixels. `place` are the other fields."""
        area = place["area"]

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
            **place,
            dense=tuple(_moved(place, area) for place in dense if labelled(place)),
            once=tuple(_moved(place, area) for place in once if labelled(place)),
        )


def _moved(place: Place, area: Window) -> Place:
    return replace(place, row=area.row + place.row, col=area.col + place.col)


def deal(
    found: Sequence[Block], *, val_share: float, test_share: float, seed: int
) -> tuple[dict[PartName, list[Block]], int]:
    """The blocks of train, val and test, and how many were left out because another part shows their ground.

    Blocks that belong somewhere stay there, shares of the others validate and test. Where nothing else validates, a
    share of the training blocks does. Blocks of several scenes on the same ground (dates, zooms) go together. The
    order in which ground is drawn depends on its place and the seed alone, so that a block more or less changes little.
    """
    parts: dict[PartName, list[Block]] = {"train": [], "val": [], "test": []}
    for block in found:
        if block.part is not None:
            parts[block.part].append(block)
    free = _drawn([block for block in found if block.part is None], seed)
    if free:
        test, val = (max(round(share * len(free)), 1) if share else 0 for share in (test_share, val_share))
        parts["test"] += chain(*free[:test])
        parts["val"] += chain(*free[test : test + val])
        parts["train"] += chain(*free[test + val :])
    if not parts["val"]:
        drawn = _drawn(parts["train"], seed)
        val = max(round(val_share * len(drawn)), 1)
        parts["val"], parts["train"] = [*chain(*drawn[:val])], [*chain(*drawn[val:])]
    before = sum(map(len, parts.values()))
    parts["val"] = _apart(parts["val"], parts["test"])
    parts["train"] = _apart(parts["train"], parts["val"] + parts["test"])
    for blocks in parts.values():
        blocks.sort(key=lambda block: (block.scene, block.area.row, block.area.col))
    return parts, before - sum(map(len, parts.values()))


def _drawn(found: Sequence[Block], seed: int) -> list[list[Block]]:
    """Blocks grouped by ground, in an order drawn by the place of the first of each group."""

    def draw(block: Block) -> bytes:
        key = (seed, block.scene, block.area.row, block.area.col)
        return hashlib.blake2b(repr(key).encode(), digest_size=8).digest()

    order = sorted(found, key=draw)
    group = list(range(len(order)))
    for one, other in zip(*_overlaps(order, order, share=0.5), strict=True):
        low, high = sorted((group[one], group[other]))
        group = [low if number == high else number for number in group]
    members: dict[int, list[Block]] = {}
    for number, block in zip(group, order, strict=True):
        members.setdefault(number, []).append(block)
    return list(members.values())


def _apart(found: Sequence[Block], others: Sequence[Block]) -> list[Block]:
    """The blocks that show no ground of the others; the user's own choice of parts for both is respected."""
    shared = {
        one
        for one, other in zip(*_overlaps(found, others, share=0.01), strict=True)
        if not (found[one].chosen and others[other].chosen)
    }
    return [block for number, block in enumerate(found) if number not in shared]


def _overlaps(found: Sequence[Block], others: Sequence[Block], *, share: float) -> tuple[list[int], list[int]]:
    """Pairs of blocks of different scenes that have more than `share` of the smaller one's ground in common."""
    grounds, other_grounds = (np.array([b.ground for b in blocks], dtype=object) for blocks in (found, others))
    one, other = STRtree(other_grounds).query(grounds, "intersects")
    first, second = grounds[one], other_grounds[other]
    smaller = np.minimum(shapely.area(first), shapely.area(second))
    scenes = [found[i].scene != others[j].scene for i, j in zip(one, other, strict=True)]
    keep = (shapely.area(shapely.intersection(first, second)) > share * smaller) & np.array(scenes, dtype=bool)
    return one[keep].tolist(), other[keep].tolist()
