"""The scripts in examples/ run from end to end on a small scene."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
from items import asset, item, write_band
from odc.geo.geobox import GeoBox
from page_data import write_material
from PIL import Image
from rasterio import features
from server import api, serving
from shapely import box
from shapely.geometry import shape

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


# A job from one end to the other


CROPS = {1200: "maize", 9120: "grass"}
SEASON = ("2018-04-01", "2018-09-30")
UNCLEAR = (0, 1, 3, 8, 9, 10)
"""Of SCL: what shows no ground."""


@pytest.fixture(scope="module")
def location(shared_data: Path) -> Path:
    return next((shared_data / "sits_patch" / "worldcereal").iterdir())


def season_of(location: Path, folder: Path) -> tuple[dict[str, bytes], list[dict], GeoBox]:
    """Files of a server, items and the grid: the four clearest and the two cloudiest days of a real summer."""
    parts = [
        xr.open_dataset(next(location.glob(f"S2_L2A_{gsd}m_*.nc")), mask_and_scale=False).sel(timestamp=slice(*SEASON))
        for gsd in (10, 20)
    ]
    fine, scl = parts[0], parts[1]["SCL"]
    clouds = 100 * scl.isin(UNCLEAR).mean(("x", "y"))
    order = clouds.timestamp.values[np.argsort(clouds.values, kind="stable")]
    x, y = fine.x.values, fine.y.values
    grid = GeoBox.from_bbox((x.min() - 5, y.min() - 5, x.max() + 5, y.max() + 5), "EPSG:32631", resolution=10)
    ring = grid.footprint("EPSG:4326")
    files, items = {}, []
    for moment in sorted([*order[:4], *order[-2:]]):
        day = str(moment)[:10]
        assets = {}
        for name in modalities.load("s2").band_names:
            source = next(part for part in parts if name in part)
            pixels = source[name].sel(timestamp=moment).sortby("y", ascending=False).sortby("x").values
            pixels = np.nan_to_num(pixels).astype(np.uint16)
            times = 64 // pixels.shape[0]
            plain = write_band(folder / "plain.tif", pixels, grid.zoom_out(times), nodata=0)
            rasterio.shutil.copy(plain, folder / "cog.tif", driver="COG", OVERVIEWS="NONE")
            files[f"{day}/{name}.tif"] = (folder / "cog.tif").read_bytes()
            assets[name] = asset(f"{day}/{name}.tif", name)
        cover = float(clouds.sel(timestamp=moment))
        one = item(assets, name=day, day=day, eo__cloud_cover=cover)
        items.append(one | {"bbox": list(ring.boundingbox), "geometry": ring.json})
    return files, items, grid


def fields_of(location: Path, grid: GeoBox, path: Path) -> Path:
    """The maize and the grass of a location as polygons."""
    crops = xr.open_dataset(next(location.glob("OUTPUT_*.nc")))["CT"].sortby("y", ascending=False).sortby("x")
    codes = np.nan_to_num(crops.values).astype(np.int32)
    found = features.shapes(codes, mask=np.isin(codes, list(CROPS)), transform=grid.affine)
    rings, values = zip(*found, strict=True)
    frame = gpd.GeoDataFrame(
        {"crop": [CROPS[int(value)] for value in values]}, geometry=list(map(shape, rings)), crs=str(grid.crs)
    )
    frame.to_file(path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_crops_of_a_county_from_a_search(tmp_path: Path, location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The county is one location of 640 m: real pixels, dates and clouds behind an API and a web server."""
    files, items, grid = season_of(location, tmp_path)
    fields = fields_of(location, grid, tmp_path / "fields.gpkg")
    county = tmp_path / "county.gpkg"
    gpd.GeoDataFrame(geometry=[box(*grid.boundingbox)], crs=str(grid.crs)).to_file(county)
    monkeypatch.setenv("STEPS", "20")
    with serving(files) as rasters:
        for one in items:
            for held in one["assets"].values():
                held["href"] = f"{rasters.root}/{held['href']}"
        with api(tmp_path, items) as url:
            words = (url, "sentinel-2-l2a", county, "2018-04/2018-09", "out", fields, "crop")
            small = ("--size", 16, "--split-block", "160m", "--buffer", "0m", "--val-share", 0.3, "--test-share", 0)
            call(tmp_path, EXAMPLES / "county_crops.sh", *words, *small)
            kept = sorted((tmp_path / "out" / "store.items" / "s2" / "0").glob("*.json"))
            assert len(kept) == 4, "cloudy days are not asked for"
            made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.*")}
            points = gpd.read_file(tmp_path / "out" / "points.gpkg")
            with rasterio.open(tmp_path / "out" / "map.tif") as mapped:
                assert (mapped.shape, mapped.crs.to_epsg()) == ((64, 64), 32631)
                assert mapped.transform.almost_equals(grid.affine, 1e-6)
                classes = mapped.read(1)
            truth = gpd.sjoin(points[["id", "geometry"]], gpd.read_file(fields).to_crs(points.crs), how="left")
            points["reference"] = truth.drop_duplicates("id")["crop"].fillna("maize").to_numpy()
            points.to_file(tmp_path / "out" / "interpreted.gpkg")
            call(tmp_path, EXAMPLES / "county_crops.sh", *words, *small)
            assert {path: path.stat().st_mtime_ns for path in made} == made
            box_ = ",".join(map(str, grid.footprint("EPSG:4326").boundingbox))
            call(tmp_path, EXAMPLES / "county_crops.sh", *words[:2], box_, words[3], "again", "out/run")
    with rasterio.open(tmp_path / "again" / "map.tif") as again:
        shared = again.read(1)
    assert abs(shared.shape[0] - 64) <= 1
    table = (tmp_path / "out" / "areas.txt").read_text()
    assert all(name in table for name in CROPS.values())
    assert "hectares" in table
    assert (classes != 255).all()
    assert "maize" in (tmp_path / "out" / "estimated.txt").read_text()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("material") / "all"
    write_material(shared_data, folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_flood_from_before_and_after(tmp_path: Path, shared_data: Path, write_raster: Callable[..., Path]) -> None:
    """The largest flood of OMBRIA's test pairs. The pictures say no place: one is made up."""
    ombria = shared_data / "change_flood" / "ombria"
    short = ("--preset", "nano", "--batch-size", 4, "--steps", 60, "--set", "train.validate_every=20")
    data = ("--task", "change", "--data", ombria, "--modalities", "s2")
    call(tmp_path, "skysense", "finetune", *data, *short, "--out", "run")
    masks = {path.stem[-4:]: np.asarray(Image.open(path)) for path in (ombria / "OmbriaS1/test/MASK").glob("*.png")}
    largest = max(masks, key=lambda name: (masks[name] > 0).mean())
    grid = GeoBox.from_bbox((500000, 4000000, 502560, 4002560), "EPSG:32634", resolution=10)
    for when in ("before", "after"):
        image = np.asarray(Image.open(ombria / "OmbriaS2/test" / when.upper() / f"S2_{when}_{largest}.png"))
        write_raster(tmp_path / f"{when}.tif", image.transpose(2, 0, 1), grid)
    words = ("run", "before.tif", "after.tif", "out")
    bands = ("--bands", "channel 1,channel 2,channel 3")
    call(tmp_path, EXAMPLES / "flood.sh", *words, *bands)
    out = tmp_path / "out"
    with rasterio.open(out / "flood.tif") as mapped:
        codes, pixel = mapped.read(1), mapped.res[0] * mapped.res[1]
    flood = gpd.read_file(out / "flood.gpkg")
    assert set(flood["class"]) <= {1}
    assert flood.area_m2.sum() == pytest.approx((codes == 1).sum() * pixel, rel=0.01)
    assert len(flood) > 0
    assert (out / "flood_probabilities.tif").is_file()
    made = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "is there" in call(tmp_path, EXAMPLES / "flood.sh", *words, *bands).stderr
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == made


@pytest.mark.slow
def test_buildings_as_a_geopackage(tmp_path: Path, material: Path) -> None:
    """Zanzibar at zoom 20 in Web Mercator, where areas on the ground are not those of the map's plane."""
    bands = ("--bands", "red,green,blue", "--min-area", 20)
    call(tmp_path, EXAMPLES / "buildings.sh", material / "ortho.tif", "out", *bands)
    found = gpd.read_file(tmp_path / "out" / "buildings.gpkg")
    assert set(found.name) == {"building"}
    assert len(found) > 10
    assert found.area_m2.min() >= 20
    known = gpd.read_file(material / "buildings.geojson").to_crs(found.crs)
    hits = gpd.sjoin(known, found, predicate="intersects").index.nunique()
    assert hits > 0.5 * len(known)
    assert "is there" in call(tmp_path, EXAMPLES / "buildings.sh", material / "ortho.tif", "out").stderr


# Studies of the paper


POINTS = (
    *("--label-column", "CROPTYPE_LABEL", "--split-by", "h3_l3_cell", "--set", "data.id_column=sample_id"),
    *("--set", "data.date_column=timestamp", "--set", "data.nodata=65535", "--set", "data.values.s1.log10=20"),
    *("--set", "data.values.s1.offset=-83", "--preset", "nano", "--batch-size", "4", "--set", "train.validate_every=4"),
)


def python(folder: Path, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    return call(folder, sys.executable, EXAMPLES / script, *words)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shares_of_the_labels(tmp_path: Path, material: Path) -> None:
    short = ("--preset", "nano", "--batch-size", "4", "--set", "train.validate_every=4")
    data = ("--task", "classification", "--data", material / "sat6")
    call(tmp_path, "skysense", "finetune", *data, *short, "--steps", "4", "--out", "start")
    words = ("--init", "start/best", "--out", "study", "--shares", "0.1,1", "--steps", "4", *data, *short)
    printed = python(tmp_path, "label_fraction.py", *words).stdout
    assert "10% of the labels, from best: oa 0." in printed
    scores = pd.read_csv(tmp_path / "study" / "scores.csv")
    assert list(scores["share"]) == [0.1, 0.1, 1, 1]
    assert scores["oa"].between(0, 1).all()
    assert picture(tmp_path / "study" / "label_fraction.png")
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("model.safetensors")}
    assert len(runs) == 8
    python(tmp_path, "label_fraction.py", *words)
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_clouds_with_radar_and_without(tmp_path: Path, material: Path) -> None:
    words = ("--out", "study", "--optical", "S2-.*", "--shares", "0,0.9", "--steps", "4", *POINTS)
    printed = python(tmp_path, "clouds.py", material / "points.parquet", *words).stdout
    assert "Sentinel-2 and 1, 90% of the dates under clouds: oa 0." in printed
    assert picture(tmp_path / "study" / "clouds.png")
    clear, cloudy = (pd.read_parquet(tmp_path / "study" / f"test-{share}.parquet") for share in ("0", "0.9"))
    dates = cloudy.groupby("sample_id")["timestamp"].size()
    left = cloudy["S2-L2A-B08"].notna().groupby(cloudy["sample_id"]).sum()
    assert (left >= 1).all()
    assert left.sum() == pytest.approx(0.1 * dates.sum(), rel=0.2)
    pd.testing.assert_series_equal(cloudy["S1-SIGMA0-VV"], clear["S1-SIGMA0-VV"])
    seen = cloudy["S2-L2A-B08"].notna()
    pd.testing.assert_series_equal(cloudy["S2-L2A-B08"][seen], clear["S2-L2A-B08"][seen], check_dtype=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prototypes_of_a_scene(tmp_path: Path, material: Path) -> None:
    words = (f"s2={material / 'scene'}", "--out", "out", "--steps", "3", "--set", "modalities.s2.level=L1C")
    python(tmp_path, "prototype_map.py", *words)
    with rasterio.open(tmp_path / "out" / "prototypes.tif") as made:
        assert len(np.unique(made.read(1))) > 1
    assert picture(tmp_path / "out" / "prototypes.png")
    python(tmp_path, "prototype_map.py", words[0], "--out", "again", "--model", "out/pretrained")
    with (
        rasterio.open(tmp_path / "out" / "prototypes.tif") as one,
        rasterio.open(tmp_path / "again" / "prototypes.tif") as other,
    ):
        np.testing.assert_array_equal(one.read(), other.read())


def picture(path: Path) -> bool:
    """Whether a PNG shows more than one colour."""
    return len(Image.open(path).convert("RGB").getcolors(1 << 24) or ()) > 10


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
