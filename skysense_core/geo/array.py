"""xarray's DataArrays as rasters: in memory, or lazy ones of dask, of which only what is read is computed.

An array reads like the file that holds it would: its bands are judged together (see `masks`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import zip_longest
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  its accessor writes the CRS
import xarray as xr
from affine import Affine
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import bands, cube, dates, masks, units, warp
from skysense_core.geo.bands import Found
from skysense_core.geo.options import NONE, ReadOptions
from skysense_core.geo.raster import Stack, assemble

Values = Any
"""Pixels (t, c, h, w) as numpy or dask has them."""
NODATA = ("nodata", "missing_value", "_FillValue")
"""Attributes that state the value of pixels without data."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayLayer:
    """Some bands of one time step of an array, of which all pixels are at hand or those of one rectangle."""

    path: str
    values: Values
    first: tuple[int, int]
    """Row and column of the first pixel in `values`."""
    geobox: GeoBox
    """The grid of the whole array."""
    dtype: np.dtype
    bands: tuple[int, ...]
    moment: int
    places: tuple[int, ...]
    """Positions of the same bands in the array."""
    nodata: tuple[float | None, ...]
    gain: tuple[float, ...]
    bias: tuple[float, ...]
    positive: bool

    @property
    def overviews(self) -> tuple[int, ...]:
        return ()

    def grid(self, level: int | None) -> GeoBox:
        """The array's own grid: it has no overviews."""
        return self.geobox

    def read(
        self, rows: slice, cols: slice, *, level: int | None = None, shape: tuple[int, int] | None = None
    ) -> tuple[Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """Pixels and validity of a window; `shape` takes so many in its middle, for the sake of lazy arrays."""
        if shape is not None:
            rows, cols = (_middle(span, size) for span, size in zip((rows, cols), shape, strict=True))
        row, col = rows.start - self.first[0], cols.start - self.first[1]
        height, width = rows.stop - rows.start, cols.stop - cols.start
        if min(row, col) < 0 or row + height > self.values.shape[2] or col + width > self.values.shape[3]:
            raise ValueError(f"{self.path}: rows {rows}, columns {cols} are not at hand")
        stored = np.asarray(self.values[self.moment, :, row : row + height, col : col + width])[list(self.places)]
        valid = masks.measured(stored, self.nodata)
        if self.positive:
            valid &= (stored > 0).all(axis=0)
        return masks.scale(stored, self.gain, self.bias), valid


def _middle(span: slice, size: int) -> slice:
    start = span.start + (span.stop - span.start - size) // 2
    return slice(start, start + size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Array:
    """The facts about one array; the counterpart of `files.RasterFile`."""

    path: str
    """What messages call it."""
    values: Values
    geobox: GeoBox
    found: tuple[Found, ...]
    nodata: float | None
    scales: tuple[tuple[float, float], ...]
    days: tuple[date | None, ...]
    written: date | None
    level: str | None
    baseline: float | None
    unit: str | None
    notes: tuple[str, ...]

    def layers(
        self, matches: Mapping[int, int], moment: int, unit: str | None, offset: float, positive: bool
    ) -> tuple[ArrayLayer]:
        """The one layer of {stack band: band of this array} at time step `moment`."""
        places = tuple(matches.values())
        factors = tuple(units.factors(*self.scales[place], unit, offset) for place in places)
        plain = all(factor == (1.0, 0.0) for factor in factors)
        layer = ArrayLayer(
            path=self.path,
            values=self.values,
            first=(0, 0),
            geobox=self.geobox,
            dtype=self.values.dtype if plain else np.dtype("float32"),
            bands=tuple(matches),
            moment=moment,
            places=places,
            nodata=(self.nodata,) * len(places),
            gain=tuple(gain for gain, _ in factors),
            bias=tuple(bias for _, bias in factors),
            positive=positive,
        )
        return (layer,)


def open_array(
    array: xr.DataArray,
    name: str,
    *,
    bands: Sequence[tuple[str, ...]] | None,
    unit: str | None = None,
    options: ReadOptions | None = None,
) -> Stack:
    """An array with dimensions y, x and maybe band and time as a stack; otherwise as `raster.open_stack`.

    `name` is what messages call it. Bands are known by the coordinate of `band`, by `long_name` (rioxarray writes the
    descriptions of a file's bands there) or, a lone one, by the array's name. NaN and the stated nodata are invalid.
    """
    options = options or ReadOptions()
    if options.cloud_mask not in (None, NONE):
        raise UsageError(f"{name}: cloud_mask is for files", fix="Make clouds NaN: array.where(clear)")
    return assemble([_facts(array, name, options)], bands, unit, options)


def _facts(array: xr.DataArray, name: str, options: ReadOptions) -> Array:
    time, band, row, col = dimensions(array, name)
    if array.dtype.kind not in "iuf":
        raise SkysenseError(f"{name}: values are {array.dtype}, and a map needs numbers")
    full = array.expand_dims([dim for dim in (time, band) if dim not in array.dims])
    full = full.transpose(time, band, row, col)
    attributes = array.attrs
    tags = {key.upper(): str(value) for key, value in attributes.items()}
    stated = [float(np.ravel(attributes[key])[0]) for key in NODATA if key in attributes]
    nodata = next(iter(stated), None) if options.nodata is None else options.nodata
    count = full.sizes[band]
    scale = _each(attributes.get("scales", attributes.get("scale_factor", 1.0)), count)
    bias = _each(attributes.get("offsets", attributes.get("add_offset", 0.0)), count)
    given = None if options.bands is None else bands.by_user(options.bands, count, name)
    return Array(
        path=name,
        values=full.data,
        geobox=cube.grid_of(array.to_dataset(name="values"), "values", row, col, name),
        found=given or _found(array, band, count),
        nodata=masks.possible(nodata, array.dtype),
        scales=tuple(zip(scale, bias, strict=True)),
        days=_days(array, time) or (dates.date_in_tags(tags),),
        written=None,
        level=dates.level_of(str(array.name), tags),
        baseline=dates.baseline_of(str(array.name), tags),
        unit=units.stated([attributes.get("units")], [str(array.name or "")], name),
        notes=(),
    )


def _each(values: object, count: int) -> list[float]:
    return np.broadcast_to(np.ravel(np.asarray(values, dtype="float64")), count).tolist()


def dimensions(array: xr.DataArray, name: str) -> tuple[str, str, str, str]:
    """Names of the dimensions of time, bands, rows and columns, also of those that are not there.

    Raises SkysenseError where there are others.
    """
    dataset = array.to_dataset(name="values")
    row, col = (cube.dimension(dataset, names, name) for names in (cube.ROWS, cube.COLUMNS))
    others = [str(dim) for dim in array.dims if dim not in (row, col)]
    time = [dim for dim in others if dim in array.coords and array[dim].dtype.kind == "M"]
    band = [dim for dim in others if dim.lower() in cube.BANDS]
    if odd := [dim for dim in others if dim not in (*time[:1], *band[:1])]:
        raise SkysenseError(
            f"{name}: dimension {odd[0]} is neither time (datetime64), rows, columns nor bands",
            fix="Select one position of it, or rename it to time or band and give it coordinates.",
        )
    return (*time, "time")[0], (*band, "band")[0], row, col


def _days(array: xr.DataArray, time: str) -> tuple[date | None, ...]:
    if time in array.coords and array[time].dtype.kind == "M":
        return tuple(np.atleast_1d(array[time].values).astype("datetime64[D]").tolist())
    return ()


def _found(array: xr.DataArray, band: str, count: int) -> tuple[Found, ...]:
    labels = _texts(array[band].values if band in array.coords else ())
    described = _texts(array.attrs.get("long_name", array.name or ""))
    named = [
        bands.by_description(label) or bands.by_description(text)
        for label, text in zip_longest(labels, described if len(described) == count else ())
    ]
    return tuple(found or Found() for found in [*named, *[None] * count][:count])


def _texts(values: object) -> list[str]:
    return [str(value) for value in np.atleast_1d(np.asarray(values))]


def has_place(array: xr.DataArray) -> bool:
    """Whether an array has a CRS."""
    return array.rio.crs is not None


def placed(array: xr.DataArray, extent: tuple[float, float], lonlat: tuple[float, float]) -> xr.DataArray:
    """An array (..., rows, columns) without a CRS on a grid of `extent` (metres: height, width) around a place in
    degrees. The first pixel lies at the origin of an equal-area CRS of its own."""
    row, col = array.dims[-2:]
    (rows, columns), (height, width) = array.shape[-2:], extent
    down, right = height / rows, width / columns
    crs = f"+proj=laea +lon_0={lonlat[0]} +lat_0={lonlat[1]} +x_0={width / 2} +y_0={-height / 2} +datum=WGS84 +type=crs"
    centres = {"y": -down * (np.arange(rows) + 0.5), "x": right * (np.arange(columns) + 0.5)}
    laid = array.drop_vars([row, col], errors="ignore").rename({row: "y", col: "x"}).assign_coords(centres)
    return laid.rio.write_crs(crs).rio.write_transform(Affine(right, 0, 0, 0, -down, 0))


def layer_of(stack: Stack) -> ArrayLayer:
    """The first layer of a stack of one array."""
    layer = stack.layers[0][0][0]
    assert isinstance(layer, ArrayLayer)
    return layer


def needed(stack: Stack, grid: GeoBox) -> tuple[slice, slice]:
    """Rows and columns of a stack of one array that reads of `grid`, and of parts of it, take pixels from."""
    return warp.reach(layer_of(stack), grid) or (slice(0, 0), slice(0, 0))


def hold(stack: Stack, values: Values, first: tuple[int, int]) -> Stack:
    """The stack of one array with these pixels (t, c, h, w) at hand, the first one at (row, column)."""

    def held(layer: warp.Layer) -> warp.Layer:
        assert isinstance(layer, ArrayLayer)
        return replace(layer, values=values, first=first)

    return replace(stack, layers=tuple(tuple((held(layer), bounds) for layer, bounds in date) for date in stack.layers))


def onto(values: Num[np.ndarray, "k h w"], source: GeoBox, target: GeoBox, nodata: float) -> Num[np.ndarray, "k _ _"]:
    """Values on another grid, `nodata` outside: nearest neighbour for classes (integers), bilinear for floats."""
    count, whole = len(values), values.dtype.kind != "f"
    layer = ArrayLayer(
        path="map",
        values=values[None],
        first=(0, 0),
        geobox=source,
        dtype=values.dtype,
        bands=tuple(range(count)),
        moment=0,
        places=tuple(range(count)),
        nodata=(masks.possible(nodata, values.dtype),) * count,
        gain=(1.0,) * count,
        bias=(0.0,) * count,
        positive=False,
    )
    drawn = np.full((count, *target.shape), nodata, values.dtype)
    part = warp.read_onto(layer, target, "nearest" if whole else "bilinear")
    if part is not None:
        np.copyto(drawn, part[0], where=part[1], casting="same_kind")
    return drawn


def like(array: xr.DataArray, stack: Stack, values: Values, dims: tuple[str, ...] = (), **named: Any) -> xr.DataArray:
    """Values (..., h, w) on the stack's north-up grid, with the coordinates and the CRS of the array that it is of.

    `dims` are the dimensions before the rows, `named` further arguments of the DataArray.
    """
    layer = layer_of(stack)
    time, band, row, col = dimensions(array, layer.path)
    values = values[..., ::-1, :] if layer.geobox.affine.e > 0 else values
    values = values[..., ::-1] if layer.geobox.affine.a < 0 else values
    kept = {key: item for key, item in array.coords.items() if {*item.dims} <= {row, col} and key not in (time, band)}
    drawn = xr.DataArray(values, dims=(*dims, row, col), **named).assign_coords(kept)
    mapping = array.encoding.get("grid_mapping", "spatial_ref")
    if mapping not in kept:
        return drawn.rio.write_crs(str(stack.geobox.crs))
    drawn.encoding["grid_mapping"] = mapping  # as it is: it also holds the exact pixel size
    return drawn
