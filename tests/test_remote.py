"""Rasters behind HTTP: only the blocks that are needed are read, once; what breaks off is asked again; 404 is said."""

import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox
from server import HEADER, STALL, serving

from skysense_cli.app import main
from skysense_core.errors import SkysenseError
from skysense_core.geo import layer
from skysense_core.geo.raster import open_stack
from skysense_core.geo.windows import Window, lattice_for
from skysense_core.predict import PredictConfig, predict

RGB = [("red",), ("green",), ("blue",)]
GRID = GeoBox((2048, 2048), Affine(0.2, 0, 500_000, 0, -0.2, 4_000_000), "EPSG:32636")
SIDE = 512
"""Of a block."""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Something that compresses as imagery does, to about two thirds."""
    noise = np.random.default_rng(0).integers(0, 40, (3, *GRID.shape))
    waves = 100 + 60 * np.sin(np.arange(2048) / 50)
    return (noise + waves).astype(np.uint8)


@pytest.fixture(scope="module")
def cog(tmp_path_factory, pixels) -> Path:
    folder = tmp_path_factory.mktemp("cog")
    profile = {"driver": "GTiff", "count": 3, "height": 2048, "width": 2048, "dtype": "uint8", "crs": "EPSG:32636"}
    with rasterio.open(folder / "plain.tif", "w", transform=GRID.affine, **profile) as dataset:
        dataset.write(pixels)
        dataset.descriptions = ("red", "green", "blue")
    rasterio.shutil.copy(folder / "plain.tif", folder / "cog.tif", driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=SIDE)
    return folder / "cog.tif"


@pytest.fixture
def server(cog):
    with serving({"scene.tif": cog.read_bytes()}) as server:
        yield server


def needed(cog: Path, part: Window) -> int:
    """Bytes of the compressed blocks that hold a part of the image."""
    with rasterio.open(cog) as dataset:
        assert dataset.interleaving.name == "pixel"
        return sum(
            int(dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1))
            for row in range(part.row // SIDE, -(-part.row_stop // SIDE))
            for col in range(part.col // SIDE, -(-part.col_stop // SIDE))
        )


@pytest.mark.parametrize(
    "part",
    [
        Window(row=600, col=700, height=256, width=256),
        Window(row=0, col=0, height=1, width=1),
        Window(row=400, col=900, height=800, width=300),
        Window(row=0, col=0, height=2048, width=2048),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_only_the_blocks_of_a_window_are_read(server, cog, pixels, part, prefix):
    raster = open_stack(prefix + server.url, bands=RGB).read(part.geobox(GRID))
    expected = pixels[:, part.row : part.row_stop, part.col : part.col_stop]
    np.testing.assert_array_equal(raster.pixels[0], expected)
    assert server.sent <= 1.3 * (needed(cog, part) + HEADER)
    assert {path.split("?")[0] for path in server.asked} == {f"{server.folder}/scene.tif"}, "no sidecar files"


@pytest.mark.parametrize("readers", [1, 4])
def test_overlapping_windows_and_several_threads_download_a_block_once(server, cog, pixels, readers):
    stack = open_stack(server.url, bands=RGB)
    part = Window(row=300, col=0, height=700, width=2048)
    windows = [window & Window.of(GRID) for window in lattice_for(GRID, 256, align=32).windows(part)]
    with ThreadPoolExecutor(readers) as pool:
        rasters = list(pool.map(lambda window: stack.read(window.geobox(GRID)), windows))
    for window, raster in zip(windows, rasters, strict=True):
        expected = pixels[:, window.row : window.row_stop, window.col : window.col_stop]
        np.testing.assert_array_equal(raster.pixels[0], expected)
    rows = min(w.row for w in windows), max(w.row_stop for w in windows)
    reached = Window(row=rows[0], col=0, height=rows[1] - rows[0], width=2048)
    assert server.sent <= 1.3 * (needed(cog, reached) + HEADER)


def test_predict_reads_the_part_that_it_maps_and_gives_the_same_map_as_from_disk(server, cog, tmp_path):
    left, top = 500_000 + 0.2 * 300, 4_000_000 - 0.2 * 1100
    box = (left, top - 0.2 * 200, left + 0.2 * 400, top)
    for scene, out in ((f"{server.url}?token=a", tmp_path / "remote.tif"), (str(cog), tmp_path / "local.tif")):
        predict(PredictConfig(inputs=(scene,), out=out, model=Path("buildings-hr"), bbox=box, jobs=4))
    with rasterio.open(tmp_path / "remote.tif") as remote, rasterio.open(tmp_path / "local.tif") as local:
        np.testing.assert_array_equal(remote.read(), local.read())
        assert remote.shape == (200, 400)
    reached = Window(row=1100 - 256, col=300 - 256, height=200 + 512, width=400 + 512)
    assert server.sent <= 1.3 * (needed(cog, reached) + HEADER)


@pytest.mark.parametrize(
    "faults", [["drop"], ["cut"], ["503"], ["drop", "cut", "502"], ["cut", "cut", "cut"]], ids=" ".join
)
def test_what_breaks_off_is_asked_again(server, pixels, faults, caplog, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    stack = open_stack(server.url, bands=RGB)
    server.faults = list(faults)
    with caplog.at_level(logging.WARNING, logger="skysense_core"):
        raster = stack.read(GRID[:700, :700])
    np.testing.assert_array_equal(raster.pixels[0], pixels[:, :700, :700])
    assert not server.faults
    if faults == ["cut"] * 3:
        assert f"{server.url}: " in caplog.text
        assert "trying again" in caplog.text


def test_a_silent_server_is_asked_again(server, pixels, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    stack = open_stack(server.url, bands=RGB)
    server.faults = ["stall"]
    started = time.perf_counter()
    np.testing.assert_array_equal(stack.read(GRID[:100, :100]).pixels[0], pixels[:, :100, :100])
    assert time.perf_counter() - started < STALL
    assert not server.faults


def test_opening_survives_an_overloaded_server(server, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    server.faults, server.deaf = ["503", "drop"], 1
    assert open_stack(server.url, bands=RGB).geobox == GRID
    assert not server.faults


def test_a_server_that_stays_away_is_named_and_a_later_run_succeeds(server, pixels, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setattr(layer, "ATTEMPTS", 2)
    stack = open_stack(server.url, bands=RGB)
    server.faults = ["drop"] * 100
    with pytest.raises(SkysenseError, match=r"scene\.tif: no raster .* came from there") as caught:
        stack.read(GRID[:700, :600])
    assert caught.value.fix == "Check the address and the connection."
    server.faults = []
    np.testing.assert_array_equal(stack.read(GRID[:700, :600]).pixels[0], pixels[:, :700, :600])


@pytest.mark.parametrize(("status", "text"), [("404", "no such file"), ("403", "refuses to give it")])
def test_a_refusal_is_final_and_says_what_to_do(server, status, text):
    server.status = status
    path = server.url.replace("scene", "none")
    with pytest.raises(SkysenseError, match=rf"none\.tif: the server .*{text} \(HTTP {status}\)") as caught:
        open_stack(path, bands=None)
    assert caught.value.fix
    assert len(server.asked) <= 2  # GDAL asks twice whether a file is there, we do not ask again


def test_the_command_refuses_404_with_one_message(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["predict", server.url.replace("scene", "none"), "--model", "buildings-hr", "--out", tmp_path / "map.tif"]
    monkeypatch.setattr(sys, "argv", ["skysense", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert ended.value.code == 1
    assert printed.out == ""
    assert printed.err.count("HTTP 404") == 1
    assert "Check the address." in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []
