"""The only reader of rasters: any number of files of one modality, as one time series on any grid.

    stack = open_stack(["s2/"], bands=[band.names for band in modality.bands], unit=modality.unit)
    raster = stack.read(stack.geobox[:512, :512])

`paths` expands what the user gave, `files`, `safe`, `stac` and `cube` say what each input is, `series` arranges inputs
by date and by wanted band (`dates`, `bands`), `layer` reads windows, `warp` brings them onto a grid, `masks` and
`clouds` judge validity and `units` converts values. Here they are put together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Num
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError
from skysense_core.geo import clouds, dates, grid, series, units, warp
from skysense_core.geo.files import open_file
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.paths import expand, is_cube, is_document, is_product
from skysense_core.geo.safe import open_safe
from skysense_core.geo.series import Product
from skysense_core.geo.stac import open_item
from skysense_core.geo.warp import Layer
from skysense_core.types import Raster

__all__ = ["ReadOptions", "Stack", "ground_gsd", "open_picture", "open_stack", "read_picture"]


Placed = tuple[Layer, grid.Bounds]
"""A layer and where it lies, in the stack's CRS."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """One modality of one place as a time series: what there is, before any pixel is read.

    Immutable; may be pickled and used from any number of threads and processes (each opens the files for itself).
    """

    geobox: GeoBox
    """The grid of the finest wanted band, north up, over the union of all files."""
    band_names: tuple[str, ...]
    days: Int[np.ndarray, "t"]
    """Days since 1970-01-01, ascending; 0 where not dated."""
    dated: Bool[np.ndarray, "t"]
    level: str | None
    """L1C or L2A, where the files state it."""
    dtype: np.dtype
    """Of what `read` returns on `geobox`."""
    notes: tuple[str, ...]
    """Facts that the user should see: what was taken from where, what was left out."""
    paths: tuple[str, ...]
    layers: tuple[tuple[Placed, ...], ...]
    """Per date, the files that make it, finest first."""
    uniform: bool
    """Whether all files lie on one lattice, so that reading on it interpolates nothing."""
    conversion: units.Conversion

    def read(self, geobox: GeoBox, *, dates: Sequence[int] | None = None, resampling: str = "bilinear") -> Raster:
        """The pixels of all dates, or of those numbered `dates`, on any grid in any CRS.

        Where the grids agree the stored values come back as they are, in `dtype`; otherwise as float32 (with "nearest"
        in `dtype`). "bilinear" turns into an area average where the grid is more than 1.5 times coarser. A pixel is
        valid if every band is; invalid pixels, all those outside of the files among them, are 0.
        Raises SkysenseError where a file is damaged.
        """
        if (geobox.crs is None) != (self.geobox.crs is None):
            raise SkysenseError("a picture without CRS can only be read on its own pixels")
        chosen = list(range(len(self.layers)) if dates is None else dates)
        keeps = resampling == "nearest" or (self.uniform and grid.aligned(self.geobox, geobox) is not None)
        shape = (len(chosen), len(self.band_names), *geobox.shape)
        pixels = np.zeros(shape, self.dtype if keeps else "float32")
        have = np.zeros(shape, dtype=bool)
        reach = grid.bounds_in(geobox, self.geobox.crs)
        for place, moment in enumerate(chosen):
            for layer, bounds in self.layers[moment]:
                if _apart(bounds, reach) or have[place, list(layer.bands)].all():
                    continue
                part = warp.read_onto(layer, geobox, resampling)
                if part is not None:
                    _fill(pixels[place], have[place], layer.bands, *part)
        valid: Bool[np.ndarray, "t h w"] = np.asarray(have.all(axis=1))
        if not valid.all():
            pixels *= valid[:, None]
        return Raster(
            pixels=self.conversion(pixels, valid),
            valid=valid,
            days=self.days[chosen],
            dated=self.dated[chosen],
            geobox=geobox,
        )


def _apart(one: grid.Bounds, other: grid.Bounds) -> bool:
    return one[0] >= other[2] or one[2] <= other[0] or one[1] >= other[3] or one[3] <= other[1]


def _fill(
    pixels: Num[np.ndarray, "c h w"],
    have: Bool[np.ndarray, "c h w"],
    bands: tuple[int, ...],
    values: Num[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "h w"],
) -> None:
    """Take what is not there yet: the finest file and then the first one wins."""
    if valid.all() and not have[list(bands)].any():
        pixels[list(bands)] = values
        have[list(bands)] = True
        return
    for band, plane in zip(bands, values, strict=True):
        np.copyto(pixels[band], plane, where=valid & ~have[band], casting="unsafe")
        have[band] |= valid


def open_stack(
    paths: str | Path | Sequence[str | Path],
    *,
    bands: Sequence[tuple[str, ...]] | None,
    unit: str | None = None,
    options: ReadOptions | None = None,
) -> Stack:
    """Files, globs, folders, Sentinel-2 products, STAC items or cubes of one modality as a stack.

    `bands` holds the accepted names of each wanted band (`Band.names`), None takes all bands as they are; `unit` is the
    unit that the values must have (`Modality.unit`), None takes them as stored. Files of one date are a mosaic or
    complementary bands of any pixel sizes; files without a date are one undated image.
    Raises SkysenseError or UsageError, with the fix, for everything that cannot be read as asked.
    """
    options = options or ReadOptions()
    products = [open_product(path, options, bands, unit) for path in expand(paths)]
    return assemble(products, bands, unit, options)


def open_picture(
    path: str | Path,
    *,
    bands: Sequence[tuple[str, ...]] | None,
    unit: str | None = None,
    options: ReadOptions | None = None,
) -> Stack:
    """A picture (PNG, JPEG, TIFF), with or without georeference, as a stack of one date.

    One without can only be read on parts of its own grid. Otherwise as `open_stack`.
    """
    options = options or ReadOptions()
    products = [open_product(file, options, bands, unit, georeferenced=False) for file in expand(path)]
    return assemble(products, bands, unit, options)


def read_picture(
    path: str | Path,
    *,
    bands: Sequence[tuple[str, ...]] | None,
    unit: str | None = None,
    options: ReadOptions | None = None,
) -> Raster:
    """A whole picture; `geobox` is None where it has no georeference. Otherwise as `open_picture`."""
    stack = open_picture(path, bands=bands, unit=unit, options=options)
    raster = stack.read(stack.geobox)
    return raster if stack.geobox.crs is not None else replace(raster, geobox=None)


def assemble(
    products: Sequence[Product], wanted: Sequence[tuple[str, ...]] | None, unit: str | None, options: ReadOptions
) -> Stack:
    """What `open_stack` does, for inputs that are open."""
    days, date_notes = dates.assign([(p.path, p.days, p.written) for p in products], options.dates)
    wanted = series.all_bands(products) if wanted is None else wanted
    moments, left_out = series.arrange(products, days, wanted)
    used = list(dict.fromkeys(entry.product for moment in moments.values() for entry in moment))
    level = series.level_of(used)
    stated_notes: tuple[str, ...] = ()
    if unit == units.DECIBEL:
        backscatter, stated_notes = series.unit_of(used, options.unit)
        options = replace(options, unit=backscatter)
    conversion, offset, unit_notes = units.conversion(unit, options)
    offsets, offset_notes = series.offsets(used, unit, offset, stated=options.offset is not None)

    layers = []
    for moment in moments.values():
        date = [
            layer
            for entry in moment
            for layer in entry.product.layers(
                entry.matches, entry.moment, unit, offsets[entry.product.path], conversion.decibel
            )
        ]
        layers.append(sorted(date, key=lambda layer: grid.pixel_size(layer.geobox)))
    if (None, 0) in moments:
        series.refuse_same_place(layers[list(moments).index((None, 0))])
    for entry in next(iter(moments.values()))[:4] if unit in (units.DISPLAY, units.DECIBEL) else ():
        for layer in entry.product.layers(entry.matches, entry.moment, unit, offsets[entry.product.path], False):
            _check_values(layer, unit, options)
    covers = () if unit == units.DECIBEL else clouds.open_covers(options.cloud_mask, [day for day, _ in moments])
    layers = [clouds.cover(date, day, covers) for (day, _), date in zip(moments, layers, strict=True)]

    flat = [layer for date in layers for layer in date]
    geobox = grid.union([layer.geobox for layer in flat])
    uniform = all(grid.aligned(layer.geobox, geobox) is not None for layer in flat)
    keeps = uniform and conversion.is_identity
    own = [note for product in used for note in product.notes]
    return Stack(
        geobox=geobox,
        band_names=tuple(names[0] for names in wanted),
        days=np.array([(day - dates.EPOCH).days if day else 0 for day, _ in moments], dtype=np.int64),
        dated=np.array([day is not None for day, _ in moments]),
        level=level,
        dtype=np.result_type(*(layer.dtype for layer in flat)) if keeps else np.dtype("float32"),
        notes=tuple(dict.fromkeys([*own, *date_notes, *left_out, *offset_notes, *stated_notes, *unit_notes])),
        paths=(*(product.path for product in used), *(one.mask.path for one in covers)),
        layers=tuple(tuple((layer, grid.bounds_in(layer.geobox, geobox.crs)) for layer in date) for date in layers),
        uniform=uniform,
        conversion=conversion,
    )


def open_product(
    path: str,
    options: ReadOptions,
    wanted: Sequence[tuple[str, ...]] | None,
    unit: str | None,
    *,
    georeferenced: bool = True,
) -> Product:
    """One of the inputs of `open_stack`, as `expand` gives them; for `assemble`."""
    if is_document(path):
        return open_item(path, options, display=unit == units.DISPLAY)
    if is_product(path):
        return open_safe(path, options)
    if not is_cube(path):
        return open_file(path, options, colours=wanted is not None, georeferenced=georeferenced)
    from skysense_core.geo.cube import open_cube  # xarray takes most of a second to import

    return open_cube(path, options)


def _check_values(layer: Layer, unit: str | None, options: ReadOptions) -> None:
    """Look at a decimated sample where the unit could be another one than stated (see `units.check`)."""
    display = unit == units.DISPLAY and layer.dtype != np.uint8 and options.rescale is None
    if not display and unit != units.DECIBEL:
        return
    height, width = layer.geobox.shape
    shape = min(height, 256), min(width, 256)
    pixels, valid = layer.read(slice(0, height), slice(0, width), shape=shape)
    units.check(pixels[:, valid].ravel().astype("float64"), layer.dtype, unit, options, layer.path)
