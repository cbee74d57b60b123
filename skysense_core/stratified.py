"""Areas and accuracies from a stratified random sample whose strata are the classes of the map.

Source: Olofsson, Foody, Herold, Stehman, Woodcock, Wulder, *Good practices for estimating area and assessing accuracy
of land change*, Remote Sensing of Environment 148 (2014) 42-57, doi 10.1016/j.rse.2014.02.015; equations are theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from skysense_core.errors import UsageError

Z95 = 1.959963984540054
"""Standard errors on either side of an estimate that hold the truth in 95 of 100 samples."""
Allocation: TypeAlias = Literal["proportional", "equal"]
ALLOCATIONS: tuple[Allocation, ...] = ("proportional", "equal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a sample says of a map; k classes, areas in the unit that went in."""

    share: Float64[np.ndarray, "k k"]
    """Of the area, by map class (row) and reference class (column) (Eq. 4)."""
    area: Float64[np.ndarray, "k"]
    """By reference class: error-adjusted (Eq. 9)."""
    area_error: Float64[np.ndarray, "k"]
    """Its standard error (Eq. 10, 11)."""
    overall: float
    overall_error: float
    """Eq. 1, 5."""
    user: Float64[np.ndarray, "k"]
    user_error: Float64[np.ndarray, "k"]
    """Eq. 2, 6; NaN for a class that is not on the map."""
    producer: Float64[np.ndarray, "k"]
    producer_error: Float64[np.ndarray, "k"]
    """Eq. 3, 7; NaN for a class that no reference shows."""


def estimate(counts: Int64[np.ndarray, "k k"], mapped: Float64[np.ndarray, "k"]) -> Estimate:
    """Areas and accuracies with standard errors.

    `counts` are sampled pixels by map class (row) and reference class (column), `mapped` the area of each map class.
    A class on the map needs at least two sampled pixels, or a ValueError is raised: one has no variance.
    """
    n = counts.sum(axis=1).astype(float)
    if (n[mapped > 0] < 2).any() or (n[mapped == 0] > 0).any():
        raise ValueError("every class on the map needs two sampled pixels, and no other may have any")
    weight = mapped / mapped.sum()
    on = mapped > 0
    within = np.divide(counts, n[:, None], out=np.zeros(counts.shape), where=on[:, None])
    # The variance of each within-stratum proportion, with the n - 1 of a sample.
    spread = np.divide(within * (1 - within), n[:, None] - 1, out=np.zeros(counts.shape), where=on[:, None])
    share = weight[:, None] * within
    reference = share.sum(axis=0)
    user = np.where(on, within.diagonal(), np.nan)
    user_variance = np.where(on, spread.diagonal(), np.nan)
    shown = reference > 0
    producer = np.divide(share.diagonal(), reference, out=np.full(len(n), np.nan), where=shown)
    own = spread.diagonal() * weight**2
    others = (weight[:, None] ** 2 * spread).sum(axis=0) - own
    numerator = (1 - producer) ** 2 * own + producer**2 * others
    producer_variance = np.divide(numerator, reference**2, out=np.full(len(n), np.nan), where=shown)
    total = mapped.sum()
    return Estimate(
        share=share,
        area=total * reference,
        area_error=total * np.sqrt((weight[:, None] ** 2 * spread).sum(axis=0)),
        overall=float(share.trace()),
        overall_error=float(np.sqrt(own.sum())),
        user=user,
        user_error=np.sqrt(user_variance),
        producer=producer,
        producer_error=np.sqrt(producer_variance),
    )


def allocate(
    total: int,
    sizes: Int64[np.ndarray, "k"],
    *,
    rule: Allocation,
    minimum: int,
    names: Sequence[str],
) -> Int64[np.ndarray, "k"]:
    """How many of `total` pixels each class gets, of whose `sizes` pixels on the map; classes without a pixel get none.

    `proportional` to the area once the rare classes have their `minimum` (section 5.1.1), or `equal`. The sum is
    `total`. Raises UsageError where that does not go: minima above the total, or more pixels than a class has.
    """
    on = sizes > 0
    present = int(on.sum())
    if minimum < 2:
        raise UsageError(f"--min-per-class {minimum}: a class needs two points, or it has no standard error")
    if minimum * present > total:
        raise UsageError(
            f"--n {total}: {present} classes with at least {minimum} points each take {minimum * present}",
            fix=f"Use --n {minimum * present} or more, or a smaller --min-per-class.",
        )
    share = sizes / sizes.sum() if rule == "proportional" else on / present
    least = np.zeros(len(sizes), dtype=bool)
    while True:
        left = total - minimum * int(least.sum())
        free = on & ~least
        wanted = np.where(free, left * share / max(share[free].sum(), 1e-12), minimum * least)
        if not (free & (wanted < minimum)).any():
            break
        least |= free & (wanted < minimum)
    counts = np.floor(wanted).astype(np.int64)
    for code in np.argsort(counts - wanted, kind="stable")[: total - int(counts.sum())]:
        counts[code] += 1
    for name, count, size in zip(names, counts, sizes, strict=True):
        if count > size:
            raise UsageError(
                f"{name}: {count} points are wanted, and the map has {size} pixels of it",
                fix="Use a smaller --n or --min-per-class, or --allocation proportional.",
            )
    return counts
