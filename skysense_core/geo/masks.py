"""Which pixels hold a measurement.

A value that means "no data" is judged per band, and what follows for the pixel depends on the kind of file:

- 16 bits and more, and floats: a pixel is invalid where *any* required band is nodata, NaN or infinite (METHOD 1);
- 8 bits, several bands in one file (pictures): only where *all* read bands are nodata. A dark roof has blue = 0 and a
  bright one red = 255: there a single band's 0 or 255 is a measurement like any other;
- bands in files of their own are judged each by itself: one missing makes the pixel invalid.

Mask bands (internal or `.msk`) and a real alpha channel hold for the whole file.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num


def measured(stored: Num[np.ndarray, "c h w"], nodata: Sequence[float | None]) -> Bool[np.ndarray, "h w"]:
    """Where the stored values of one file are measurements, given each band's nodata value (None: it has none)."""
    valid = np.ones(stored.shape[1:], dtype=bool)
    declared = [(band, value) for band, value in zip(stored, nodata, strict=True) if value is not None]
    if declared:
        absent = [band == np.asarray(value).astype(stored.dtype) for band, value in declared]
        judge = np.logical_and if stored.dtype.itemsize == 1 else np.logical_or
        valid &= ~judge.reduce(absent)
    if stored.dtype.kind == "f":
        valid &= np.isfinite(stored).all(axis=0)
    return valid


def possible(value: float | None, dtype: np.dtype) -> float | None:
    """The nodata value if pixels of this type can hold it; NaN is None, because it is never a measurement."""
    if value is None or np.isnan(value):
        return None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return value if value == int(value) and limits.min <= value <= limits.max else None
    return value


def is_mask(alpha: Num[np.ndarray, "h w"]) -> bool:
    """Whether a band tagged as alpha is one: nearly all its values are 0 or the largest. Otherwise it holds data.

    Near infrared is often tagged so (NAIP), because it stands in fourth place.
    """
    return bool(((alpha == 0) | (alpha == alpha.max())).mean() > 0.9)


def scale(stored: Num[np.ndarray, "c h w"], gain: Sequence[float], bias: Sequence[float]) -> Num[np.ndarray, "c h w"]:
    """gain x stored + bias per band as float32; the stored values themselves where that changes nothing."""
    if all(g == 1 for g in gain) and all(b == 0 for b in bias):
        return stored
    factors = np.array(gain, "float32")[:, None, None], np.array(bias, "float32")[:, None, None]
    return stored.astype("float32") * factors[0] + factors[1]
