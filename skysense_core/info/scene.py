"""What a raster is, and which modalities and models can read it: the true reader tries, and its values are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from jaxtyping import Num

from skysense_core import modalities
from skysense_core.data.scene import model_grid, of_level
from skysense_core.errors import SkysenseError
from skysense_core.geo import bands, dates, quicklook, units
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.paths import expand, is_cube, is_document, is_product
from skysense_core.geo.raster import Stack, assemble, open_product
from skysense_core.geo.series import Product
from skysense_core.modalities import Modality

PERCENTILES = (2, 50, 98)
FAR = 2.0
"""A median so many standard deviations from a model's mean is not what it was trained with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The values of one band."""

    low: float
    middle: float
    high: float
    """2, 50 and 98 % of the sampled valid pixels lie below."""
    off: float | None = None
    """How many standard deviations the middle lies above the mean that a model knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What came of reading a scene as one modality."""

    modality: str
    model: str | None
    """None for the packaged file of the modality."""
    refused: str | None
    """Why it cannot be read so; None where it can."""
    bands: dict[str, Range]
    """In the modality's unit."""
    far: tuple[str, ...]
    """Bands whose middle lies more than 2 standard deviations off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterInfo:
    """What the reader finds in a raster, a product, a cube or a folder of them."""

    path: str
    files: int
    height: int
    width: int
    crs: str | None
    bounds: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax in the CRS."""
    gsd: float | None
    """Metres on the ground per pixel of the finest band."""
    lonlat: tuple[float, float] | None
    """Of the centre."""
    bands: tuple[str, ...]
    dates: tuple[str, ...]
    undated: int
    level: str | None
    unit: str | None
    """linear, dB or amplitude, where the files state it of radar backscatter."""
    dtype: str
    storage: quicklook.Storage | None
    """Of the first file; None for products, cubes and items, which are laid out by others."""
    valid: float
    """Share of the sampled pixels that hold a measurement."""
    values: dict[str, Range]
    """As stored, by band."""
    sensor: str
    """A guess, with its evidence."""
    scale: str
    """What the values seem to be, with the evidence; a guess as well."""
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]


def look_at(path: str, models: Mapping[str, Mapping[str, Modality]]) -> RasterInfo:
    """What the reader finds at a path, held against the packaged modalities and those of `models`, by their names.

    Raises SkysenseError where nothing can be read there.
    """
    paths = expand(path)
    options = ReadOptions()
    products = [open_product(one, options, None, None, georeferenced=False) for one in paths]
    stack = assemble(products, None, None, options)
    georeferenced = stack.geobox.crs is not None
    box = stack.geobox.boundingbox
    gsd = ground_gsd(stack.geobox) if georeferenced else None
    sampled, valid = quicklook.sample(stack)
    values = _ranges(stack.band_names, sampled)
    known: list[tuple[str, str | None, Modality]] = [
        (name, None, modalities.load(name)) for name in modalities.packaged()
    ]
    known += [(name, model, one) for model, group in models.items() for name, one in group.items()]
    unit = next((product.unit for product in products if product.unit is not None), None)
    file = not (is_cube(paths[0]) or is_document(paths[0]) or is_product(paths[0]))
    return RasterInfo(
        path=path,
        files=len(paths),
        height=stack.geobox.shape.y,
        width=stack.geobox.shape.x,
        crs=str(stack.geobox.crs) if georeferenced else None,
        bounds=(float(box.left), float(box.bottom), float(box.right), float(box.top)),
        gsd=gsd,
        lonlat=footprint_lonlat(stack.geobox)[1] if georeferenced else None,
        bands=stack.band_names,
        dates=tuple(str(dates.EPOCH + timedelta(days=int(day))) for day in stack.days[stack.dated]),
        undated=int((~stack.dated).sum()),
        level=stack.level,
        unit=unit,
        dtype=str(stack.dtype),
        storage=quicklook.storage(paths[0]) if file else None,
        valid=valid,
        values=values,
        sensor=_sensor(stack, gsd),
        scale=_scale(stack, values, unit),
        fits=tuple(_fit(products, stack, name, model, one) for name, model, one in known),
        notes=stack.notes,
    )


def _ranges(
    names: Sequence[str], sampled: Sequence[Num[np.ndarray, "n"]], known: Modality | None = None
) -> dict[str, Range]:
    """Of each band of which a valid pixel was seen."""
    found = {}
    for number, (name, values) in enumerate(zip(names, sampled, strict=True)):
        if values.size:
            low, middle, high = (float(one) for one in np.percentile(values.astype(np.float64), PERCENTILES))
            off = (middle - known.bands[number].mean) / known.bands[number].std if known else None
            found[name] = Range(low=low, middle=middle, high=high, off=off)
    return found


def _fit(products: Sequence[Product], found: Stack, name: str, model: str | None, modality: Modality) -> Fit:
    wanted = [band.names for band in modality.bands]
    try:
        stack = of_level(assemble(products, wanted, modality.unit, ReadOptions()), modality)
        if found.geobox.crs is not None:
            model_grid(stack.geobox, modality)
    except SkysenseError as error:
        return Fit(modality=name, model=model, refused=error.message, bands={}, far=())
    sampled, _ = quicklook.sample(stack)
    ranges = _ranges(modality.band_names, sampled, modality)
    far = tuple(band for band, one in ranges.items() if one.off is not None and abs(one.off) > FAR)
    return Fit(modality=name, model=model, refused=None, bands=ranges, far=far)


def _sensor(stack: Stack, gsd: float | None) -> str:
    """Which sensor it seems to be, by the names of its bands, its level and its pixel size."""
    names = {bands.canonical(name) for name in stack.band_names}
    pixel = "without a pixel size" if gsd is None else f"pixels of {gsd:.3g} m"
    level = f", level {stack.level}" if stack.level else ""
    radar = sorted(name.upper() for name in names if name in ("vv", "vh", "hh", "hv"))
    own = sorted(names & {"b05", "b06", "b07", "b8a", "rededge1", "rededge2", "rededge3"})
    codes = sorted(name for name in names if name[:1] == "b" and name[1:].isdigit() and len(name) == 3)
    if radar:
        return f"radar, perhaps Sentinel-1: bands {', '.join(radar)}, {pixel}"
    if own or stack.level:
        return f"Sentinel-2: bands {', '.join(own or stack.band_names[:4])}, {pixel}{level}"
    if len(codes) > 1 and gsd is not None and 8 < gsd < 70:
        return f"perhaps Sentinel-2 (or Landsat, HLS): band codes {', '.join(codes)}, {pixel}"
    if {"red", "green", "blue"} <= names and gsd is not None and gsd < 2:
        return f"aerial or very-high-resolution satellite: red, green, blue, {pixel}"
    return f"not known: bands {', '.join(stack.band_names[:6])}, {pixel}"


def _scale(stack: Stack, values: Mapping[str, Range], unit: str | None) -> str:
    """What the values seem to be."""
    if not values:
        return "not known: no sampled pixel is valid"
    low, high = min(one.low for one in values.values()), max(one.high for one in values.values())
    seen = f"{stack.dtype}, 2 to 98 % of the values are {low:.4g} to {high:.4g}"
    if unit is not None:
        return f"{unit}: the file says so; {seen}"
    radar = any(bands.canonical(name) in ("vv", "vh", "hh", "hv") for name in stack.band_names)
    if radar:
        guess = units.DECIBEL if low < 0 else "linear power" if high <= 100 else "digital numbers, to be calibrated"
    elif stack.dtype == np.uint8:
        guess = units.DISPLAY
    elif stack.dtype.kind in "iu" and 255 < high <= 20000:
        guess = "reflectance x 10000"
    elif stack.dtype.kind == "f" and low >= -0.2 and high <= 2:
        guess = "reflectance, not multiplied"
    else:
        guess = "not known"
    return f"{guess}: {seen}"
