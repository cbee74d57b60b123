"""Terrain-corrected Sentinel-1: polarisations in one file or two, dates, units that files state, what is no signal."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from surfaces import S1, UTM, oracle

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.raster import ReadOptions, Stack, open_stack

GRD = "S1A_IW_GRDH_1SDV_20230101T054321_20230101T054346_046590_059551_ABCD"
HYP3 = "S1A_IW_20230101T054321_DVP_RTC30_G_g{}uned_3E6A_{}.tif"


def power(value: float = 0.1) -> np.ndarray:
    """Linear backscatter of VV and VH."""
    rng = np.random.default_rng(0)
    return (value * rng.lognormal(0, 0.3, (2, *UTM.shape))).astype("float32")


def read(path: Path, **options: object) -> Stack:
    return open_stack(path, bands=S1, unit="dB", options=ReadOptions(**options))


@pytest.mark.parametrize(
    "names",
    [
        (f"{GRD}_VV.tif", f"{GRD}_VH.tif"),
        (f"{GRD}/VV.tif", f"{GRD}/VH.tif"),
        ("s1a-iw-grd-vv-20230101t054321-20230101t054346-046590-059551-001.tif",
         "s1a-iw-grd-vh-20230101t054321-20230101t054346-046590-059551-002.tif"),
        (f"{GRD}_Sigma0_VV_db.tif", f"{GRD}_Sigma0_VH_db.tif"),
        (HYP3.format("d", "VV"), HYP3.format("d", "VH")),
    ],
)  # fmt: skip
def test_polarisations_in_two_files(tmp_path, write_raster, names):
    decibel = 10 * np.log10(power())
    for name, plane in zip(names, decibel, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_raster(tmp_path / name, plane[None], UTM)
    stack = read(tmp_path)
    assert stack.days.tolist() == [(date(2023, 1, 1) - date(1970, 1, 1)).days]
    np.testing.assert_array_equal(stack.read(UTM).pixels[0], decibel)


def test_dates_make_a_series(tmp_path, write_raster):
    for day in ("20230101", "20230113"):
        name = GRD.replace("20230101", day)
        write_raster(tmp_path / f"{name}.tif", 10 * np.log10(power()), UTM, names=("Sigma0_VV_db", "Sigma0_VH_db"))
    assert len(read(tmp_path).days) == 2


def test_real_backscatter(shared_data):
    for pattern in ("BigEarthNet-v1/s1-tiny/S1A_*_33UUP_61_41", "SSL4EO-S12/s1/0000200/S1A_*20200607*"):
        folders = list((shared_data / "layouts").glob(pattern))
        if not folders:
            pytest.skip(f"needs layouts/{pattern} of ../shared/data")
        stack = read(folders[0])
        assert stack.dated.all()
        raster = stack.read(stack.geobox)
        assert raster.valid.all()
        for band, name in enumerate(("VV", "VH")):
            path = next(folders[0].glob(f"*{name}.tif"))
            np.testing.assert_array_equal(raster.pixels[0, band], oracle(path, stack.geobox, Resampling.nearest)[0])
        with pytest.raises(UsageError, match="negative values"):
            read(folders[0], unit="linear")


# Units


@pytest.mark.parametrize("how", ["unit of measure", "HyP3 name"])
def test_stated_linear_power_becomes_decibels(tmp_path, write_raster, how):
    values = power()
    path = write_raster(
        tmp_path / ("a.tif" if how[0] == "u" else HYP3.format("p", "x")), values, UTM, names=("VV", "VH")
    )
    if how == "unit of measure":
        with rasterio.open(path, "r+") as dataset:
            dataset.units = ("linear", "linear")
    stack = read(path)
    assert any("states linear power: converted to dB" in note for note in stack.notes)
    np.testing.assert_allclose(stack.read(UTM).pixels[0], 10 * np.log10(values), rtol=1e-5)
    kept = read(path, unit="dB")
    np.testing.assert_array_equal(kept.read(UTM).pixels[0], values)
    assert any("states linear, read as dB" in note for note in kept.notes)


def test_units_that_cannot_be_one_stack(tmp_path, write_raster):
    for name, scale in (("20230101", "p"), ("20230113", "d")):
        values = power() if scale == "p" else 10 * np.log10(power())
        write_raster(tmp_path / HYP3.replace("20230101", name).format(scale, "x"), values, UTM, names=("VV", "VH"))
    with pytest.raises(UsageError, match=r"inputs of several units: .* is linear, .* is dB"):
        read(tmp_path)
    path = write_raster(tmp_path / HYP3.format("a", "y"), power() ** 0.5, UTM, names=("VV", "VH"))
    with pytest.raises(UsageError, match="states amplitude") as caught:
        read(path)
    assert "--s1-unit linear" in (caught.value.fix or "")


# No signal


@pytest.mark.parametrize("files", [1, 2])
def test_border_noise_of_linear_power_is_masked(tmp_path, write_raster, files):
    values = power()
    values[0, :, :3] = 0
    values[1, :, -2:] = -1e-4  # what noise removal leaves at the border
    if files == 1:
        write_raster(tmp_path / f"{GRD}.tif", values, UTM, names=("VV", "VH"))
    else:
        for name, plane in zip(("VV", "VH"), values, strict=True):
            write_raster(tmp_path / f"{GRD}_{name}.tif", plane[None], UTM)
    raster = read(tmp_path, unit="linear").read(UTM)
    expected = np.ones(UTM.shape, bool)
    expected[:, :3] = expected[:, -2:] = False
    np.testing.assert_array_equal(raster.valid[0], expected)
    assert np.isfinite(raster.pixels).all()


def test_border_of_decibels_is_masked_where_it_is_declared_or_infinite(tmp_path, write_raster):
    values = 10 * np.log10(power())
    values[0, :2] = -np.inf
    values[1, -1] = 0
    raster = read(write_raster(tmp_path / "a.tif", values, UTM, names=("VV", "VH"), nodata=0)).read(UTM)
    assert raster.valid[0].all(axis=1).tolist() == [False] * 2 + [True] * 57 + [False]


def test_radar_geometry_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "s1a-iw-grd-vv-20230101t054321-20230101t054346-046590-059551-001.tiff"
    points = [GroundControlPoint(row, col, 13 + col / 1e4, 52 - row / 1e4) for row in (0, 60) for col in (0, 80)]
    profile = {"driver": "GTiff", "height": 60, "width": 80, "count": 1, "dtype": "uint16"}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(np.full((1, 60, 80), 200, np.uint16))
        dataset.gcps = (points, rasterio.CRS.from_epsg(4326))
    with pytest.raises(SkysenseError, match="Sentinel-1 in radar geometry, on no grid") as caught:
        read(path)
    assert "Terrain Correction" in (caught.value.fix or "")
