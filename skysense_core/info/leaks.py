"""What two parts of a data set have in common, so that one does not test the other."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import shapely
from shapely import Polygon, STRtree

from skysense_core.types import PartName, Raster, Sample

EXAMPLES = 5
"""Most pairs that are named."""
OVERLAP = 0.01
"""Share of the smaller footprint that two samples must have in common: those that only touch do not."""
WHOLE = 2**20
"""Bytes up to which all dates of an image are compared; of a longer series it is the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Samples of one part that another part shows too."""

    what: Literal["ground", "image"]
    """Footprints that overlap, or images that are the same to the last byte."""
    parts: tuple[PartName, PartName]
    samples: int
    """Of the second part, which are in the first one as well."""
    examples: tuple[tuple[str, str], ...]
    """Names of pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is kept of a sample that was read."""

    id: str
    part: PartName
    ground: Polygon | None
    images: frozenset[bytes]
    """Digests of its rasters."""


def seen(sample: Sample, part: PartName) -> Seen:
    """What is compared of a sample."""
    digests = (_digest(raster) for epoch in sample.epochs for raster in epoch.values())
    images = frozenset(digest for digest in digests if digest is not None)
    return Seen(id=sample.id, part=part, ground=sample.footprint, images=images)


def leaks_of(samples: Sequence[Seen]) -> tuple[Leak, ...]:
    """Every kind of leak between every two parts."""
    by_part: dict[PartName, list[Seen]] = defaultdict(list)
    for one in samples:
        by_part[one.part].append(one)
    found = []
    for first, second in combinations(by_part, 2):
        pairs = _same_ground(by_part[first], by_part[second]), _same_images(by_part[first], by_part[second])
        for what, shared in zip(("ground", "image"), pairs, strict=True):
            if shared:
                names = tuple((one.id, other.id) for one, other in shared[:EXAMPLES])
                count = len({id(other) for _, other in shared})
                found.append(Leak(what=what, parts=(first, second), samples=count, examples=names))  # type: ignore[arg-type]
    return tuple(found)


def _same_ground(first: Sequence[Seen], second: Sequence[Seen]) -> list[tuple[Seen, Seen]]:
    first, second = ([one for one in part if one.ground is not None] for part in (first, second))
    grounds = [np.array([one.ground for one in part], dtype=object) for part in (first, second)]
    tree = STRtree(grounds[1])
    here, there = tree.query(grounds[0], predicate="intersects")
    own, other = grounds[0][here], grounds[1][there]
    common = shapely.area(shapely.intersection(own, other))
    kept = common > OVERLAP * np.minimum(shapely.area(own), shapely.area(other))
    return [(first[a], second[b]) for a, b in zip(here[kept].tolist(), there[kept].tolist(), strict=True)]


def _same_images(first: Sequence[Seen], second: Sequence[Seen]) -> list[tuple[Seen, Seen]]:
    known = {digest: one for one in first for digest in one.images}
    found = ((one, known.keys() & one.images) for one in second)
    return [(known[next(iter(same))], one) for one, same in found if same]


def _digest(raster: Raster) -> bytes | None:
    """None for an image of one value: empty ones are alike and say nothing."""
    pixels = raster.pixels if raster.pixels.nbytes <= WHOLE else raster.pixels[:1]
    if not pixels.size or pixels.min() == pixels.max():
        return None
    head = repr((pixels.shape, pixels.dtype.str)).encode()
    return hashlib.blake2b(head + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
