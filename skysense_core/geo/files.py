"""What one raster file is: its grid, what its bands may be called, its nodata and masks, its date and level."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
from affine import Affine
from jaxtyping import UInt8
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import bands, dates, masks, units
from skysense_core.geo.bands import Found
from skysense_core.geo.layer import FileLayer, Stamp, access, open_dataset, stamp_of
from skysense_core.geo.options import ReadOptions

PALETTE = ("red", "green", "blue")
TERRAIN_CORRECT = (
    "Calibrate and terrain-correct it (SNAP: Apply Orbit File, Calibration, Terrain Correction), or fetch it so (RTC)."
)
_DETECTED = re.compile(r"s1[a-d][-_](iw|ew|s[1-6m]|wv)[-_]?(grd|slc)", re.IGNORECASE)
"""Names of ground-range detected and of complex products and of their images."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RasterFile:
    """The facts about one file, gathered by opening it once."""

    path: str
    stamp: Stamp
    geobox: GeoBox
    dtype: np.dtype
    found: tuple[Found, ...]
    """One per band that can be asked for."""
    indexes: tuple[int, ...]
    """GDAL's numbers of the same bands."""
    nodata: tuple[float | None, ...]
    scales: tuple[tuple[float, float], ...]
    masked: bool
    alpha: tuple[int, float] | None
    palette: UInt8[np.ndarray, "256 4"] | None
    overviews: tuple[int, ...]
    days: tuple[date | None, ...]
    """One date, or None."""
    written: date | None
    """When the file says that it was made (TIFFTAG_DATETIME): the acquisition date in some products only."""
    level: str | None
    baseline: float | None
    unit: str | None
    """What it says of radar backscatter (see `units.stated`)."""
    notes: tuple[str, ...]

    def layers(
        self, matches: Mapping[int, int], moment: int, unit: str | None, offset: float, positive: bool
    ) -> tuple[FileLayer]:
        """The one layer of {stack band: band of this file}; `moment` is 0, for a file has one date."""
        pairs = sorted(matches.items(), key=lambda pair: pair[1])
        chosen = tuple(number for _, number in pairs)
        factors = tuple(units.factors(*self.scales[i], unit, offset) for i in chosen)
        plain = all(factor == (1.0, 0.0) for factor in factors)
        layer = FileLayer(
            path=self.path,
            stamp=self.stamp,
            geobox=self.geobox,
            stored=self.dtype,
            dtype=self.dtype if plain else np.dtype("float32"),
            bands=tuple(band for band, _ in pairs),
            indexes=(1,) if self.palette is not None else tuple(self.indexes[i] for i in chosen),
            nodata=self.nodata[:1] if self.palette is not None else tuple(self.nodata[i] for i in chosen),
            gain=tuple(gain for gain, _ in factors),
            bias=tuple(bias for _, bias in factors),
            masked=self.masked,
            alpha=self.alpha,
            palette=self.palette,
            columns=chosen,
            positive=positive,
            overviews=self.overviews,
        )
        return (layer,)


def open_file(path: str, options: ReadOptions, *, colours: bool, georeferenced: bool = True) -> RasterFile:
    """Probe one file. With `colours` a palette is read as its red, green and blue, otherwise as its indexes.

    Raises SkysenseError where it cannot be read or, if `georeferenced`, has no grid on the ground.
    """
    if options.nodata is not None and not np.isfinite(options.nodata):
        raise UsageError(f"--nodata {options.nodata}: NaN and infinity are never data", fix="Leave it out.")
    stamp = stamp_of(path)
    return access(path, lambda: _facts(open_dataset(path, stamp), path, stamp, options, colours, georeferenced))


def _facts(
    dataset: DatasetReader, path: str, stamp: Stamp, options: ReadOptions, colours: bool, georeferenced: bool
) -> RasterFile:
    _refuse_unreadable(dataset, path)
    dtype = np.dtype(dataset.dtypes[0]) if len(set(dataset.dtypes)) == 1 else np.result_type(*dataset.dtypes)
    notes: list[str] = []
    alpha, trapped = _alpha(dataset, path, notes)
    palette = _palette(dataset) if colours else None
    tags = dataset.tags()
    found, indexes = _bands(dataset, path, options, alpha, trapped, palette is not None)
    scales = tuple((float(dataset.scales[i - 1]), float(dataset.offsets[i - 1])) for i in indexes)
    if any(pair != (1.0, 0.0) for pair in scales):
        notes.append(f"{path} states scale {scales[0][0]:g} and offset {scales[0][1]:g}")
    if options.nodata is not None and masks.possible(options.nodata, dtype) is None:
        notes.append(f"{path}: pixels are {dtype} and never --nodata {options.nodata:g}")
    return RasterFile(
        path=path,
        stamp=stamp,
        geobox=_geobox(dataset, path, georeferenced),
        dtype=np.dtype("uint8") if palette is not None else dtype,
        found=found,
        indexes=indexes,
        nodata=tuple(_nodata(dataset.nodatavals[i - 1], options.nodata, dtype) for i in indexes),
        scales=scales,
        masked=MaskFlags.per_dataset in dataset.mask_flag_enums[0]
        and MaskFlags.alpha not in dataset.mask_flag_enums[0],
        alpha=alpha,
        palette=palette,
        overviews=tuple(dataset.overviews(1)),
        days=(_date(path, tags, options),),
        written=dates.parse_date(tags.get("TIFFTAG_DATETIME", "")),
        level=dates.level_of(path, tags),
        baseline=dates.baseline_of(path, tags),
        unit=units.stated(dataset.units, [text for text in dataset.descriptions if text], path),
        notes=tuple(notes),
    )


def _nodata(declared: float | None, given: float | None, dtype: np.dtype) -> float | None:
    return masks.possible(declared if given is None else given, dtype)


def _date(path: str, tags: Mapping[str, str], options: ReadOptions) -> date | None:
    if options.date_pattern is not None:
        return dates.date_by_pattern(path, options.date_pattern)
    return dates.date_in_name(path) or dates.date_in_tags(tags)


def _refuse_unreadable(dataset: DatasetReader, path: str) -> None:
    if dataset.count == 0:
        inside = dataset.subdatasets
        raise UsageError(
            f"{path}: a container of {len(inside)} rasters, none of its own",
            fix=f"Give one of them, for example '{inside[0]}'" if inside else None,
        )
    if any(name.startswith("complex") for name in dataset.dtypes):
        raise SkysenseError(
            f"{path}: complex values (single-look radar?), and a map needs backscatter",
            fix="Detect, calibrate and terrain-correct it first: intensity or amplitude in dB.",
        )


def _geobox(dataset: DatasetReader, path: str, georeferenced: bool) -> GeoBox:
    shape = dataset.shape
    if not georeferenced and (dataset.crs is None or dataset.transform.is_identity):
        return GeoBox(shape, Affine.identity(), None)
    if dataset.transform.is_identity and dataset.gcps[0] and _DETECTED.search(path):
        raise SkysenseError(f"{path}: Sentinel-1 in radar geometry, on no grid", fix=TERRAIN_CORRECT)
    if dataset.transform.is_identity and dataset.gcps[0]:
        raise SkysenseError(
            f"{path}: placed by {len(dataset.gcps[0])} ground control points only, not on a grid",
            fix=f"Put it on one: gdalwarp -tps -t_srs EPSG:CODE {path} grid.tif",
        )
    if dataset.transform.is_identity and dataset.rpcs is not None:
        raise SkysenseError(
            f"{path}: placed by rational polynomials (RPC) only, not on a grid",
            fix=f"Put it on one: gdalwarp -rpc -to RPC_DEM=dem.tif -t_srs EPSG:CODE {path} grid.tif",
        )
    if dataset.crs is None and dataset.transform.is_identity:
        raise SkysenseError(
            f"{path}: a picture without georeference (no CRS, no position)",
            fix=f"State both: gdal_translate -a_srs EPSG:CODE -a_ullr XMIN YMAX XMAX YMIN {path} placed.tif",
        )
    if dataset.crs is None:
        raise SkysenseError(
            f"{path}: has no coordinate reference system (CRS)",
            fix=f"State it, if you know it: gdal_edit.py -a_srs EPSG:CODE {path}",
        )
    if dataset.transform.is_identity or dataset.transform.is_degenerate:
        raise SkysenseError(
            f"{path}: has a CRS but no position (no geotransform)",
            fix=f"State its corners: gdal_edit.py -a_ullr XMIN YMAX XMAX YMIN {path}",
        )
    try:
        return GeoBox(shape, dataset.transform, dataset.crs.to_string())
    except CRSError:
        return GeoBox(shape, dataset.transform, dataset.crs.to_wkt())


def _alpha(dataset: DatasetReader, path: str, notes: list[str]) -> tuple[tuple[int, float] | None, int | None]:
    """(number and threshold of a real alpha band, number of a band that is only tagged so)."""
    tagged = [i for i, colour in enumerate(dataset.colorinterp, start=1) if colour == ColorInterp.alpha]
    if not tagged:
        return None, None
    height, width = dataset.shape
    sample = dataset.read(tagged[-1], out_shape=(min(height, 256), min(width, 256)))
    if masks.is_mask(sample):
        return (tagged[-1], max(float(sample.max()) / 2, 0.5)), None
    notes.append(f"{path}: band {tagged[-1]} is tagged as alpha but holds values; read as data (nir)")
    return None, tagged[-1]


def _palette(dataset: DatasetReader) -> UInt8[np.ndarray, "256 4"] | None:
    if dataset.count != 1 or dataset.colorinterp[0] != ColorInterp.palette or dataset.dtypes[0] != "uint8":
        return None
    table = np.zeros((256, 4), np.uint8)
    for value, colour in dataset.colormap(1).items():
        table[value] = colour
    return table


def _bands(
    dataset: DatasetReader,
    path: str,
    options: ReadOptions,
    alpha: tuple[int, float] | None,
    trapped: int | None,
    palette: bool,
) -> tuple[tuple[Found, ...], tuple[int, ...]]:
    """What each band may be called, and its number; a real alpha band is no band."""
    numbers = tuple(i for i in dataset.indexes if alpha is None or i != alpha[0])
    if palette:
        return tuple(Found(names=(name,), weak=True) for name in PALETTE), (1, 1, 1)
    if options.bands is not None:
        return bands.by_user(options.bands, len(numbers), path), numbers
    named: list[Found] = []
    for number in numbers:
        colour = dataset.colorinterp[number - 1]
        described = bands.by_description(dataset.descriptions[number - 1])
        if described is None and dataset.count == 1:
            described = bands.by_file_name(path)
        elif described is None and number == trapped:
            described = Found(names=("nir",), weak=True)
        elif described is None and colour not in (ColorInterp.undefined, ColorInterp.gray, ColorInterp.palette):
            described = Found(names=(colour.name,), weak=True)
        named.append(described or Found())
    return tuple(named), numbers
