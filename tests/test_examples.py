"""The scripts in examples/ run from end to end on a small scene."""

import os
import runpy
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
def test_train_then_map_scenes(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
        return call(tmp_path, EXAMPLES / script, *words)

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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["loop", "xargs", "make"])
def test_a_scene_in_regions_is_the_whole(tmp_path: Path, write_raster: Callable[..., Path], form: str) -> None:
    grid = GeoBox.from_bbox((390000, 5819960, 390080, 5820000), "EPSG:32633", resolution=0.2)
    blocks = np.random.default_rng(0).integers(30, 220, (3, 10, 20)).repeat(20, 1).repeat(20, 2)
    write_raster(tmp_path / "scene.tif", blocks.astype(np.uint8), grid, photometric="RGB")
    make = ("make", "-f", EXAMPLES / "regions.mk", "-j", "2", "SIZE=250", "MAP=map.tif")
    command = {
        "loop": (EXAMPLES / "regions_loop.sh", "buildings-hr", "scene.tif", "map.tif", 250),
        "xargs": (EXAMPLES / "regions_xargs.sh", "buildings-hr", "scene.tif", "map.tif", 250, 2),
        "make": (*make, "MODEL=buildings-hr", "SCENE=scene.tif"),
    }[form]
    call(tmp_path, *command)
    parts = sorted((tmp_path / "map_parts").glob("*.tif"))
    assert [path.name for path in parts] == ["r00_c00.tif", "r00_c01.tif"]
    call(tmp_path, "skysense", "predict", "scene.tif", "--out", "whole.tif")
    with rasterio.open(tmp_path / "map.tif") as joined, rasterio.open(tmp_path / "whole.tif") as whole:
        assert (joined.shape, joined.transform) == (whole.shape, whole.transform)
        # Other batches may round a tie between two classes otherwise.
        assert (joined.read() != whole.read()).mean() < 1e-3

    made = [path.stat().st_mtime_ns for path in parts]
    call(tmp_path, *command)
    assert [path.stat().st_mtime_ns for path in parts] == made


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["slurm", "dask"])
def test_a_scene_on_many_machines_is_the_whole(
    tmp_path: Path, write_raster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Slurm is played by its variables and an `srun` that runs the command; Dask is real, on loopback."""
    grid = GeoBox.from_bbox((390000, 5819100, 390110, 5820000), "EPSG:32633", resolution=0.2)
    blocks = np.random.default_rng(0).integers(30, 220, (3, 225, 28)).repeat(20, 1).repeat(20, 2)[:, :, :550]
    write_raster(tmp_path / "scene.tif", blocks.astype(np.uint8), grid, photometric="RGB")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    call(tmp_path, "skysense", "predict", "scene.tif", "--out", "whole.tif")
    words = ("buildings-hr", "scene.tif", "map.tif")
    if form == "dask":
        call(tmp_path, EXAMPLES / "dask_cluster.sh", *words)
    else:
        (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
        (tmp_path / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
        for task in (2, 0, 1):
            assert not (tmp_path / "map.tif").exists()
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            call(tmp_path, EXAMPLES / "slurm_array.sh", *words)
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def call(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the skysense of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = list(map(str, words))
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, check=True, capture_output=True, text=True
    )


def test_the_python_interface(
    tmp_path: Path,
    write_raster: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 300, 200), dtype=np.uint8)
    grid = GeoBox.from_bbox((500000, 4000000, 500040, 4000060), "EPSG:32636", resolution=0.2)
    for names in ((), ("red", "green", "blue")):
        scene = write_raster(tmp_path / f"scene{len(names)}.tif", pixels, grid, names=names)
        monkeypatch.setattr(sys, "argv", ["python_api.py", str(scene), str(tmp_path / "maps")])
        runpy.run_path(str(EXAMPLES / "python_api.py"))
        printed = capsys.readouterr().out
        assert "building: " in printed
        assert "least sure in the corner: 0." in printed
        with rasterio.open(tmp_path / "maps" / "classes.tif") as made, rasterio.open(scene) as source:
            assert (made.shape, made.crs) == (source.shape, source.crs)
            assert made.transform.almost_equals(source.transform, 1e-9)
            assert made.nodata == 255


def test_places_that_look_alike(tmp_path: Path, write_raster: Callable[..., Path], monkeypatch, capsys) -> None:
    pixels = np.full((3, 260, 520), 60, dtype=np.uint8)
    pixels[:, :, 260:] = np.random.default_rng(0).integers(1, 255, (3, 260, 260))
    grid = GeoBox.from_bbox((500000, 4000000, 500104, 4000052), "EPSG:32636", resolution=0.2)
    scene = write_raster(tmp_path / "scene.tif", pixels, grid, names=("red", "green", "blue"))
    words = ["embed.py", str(scene), "500020", "4000025", str(tmp_path / "like.tif")]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLES / "embed.py"))
    assert "of the scene look much like it" in capsys.readouterr().out
    with rasterio.open(tmp_path / "like.tif") as made:
        like = made.read(1)
        assert made.res == pytest.approx((6.4, 6.4))
    assert np.nanmean(like[:, :6]) > np.nanmean(like[:, -6:]) + 0.3


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
