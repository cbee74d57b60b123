"""Rasters out: rows of a sweep into a temporary tiled GeoTIFF, then GDAL's COG driver, then one rename.

Everything a map carries (colours, class names, nodata, tags) is set before the copy: an edit afterwards would undo the
layout of a cloud-optimised GeoTIFF.
"""

import contextlib
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import rasterio.shutil
from jaxtyping import Num
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from skysense_core.errors import SkysenseError
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.raster import open_stack
from skysense_core.geo.style import write_ramp, write_style
from skysense_core.geo.windows import Window
from skysense_core.types import UNSURE

BLOCK = 512
"""Side of a block in pixels, on temporary files too: a block is compressed once."""
CACHE = 64 * 2**20
"""Bytes of decoded blocks that GDAL may keep while it copies; its own default is a share of the machine's memory."""
FULL = "Is there space left on the disk?"
SHARE = 1 / 254
"""Scale of the bytes that hold numbers from 0 to 1."""
RAMP = {0.0: "#440154", 1 / 3: "#31688e", 2 / 3: "#35b779", 1.0: "#fde725"}
"""Their colours in QGIS."""
GREY = "#8c8c8c"
"""Of pixels of no class."""
HALF = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the bands of one output file are."""

    kind: Literal["classes", "continuous", "objects"]
    """Classes are warped and reduced by nearest neighbour and mode, values by interpolation and averages; objects are
    no raster but rows of a table."""
    bands: tuple[str, ...]
    """Description of each band."""
    dtype: str = "uint8"
    nodata: float = 255.0
    scale: float | tuple[float, ...] = 1.0
    """Value = stored number * scale + offset; one of each, or one per band."""
    offset: float | tuple[float, ...] = 0.0
    classes: tuple[str, ...] = ()
    """Names of the codes 0..k-1."""
    colours: tuple[str, ...] = ()
    """One `#rrggbb` per class."""
    tags: Mapping[str, str] = field(default_factory=dict)
    unsure: bool = False
    """Whether the code `UNSURE` stands for pixels of no class."""
    block: int = BLOCK
    """Side of a block in pixels; a smaller one where there are very many bands."""

    @property
    def scaling(self) -> tuple[tuple[float, float], ...]:
        """Scale and offset of each band; none where stored numbers are the values."""
        if (self.scale, self.offset) == (1.0, 0.0):
            return ()
        each = (np.broadcast_to(value, len(self.bands)).tolist() for value in (self.scale, self.offset))
        return tuple(zip(*each, strict=True))

    @property
    def pixel(self) -> str:
        """The type that GDAL has for the pixels; floats of 16 bits are its Float32 with NBITS=16."""
        return "float32" if self.dtype == HALF else self.dtype


def named(product: Product) -> dict[str, str]:
    """The tags that name the codes of a class map."""
    names = {f"CLASS_{code}": name for code, name in enumerate(product.classes)}
    return names | ({f"CLASS_{UNSURE}": "unsure"} if product.unsure else {})


class RowWriter:
    """Writes strips of rows, top to bottom, as a tiled GeoTIFF; a context manager.

    Rows are held until a row of blocks is complete, so no block is compressed twice. A strip begins at a multiple of
    BLOCK columns. Raises SkysenseError where the file cannot be written, e.g. on a full disk.
    """

    def __init__(self, path: Path, grid: GeoBox, product: Product) -> None:
        self.path = path
        self._height = grid.shape.y
        self._count, self._block = len(product.bands), product.block
        self._row = self._col = self._held = 0
        self._rows = np.empty((self._count, 0, 0), dtype=product.pixel)
        with _explained(path):
            self._dataset = rasterio.open(path, "w", **_profile(grid, product))
        if product.colours and product.dtype == "uint8":  # longer tables come with the VRT that joins the shards
            table = {code: (*bytes.fromhex(colour.lstrip("#")), 255) for code, colour in enumerate(product.colours)}
            table |= {UNSURE: (*bytes.fromhex(GREY.lstrip("#")), 255)} if product.unsure else {}
            self._dataset.write_colormap(1, table | {int(product.nodata): (0, 0, 0, 0)})
        for index, name in enumerate(product.bands, start=1):
            self._dataset.set_band_description(index, name)
        if product.scaling:
            self._dataset.scales, self._dataset.offsets = zip(*product.scaling, strict=True)
        names = named(product)
        self._dataset.update_tags(**names, **product.tags)

    def write(self, window: Window, rows: Num[np.ndarray, "c n w"]) -> None:
        """The next rows of a strip (`window` says where), or the first ones of the next strip."""
        if window.row == 0:
            self._row, self._col, self._held = 0, window.col, 0
            self._rows = np.empty((self._count, self._block, window.width), dtype=rows.dtype)
        while rows.shape[1]:
            n = min(self._block - self._held, rows.shape[1])
            self._rows[:, self._held : self._held + n] = rows[:, :n]
            self._held, rows = self._held + n, rows[:, n:]
            if self._held == self._block or self._row + self._held == self._height:
                self._flush()

    def _flush(self) -> None:
        place = RasterioWindow(self._col, self._row, self._rows.shape[2], self._held)
        with _explained(self.path):
            self._dataset.write(self._rows[:, : self._held], window=place)
        self._row, self._held = self._row + self._held, 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(whole=kind is None)

    def close(self, *, whole: bool = True) -> None:
        """Complete the file. Raises SkysenseError where not all of it is on the disk, if it is to be `whole`."""
        with _explained(self.path):
            self._dataset.close()
        if whole:
            _check(self.path)


def warp(source: Path, grid: GeoBox, product: Product) -> Path:
    """The raster `source` on another grid, beside it: nearest neighbour for classes, bilinear for values."""
    path = source.with_name(f"warped_{source.name}")
    stack = open_stack([source], bands=None)
    with RowWriter(path, grid, product) as writer:
        for row in range(0, grid.shape.y, BLOCK):
            window = Window(row=row, col=0, height=min(BLOCK, grid.shape.y - row), width=grid.shape.x)
            part = stack.read(window.geobox(grid), resampling="nearest" if product.kind == "classes" else "bilinear")
            rows = np.rint(part.pixels[0]).astype(product.dtype)
            rows[:, ~part.valid[0]] = product.nodata
            writer.write(window, rows)
    return path


def write_cog(source: Path, product: Product, options: Mapping[str, str] | None = None) -> Path:
    """Copy a GeoTIFF of `RowWriter` into a cloud-optimised one beside it, ready for `publish`.

    `options`: creation options of GDAL's COG driver that replace ours. Class names go into GDAL's sidecar (.aux.xml)
    besides the tags, where GDAL looks for them, and into a style for QGIS (.qml). Raises SkysenseError where GDAL
    cannot write.
    """
    integer = np.issubdtype(np.dtype(product.dtype), np.integer)
    creation = {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "STANDARD" if integer else "FLOATING_POINT",
        "BLOCKSIZE": str(product.block),
        **({"NBITS": "16"} if product.dtype == HALF else {}),
        "OVERVIEWS": "IGNORE_EXISTING",
        "NUM_THREADS": "ALL_CPUS",  # the same bytes sooner
        "OVERVIEW_RESAMPLING": "MODE" if product.kind == "classes" else "AVERAGE",
        "BIGTIFF": "IF_SAFER",
        **{key.upper(): value for key, value in (options or {}).items()},
    }
    described, copy = source.with_suffix(".vrt"), source.with_suffix(".cog.tif")
    with _explained(source), rasterio.Env(**({} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": CACHE})):
        rasterio.shutil.copy(source, described, driver="VRT")
        if product.classes:
            _name_categories(described, product.classes)
        rasterio.shutil.copy(described, copy, driver="COG", **creation)
        if product.classes and len(product.colours) == len(product.classes):
            entries = dict(enumerate(zip(product.classes, product.colours, strict=True)))
            entries |= {UNSURE: ("unsure", GREY)} if product.unsure else {}
            write_style(copy.with_suffix(".qml"), entries)
        elif product.kind == "continuous" and product.scale == SHARE:
            write_ramp(copy.with_suffix(".qml"), RAMP)
    _check(copy)
    return copy


def publish(copy: Path, out: Path) -> None:
    """Let a finished file, its sidecar and its style appear under their names; all lie on one file system
    (`scratch_beside`)."""
    sidecar = Path(f"{copy}.aux.xml")
    if sidecar.exists():
        sidecar.replace(f"{out}.aux.xml")
    else:
        Path(f"{out}.aux.xml").unlink(missing_ok=True)
    style = copy.with_suffix(".qml")
    if style.exists():
        style.replace(out.with_suffix(".qml"))
    copy.replace(out)


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `out`; it is gone afterwards, whatever happens."""
    try:
        folder = tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise SkysenseError(f"{out.parent}: cannot write there: {error.strerror}", fix="Use another --out.") from None
    try:
        yield Path(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):  # gone already, with what it lies in
            shutil.rmtree(folder)


def shows_anything(path: Path) -> bool:
    """Whether any pixel of a raster's first band is valid."""
    with rasterio.open(path) as dataset:
        for row in range(0, dataset.height, BLOCK):
            window = RasterioWindow(0, row, dataset.width, min(BLOCK, dataset.height - row))
            if dataset.read_masks(1, window=window).any():
                return True
    return False


def class_areas(path: Path, classes: int) -> tuple[float, ...]:
    """Square metres on the ground of each class code 0..classes-1 of a class map."""
    areas = np.zeros(classes)
    with rasterio.open(path) as dataset:
        grid = GeoBox((dataset.height, dataset.width), dataset.transform, str(dataset.crs))
        for row in range(0, dataset.height, BLOCK):
            height = min(BLOCK, dataset.height - row)
            codes = dataset.read(1, window=RasterioWindow(0, row, dataset.width, height))
            part = Window(row=row, col=0, height=height, width=dataset.width).geobox(grid)
            areas += np.bincount(codes.ravel(), minlength=256)[:classes] * ground_gsd(part) ** 2
    return tuple(areas.tolist())


def _profile(grid: GeoBox, product: Product) -> dict[str, object]:
    return {
        "driver": "GTiff",
        "height": grid.shape.y,
        "width": grid.shape.x,
        "count": len(product.bands),
        "dtype": product.pixel,
        "crs": str(grid.crs),
        "transform": grid.affine,
        "nodata": product.nodata,
        "tiled": True,
        "blockxsize": product.block,
        "blockysize": product.block,
        "interleave": "band",
        "photometric": "minisblack",
        "alpha": "unspecified",
        "compress": "deflate",
        "zlevel": 1,
        "BIGTIFF": "IF_SAFER",
        "SPARSE_OK": True,
        **({"NBITS": 16} if product.dtype == HALF else {}),
    }


def _name_categories(vrt: Path, classes: tuple[str, ...]) -> None:
    tree = ET.parse(vrt)
    band = tree.find("VRTRasterBand")
    assert band is not None  # GDAL wrote the file a moment ago
    names = ET.SubElement(band, "CategoryNames")
    for name in classes:
        ET.SubElement(names, "Category").text = name
    tree.write(vrt)


def _check(copy: Path) -> None:
    """On a full disk GDAL may lose the last block without an error, when it closes the file: compare with its size."""
    with _explained(copy), rasterio.open(copy) as dataset:
        shared = dataset.interleaving == Interleaving.pixel  # all bands in one block
        for index in range(1, 2 if shared else dataset.count + 1):
            for (i, j), window in dataset.block_windows(index):
                offset = dataset.get_tag_item(f"BLOCK_OFFSET_{j}_{i}", "TIFF", bidx=index)
                size = dataset.get_tag_item(f"BLOCK_SIZE_{j}_{i}", "TIFF", bidx=index)
                if offset and int(offset) + int(size) > os.path.getsize(copy):
                    raise SkysenseError(f"{copy}: cut short at {window}", fix=FULL)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except SystemError as error:  # rasterio's word for an error that GDAL met in a thread of its own
        raise SkysenseError(f"{path}: cannot be written", fix=FULL) from error
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise SkysenseError(f"{path}: cannot be written: {error}", fix=FULL) from error
