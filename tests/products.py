"""Small Sentinel-2 products (SAFE) in ESA's layout."""

import zipfile
from pathlib import Path

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from surfaces import S2, UTM

from skysense_core.geo.raster import ReadOptions, Stack, open_stack

REFLECTANCE = "reflectance x 10000"
L2A = "S2A_MSIL2A_20230821T101601_N0509_R065_T33UUU_20230821T161500.SAFE"
TEN = ("B02", "B03", "B04", "B08")


def metadata(
    level: str = "L2A", baseline: str = "05.09", day: str = "2023-08-21", *, offset: int | None = -1000
) -> str:
    """What the reader needs of MTD_MSIL2A.xml, in the words of the real one."""
    kind = "BOA" if level == "L2A" else "RADIO"
    offsets = (
        ""
        if offset is None
        else "".join(f'<{kind}_ADD_OFFSET band_id="{number}">{offset}</{kind}_ADD_OFFSET>' for number in range(13))
    )
    quantity = "BOA_QUANTIFICATION_VALUE" if level == "L2A" else "QUANTIFICATION_VALUE"
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product.xsd"><n1:General_Info><Product_Info>
<PRODUCT_START_TIME>{day}T10:16:01.024Z</PRODUCT_START_TIME><PROCESSING_LEVEL>Level-{level[1:]}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
<Datatake><DATATAKE_SENSING_START>{day}T10:16:01.024Z</DATATAKE_SENSING_START></Datatake></Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX>
</Special_Values><{quantity} unit="none">10000</{quantity}>{offsets}
</Product_Image_Characteristics></n1:General_Info></n1:User_Product>"""


def write_jp2(path: Path, pixels: np.ndarray, grid: GeoBox) -> None:
    """One band without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    profile = {"driver": "JP2OpenJPEG", "count": 1, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(
        path, "w", crs=str(grid.crs), transform=grid.affine, QUALITY="100", REVERSIBLE="YES", **profile
    ) as dataset:
        dataset.write(pixels, 1)


def write_l2a(
    folder: Path,
    *,
    text: str | None = None,
    grid: GeoBox = UTM,
    values: dict[str, np.ndarray] | None = None,
    scl: np.ndarray | None = None,
) -> Path:
    """A small L2A product: ten bands at 10 or 20 m (the values of `values` or 2000), also coarser, and SCL at 20 m."""
    folder.mkdir(parents=True)
    (folder / "MTD_MSIL2A.xml").write_text(metadata() if text is None else text)
    images = folder / "GRANULE" / "L2A_T33UUU_A042640_20230821T102204" / "IMG_DATA"
    for names in S2:
        size = 10 if names[0] in TEN else 20
        own = grid.zoom_out(size // 10)
        pixels = (values or {}).get(names[0], np.full(own.shape, 2000, np.uint16))
        write_jp2(images / f"R{size}m" / f"T33UUU_20230821T101601_{names[0]}_{size}m.jp2", pixels, own)
        if size == 10:  # the coarser copies that products hold as well
            coarse = np.full(grid.zoom_out(2).shape, 7, np.uint16)
            write_jp2(images / "R20m" / f"T33UUU_20230821T101601_{names[0]}_20m.jp2", coarse, grid.zoom_out(2))
    if scl is not None:
        write_jp2(images / "R20m" / "T33UUU_20230821T101601_SCL_20m.jp2", scl, grid.zoom_out(2))
    return folder


def pack(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for item in sorted(folder.rglob("*")):
            archive.write(item, item.relative_to(folder.parent))
    return path


def open_products(*paths: Path, **options: object) -> Stack:
    return open_stack([str(path) for path in paths], bands=S2, unit=REFLECTANCE, options=ReadOptions(**options))
