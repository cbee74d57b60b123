"""STAC over HTTP for real: a search at an API server, items and rasters behind a web server, and what goes wrong."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from items import asset, item, open_items, placed, write_band
from odc.geo.geobox import GeoBox
from server import HEADER, Server, api, serving
from surfaces import S2

from skysense_cli.app import main
from skysense_core.data.store import FAILURES
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import layer
from skysense_core.geo.paths import expand
from skysense_core.geo.search import search
from skysense_core.ingest import IngestConfig, IngestResult, ingest
from skysense_core.sources.store import Store

GRID = GeoBox((1024, 1024), Affine(10, 0, 500_000, 0, -10, 8_120_000), "EPSG:32736")
SIDE = 256
"""Of a block."""
BANDS = {"B02": "blue", "B03": "green", "B04": "red"}
DAYS = ("2020-05-30", "2020-06-09", "2020-07-19", "2020-08-28", "2020-09-07")
CLOUDS = (5, 15, 60, 10, 0)


def pixels(name: str, day: str) -> np.ndarray:
    seed = list(BANDS).index(name) + 10 * DAYS.index(day)
    return np.random.default_rng(seed).integers(1, 4000, GRID.shape).astype(np.uint16)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """Cloud-optimised GeoTIFFs of two dates and their items, with addresses that count from the items."""
    folder, found = tmp_path_factory.mktemp("cogs"), {}
    for day in DAYS[1:3]:
        for name in BANDS:
            plain = write_band(folder / f"{day}_{name}_plain.tif", pixels(name, day), GRID)
            path = folder / f"{day}_{name}.tif"
            rasterio.shutil.copy(plain, path, driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=SIDE, OVERVIEWS="NONE")
            found[f"{day}/{name}.tif"] = path.read_bytes()
        stated = {
            name: asset(f"./{name}.tif", name, common, scale=0.0001, offset=-0.1) for name, common in BANDS.items()
        }
        found[f"{day}/item.json"] = json.dumps(item(stated, name=day, day=day)).encode()
    return found


@pytest.fixture
def server(files) -> Iterator[Server]:
    with serving(files) as server:
        yield server


def needed(content: bytes, rows: range, cols: range) -> int:
    """Bytes of the compressed blocks in these rows and columns of blocks."""
    with rasterio.MemoryFile(content) as memory, memory.open() as dataset:
        return sum(int(dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1)) for row in rows for col in cols)


WANTED = [S2[2], S2[0]]


# Items and assets behind a web server


def test_of_an_item_on_the_web_only_the_blocks_of_wanted_bands_are_read(server, files):
    stack = open_items(f"{server.root}/{DAYS[1]}/item.json", bands=WANTED)
    raster = stack.read(GRID[300:500, 300:700])
    for number, name in enumerate(("B04", "B02")):
        expected = pixels(name, DAYS[1])[300:500, 300:700].astype(np.float32) - 1000
        np.testing.assert_array_equal(raster.pixels[0, number], expected)
    blocks = [needed(files[f"{DAYS[1]}/{name}.tif"], range(1, 2), range(1, 3)) for name in ("B04", "B02")]
    document = len(files[f"{DAYS[1]}/item.json"])
    assert server.sent <= 1.3 * (sum(blocks) + 2 * HEADER) + document
    assert not any("B03" in path for path in server.asked)
    assert sum("item.json" in path for path in server.asked) == 1


def test_a_series_of_items_reads_as_its_dates(server):
    stack = open_items(*(f"{server.root}/{day}/item.json" for day in DAYS[2:0:-1]), bands=WANTED)
    raster = stack.read(GRID[:10, :10])
    for moment, day in enumerate(DAYS[1:3]):
        np.testing.assert_array_equal(raster.pixels[moment, 0], pixels("B04", day)[:10, :10].astype(np.float32) - 1000)


@pytest.mark.parametrize("faults", [["drop"], ["cut"], ["503"], ["429"], ["drop", "cut"]], ids=" ".join)
def test_a_document_that_breaks_off_is_asked_again(server, faults, caplog, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.faults = list(faults)
    with caplog.at_level(logging.WARNING, logger="skysense_core"):
        stack = open_items(f"{server.root}/{DAYS[1]}/item.json", bands=WANTED)
    assert not server.faults
    assert caplog.text.count("trying again") == len(faults)
    assert stack.geobox == GRID


def test_pixels_that_break_off_are_asked_again(server, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    stack = open_items(f"{server.root}/{DAYS[1]}/item.json", bands=WANTED)
    server.faults = ["drop", "cut", "503"]
    read = stack.read(GRID[:300, :300]).pixels[0, 0]
    np.testing.assert_array_equal(read, pixels("B04", DAYS[1])[:300, :300].astype(np.float32) - 1000)
    assert not server.faults


@pytest.mark.parametrize(("status", "text"), [("403", "refuses to give it"), ("404", "has no such file")])
def test_a_refused_asset_is_named_with_its_item(server, status, text):
    server.refused = {f"{DAYS[1]}/B02.tif": status}
    path = f"{server.root}/{DAYS[1]}/item.json"
    with pytest.raises(SkysenseError, match=rf"item\.json: asset B02: http.*B02\.tif: the server {text}") as caught:
        open_items(path, bands=WANTED)
    assert f"HTTP {status}" in caught.value.message
    assert caught.value.fix
    assert open_items(path, bands=WANTED[:1]).geobox == GRID  # the other band is there


@pytest.mark.parametrize(("status", "text"), [("403", "refuses to give it"), ("404", "has no such file")])
def test_a_refused_item_is_named(server, status, text):
    server.refused = {f"{DAYS[1]}/item.json": status}
    with pytest.raises(SkysenseError, match=rf"item\.json: the server {text} \(HTTP {status}\)"):
        open_items(f"{server.root}/{DAYS[1]}/item.json", bands=WANTED)
    assert len(server.asked) <= 2  # what it is, and what is in it; never again


def test_a_server_that_stays_away_is_named(server, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.faults = ["drop"] * 10
    with pytest.raises(SkysenseError, match=r"item\.json: the server gives no whole answer") as caught:
        open_items(f"{server.root}/{DAYS[1]}/item.json", bands=WANTED)
    assert "connection" in str(caught.value.fix)
    assert len(server.asked) <= 2 * layer.ATTEMPTS


# Searches at an API


@pytest.fixture(scope="module")
def question(files, tmp_path_factory):
    """(the API's address, the server of the rasters): five dates at one place, a far scene, and Sentinel-1."""
    with serving(files) as rasters:
        items = []
        for day, cloud in zip(DAYS, CLOUDS, strict=True):
            stated = {
                name: asset(f"{rasters.root}/{day}/{name}.tif", name, common, scale=0.0001, offset=-0.1)
                for name, common in BANDS.items()
            }
            items.append(placed(item(stated, name=day, day=day, eo__cloud_cover=cloud), 33.0, -17.0))
        items.append(placed(items[1] | {"id": "far"}, 100.0, 10.0))
        radar = item({"vv": asset("vv.tif")}, name="radar", day=DAYS[1]) | {"collection": "sentinel-1-rtc"}
        items.append(placed(radar, 33.0, -17.0))
        with api(tmp_path_factory.mktemp("api"), items) as url:
            yield url, rasters


S2_L2A = ("sentinel-2-l2a",)
HERE = (33.0, -17.0, 33.05, -16.95)


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.stem.rpartition("_")[2] for path in paths]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"collections": S2_L2A, "bbox": HERE}, list(DAYS)),
        ({"collections": S2_L2A, "bbox": HERE, "datetime": "2020-06/2020-08"}, list(DAYS[1:4])),
        ({"collections": S2_L2A, "bbox": HERE, "datetime": "2020-06/2020-08", "max_cloud": 20.0}, [DAYS[1], DAYS[3]]),
        ({"collections": S2_L2A, "datetime": "2020-06-09"}, [DAYS[1], "far"]),
        ({"bbox": HERE, "datetime": "2020-06-01/2020-06-30"}, ["radar", DAYS[1]]),
        ({"bbox": HERE, "datetime": "../2020-05-31"}, [DAYS[0]]),
        ({"bbox": HERE, "datetime": "2020-06", "max_cloud": 100.0}, [DAYS[1]]),  # radar states no clouds
    ],
    ids=str,
)
def test_a_search_finds_what_is_there(question, tmp_path, asked, expected):
    found = search(question[0], folder=tmp_path / "items", **asked)
    assert names(found) == expected
    assert sorted(found) == sorted((tmp_path / "items").glob("*.json"))


def test_found_items_are_read_over_the_web_and_a_second_search_writes_the_same(question, tmp_path):
    url, rasters = question
    asked = {"collections": S2_L2A, "bbox": HERE, "datetime": "2020-06/2020-07"}
    found = search(url, folder=tmp_path, **asked)
    written = [path.read_bytes() for path in found]
    assert expand(tmp_path) == tuple(map(str, found))
    before = rasters.sent
    raster = open_items(tmp_path, bands=WANTED).read(GRID[:200, :200])
    for moment, day in enumerate(DAYS[1:3]):
        expected = pixels("B04", day)[:200, :200].astype(np.float32) - 1000
        np.testing.assert_array_equal(raster.pixels[moment, 0], expected)
    assert rasters.sent - before <= 4 * 1.3 * (HEADER + 2 * SIDE * SIDE * 2)
    assert search(url, folder=tmp_path, **asked) == found
    assert [path.read_bytes() for path in found] == written
    alone = open_items(f"{url}/collections/sentinel-2-l2a/items/{DAYS[1]}", bands=WANTED)  # an item by its API address
    np.testing.assert_array_equal(alone.read(GRID[:200, :200]).pixels[0], raster.pixels[0])


@pytest.mark.parametrize(
    ("asked", "text", "fix"),
    [
        (
            {"collections": S2_L2A, "datetime": "1999"},
            "no item for --collections sentinel-2-l2a --datetime 1999",
            "larger",
        ),
        (
            {"collections": ("sentinel-2-l1c",)},
            "no item for --collections sentinel-2-l1c",
            "did you mean sentinel-2-l2a?",
        ),
        ({"bbox": (0.0, 0.0, 1.0, 1.0), "max_cloud": 20.0}, "no item for --bbox 0,0,1,1 --max-cloud 20", "larger"),
        ({"bbox": (33.0, -16.0, 33.5, -17.0)}, "not west, south, east, north", "--bbox"),
        ({"bbox": (500_000.0, 1.0, 500_100.0, 2.0)}, "not west, south, east, north", "--bbox"),
        ({"datetime": "2020-13"}, "--datetime 2020-13: neither a date nor a range", "--datetime"),
        ({"datetime": "last week"}, "--datetime last week: neither a date nor a range", "--datetime"),
        ({"datetime": "2020/2021/2022"}, "neither a date nor a range", "--datetime"),
        ({"max_cloud": 120.0}, "--max-cloud 120: percent, from 0 to 100", "20"),
    ],
    ids=str,
)
def test_a_search_without_result_or_sense_is_refused(question, tmp_path, asked, text, fix):
    with pytest.raises(UsageError) as caught:
        search(question[0], folder=tmp_path / "items", **asked)
    assert text in caught.value.message
    assert fix in str(caught.value.fix)
    assert not (tmp_path / "items").exists()


def landing(root: str) -> dict:
    """The first page of an API that gives its items in pages."""
    links = [{"rel": "search", "href": f"{root}/search.json", "type": "application/geo+json", "method": "GET"}]
    conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
    about = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "pages"}
    return about | {"links": links, "conformsTo": conforms}


@pytest.fixture
def pages() -> Iterator[Server]:
    """An API of three pages of two items, the last one half empty."""
    with serving({}) as server:
        every = [item({"B04": asset("./B04.tif", "B04")}, name=f"n{number}") for number in range(5)]
        for number in range(3):
            href = f"{server.root}/page{number + 1}.json"
            links = [{"rel": "next", "href": href, "type": "application/geo+json"}] if number < 2 else []
            page = {"type": "FeatureCollection", "features": every[2 * number : 2 * number + 2], "links": links}
            name = "search.json" if number == 0 else f"page{number}.json"
            server.files[name] = json.dumps(page).encode()
        server.files["api.json"] = json.dumps(landing(server.root)).encode()
        yield server


def test_every_page_is_fetched_and_one_that_breaks_off_is_asked_again(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for faults in ([], ["503"], ["", "drop"], ["", "", "cut"], ["", "", "", "429"]):
        pages.faults = list(faults)
        found = search(f"{pages.root}/api.json", folder=tmp_path)
        assert names(found) == ["n0", "n1", "n2", "n3", "n4"]
    # An item without an address of its own has that which the standard gives it.
    href = json.loads(found[0].read_text())["assets"]["B04"]["href"]
    assert href == f"{pages.root}/api.json/collections/sentinel-2-l2a/items/B04.tif"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("api.json", "<html>", "no STAC API"),
        ("api.json", json.dumps(landing("") | {"conformsTo": []}), "cannot be searched"),
        ("api.json", json.dumps(item({})), "no STAC API"),
        ("search.json", "{", "no STAC API"),
    ],
)
def test_what_is_no_api_is_refused(pages, tmp_path, name, content, text):
    pages.files[name] = content.encode()
    with pytest.raises(SkysenseError, match=text) as caught:
        search(f"{pages.root}/api.json", folder=tmp_path / "items")
    assert caught.value.fix
    assert not (tmp_path / "items").exists()


@pytest.mark.parametrize("status", ["401", "403", "404", "400"])
def test_an_api_that_refuses_is_named(pages, tmp_path, status):
    pages.refused = {"search.json": status}
    with pytest.raises(SkysenseError, match=rf"api\.json: the server .*HTTP {status}"):
        search(f"{pages.root}/api.json", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert sum("search" in path for path in pages.asked) == 1


def test_names_of_items_stay_within_the_folder(pages, tmp_path):
    page = {"type": "FeatureCollection", "features": [item({}, name="../../x/y:z")], "links": []}
    pages.files["search.json"] = json.dumps(page).encode()
    (path,) = search(f"{pages.root}/api.json", folder=tmp_path / "items")
    assert path.parent == tmp_path / "items"
    assert path.exists()


# An ingest from an API


PLACE = (33.0, -17.03, 33.03, -17.0)
SUMMER = {"datetime": "2020-06/2020-07", "bbox": PLACE, "collections": {"s2": S2_L2A}}


def ingested(url: str, out: Path, **settings: object) -> IngestResult:
    defaults = {"size": 64, "val_share": 0.0, "test_share": 0.0, "modalities": {"s2": {"bands": list(BANDS)}}}
    return ingest(IngestConfig(inputs={"s2": url}, out=out, **(defaults | SUMMER | settings)))  # type: ignore[arg-type]


def test_an_ingest_from_an_api_stores_what_the_rasters_show_and_fetches_only_that(question, tmp_path, files):
    url, rasters = question
    before, asked = rasters.sent, len(rasters.asked)
    result = ingested(url, tmp_path / "store")
    assert result.samples > 4
    assert not result.failures
    whole = sum(len(content) for name, content in files.items() if name.endswith(".tif"))
    assert rasters.sent - before < 0.5 * whole
    assert not any(path.endswith(".aux.xml") or path.endswith(".ovr") for path in rasters.asked[asked:])
    source = Store(path=str(tmp_path / "store"))
    split = source.open("train", source.described())
    direct = open_items(tmp_path / "store.items" / "s2" / "0", bands=[(name,) for name in BANDS])
    for index in range(len(split)):
        raster = split[index].epochs[0]["s2"]
        expected = direct.read(raster.geobox)
        np.testing.assert_allclose(raster.pixels, expected.pixels, atol=0.5)
        np.testing.assert_array_equal(raster.days, expected.days)


def test_an_ingest_that_is_repeated_sees_the_items_that_it_began_with(pages, files, tmp_path):
    for number in range(5):
        for name in BANDS:
            pages.files[f"n{number}/{name}.tif"] = files[f"{DAYS[1]}/{name}.tif"]
    features = [
        item({name: asset(f"{pages.root}/n{number}/{name}.tif", name) for name in BANDS}, name=f"n{number}", day=day)
        for number, day in enumerate(DAYS)
    ]
    found = {"type": "FeatureCollection", "features": features, "links": []}
    pages.files["search.json"] = json.dumps(found).encode()
    pages.refused = {"n1/B03.tif": "404", "n3/B02.tif": "403"}
    address = f"{pages.root}/api"
    pages.files["api"] = pages.files["api.json"]
    result = ingested(address, tmp_path / "store")
    assert sorted((Path(one.item).stem.rpartition("_")[2], "HTTP 40" in one.error) for one in result.failures) == [
        ("n1", True),
        ("n3", True),
    ]
    assert result.images == {"s2": 3 * result.samples}
    lines = (tmp_path / "store" / FAILURES).read_text().splitlines()
    assert [status for line in lines for status in ("403", "404") if f"HTTP {status}" in line] == ["404", "403"]
    pages.files["search.json"] = json.dumps(found | {"features": features[:1]}).encode()
    asked = sum("search.json" in path for path in pages.asked)
    assert ingested(address, tmp_path / "store").reused == result.shards
    assert sum("search.json" in path for path in pages.asked) == asked


@pytest.mark.parametrize(
    ("inputs", "settings", "text"),
    [
        ({"s2": "scene.tif"}, {}, "ask a STAC API, and no address of one is given"),
        ({"s2": "https://localhost/x.tif"}, {}, "ask a STAC API, and no address of one is given"),
        ({"s2": "https://localhost/stac"}, {"bbox": None}, "a search without a place"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused_before_anything_is_asked(tmp_path, inputs, settings, text):
    with pytest.raises(UsageError, match=text):
        ingest(IngestConfig(inputs=inputs, out=tmp_path / "store", **(SUMMER | settings)))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_command_asks_an_api(question, tmp_path, monkeypatch, capfd):
    words = ["ingest", f"s2={question[0]}", "--collections", "s2=sentinel-2-l2a", "--datetime", "2020-06/2020-08"]
    words += ["--max-cloud", "20", "--bbox", ",".join(map(str, PLACE)), "--out", str(tmp_path / "store"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["skysense", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    # The rasters of these items have three bands only, which is said of the items that were found.
    assert ended.value.code == 2
    assert "no band is called B05" in printed.err.replace("\n", " ")
    found = sorted((tmp_path / "store.items" / "s2" / "0").glob("*.json"))
    assert names(tuple(found)) == [DAYS[1], DAYS[3]]
