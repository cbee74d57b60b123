"""Outlines of the areas of equal code in a raster that arrives in bands of rows, with what is summed up over each.

An area is a set of pixels of one code that touch along their sides (4-connectivity). An area that reaches the last row
of a band stays open: it keeps the corners of its outline and its sums until a later band completes it. Nothing but a
corner becomes a vertex, so the outlines do not depend on how the raster is cut into bands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Integer, Num, Shaped, UInt8

from skysense_core.types import IGNORE

CHUNK = 200_000
"""Corners whose areas are outlined at a time; an area with more comes alone."""

_CORNER = np.dtype([("area", "i4"), ("y", "i4"), ("x", "i4"), ("down", "?"), ("right", "?"), ("upright", "?")])
"""A turn of an outline: one edge leads down from it (or up), one right (or left). Walking with the area on the left
hand one leaves it by the upright edge (or by the level one)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """Complete areas, and their rings: area by area, the outer ring of each before its holes."""

    codes: UInt8[np.ndarray, "areas"]
    sums: Float64[np.ndarray, "areas quantities"]
    """The quantities summed over the pixels."""
    x: Integer[np.ndarray, "vertices"]
    """Pixels from the left side of the raster. The first vertex of a ring is not repeated at its end."""
    y: Integer[np.ndarray, "vertices"]
    """Pixels from the top."""
    ring: Integer[np.ndarray, "vertices"]
    """Ring of each vertex."""
    area: Integer[np.ndarray, "rings"]
    """Area of each ring."""


class Contours:
    """Takes a raster band by band, top to bottom, and gives the areas that each band completes.

    Memory: the band, and the corners of the areas that reach its last row.
    """

    def __init__(self, width: int, quantities: int) -> None:
        self._row = 0
        self._above = np.full((1, width + 2), IGNORE, dtype=np.uint8)
        self._reached = np.full(1, -1)
        """The open area of each run of pixels in the row above; -1 is nodata."""
        self._sums = np.zeros((0, quantities))
        self._parts: list[list[Shaped[np.ndarray, "n"]]] = []
        """The corners of each open area, band by band; they are put together once, when it is complete."""

    def add(self, codes: UInt8[np.ndarray, "n w"], quantities: Sequence[Num[np.ndarray, "n w"]]) -> Iterator[Outlines]:
        """The areas that end within the next rows; pixels of IGNORE belong to none. A last row of IGNORE ends all."""
        block = np.concatenate([self._above, np.pad(codes, ((0, 0), (1, 1)), constant_values=IGNORE)])
        starts = np.ones(block.shape, dtype=bool)
        np.not_equal(block[:, 1:], block[:, :-1], out=starts[:, 1:])
        run = np.cumsum(starts, dtype=np.int32).reshape(block.shape) - 1
        used = block[starts] != IGNORE

        reaching = np.flatnonzero(self._reached >= 0)
        entry = np.zeros(len(self._parts), dtype=np.int64)
        entry[self._reached[reaching]] = reaching  # one run of each open area stands for it
        above, below = _touching(block, starts, run)
        pairs = np.append(above, entry[self._reached[reaching]]), np.append(below, reaching)
        area, count = _numbered(used, *pairs)
        owner = area[entry]

        reached = area[run[-1, 0] :]
        is_open = np.zeros(count, dtype=bool)
        is_open[reached[reached >= 0]] = True
        sums = np.zeros((count, len(quantities)))
        for index, quantity in enumerate(quantities):
            per_run = np.add.reduceat(np.pad(quantity, ((1, 0), (1, 1))).ravel(), np.flatnonzero(starts))
            sums[:, index] = np.bincount(area[used], weights=per_run[used], minlength=count)
        np.add.at(sums, owner, self._sums)
        area_codes = np.zeros(count, dtype=np.uint8)
        area_codes[area[used]] = block[starts][used]
        corners = self._completed(_corners(block, area[run], self._row), owner, is_open)

        self._above, self._row = block[-1:].copy(), self._row + len(codes)
        self._reached = np.where(reached >= 0, (np.cumsum(is_open) - 1)[reached], -1) if count else reached
        self._sums = sums[is_open]
        return _outlines(corners, area_codes, sums)

    def _completed(
        self, corners: Shaped[np.ndarray, "n"], owner: Integer[np.ndarray, "open"], is_open: Bool[np.ndarray, "areas"]
    ) -> Shaped[np.ndarray, "m"]:
        """All corners of the areas that are complete; those of open areas are put aside.

        `owner` says what area of this band each open area of the last one belongs to.
        """
        before, self._parts = self._parts, [[] for _ in range(np.count_nonzero(is_open))]
        number = np.cumsum(is_open) - 1
        aside = is_open[corners["area"]]
        complete, kept = [corners[~aside]], corners[aside]
        kept = kept[np.argsort(kept["area"], kind="stable")]
        areas, begin = np.unique(kept["area"], return_index=True)
        for area, part in zip(areas.tolist(), np.split(kept, begin[1:]), strict=False):
            self._parts[number[area]].append(part.copy())
        for area, parts in zip(owner.tolist(), before, strict=True):
            if is_open[area]:
                self._parts[number[area]] += parts
                continue
            for part in parts:
                part["area"] = area
            complete += parts
        return np.concatenate(complete)


def _touching(
    block: UInt8[np.ndarray, "n w"], starts: Bool[np.ndarray, "n w"], run: Integer[np.ndarray, "n w"]
) -> tuple[Integer[np.ndarray, "pairs"], Integer[np.ndarray, "pairs"]]:
    """Runs of one code, one above the other: a pair where either begins."""
    touch = (block[1:] == block[:-1]) & (block[1:] != IGNORE) & (starts[1:] | starts[:-1])
    return run[:-1][touch], run[1:][touch]


def _numbered(
    used: Bool[np.ndarray, "runs"], one: Integer[np.ndarray, "pairs"], other: Integer[np.ndarray, "pairs"]
) -> tuple[Integer[np.ndarray, "runs"], int]:
    """The area of each run (-1 where it is not used) and the number of areas; paired runs are in one area."""
    root = np.arange(len(used))
    while len(one):
        one, other = root[one], root[other]
        apart = one != other
        one, other = one[apart], other[apart]
        root[np.maximum(one, other)] = np.minimum(one, other)
        while not np.array_equal(root, nearer := root[root]):
            root = nearer
    is_root = used & (root == np.arange(len(used)))
    number = np.cumsum(is_root, dtype=np.int32) - 1
    return np.where(used, number[root], -1), int(np.count_nonzero(is_root))


def _corners(
    block: UInt8[np.ndarray, "n w"], area: Integer[np.ndarray, "n w"], row: int
) -> Shaped[np.ndarray, "corners"]:
    """The corners between the rows of a block whose second row is `row` of the raster.

    A vertex between 2 x 2 pixels is a corner of each pixel that differs from both its neighbours, and of the other
    three where these are alike.
    """
    level = block[:, 1:] == block[:, :-1]
    upright = block[1:] == block[:-1]
    y, x = np.nonzero(~((level[:-1] & level[1:]) | (upright[:, :-1] & upright[:, 1:])))
    found = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        single = ~level[y + down, x] & ~upright[y, x + right]
        inward = single & (block[y + down, x + right] != IGNORE)
        others = single & level[y + 1 - down, x] & upright[y, x + 1 - right]
        outward = others & (block[y + 1 - down, x + 1 - right] != IGNORE)
        for which, at_down, at_right, convex in (
            (inward, down, right, True),
            (outward, 1 - down, 1 - right, False),
        ):
            corners = np.empty(np.count_nonzero(which), dtype=_CORNER)
            corners["area"] = area[y[which] + at_down, x[which] + at_right]
            corners["y"], corners["x"] = y[which] + row, x[which]
            corners["down"], corners["right"], corners["upright"] = down, right, (down == right) == convex
            found.append(corners)
    return np.concatenate(found)


def _outlines(
    corners: Shaped[np.ndarray, "corners"],
    codes: UInt8[np.ndarray, "areas"],
    sums: Float64[np.ndarray, "areas quantities"],
) -> Iterator[Outlines]:
    """The rings that the corners make, in chunks of whole areas."""
    corners = corners[np.lexsort((corners["x"], corners["y"], corners["area"]))]
    while len(corners):
        last = corners["area"][min(CHUNK, len(corners)) - 1]
        stop = int(np.searchsorted(corners["area"], last, side="right"))
        if stop > CHUNK and corners["area"][0] < last:
            stop = int(np.searchsorted(corners["area"], last))
        chunk, corners = corners[:stop], corners[stop:]
        areas, chunk["area"] = np.unique(chunk["area"], return_inverse=True)
        order, ring = _rings(chunk)
        vertices = chunk[order]
        begins = np.flatnonzero(np.diff(ring, prepend=-1))
        yield Outlines(
            codes=codes[areas],
            sums=sums[areas],
            x=vertices["x"],
            y=vertices["y"],
            ring=ring,
            area=vertices["area"][begins],
        )


def _rings(
    corners: Shaped[np.ndarray, "n"],
) -> tuple[Integer[np.ndarray, "n"], Integer[np.ndarray, "n"]]:
    """Corners, sorted by area, y and x, in the order of their rings, and the ring of each.

    The corners of an area in one column are the ends of its upright edges, pair by pair, those in one row the ends of
    its level edges. Where two pixels of an area touch at a corner only, the rings part so that each runs round what is
    not the area: only so no ring touches itself.
    """
    same = [corners[key][1:] == corners[key][:-1] for key in ("area", "y", "x")]
    one = np.flatnonzero(np.logical_and.reduce(same))
    corners["right"][one] ^= True
    corners["right"][one + 1] ^= True
    # The end of a level edge comes before the beginning of the next one.
    swap = one[corners["right"][one]]
    corners[swap], corners[swap + 1] = corners[swap + 1], corners[swap]

    level = np.arange(len(corners)) ^ 1
    columns = np.lexsort((corners["down"], corners["y"], corners["x"], corners["area"]))
    upright = np.empty_like(columns)
    upright[columns] = columns[np.arange(len(columns)) ^ 1]
    leaving = np.flatnonzero(corners["upright"])
    number = np.cumsum(corners["upright"]) - 1
    walk, sizes = _walked(number[level[upright[leaving]]].tolist())
    edges = leaving[np.array(walk)]
    return np.stack([edges, upright[edges]], axis=1).ravel(), np.repeat(np.arange(len(sizes)), 2 * np.array(sizes))


def _walked(following: list[int]) -> tuple[list[int], list[int]]:
    """The cycles of a permutation, one after the other, and their lengths."""
    seen = bytearray(len(following))
    walk: list[int] = []
    sizes = []
    for start in range(len(following)):
        if seen[start]:
            continue
        before, node = len(walk), start
        while not seen[node]:
            seen[node] = True
            walk.append(node)
            node = following[node]
        sizes.append(len(walk) - before)
    return walk, sizes
