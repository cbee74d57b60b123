"""Percentiles of more pixels than fit into memory: counts in bins that are the same for everybody.

A bin holds the float32 numbers whose first 18 bits agree (sign, exponent, 9 bits of the mantissa), so that any value is
known to 0.1 % whatever its unit. Counts of two sets add up to those of their union, in any order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

SHIFT = 14
SIGN = np.uint32(0x80000000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many values lie in each bin, from the bin `first` on."""

    first: int
    counts: Int[np.ndarray, "n"]

    @classmethod
    def of(cls, values: Num[np.ndarray, "m"], counts: Int[np.ndarray, "m"] | None = None) -> "Histogram":
        """Of finite values of any type, each of which occurs once or `counts` times."""
        if not values.size:
            return cls(first=0, counts=np.zeros(0, dtype=np.int64))
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        # Negative floats sort backwards by their bits.
        keys = (np.where(bits & SIGN, ~bits, bits | SIGN) >> SHIFT).astype(np.int64)
        first = int(keys.min())
        # Sums of whole numbers are exact in float64 up to 2**53.
        return cls(first=first, counts=np.bincount(keys - first, counts).astype(np.int64))

    def __add__(self, other: "Histogram") -> "Histogram":
        if not (len(self.counts) and len(other.counts)):
            return self if len(self.counts) else other
        first = min(self.first, other.first)
        counts = np.zeros(max(one.first + len(one.counts) for one in (self, other)) - first, dtype=np.int64)
        for one in (self, other):
            counts[one.first - first : one.first - first + len(one.counts)] += one.counts
        return Histogram(first=first, counts=counts)

    def percentiles(self, shares: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
        """The values below which these shares (0 to 1) lie, interpolated within a bin; NaN without any value."""
        if not len(self.counts):
            return np.full(len(shares), np.nan)
        below = np.concatenate([[0], np.cumsum(self.counts)])
        wanted = np.clip(shares, 0, 1) * below[-1]
        place = np.clip(np.searchsorted(below, wanted, side="left") - 1, 0, len(self.counts) - 1)
        edges = _values(np.arange(self.first, self.first + len(self.counts) + 1))
        part = (wanted - below[place]) / np.maximum(self.counts[place], 1)
        return edges[place] + part * (edges[place + 1] - edges[place])


def _values(keys: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The lowest value of each bin."""
    bits = (keys.astype(np.uint64) << np.uint64(SHIFT)).astype(np.uint32)
    bits = np.where(bits & SIGN, bits & ~SIGN, ~bits)
    return bits.view(np.float32).astype(np.float64)
