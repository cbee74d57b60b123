"""Many rasters on one pixel lattice as one: what each of them is, where it lies, and a virtual raster over them all.

A virtual raster (VRT) is a page of XML; GDAL opens a part when its pixels are wanted. `cog.write_cog` makes a file of
it.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.cog import GREY, HALF, Product, named
from skysense_core.geo.grid import LATTICE, aligned
from skysense_core.geo.paths import is_plain
from skysense_core.geo.windows import Window
from skysense_core.types import UNSURE

TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}
"""GDAL's names of the types of pixels."""
SOFTWARE = "TIFFTAG_SOFTWARE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A file that predict wrote."""

    path: str
    grid: GeoBox
    product: Product


def open_result(path: str) -> Result:
    """What a result of predict is, from what the file carries.

    Raises SkysenseError where it cannot be read and UsageError where it is a raster of another origin.
    """
    try:
        with rasterio.open(path) as dataset:
            if not dataset.tags().get(SOFTWARE, "").startswith("skysense ") or dataset.nodata is None:
                raise UsageError(
                    f"{path}: not a result of skysense predict",
                    fix="Give files that predict has written; gdalbuildvrt and gdal_translate join others.",
                )
            grid = GeoBox(dataset.shape, dataset.transform, str(dataset.crs))
            return Result(path=path, grid=grid, product=_product(dataset))
    except RasterioError as error:
        raise SkysenseError(f"{path}: cannot be read: {error}") from None


def _product(dataset: DatasetReader) -> Product:
    tags = dataset.tags()
    numbered = takewhile(lambda key: key in tags, (f"CLASS_{code}" for code in count()))
    classes = tuple(tags[key] for key in numbered)
    colours = dataset.colormap(1) if dataset.colorinterp[0] == ColorInterp.palette else None
    return Product(
        kind="classes" if classes else "continuous",
        bands=tuple(name or "" for name in dataset.descriptions),
        dtype=HALF if dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "16" else dataset.dtypes[0],
        nodata=dataset.nodata,
        scale=_one(dataset.scales),
        offset=_one(dataset.offsets),
        block=dataset.block_shapes[0][0],
        classes=classes,
        colours=() if colours is None else tuple(_hex(*colours[code]) for code in range(len(classes))),
        unsure=f"CLASS_{UNSURE}" in tags,
        tags={key: tags[key] for key in tags if not re.fullmatch(r"CLASS_\d+|AREA_OR_POINT", key)},
    )


def _one(values: tuple[float, ...]) -> float | tuple[float, ...]:
    """The value that all bands have, or those of each."""
    return values[0] if len(set(values)) == 1 else values


def _hex(red: int, green: int, blue: int, _alpha: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"


def lay_out(named: Sequence[tuple[str, GeoBox]]) -> tuple[GeoBox, list[Window]]:
    """The grid over several grids of one lattice, and the place of each in it.

    Raises UsageError, naming the first two files that do not fit and how they differ, where CRS, pixel size, rotation
    or lattice are not the same.
    """
    name, first = named[0]
    places = [Window(row=0, col=0, height=first.shape.y, width=first.shape.x)]
    for other, grid in named[1:]:
        step = aligned(first, grid)
        if step is None or step[2:] != (1, 1):
            raise UsageError(
                f"{other} does not lie on the pixels of {name}: {_difference(first, grid)}",
                fix="Predict on one grid (--like), or bring one onto the other's first: gdalwarp -r near.",
            )
        places.append(Window(row=step[0], col=step[1], height=grid.shape.y, width=grid.shape.x))
    # The part nearest to the upper left corner is the origin: mostly it is that corner, to the last bit.
    corner = min(range(len(places)), key=lambda index: places[index].row + places[index].col)
    row, col = places[corner].row, places[corner].col
    top, left = min(place.row for place in places), min(place.col for place in places)
    bottom, right = max(place.row_stop for place in places), max(place.col_stop for place in places)
    whole = Window(row=top - row, col=left - col, height=bottom - top, width=right - left)
    inside = [replace(place, row=place.row - top, col=place.col - left) for place in places]
    return whole.geobox(named[corner][1]), inside


def _difference(first: GeoBox, other: GeoBox) -> str:
    """How two grids differ, the coarsest difference first."""
    if first.crs != other.crs:
        return f"its CRS is {other.crs}, not {first.crs}"
    turned, own = _axes(other), _axes(first)
    if not turned.almost_equals(own, precision=LATTICE * abs(own.determinant) ** 0.5 / max(*first.shape, *other.shape)):
        if own.is_rectilinear and turned.is_rectilinear:
            return f"its pixels are {turned.a:.9g} x {turned.e:.9g}, not {own.a:.9g} x {own.e:.9g}"
        return "it is rotated otherwise"
    col, row = ~first.affine * (other.affine.c, other.affine.f)
    return f"it is shifted by {_fraction(col)} columns and {_fraction(row)} rows"


def _axes(grid: GeoBox) -> Affine:
    a, b, _, d, e, _ = grid.affine[:6]
    return Affine(a, b, 0, d, e, 0)


def _fraction(value: float) -> str:
    return f"{value - round(value):.3g}"


def write_vrt(parts: Sequence[tuple[str | Path, Window]], grid: GeoBox, product: Product, out: Path) -> Path:
    """A virtual raster over files that hold the bands of `product`, each with its place in `grid`; returns `out`.

    Where files overlap, the first one with a valid pixel counts; what lies in none is nodata. It carries all that
    `cog.RowWriter` gives a file, so that `cog.write_cog` can take its place. Give `out` another suffix than .vrt,
    which is the one of write_cog's own.
    """
    root = ET.Element("VRTDataset", rasterXSize=str(grid.shape.x), rasterYSize=str(grid.shape.y))
    ET.SubElement(root, "SRS").text = str(grid.crs)
    ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, grid.affine.to_gdal()))
    metadata = ET.SubElement(root, "Metadata")
    for key, value in (named(product) | dict(product.tags)).items():
        ET.SubElement(metadata, "MDI", key=key).text = value
    # GDAL paints one part over the other.
    sources = [(_name(path), window) for path, window in reversed(parts)]
    for index, name in enumerate(product.bands, start=1):
        band = ET.SubElement(
            root,
            "VRTRasterBand",
            dataType=TYPES[product.pixel],
            band=str(index),
            blockXSize=str(product.block),
            blockYSize=str(product.block),
        )
        ET.SubElement(band, "Description").text = name
        ET.SubElement(band, "NoDataValue").text = repr(product.nodata)
        if product.scaling:
            scale, offset = product.scaling[index - 1]
            ET.SubElement(band, "Offset").text = repr(offset)
            ET.SubElement(band, "Scale").text = repr(scale)
        if product.colours:
            ET.SubElement(band, "ColorInterp").text = "Palette"
            _colour_table(band, product)
        else:
            ET.SubElement(band, "ColorInterp").text = "Gray" if index == 1 else "Undefined"
        for path, window in sources:
            _source(band, path, index, window, product)
    ET.ElementTree(root).write(out, encoding="utf-8")
    return out


def _name(path: str | Path) -> str:
    return os.path.abspath(path) if is_plain(str(path)) else str(path)


def _colour_table(band: ET.Element, product: Product) -> None:
    table = ET.SubElement(band, "ColorTable")
    entries = {code: (*bytes.fromhex(colour.lstrip("#")), 255) for code, colour in enumerate(product.colours)}
    entries |= {UNSURE: (*bytes.fromhex(GREY.lstrip("#")), 255)} if product.unsure else {}
    for code in range(np.iinfo(product.dtype).max + 1):
        shade = (0, 0, 0, 0) if code == product.nodata else entries.get(code, (0, 0, 0, 255))
        ET.SubElement(table, "Entry", {f"c{number}": str(value) for number, value in enumerate(shade, start=1)})


def _source(band: ET.Element, path: str, index: int, window: Window, product: Product) -> None:
    source = ET.SubElement(band, "ComplexSource")
    ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = path
    ET.SubElement(source, "SourceBand").text = str(index)
    # With these GDAL need not open the file to know it.
    ET.SubElement(
        source,
        "SourceProperties",
        RasterXSize=str(window.width),
        RasterYSize=str(window.height),
        DataType=TYPES[product.pixel],
        BlockXSize=str(product.block),
        BlockYSize=str(product.block),
    )
    extent = {"xSize": str(window.width), "ySize": str(window.height)}
    ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **extent})
    ET.SubElement(source, "DstRect", {"xOff": str(window.col), "yOff": str(window.row), **extent})
    ET.SubElement(source, "NODATA").text = repr(product.nodata)
