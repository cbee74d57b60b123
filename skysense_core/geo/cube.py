"""NetCDF and Zarr cubes through xarray: variables (or a band dimension) are bands, the time axis makes a series."""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from affine import Affine
from jaxtyping import Bool, Num
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import bands, dates, masks, units
from skysense_core.geo.bands import Found
from skysense_core.geo.layer import Stamp, stamp_of
from skysense_core.geo.options import ReadOptions

COLUMNS = ("x", "lon", "longitude", "easting")
ROWS = ("y", "lat", "latitude", "northing")
BANDS = ("band", "bands", "wavelength")
_HANDLES = 16
_local = threading.local()


def open_dataset(path: str, stamp: Stamp) -> xr.Dataset:
    """This thread's lazily read dataset, values as stored. Raises SkysenseError where xarray cannot open it."""
    if getattr(_local, "process", None) != os.getpid():
        _local.process, _local.handles = os.getpid(), OrderedDict()
    handles: OrderedDict[tuple[str, Stamp], xr.Dataset] = _local.handles
    key = (path, stamp)
    if key not in handles:
        engine = "zarr" if path.rstrip("/").endswith(".zarr") else None
        try:
            handles[key] = xr.open_dataset(path, mask_and_scale=False, chunks=None, engine=engine)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SkysenseError(f"{path}: not a cube that xarray can read: {reason}") from None
        if len(handles) > _HANDLES:
            handles.popitem(last=False)[1].close()
    handles.move_to_end(key)
    return handles[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeBand:
    """Where one band of a cube is, and what its attributes state."""

    variable: str
    place: int | None
    """Position along the band dimension, if the variable has one."""
    nodata: float | None
    scale: tuple[float, float]
    dtype: str
    """The meaning of the stored type: int16 with the attribute _Unsigned is uint16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CubeLayer:
    """Some bands of one time step of a cube."""

    path: str
    stamp: Stamp
    geobox: GeoBox
    dtype: np.dtype
    bands: tuple[int, ...]
    sources: tuple[CubeBand, ...]
    dimensions: tuple[str | None, str | None, str, str]
    """Names of the time, band, row and column dimensions."""
    moment: int
    gain: tuple[float, ...]
    bias: tuple[float, ...]
    positive: bool

    @property
    def overviews(self) -> tuple[int, ...]:
        return ()

    def grid(self, level: int | None) -> GeoBox:
        """The cube's own grid: it has no overviews."""
        return self.geobox

    def read(
        self, rows: slice, cols: slice, *, level: int | None = None, shape: tuple[int, int] | None = None
    ) -> tuple[Num[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
        """Pixels and validity of a window that lies within the cube, or its decimation to `shape`."""
        dataset = open_dataset(self.path, self.stamp)
        time, band, row, col = self.dimensions
        if shape is not None:
            rows = slice(rows.start, rows.stop, max(1, (rows.stop - rows.start) // shape[0]))
            cols = slice(cols.start, cols.stop, max(1, (cols.stop - cols.start) // shape[1]))
        planes, judged = [], []
        for source in self.sources:
            variable = dataset.variables[source.variable]  # without the coordinates, which cost more than the pixels
            place = {time: self.moment, band: source.place, row: rows, col: cols}
            try:
                values = (
                    variable.isel({k: v for k, v in place.items() if k in variable.dims}).transpose(row, col).values
                )
            except (OSError, RuntimeError, ValueError) as error:
                raise SkysenseError(
                    f"{self.path}: {source.variable} cannot be read at rows {rows.start} to {rows.stop}, "
                    f"columns {cols.start} to {cols.stop}: {error}",
                    fix="The file is damaged there or was cut off: copy or download it again.",
                ) from None
            planes.append(
                values.view(source.dtype) if values.dtype.itemsize == np.dtype(source.dtype).itemsize else values
            )
            # Every variable is an array of its own, as if it were a file of its own.
            judged.append(masks.measured(planes[-1][None], (source.nodata,)))
        stored, valid = np.stack(planes), np.logical_and.reduce(judged)
        if self.positive:
            valid &= (stored > 0).all(axis=0)
        return masks.scale(stored, self.gain, self.bias), valid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cube:
    """The facts about one cube, gathered by opening it once; the counterpart of `files.RasterFile`."""

    path: str
    stamp: Stamp
    geobox: GeoBox
    found: tuple[Found, ...]
    sources: tuple[CubeBand, ...]
    dimensions: tuple[str | None, str | None, str, str]
    days: tuple[date | None, ...]
    written: date | None
    level: str | None
    baseline: float | None
    unit: str | None
    notes: tuple[str, ...]

    def layers(
        self, matches: Mapping[int, int], moment: int, unit: str | None, offset: float, positive: bool
    ) -> tuple[CubeLayer]:
        """The one layer of {stack band: band of this cube} at time step `moment`."""
        chosen = tuple(self.sources[i] for i in matches.values())
        factors = tuple(units.factors(*source.scale, unit, offset) for source in chosen)
        plain = all(factor == (1.0, 0.0) for factor in factors)
        layer = CubeLayer(
            path=self.path,
            stamp=self.stamp,
            geobox=self.geobox,
            dtype=np.result_type(*(source.dtype for source in chosen)) if plain else np.dtype("float32"),
            bands=tuple(matches),
            sources=chosen,
            dimensions=self.dimensions,
            moment=moment,
            gain=tuple(gain for gain, _ in factors),
            bias=tuple(bias for _, bias in factors),
            positive=positive,
        )
        return (layer,)


def open_cube(path: str, options: ReadOptions) -> Cube:
    """Probe one cube. Raises SkysenseError where it is none, or has no regular grid or CRS."""
    stamp = stamp_of(path)
    dataset = open_dataset(path, stamp)
    row, col = (dimension(dataset, names, path) for names in (ROWS, COLUMNS))
    names = [str(name) for name, item in dataset.data_vars.items() if {row, col} <= set(item.dims)]
    if not names:
        raise SkysenseError(f"{path}: no variable of this cube has the dimensions {row} and {col}")
    extra = sorted({str(dim) for name in names for dim in dataset[name].dims} - {row, col})
    time = next((dim for dim in extra if dim in dataset.coords and dataset[dim].dtype.kind == "M"), None)
    band = next((dim for dim in extra if dim.lower() in BANDS), None)
    others = [dim for dim in extra if dim not in (time, band)]
    if any(dataset.sizes[dim] > 1 for dim in others):
        raise SkysenseError(
            f"{path}: dimension {others[0]} is neither time (datetime64), rows, columns nor bands",
            fix="Select one position of it, or rename it to time or band and give it coordinates.",
        )
    found, sources = _bands(dataset, names, band, path, options)
    first = sources[0]
    scaled = f"{path}: {first.variable} states scale {first.scale[0]:g} and offset {first.scale[1]:g}"
    return Cube(
        path=path,
        stamp=stamp,
        geobox=grid_of(dataset, names[0], row, col, path),
        found=found,
        sources=sources,
        dimensions=(time, band, row, col),
        days=_days(dataset, time, path, options),
        written=None,
        level=dates.level_of(path, {}) or dates.level_of(names[0], {}),
        baseline=None,
        unit=units.stated([dataset[source.variable].attrs.get("units") for source in sources], names, path),
        notes=() if first.scale == (1, 0) else (scaled,),
    )


def dimension(dataset: xr.Dataset, names: tuple[str, ...], path: str) -> str:
    """The dimension that has one of these names and coordinates. Raises SkysenseError where none has."""
    for dim in dataset.sizes:
        if str(dim).lower() in names and dim in dataset.coords:
            return str(dim)
    raise SkysenseError(f"{path}: no dimension with coordinates is called {' or '.join(names)}")


def _bands(
    dataset: xr.Dataset, names: list[str], band: str | None, path: str, options: ReadOptions
) -> tuple[tuple[Found, ...], tuple[CubeBand, ...]]:
    found, sources = [], []
    for name in names:
        item = dataset[name]
        attributes = {**item.encoding, **item.attrs}
        dtype = item.dtype
        if dtype.kind == "i" and str(attributes.get("_Unsigned", "")).lower() == "true":
            dtype = np.dtype(f"u{dtype.itemsize}")
        if dtype.kind not in "iuf":
            continue
        nodata = options.nodata
        for key in ("missing_value", "_FillValue", "nodata", "NoData"):
            nodata = float(np.ravel(attributes[key])[0]) if options.nodata is None and key in attributes else nodata
        scale = float(attributes.get("scale_factor", 1.0)), float(attributes.get("add_offset", 0.0))
        labels = [name]
        places: list[int | None] = [None]
        if band is not None and band in item.dims:
            labels = [str(label) for label in dataset[band].values] if band in dataset.coords else []
            places = list(range(item.sizes[band]))
            labels = labels or [f"band_{number}" for number in range(1, item.sizes[band] + 1)]
        for label, place in zip(labels, places, strict=True):
            found.append(bands.by_description(label) or Found())
            sources.append(
                CubeBand(
                    variable=name, place=place, nodata=masks.possible(nodata, dtype), scale=scale, dtype=dtype.name
                )
            )
    if options.bands is not None:
        found = list(bands.by_user(options.bands, len(sources), path))
    return tuple(found), tuple(sources)


def _days(dataset: xr.Dataset, time: str | None, path: str, options: ReadOptions) -> tuple[date | None, ...]:
    if time is None:
        return (
            dates.date_by_pattern(path, options.date_pattern) if options.date_pattern else dates.date_in_name(path),
        )
    if options.dates or options.date_pattern:
        raise UsageError(f"{path} has a time axis of its own ({time})", fix="Leave --date and --date-pattern out.")
    return tuple(dataset[time].values.astype("datetime64[D]").tolist())


def grid_of(dataset: xr.Dataset, name: str, row: str, col: str, path: str) -> GeoBox:
    """The grid of a variable, from its coordinates. Raises SkysenseError where they are uneven or there is no CRS."""
    y, x = (np.asarray(dataset[dim].values, dtype=np.float64) for dim in (row, col))
    steps = []
    for axis, values in ((row, y), (col, x)):
        if len(values) < 2:
            raise SkysenseError(f"{path}: {axis} has one position only, so the pixel size is not known")
        step = (values[-1] - values[0]) / (len(values) - 1)
        if step == 0 or np.abs(values - values[0] - step * np.arange(len(values))).max() > abs(step) * 0.01:
            raise SkysenseError(f"{path}: positions along {axis} are not evenly spaced", fix="Regrid it first.")
        steps.append(float(step))
    affine = Affine(steps[1], 0, float(x[0]) - steps[1] / 2, 0, steps[0], float(y[0]) - steps[0] / 2)
    return GeoBox((len(y), len(x)), affine, _crs(dataset, name, col, path))


def _crs(dataset: xr.Dataset, name: str, col: str, path: str) -> str:
    """The CRS of a variable: of its CF grid mapping, or of the attributes epsg and crs; as text."""
    sources: list[Mapping[Any, Any]] = [dataset[name].encoding, dataset[name].attrs, dataset.attrs]
    mappings = [source["grid_mapping"] for source in sources if "grid_mapping" in source]
    for mapping in [*mappings, "spatial_ref", "crs"]:
        if mapping in dataset.variables:
            attributes = dataset[mapping].attrs
            for key in ("crs_wkt", "spatial_ref"):
                if key in attributes:
                    return _text(pyproj.CRS.from_user_input(attributes[key]))
            if "grid_mapping_name" in attributes:
                return _text(pyproj.CRS.from_cf(attributes))
    for source in sources:
        for key in ("epsg", "crs"):
            try:
                if key in source:
                    return _text(pyproj.CRS.from_user_input(int(source[key]) if key == "epsg" else source[key]))
            except (CRSError, ValueError):
                raise SkysenseError(f"{path}: {key} = {source[key]!r} is no CRS") from None
    if col.lower() in ("lon", "longitude"):
        return "EPSG:4326"
    raise SkysenseError(
        f"{path}: has no coordinate reference system (CRS)",
        fix="Write it with rioxarray: cube.rio.write_crs('EPSG:CODE').",
    )


def _text(crs: pyproj.CRS) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()
