"""Which sample is for training, which validates, which tests: by blocks in space, with a strip between them.

Neighbouring pixels are alike, so whole blocks of ground are dealt out, and samples nearer to those of another part than
the buffer belong to none. Test keeps all of its samples, validation yields to test, training to both.
"""

import hashlib
import logging
import math
from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Shaped
from shapely import STRtree

from skysense_core.errors import SkysenseError
from skysense_core.ingest.grid import Cells

log = logging.getLogger(__name__)

LARGEST = 10_000.0
"""Metres along a block where there is ground enough."""
ENOUGH = 20
"""Blocks from which on a tenth of them is about a tenth of the ground."""
LEAST = 3
"""Footprints along the smallest block: the strip between parts takes one from each side."""
SHARED = 0.01
"""Ground of the smaller of two samples, as a share, from which on they show the same."""
ORDER = ("test", "val", "train")
NONE = ""


def deal(
    cells: Sequence[Cells], *, block: float | None, val_share: float, test_share: float, buffer: float, seed: int
) -> list[list[str]]:
    """The part of every cell, in the order of `cells`: train, val, test or empty.

    A block is drawn by its place and the seed alone: more ground around it changes little. Without a `block` its side
    is 10 km, halved on little ground until there are enough of them.
    """
    block = block or _fitting(cells)
    keys = [[(one.crs, *place) for place in _blocks(one, block)] for one in cells]
    drawn = sorted({key for some in keys for key in some}, key=lambda key: _draw(seed, key))
    test, val = (max(round(share * len(drawn)), 1) if share else 0 for share in (test_share, val_share))
    part_of = {key: "test" if n < test else "val" if n < test + val else "train" for n, key in enumerate(drawn)}
    parts = [np.array([part_of[key] for key in some], dtype=object) for some in keys]
    _make_room(cells, parts, buffer)
    return [part.tolist() for part in parts]


def _fitting(cells: Sequence[Cells]) -> float:
    block = LARGEST
    least = LEAST * max((one.lattice.side for one in cells), default=0.0)
    while len({(one.crs, *place) for one in cells for place in _blocks(one, block)}) < ENOUGH and block / 2 >= least:
        block /= 2
    if block < LARGEST:
        log.info("blocks of %.4g km are dealt to train, val and test", block / 1000)
    return block


def _blocks(cells: Cells, block: float) -> list[tuple[int, int]]:
    half = cells.lattice.side / 2
    places = ((axis * cells.lattice.step + half) // block for axis in (cells.cols, cells.rows))
    return [(int(col), int(row)) for col, row in zip(*places, strict=True)]


def _draw(seed: int, key: tuple[str, int, int]) -> bytes:
    return hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()


def _make_room(cells: Sequence[Cells], parts: list[Shaped[np.ndarray, "_"]], buffer: float) -> None:
    """Take cells that are nearer than the buffer to a part that goes first out of theirs."""
    inner = [one.outlines(-1e-3 * one.lattice.side) for one in cells]
    for number, part in enumerate(ORDER[1:], start=1):
        firsts = [outline[np.isin(own, ORDER[:number])] for outline, own in zip(inner, parts, strict=True)]
        tree = STRtree(np.concatenate(firsts)) if firsts else STRtree([])
        for one, own in zip(cells, parts, strict=True):
            candidates = np.flatnonzero(own == part)
            near, _ = tree.query(one[candidates].outlines(buffer), "intersects")
            own[candidates[np.unique(near)]] = NONE


def refuse_leak(ids: Sequence[str], splits: Sequence[str], grounds: Sequence[shapely.Polygon | None]) -> None:
    """Raise SkysenseError where a sample of train or val shows ground of one of test, or one of train of val."""
    known = np.array([ground is not None for ground in grounds], dtype=bool)
    shapes, parts = np.array(grounds, dtype=object), np.array(splits, dtype=object)
    for first, others in (("test", ("train", "val")), ("val", ("train",))):
        one, other = (np.flatnonzero(known & np.isin(parts, names)) for names in ((first,), others))
        left, right = STRtree(shapes[other]).query(shapes[one], "intersects") if len(one) and len(other) else ([], [])
        if not len(left):
            continue
        a, b = one[left], other[right]
        smaller = np.minimum(shapely.area(shapes[a]), shapely.area(shapes[b]))
        same = np.flatnonzero(shapely.area(shapely.intersection(shapes[a], shapes[b])) > SHARED * smaller)
        if len(same):
            shared, x, y = len(same), a[same[0]], b[same[0]]
            raise SkysenseError(
                f"{shared} pairs of samples show the same ground in {first} and in {parts[y]}, for example "
                f"{ids[x]} and {ids[y]}: scores would be of what was learnt",
                fix="Split anew by blocks: give the rasters and --labels. --allow-leak keeps the split as it is.",
            )


def buffer_of(given: float | None, side: float) -> float:
    """Metres between parts: as given, else one footprint."""
    return side if given is None or not math.isfinite(given) else given
