"""Which places belong to which part, where a data set does not say: whole places, for neighbours are alike."""

import hashlib
from collections.abc import Iterable

from skysense_core.types import PartName


def shuffled(names: Iterable[str], seed: int) -> tuple[str, ...]:
    """Names, each once, in an order that each of them and the seed decide alone: one more changes no other's place."""

    def draw(name: str) -> bytes:
        return hashlib.blake2b(repr((seed, name)).encode(), digest_size=8).digest()

    return tuple(sorted(set(names), key=draw))


def deal(places: Iterable[str], *, val_share: float, test_share: float, seed: int) -> dict[str, PartName]:
    """The part of each place, at least one for each part whose share is above 0; fewer than three all train."""
    order = shuffled(places, seed)
    if len(order) < 3:
        return dict.fromkeys(order, "train")
    test, val = (max(round(share * len(order)), 1) if share else 0 for share in (test_share, val_share))
    parts: dict[str, PartName] = dict.fromkeys(order, "train")
    parts |= dict.fromkeys(order[:test], "test")
    parts |= dict.fromkeys(order[test : test + val], "val")
    return parts


def validating(names: Iterable[str], part: PartName, *, val_share: float, seed: int) -> tuple[list[str], str]:
    """The names that train or validate of a published training part, and a note on it for the user.

    At least one validates; which ones follows from a hash of their names. The test part is published too.
    """
    order = shuffled(names, seed)
    val = max(round(val_share * len(order)), 1)
    note = f"no part validates: {val} of {len(order)} training pictures do, by a hash of their names"
    return sorted(order[:val] if part == "val" else order[val:]), note
