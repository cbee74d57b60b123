"""STAC items: assets read as their files are, by the names, scales and nodata that the item states; every refusal."""

import json
import shutil
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from items import asset, item, open_items, write_band, write_item
from odc.geo.geobox import GeoBox
from products import write_jp2
from surfaces import HR, S1, S2, UTM, noise

from skysense_core import modalities
from skysense_core.data.scene import open_stacks
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.fingerprint import fingerprint
from skysense_core.geo.paths import expand
from skysense_core.geo.raster import ReadOptions, open_stack

EPOCH = date(1970, 1, 1)
REFLECTANCE = "reflectance x 10000"
RED, SWIR = S2[2], S2[8]
STORED = {"scale": 0.0001, "offset": -0.1, "nodata": 0}


def day(stack) -> date:
    return date.fromordinal(EPOCH.toordinal() + int(stack.days[0]))


# Real data


def test_a_real_landsat_item_of_stac_0_7_reads_as_its_files_do(shared_data, tmp_path):
    source = shared_data / "stac" / "landsat_assets3"
    if not source.is_dir():
        pytest.skip("needs stac/landsat_assets3 of ../shared/data")
    stated = json.loads(next(source.glob("*_SR_stac.json")).read_text())
    for one in stated["assets"].values():
        one["href"] = "./" + one["href"].rpartition("/")[2]
        if (source / one["href"]).exists():
            (tmp_path / one["href"]).symlink_to((source / one["href"]).resolve())
    path = tmp_path / "landsat.json"
    path.write_text(json.dumps(stated))
    names = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
    stack = open_items(path, bands=[(name,) for name in names])
    files = sorted(tmp_path.glob("*_SR_B?.TIF"))
    direct = open_items(*files, bands=[(f"B{number}",) for number in range(1, 8)])
    assert len(files) == 7
    assert day(stack) == date(2019, 12, 1)
    assert (stack.geobox, stack.dtype, stack.level) == (direct.geobox, direct.dtype, None)
    one, other = stack.read(stack.geobox), direct.read(stack.geobox)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.valid, other.valid)
    assert 0.5 < one.valid.mean() < 1
    with pytest.raises(UsageError, match="no band is called B05"):  # Landsat has no red edge, though it has a B5
        open_items(path, bands=S2)


def test_a_real_naip_orthophoto_as_an_item_of_one_asset_of_four_bands(shared_data, tmp_path):
    source = shared_data / "stac" / "naip"
    if not source.is_dir():
        pytest.skip("needs stac/naip of ../shared/data")
    file = next(source.glob("m_3907864_*.tif"))
    names = ("Red", "Green", "Blue", "NIR")
    bands = [{"name": name, "common_name": name.lower()} for name in names]
    image = {"href": str(file), "type": "image/tiff", "roles": ["data"], "eo:bands": bands}
    path = write_item(tmp_path / "naip.json", {"image": image, "thumbnail": asset("none.jpg")}, collection="naip")
    stack = open_items(path, bands=[*HR, ("nir",)], unit="0-255")
    options = ReadOptions(bands=("red", "green", "blue", "nir"))
    direct = open_stack(file, bands=[*HR, ("nir",)], unit="0-255", options=options)
    window = direct.geobox[:300, :200]
    np.testing.assert_array_equal(stack.read(window).pixels, direct.read(window).pixels)
    np.testing.assert_array_equal(stack.read(window).valid, direct.read(window).valid)


def test_a_real_item_across_the_antimeridian_reads_as_its_product_does(shared_data, tmp_path):
    source = shared_data / "stac" / "s2_antimeridian_01KAB"
    if not source.is_dir():
        pytest.skip("needs stac/s2_antimeridian_01KAB of ../shared/data")
    known = json.loads((source / "expected_output.json").read_text())
    folder = tmp_path / known["properties"]["s2:product_uri"]
    grid = GeoBox((550, 550), Affine(200, 0, 99960, 0, -200, 8200000), "EPSG:32701")
    for name, coarser in (("red", 1), ("red_20m", 2), ("swir16", 2), ("scl", 2)):
        own = grid.zoom_out(coarser)
        pixels = noise(1, own.shape)[0] if name != "scl" else noise(1, own.shape, "uint8", 12)[0]
        write_jp2(folder / known["assets"][name]["href"], pixels, own)
    shutil.copy(source / "MTD_MSIL2A.xml", folder)
    (folder / "item.json").write_text(json.dumps(known))
    product, stack = (open_items(path, bands=[RED, SWIR]) for path in (folder, folder / "item.json"))
    assert (stack.level, day(stack), stack.geobox) == ("L2A", date(2023, 8, 21), product.geobox)
    assert "items state scale 0.0001 and offset -0.1: -1000 on the stored values" in stack.notes
    assert [note for note in stack.notes if "scene classification" in note] == [
        note for note in product.notes if "scene classification" in note
    ]
    for west in (179.5, -179.95):
        window = GeoBox((40, 40), Affine(0.001, 0, west, 0, -0.001, -16.5), "EPSG:4326")
        one, other = stack.read(window), product.read(window)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.valid, other.valid)
        assert 0.2 < one.valid.mean() < 0.8
    with pytest.raises(UsageError, match="is L2A, and the model was trained on L1C"):
        open_stacks([str(folder / "item.json")], {"s2": modalities.load("s2", {"level": "L1C", "bands": ["B04"]})}, {})


# Bands


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("B8A", {}),
        ("nir08", {"eo:bands": [{"name": "nir08", "common_name": "nir08"}]}),
        ("B8A", {"eo:bands": [{"name": "B8A", "common_name": "rededge"}]}),
        ("narrow", {"eo:bands": [{"name": "B8A"}]}),
        ("B8A_20m", {"bands": [{"name": "B8A", "eo:common_name": "nir08"}]}),
        ("narrow", {"bands": [{"name": "whatever", "eo:common_name": "nir08"}]}),
        ("narrow", {"eo:common_name": "nir08"}),
        ("nir_20m", {"bands": [{"name": "B8A"}], "raster:bands": [{"nodata": 0}]}),
    ],
    ids=str,
)
def test_a_band_is_known_by_what_the_item_says(tmp_path, key, fields):
    write_band(tmp_path / "x.tif", noise(1, UTM.shape))
    path = write_item(tmp_path / "item.json", {key: {"href": "x.tif", "type": "image/tiff", **fields}})
    stack = open_items(path, bands=[S2[7]])
    np.testing.assert_array_equal(stack.read(UTM).pixels[0], noise(1, UTM.shape))


def test_codes_of_another_sensor_are_not_those_of_sentinel_2(tmp_path):
    """Landsat's B5 is near infrared, its B6 and B7 are short-wave infrared."""
    spectrum = {"B2": "blue", "B3": "green", "B4": "red", "B5": "nir08", "B6": "swir16", "B7": "swir22", "B8": "pan"}
    for number, name in enumerate(spectrum):
        write_band(tmp_path / f"{name}.tif", np.full(UTM.shape, number + 1, np.uint16))
    assets = {common: asset(f"{name}.tif", name, common) for name, common in spectrum.items()}
    path = write_item(tmp_path / "item.json", assets, collection="landsat-c2-l2")
    stack = open_items(path, bands=[S2[0], S2[2], S2[7], S2[8], S2[9]])
    assert stack.read(UTM).pixels[0, :, 0, 0].tolist() == [1, 3, 4, 5, 6]
    for wanted in (S2[3], S2[4], S2[5], S2[6]):
        with pytest.raises(UsageError, match=f"no band is called {wanted[0]}"):
            open_items(path, bands=[wanted])
    own = open_items(path, bands=[("B5",), ("B8",)])  # a modality that knows no colours takes the codes
    assert own.read(UTM).pixels[0, :, 0, 0].tolist() == [4, 7]


def test_of_copies_the_finest_and_then_the_cloud_optimised_one_is_read(tmp_path):
    kinds = {"red_20m": 20, "red": 10, "red_60m": 60, "red-jp2": 10}
    assets = {}
    for number, (key, size) in enumerate(kinds.items()):
        grid = UTM.zoom_out(size // 10)
        write_band(tmp_path / f"{key}.tif", np.full(grid.shape, number + 1, np.uint16), grid)
        transform = [size, 0, 500000, 0, -size, 5000000]
        kind = {"type": "image/jp2"} if key == "red-jp2" else {}
        assets[key] = asset(f"{key}.tif", "B04", "red", **{"proj:transform": transform}, **kind)
    assert (open_items(write_item(tmp_path / "item.json", assets), bands=[RED]).read(UTM).pixels == 2).all()
    same = {key: asset(f"{key}.tif", "B04", "red", gsd=10) for key in ("red", "red_old")}
    with pytest.raises(UsageError, match=r"item\.json: red and red_old are both called b04"):
        open_items(write_item(tmp_path / "item.json", same), bands=[RED])


def test_a_picture_stands_back_behind_measurements_except_where_display_values_are_wanted(tmp_path):
    write_band(tmp_path / "red.tif", np.full(UTM.shape, 2000, np.uint16))
    write_band(tmp_path / "visual.tif", np.full((3, *UTM.shape), 200, np.uint8))
    bands = [{"name": name, "common_name": colour} for name, colour in (("B04", "red"), ("B03", "green"))]
    visual = {"href": "visual.tif", "type": "image/tiff", "eo:bands": [*bands, {"name": "B02", "common_name": "blue"}]}
    assets = {"visual": visual, "B04": asset("red.tif", "B04", "red"), "overview": visual}
    path = write_item(tmp_path / "item.json", assets)
    assert (open_items(path, bands=[RED]).read(UTM).pixels == 2000).all()
    assert (open_items(path, bands=HR, unit="0-255").read(UTM).pixels == 200).all()


def test_an_item_that_names_no_band_is_read_as_its_file_names_them(tmp_path, write_raster):
    pixels = noise(3, UTM.shape, "uint8", 255)
    write_raster(tmp_path / "ortho.tif", pixels, UTM, photometric="RGB")
    path = write_item(tmp_path / "item.json", {"image": asset("ortho.tif"), "report": {"href": "report.pdf"}})
    np.testing.assert_array_equal(open_items(path, bands=HR, unit="0-255").read(UTM).pixels[0], pixels)
    turned = open_stack(path, bands=HR, unit="0-255", options=ReadOptions(bands=("blue", "green", "red")))
    np.testing.assert_array_equal(turned.read(UTM).pixels[0], pixels[::-1])


# Values


@pytest.mark.parametrize(
    ("stated", "properties", "options", "expected"),
    [
        ({"scale": 0.0001, "offset": 0}, {}, {}, 3000),
        ({"scale": 0.0001, "offset": -0.1}, {}, {}, 2000),
        ({"scale": 0.0001, "offset": -0.1}, {"s2__processing_baseline": "05.09"}, {}, 2000),
        ({"scale": 0.0001, "offset": -0.1}, {}, {"offset": 0.0}, 3000),
        ({"scale": 0.0001, "offset": -0.1}, {"earthsearch__boa_offset_applied": True}, {}, 3000),
        ({"scale": 0.0001, "offset": -0.1}, {"earthsearch__boa_offset_applied": False}, {}, 2000),
        ({"scale": 0.0000275, "offset": -0.2}, {}, {}, 3000 * 0.275 - 2000),
        ({}, {"s2__processing_baseline": "05.09"}, {"offset": -1000.0}, 2000),
        ({}, {"s2__processing_baseline": "02.14"}, {"offset": -1000.0}, 3000),
        ({}, {}, {}, 3000),
    ],
    ids=str,
)
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_scale_and_offset_lead_to_the_unit_of_the_model(tmp_path, version, stated, properties, options, expected):
    write_band(tmp_path / "red.tif", np.full(UTM.shape, 3000, np.uint16))
    one = item({"B04": asset("red.tif", "B04", "red", **stated)}, **properties)
    if version == "1.1.0":
        band = {"name": "B04", "eo:common_name": "red", **{f"raster:{name}": value for name, value in stated.items()}}
        one |= {"stac_version": version, "assets": {"B04": {"href": "red.tif", "type": "image/tiff", "bands": [band]}}}
    (tmp_path / "item.json").write_text(json.dumps(one))
    stack = open_items(tmp_path / "item.json", bands=[RED], **options)
    np.testing.assert_allclose(stack.read(UTM).pixels, expected, rtol=1e-6)
    assert stack.dtype == (np.uint16 if expected == 3000 else np.float32)
    assert any("state" in note for note in stack.notes)


def test_what_an_item_does_not_say_of_the_offset_is_asked(tmp_path):
    write_band(tmp_path / "red.tif", np.full(UTM.shape, 3000, np.uint16))
    assets = {"B04": asset("red.tif", "B04", "red")}
    path = write_item(tmp_path / "item.json", assets, processing__version="05.11")
    with pytest.raises(UsageError, match=r"states processing baseline 05\.11: its values are 1000 higher"):
        open_items(path, bands=[RED])
    assets = {"B04": asset("red.tif", "B04", "red", **STORED)}
    path = write_item(tmp_path / "old.json", assets, s2__processing_baseline="02.14")
    with pytest.raises(UsageError, match=r"old\.json: states an offset .* baseline 02\.14, which has none") as caught:
        open_items(path, bands=[RED])
    assert "--s2-offset 0" in str(caught.value.fix)
    assert (open_items(path, bands=[RED], offset=0.0).read(UTM).pixels == 3000).all()


@pytest.mark.parametrize(
    ("declared", "stated", "given"), [(None, 7, None), (8, 7, None), (None, 7, 9.0), (None, "nan", 9)]
)
def test_nodata_is_what_the_user_says_or_the_file_or_the_item(tmp_path, declared, stated, given):
    pixels = noise(1, UTM.shape)
    pixels[0, 0, :3] = 7, 8, 9
    write_band(tmp_path / "red.tif", pixels, **({} if declared is None else {"nodata": declared}))
    path = write_item(tmp_path / "item.json", {"B04": asset("red.tif", "B04", "red", nodata=stated)})
    valid = open_items(path, bands=[RED], nodata=None if given is None else float(given)).read(UTM).valid[0]
    np.testing.assert_array_equal(valid, pixels[0] != (given or declared or stated))


def test_clouds_of_the_scene_classification_are_left_out(tmp_path):
    classes = noise(1, UTM.zoom_out(2).shape, "uint8", 12)[0]
    write_band(tmp_path / "red.tif", noise(1, UTM.shape))
    write_band(tmp_path / "scl.tif", classes, UTM.zoom_out(2))
    write_band(tmp_path / "scl_60m.tif", np.full(UTM.zoom_out(6).shape, 9, np.uint8), UTM.zoom_out(6))
    assets = {"B04": asset("red.tif", "B04", "red"), "SCL_20m": asset("scl.tif"), "SCL_60m": asset("scl_60m.tif")}
    path = write_item(tmp_path / "item.json", assets)
    hidden = np.isin(np.repeat(np.repeat(classes, 2, axis=0), 2, axis=1), (1, 3, 8, 9, 10))
    stack = open_items(path, bands=[RED])
    np.testing.assert_array_equal(stack.read(UTM).valid[0], ~hidden)
    assert any(note.startswith("left out by the scene classification: 1 saturated") for note in stack.notes)
    assert open_items(path, bands=[RED], cloud_mask="none").read(UTM).valid.all()
    write_band(tmp_path / "mask.tif", (noise(1, UTM.shape)[0] > 1500).astype(np.uint8))
    masked = open_items(path, bands=[RED], cloud_mask=str(tmp_path / "mask.tif")).read(UTM)
    np.testing.assert_array_equal(masked.valid[0], noise(1, UTM.shape)[0] <= 1500)
    del assets["SCL_20m"], assets["SCL_60m"]
    assert any("no scene classification" in note for note in open_items(write_item(path, assets), bands=[RED]).notes)


def test_backscatter_is_in_the_unit_that_the_item_states(tmp_path):
    write_band(tmp_path / "vv.tif", np.full(UTM.shape, 0.1, np.float32))
    write_band(tmp_path / "vh.tif", np.full(UTM.shape, 0.01, np.float32))
    keys = ("vv", "vh")
    stated = {key: asset(f"{key}.tif", unit="linear") for key in keys}
    path = write_item(tmp_path / "item.json", stated, collection="sentinel-1-rtc")
    read = open_items(path, bands=S1, unit="dB").read(UTM).pixels[0, :, 0, 0]
    np.testing.assert_allclose(read, [-10, -20], rtol=1e-5)
    silent = write_item(tmp_path / "silent.json", {key: asset(f"{key}.tif") for key in keys})
    with pytest.raises(UsageError, match="positive values only"):
        open_items(silent, bands=S1, unit="dB")


# Dates


@pytest.mark.parametrize(
    ("properties", "options", "expected"),
    [
        ({"datetime": "2023-08-21T23:30:00Z"}, {}, date(2023, 8, 21)),
        ({"datetime": "2023-08-21T23:30:00-05:00"}, {}, date(2023, 8, 22)),
        (
            {"datetime": None, "start_datetime": "2023-08-01T00:00:00Z", "end_datetime": "2023-08-01T23:59:59Z"},
            {},
            None,
        ),
        (
            {"datetime": None, "start_datetime": "2023-08-01T00:00:00Z", "end_datetime": "2023-08-31T23:59:59Z"},
            {},
            None,
        ),
        ({"datetime": "2023-08-21T23:30:00Z"}, {"dates": ("2020-01-02",)}, date(2020, 1, 2)),
    ],
    ids=str,
)
def test_the_date_is_that_of_the_item(tmp_path, properties, options, expected):
    write_band(tmp_path / "S2_20010101_red.tif", noise(1, UTM.shape))
    one = item({"B04": asset("S2_20010101_red.tif", "B04", "red")})
    one["properties"] = properties
    (tmp_path / "item.json").write_text(json.dumps(one))
    stack = open_items(tmp_path / "item.json", bands=[RED], **options)
    middle = date(2023, 8, 16 if "31" in str(properties) else 1)
    assert day(stack) == (expected or middle)
    assert any("dated by its middle" in note for note in stack.notes) == ("31T" in str(properties))


# Documents


def series(folder: Path, days: tuple[str, ...]) -> list[dict]:
    """Items of several dates whose pixels count from 1."""
    items = []
    for number, text in enumerate(days, start=1):
        write_band(folder / f"{text}.tif", np.full(UTM.shape, number, np.uint16))
        items.append(item({"red": asset(f"{text}.tif", "B04", "red", **STORED | {"offset": 0})}, name=text, day=text))
    return items


def test_items_are_found_in_collections_catalogues_folders_and_globs(tmp_path):
    days = ("2023-01-01", "2023-01-06", "2023-01-11")
    items = series(tmp_path / "items", days)
    for one in items:
        (tmp_path / "items" / f"{one['id']}.json").write_text(json.dumps(one))
    together = tmp_path / "items" / "all.json"
    together.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    links = [{"rel": "item", "href": f"../items/{text}.json"} for text in days]
    above = [{"rel": "root", "href": "../catalog.json"}, {"rel": "child", "href": "../catalog.json"}]
    catalogues = {"c": links + above, "": [{"rel": "child", "href": "./c/catalog.json"}]}
    for place, linked in catalogues.items():
        (tmp_path / place).mkdir(exist_ok=True)
        about = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "", "links": linked}
        (tmp_path / place / "catalog.json").write_text(json.dumps(about))
    assert expand(together) == tuple(f"{together}#{text}" for text in days)
    pattern = str(tmp_path / "items" / "2023-*.json")
    assert expand(pattern) == tuple(str(tmp_path / "items" / f"{text}.json") for text in days)
    for given in (together, pattern, tmp_path / "catalog.json"):
        stack = open_items(given, bands=[RED])
        assert stack.read(UTM).pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(SkysenseError, match=r"all\.json: holds no items 2022-01-01"):
        open_items(f"{together}#2022-01-01", bands=[RED])
    for file in (tmp_path / "items").glob("*.tif"):
        file.rename(tmp_path / file.name)
    together.unlink()
    assert expand(tmp_path / "items") == expand(pattern)


def test_an_item_that_is_written_anew_is_read_anew_and_a_file_of_it_tells_states_apart(tmp_path):
    write_band(tmp_path / "red.tif", noise(1, UTM.shape))
    path = write_item(tmp_path / "item.json", {"B04": asset("red.tif", "B04", "red")}, day="2023-01-01")
    before = fingerprint(str(path))
    assert day(open_items(path, bands=[RED])) == date(2023, 1, 1)
    write_item(path, {"B04": asset("./red.tif", "B04", "red")}, day="2024-01-01")
    assert day(open_items(path, bands=[RED])) == date(2024, 1, 1)
    middle = fingerprint(str(path))
    write_band(tmp_path / "red.tif", noise(2, UTM.shape))
    assert len({before, middle, fingerprint(str(path))}) == 3


# Refusals


def refused(path: Path | str, bands: list[tuple[str, ...]] | None = None, **options: object) -> SkysenseError:
    with pytest.raises(SkysenseError) as caught:
        open_stack(path, bands=bands or [RED], unit=REFLECTANCE, options=ReadOptions(**options)).read(UTM)
    assert caught.value.fix or "no such file" in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("assets", "text"),
    [
        ({"B04": asset("none.tif", "B04")}, "asset B04: .*none.tif: no such file"),
        ({"B04": asset("text.tif", "B04")}, "asset B04: .*text.tif: not a raster"),
        ({"B04": asset("red.tif", "B04", scale=0)}, "asset B04 states scale 0"),
        ({"B04": asset("red.tif", "B04", offset="much")}, "asset B04 states raster:offset 'much'"),
        ({"B04": asset("red.tif", "B04", unit="W/m2/sr/um")}, "asset B04 is in W/m2/sr/um, and reflectance x 10000 is"),
        ({"B04": asset("scaled.tif", "B04", scale=0.0001)}, "scale 0.0001 and offset 0 .* its file 0.0002 and 0"),
        ({"x": {"href": "red.tif", "eo:bands": [{"name": "B04"}, {"name": "B03"}]}}, "states 2 bands .* has 1"),
        (
            {"x": {"href": "red.tif", "eo:bands": [{"name": "B04"}, {"name": "B03"}], "raster:bands": [{}, {}, {}]}},
            "asset x states 2 and 3 bands",
        ),
        ({"B03": asset("red.tif", "B03", "green")}, "no band is called B04; found .*1 band .B03"),
        ({"cube": {"href": "cube.nc", "type": "application/netcdf"}}, "no asset of this item is a raster .cube"),
        ({}, "no asset of this item is a raster"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_item_cannot_mean_is_refused_with_its_name(tmp_path, assets, text):
    write_band(tmp_path / "red.tif", noise(1, UTM.shape))
    write_band(tmp_path / "scaled.tif", noise(1, UTM.shape))
    with rasterio.open(tmp_path / "scaled.tif", "r+") as dataset:
        dataset.scales = (0.0002,)
    (tmp_path / "text.tif").write_text("no raster")
    path = write_item(tmp_path / "item.json", assets)
    with pytest.raises(SkysenseError, match=text) as caught:
        open_items(path, bands=[RED])
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"type": "Feature", "stac_version": "1.0.0"', "not JSON, or cut off"),
        ("[1, 2]", "no STAC document"),
        ('{"type": "FeatureCollection", "features": []}', "no items in this STAC document"),
        ('{"type": "Feature", "geometry": null, "properties": {}}', "no STAC document"),
        ('{"type": "Feature", "stac_version": "1.0.0", "id": "x"}', "no STAC item that pystac can read"),
        (json.dumps(item({})).replace("2023-08-21", "someday"), "no STAC item that pystac can read"),
        ('{"type": "Collection", "stac_version": "1.0.0", "id": "x", "links": []}', "no items in this STAC document"),
    ],
)
def test_documents_that_are_no_items_are_refused(tmp_path, content, text):
    path = tmp_path / "item.json"
    path.write_text(content)
    error = refused(path)
    assert error.message.startswith(f"{path}: ")
    assert text in error.message


def test_the_users_band_names_and_a_missing_document_are_refused(tmp_path):
    write_band(tmp_path / "red.tif", noise(1, UTM.shape))
    path = write_item(tmp_path / "item.json", {"B04": asset("red.tif", "B04", "red")})
    with pytest.raises(UsageError, match=r"names its bands itself \(B04\)"):
        open_stack(path, bands=[RED], options=ReadOptions(bands=("B04",)))
    assert "no such file" in refused(tmp_path / "other.json").message


def test_without_pystac_the_extra_is_named(tmp_path, monkeypatch):
    path = write_item(tmp_path / "item.json", {})
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    error = refused(path)
    assert error.message == "STAC needs pystac and pystac-client"
    assert error.fix == "pip install 'skysense[stac]'"
