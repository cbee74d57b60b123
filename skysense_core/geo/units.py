"""From the values in a file to the unit that a modality expects: stated conversions only, the same for every window."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool, Float, Num

from skysense_core.errors import UsageError
from skysense_core.geo.options import ReadOptions

DISPLAY = "0-255"
DECIBEL = "dB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What is done to the values after reading; float32 results, or nothing at all."""

    rescale: tuple[float, float] | None = None
    decibel: bool = False
    """10 log10(x)"""

    @property
    def is_identity(self) -> bool:
        return self == Conversion()

    def __call__(
        self, pixels: Num[np.ndarray, "t c h w"], valid: Bool[np.ndarray, "t h w"]
    ) -> Num[np.ndarray, "t c h w"]:
        """Converted valid pixels; invalid ones stay 0."""
        if self.is_identity:
            return pixels
        values = pixels.astype("float32")
        if self.decibel:
            values = 10 * np.log10(np.maximum(values, np.finfo("float32").tiny))
        if self.rescale is not None:
            low, high = self.rescale
            values = np.clip((values - low) * np.float32(255 / (high - low)), 0, 255)
        return np.where(valid[:, None], values, 0).astype("float32")


def conversion(unit: str | None, options: ReadOptions) -> tuple[Conversion, float, tuple[str, ...]]:
    """What the options do to values that are to be in `unit` (None: any), the offset to add before, and notes about
    options that do not apply."""
    concerned = {
        "rescale": (options.rescale, unit in (None, DISPLAY), f"values in {DISPLAY}"),
        "offset": (options.offset, unit not in (DISPLAY, DECIBEL), "reflectance"),
        "unit": (options.unit, unit == DECIBEL, "radar backscatter in dB"),
        "cloud_mask": (options.cloud_mask, unit != DECIBEL, "optical images"),
    }
    notes = [
        f"{name} = {value} concerns {what}: not applied to {unit or 'these values'}"
        for name, (value, applies, what) in concerned.items()
        if value is not None and not applies
    ]
    given = {name: value for name, (value, applies, _) in concerned.items() if value is not None and applies}
    if options.rescale is not None and not options.rescale[0] < options.rescale[1]:
        raise UsageError(f"--rescale {options.rescale[0]:g},{options.rescale[1]:g}: the first must be the smaller")
    convert = Conversion(rescale=options.rescale if "rescale" in given else None, decibel=given.get("unit") == "linear")
    return convert, float(options.offset or 0.0) if "offset" in given else 0.0, tuple(notes)


_STATED = {
    **dict.fromkeys(("db", "decibel", "decibels", "intensity_db"), "dB"),
    **dict.fromkeys(("linear", "linear power", "power", "intensity"), "linear"),
    "amplitude": "amplitude",
}
_IN_DECIBELS = re.compile(r"[\s_.-][(\[]?db[)\]]?$", re.IGNORECASE)
_HYP3 = re.compile(r"_RTC\d+_[A-Z]_[gs]([pad])[uf]")
"""Alaska Satellite Facility's names hold the radiometry and the scale: power, amplitude or decibels."""


def stated(measures: Sequence[object], names: Sequence[str], path: str) -> str | None:
    """What a file says of its backscatter: "linear" (power), "dB" or "amplitude", else None.

    From its bands' units of measure, from names that end in dB (`Sigma0_VV_db`) or, of HyP3's products, from the path.
    """
    known = [_STATED[str(text).strip().lower()] for text in measures if str(text).strip().lower() in _STATED]
    if known:
        return known[0]
    if any(_IN_DECIBELS.search(name) for name in (*names, PurePosixPath(path).stem)):
        return "dB"
    scale = _HYP3.search(path)
    return {"p": "linear", "d": "dB", "a": "amplitude"}[scale[1]] if scale else None


def factors(scale: float, bias: float, unit: str | None, offset: float) -> tuple[float, float]:
    """(gain, bias) that take stored values to `unit`, given the scale and offset that a file states and the user's.

    A stated scale leads to the physical value; "reflectance x 10000" is ten thousand times that, so that stored
    reflectance x 10000 with scale 0.0001 stays as it is. Display values and an unknown unit are read as stored.
    """
    if unit in (None, DISPLAY) or (scale == 1 and bias == 0):
        return 1.0, offset
    times = re.search(r"x (\d+)$", unit or "")
    factor = float(times[1]) if times else 1.0
    return round(scale * factor, 12), round(bias * factor + offset, 12)


def check(values: Float[np.ndarray, "n"], dtype: np.dtype, unit: str | None, options: ReadOptions, path: str) -> None:
    """Refuse values that cannot be in `unit`, judged by a sample; the message holds the option that helps.

    Raises UsageError.
    """
    if values.size == 0:
        return
    low, middle, high = (float(f"{value:.4g}") for value in np.percentile(values, (2, 50, 98)))
    if unit == DISPLAY and dtype != np.uint8 and options.rescale is None:
        if values.min() >= 0 and 2 < values.max() <= 255:
            low, high = 0.0, 255.0
        low = min(0.0, low - 1) if low == high else low
        raise UsageError(
            f"{path} holds {dtype} values (2 to 98 % of them: {low:g} to {high:g}), and 0-255 is expected",
            fix=f"State the range that becomes 0-255, for example --rescale {low:g},{high:g}",
        )
    if unit == DECIBEL and options.unit is None and values.min() > 0:
        if high > 100:
            raise UsageError(
                f"{path} holds values of {low:g} to {high:g}: neither dB nor linear power",
                fix="Digital numbers must be calibrated first: to dB by the product's own formula.",
            )
        raise UsageError(
            f"{path} holds positive values only ({low:g} to {high:g}): linear power, where dB is expected",
            fix="--s1-unit linear converts them (10 log10); --s1-unit dB reads them as they are.",
        )
    if unit == DECIBEL and options.unit == "linear" and values.min() < 0 and middle < 0:
        raise UsageError(f"--s1-unit linear: {path} holds negative values ({low:g} to {high:g})", fix="Leave it out.")
    if unit == DECIBEL and options.unit is None and abs(middle) > 100:
        raise UsageError(
            f"{path} holds values of {low:g} to {high:g}: not decibels",
            fix="Convert the file to dB first, or state its scale in it (gdal_edit.py -scale).",
        )
