"""Grids, bands and surfaces on which the reader is tested, and GDAL's own answer to compare with."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from skysense_core.modalities import load

HR = [("red", "r"), ("green",), ("blue",)]
S2 = [band.names for band in load("s2").bands]
S1 = [band.names for band in load("s1").bands]
UTM = GeoBox((60, 80), Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")


def noise(count: int, shape: tuple[int, int], dtype: str = "uint16", high: int = 3000) -> np.ndarray:
    return np.random.default_rng(0).integers(1, high, (count, *shape)).astype(dtype)


def smooth(geobox: GeoBox) -> np.ndarray:
    """A surface without detail, on which every good resampling agrees; (1, h, w)."""
    height, width = geobox.shape
    rows, cols = np.mgrid[:height, :width]
    return (1000 + 300 * np.sin(rows / 9) + 200 * np.cos(cols / 7)).astype("float32")[None]


def oracle(path: Path, geobox: GeoBox, resampling: Resampling, **options: object) -> np.ndarray:
    """GDAL's answer, with (nearly) exact coordinates."""
    height, width = geobox.shape
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs=str(geobox.crs),
            transform=geobox.affine,
            height=height,
            width=width,
            resampling=resampling,
            tolerance=1e-6,
            **options,
        ) as vrt,
    ):
        return vrt.read()
