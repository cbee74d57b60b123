"""The scripts in examples/ run from end to end on a small scene."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from shapely import box

from skysense_core import modalities

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GRID = GeoBox.from_bbox((300000, 5800000, 305120, 5802560), "EPSG:32633", resolution=10)
STRIPE = 320
"""Metres."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_train_then_map_scenes_and_regions(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [str(EXAMPLES / script), *map(str, words)]
        environment = os.environ | {"PATH": path}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)

    folder = tmp_path / "scenes"
    folder.mkdir()
    scene = striped_scene(folder / "stripes.tif", write_raster)
    polygons = striped_polygons(tmp_path / "polygons.gpkg")
    short = ("--steps", 10, "--batch-size", 2, "--set", "data.block=1", "--set", "train.validate_every=10")
    run("finetune_landcover.sh", scene, polygons, "cover", "out", *short)
    for name in ("run/best/model.safetensors", "evaluation/metrics.json", "map.tif", "preview.png"):
        assert (tmp_path / "out" / name).is_file()

    run("predict_scenes.sh", "out/run", "scenes", "maps")
    with rasterio.open(tmp_path / "maps" / "stripes.tif") as whole:
        assert whole.shape == tuple(GRID.shape)
    assert "stripes.tif is there" in run("predict_scenes.sh", "out/run", "scenes", "maps").stderr

    west, south, east, north = GRID.geographic_extent.boundingbox
    middle = (west + east) / 2
    boxes = {"west": (west, south, middle, north), "east": (middle, south, east, north)}
    lines = (f"{name} {','.join(map(str, bounds))}\n" for name, bounds in boxes.items())
    (tmp_path / "regions.txt").write_text("".join(lines))
    run("predict_regions.sh", "out/run", scene, "regions.txt", "regions")
    with rasterio.open(tmp_path / "regions" / "west.tif") as part:
        assert part.width < GRID.shape.x


def striped_scene(path: Path, write_raster: Callable[..., Path]) -> Path:
    """Bright and dark stripes of `STRIPE` metres in every Sentinel-2 band."""
    height, width = GRID.shape
    names = modalities.load("s2").band_names
    pixels = np.full((len(names), height, width), 3000, dtype=np.uint16)
    pixels[:, (np.arange(height) * 10 // STRIPE) % 2 == 1] = 400
    return write_raster(path, pixels, GRID, names=names)


def striped_polygons(path: Path) -> Path:
    left, _, right, top = GRID.boundingbox
    count = GRID.shape.y * 10 // STRIPE
    stripes = [box(left, top - STRIPE * (i + 1), right, top - STRIPE * i) for i in range(count)]
    names = ["lake" if i % 2 else "field" for i in range(count)]
    gpd.GeoDataFrame({"cover": names}, geometry=stripes, crs="EPSG:32633").to_file(path)
    return path
