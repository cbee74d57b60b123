"""The reader against GDAL itself (WarpedVRT): grids, validity, threads and damaged files."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from surfaces import HR, S2, UTM, noise, oracle, smooth

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import warp
from skysense_core.geo.raster import ReadOptions, ground_gsd, open_stack, read_picture

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
