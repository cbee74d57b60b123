"""A chip: one modality of one sample as a GeoTIFF, from a Raster to bytes and back.

All dates lie in one file, band-interleaved and date by date, each band described as QGIS shows it:

    2016-07-24 B02 | 2016-07-24 B03 | ... | 2016-08-03 B02 | ... | 2016-07-24 valid | 2016-08-03 valid

The last ones are 1 where the image of that date shows anything; they are left out where all of it does. A chip is read
where it lies, in a file of its own or within a tar (`subfile`), also over a network.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import rasterio
from einops import rearrange
from jaxtyping import Num
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetReader, MemoryFile

from skysense_core.errors import SkysenseError
from skysense_core.geo.bands import Found, match, missing
from skysense_core.geo.layer import access
from skysense_core.types import IGNORE, ClassMap, Raster

T = TypeVar("T")
STRIP = 512
"""Chips of at most so many pixels along a side are one block per band: a sample is read whole."""
TILE = 256
CODEC = {"compress": "zstd", "zstd_level": 1}
"""Level 9, GDAL's default, takes several times as long for 2 % less."""
BANDS, DATES, ALL_VALID = "BANDS", "DATES", "ALL_VALID"
"""Tags: names and dates in their order, and whether no band of validity was needed."""
UNDATED = "undated"
READING = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""A chip has no sidecar files to look for."""


def subfile(path: str, offset: int, size: int) -> str:
    """GDAL's name of a part of a file, for instance of one that lies in a tar."""
    return f"/vsisubfile/{offset}_{size},{path}"


def encode_chip(raster: Raster, bands: Sequence[str], tags: Mapping[str, str]) -> bytes:
    """A raster as the bytes of a GeoTIFF; pixels that are not valid become 0. Equal rasters give equal bytes."""
    pixels, days = raster.pixels, [day or UNDATED for day in iso_dates(raster)]
    complete = bool(raster.valid.all())
    if not complete:
        pixels = np.where(raster.valid[:, None], pixels, pixels.dtype.type(0))
    planes = rearrange(pixels, "t c h w -> (t c) h w")
    names = [f"{day} {band}" for day in days for band in bands]
    if not complete:
        planes = np.concatenate([planes, raster.valid.astype(planes.dtype)])
        names += [f"{day} valid" for day in days]
    own = {BANDS: ",".join(bands), DATES: ",".join(days), ALL_VALID: "yes" if complete else "no"}
    return _encode(planes, raster.geobox, names, {**tags, **own})


def encode_label(label: ClassMap, classes: Sequence[str], colours: Sequence[str]) -> bytes:
    """A label as the bytes of a GeoTIFF of class codes with their names as tags and, where there are any, colours."""
    names = {f"CLASS_{code}": name for code, name in enumerate(classes)}
    table = {code: (*bytes.fromhex(colour.lstrip("#")), 255) for code, colour in enumerate(colours)}
    return _encode(label.codes[None], label.geobox, ["label"], names, nodata=IGNORE, colours=table)


def _encode(
    planes: Num[np.ndarray, "n h w"],
    geobox: GeoBox | None,
    names: Sequence[str],
    tags: Mapping[str, str],
    *,
    nodata: int | None = None,
    colours: Mapping[int, tuple[int, ...]] | None = None,
) -> bytes:
    count, height, width = planes.shape
    profile: dict[str, object] = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": planes.dtype,
        "nodata": nodata,
        "interleave": "band",
        "predictor": 3 if planes.dtype.kind == "f" else 2,
        "photometric": "minisblack",
        "BIGTIFF": "IF_SAFER",
        **CODEC,
    }
    if max(height, width) > STRIP:
        profile |= {"tiled": True, "blockxsize": TILE, "blockysize": TILE}
    else:
        profile |= {"blockysize": height}
    if geobox is not None:
        profile |= {"crs": str(geobox.crs), "transform": geobox.affine}
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.update_tags(**tags)
            dataset.descriptions = tuple(names)
            if colours:
                dataset.write_colormap(1, colours)
            dataset.write(planes)
        return memory.read()


def read_chip(path: str, bands: Sequence[tuple[str, ...]]) -> Raster:
    """The wanted bands, each by any of its names, of all dates, in the dtype and on the grid of the file.

    Raises SkysenseError where it cannot be read, is no chip or lacks a band.
    """

    def read(dataset: DatasetReader) -> Raster:
        tags = dataset.tags()
        if DATES not in tags or BANDS not in tags:
            raise SkysenseError(f"{path}: a GeoTIFF, but not a chip of a store", fix="Ingest it.")
        days, names = tags[DATES].split(","), tags[BANDS].split(",")
        chosen = _matched(tuple(bands), tuple(names), path.partition(",")[2] or path)
        numbers = [1 + date * len(names) + band for date in range(len(days)) for band in chosen]
        validity = [] if tags[ALL_VALID] == "yes" else [len(names) * len(days) + date + 1 for date in range(len(days))]
        planes = dataset.read([*numbers, *validity])
        height, width = dataset.shape
        pixels = rearrange(planes[: len(numbers)], "(t c) h w -> t c h w", t=len(days))
        valid = planes[len(numbers) :] > 0 if validity else np.ones((len(days), height, width), dtype=bool)
        dated = np.array([day != UNDATED for day in days])
        return Raster(
            pixels=pixels,
            valid=valid,
            days=np.where(dated, np.array(days), "1970-01-01").astype("datetime64[D]").astype(np.int64),
            dated=dated,
            geobox=_geobox(dataset),
        )

    return _opened(path, read)


@functools.lru_cache(maxsize=64)
def _matched(wanted: tuple[tuple[str, ...], ...], names: tuple[str, ...], path: str) -> tuple[int, ...]:
    """Where the wanted bands stand; looked up once for all chips of a shard."""
    known = [Found(names=(name,)) for name in names]
    found = match(wanted, known, path)
    absent = [position for position in range(len(wanted)) if position not in found]
    if absent:
        raise missing(wanted, absent, {path: known})
    return tuple(found[position] for position in range(len(wanted)))


def read_label(path: str) -> ClassMap:
    """A label that `encode_label` has made. Raises SkysenseError where it cannot be read."""
    return _opened(path, lambda dataset: ClassMap(codes=dataset.read(1), geobox=_geobox(dataset)))


def iso_dates(raster: Raster) -> tuple[str, ...]:
    """The dates of a raster as text; empty where none is known."""
    days = raster.days.astype("datetime64[D]").astype(str)
    return tuple(str(day) if dated else "" for day, dated in zip(days, raster.dated, strict=True))


def _opened(path: str, read: Callable[[DatasetReader], T]) -> T:
    def opened() -> T:
        with rasterio.Env(**READING), rasterio.open(path, driver="GTiff", sharing=False) as dataset:
            return read(dataset)

    return access(path, opened, "its pixels ")


def _geobox(dataset: DatasetReader) -> GeoBox | None:
    if dataset.crs is None:
        return None
    code = dataset.crs.to_epsg()
    return GeoBox(dataset.shape, dataset.transform, f"EPSG:{code}" if code else dataset.crs.to_wkt())
