"""Objects of a scene as a vector file: the same however the work is cut, in the scene's CRS, with sizes in metres."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from odc.geo.geobox import GeoBox

from skysense_core import modalities
from skysense_core.checkpoint import load_model, save_model
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.objects import object_table, write_objects
from skysense_core.losses.boxes import corners_of
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.predict.regions import predict_regions
from skysense_core.tasks.oriented_detection import OrientedDetection
from skysense_core.tasks.segmentation import Segmentation

GRID = GeoBox.from_bbox((500000, 5000000, 500000 + 0.3 * 400, 5000000 + 0.3 * 700), "EPSG:32632", resolution=0.3)
GEOJSON = {".geojson": 4326}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that has learnt nothing: it finds the same nonsense every time, in every window."""
    task = OrientedDetection(classes=("car", "house"), min_score=0.36, most=40, anchor_scale=4.0)
    torch.manual_seed(0)
    hr = modalities.load("hr", {"window": 256})
    made = task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), {"hr": hr}))
    folder = tmp_path_factory.mktemp("models") / "any"
    save_model(folder, made, task, name="any", training={"start": "from scratch"}, metrics={}, licence="none")
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import rasterio

    path = tmp_path_factory.mktemp("scenes") / "scene.tif"
    rng = np.random.default_rng(0)
    pixels = (
        rng.integers(1, 255, (3, *(side // 20 for side in GRID.shape))).astype(np.uint8).repeat(20, 1).repeat(20, 2)
    )
    height, width = pixels.shape[1:]
    profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=GRID.affine, **profile) as dataset:
        dataset.write(pixels)
    return path


def settings(model: Path, scene: Path, out: Path, **fields: object) -> PredictConfig:
    return PredictConfig(inputs=(str(scene),), out=out, model=model, precision="fp32", device="cpu", **fields)


def rows(path: Path) -> list[tuple[object, ...]]:
    frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)
    return sorted(
        (int(one["class"]), round(one["score"], 4), *np.round(shapely.get_coordinates(one.geometry)[:4].ravel(), 2))
        for _, one in frame.iterrows()
    )


@pytest.mark.slow
def test_the_objects_are_the_same_in_shards_resumed_and_in_every_format(
    model: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = predict(settings(model, scene, tmp_path / "whole.parquet"))
    whole = rows(tmp_path / "whole.parquet")
    assert len(whole) > 20
    assert any("objects: " in note for note in result.notes)
    frame = gpd.read_parquet(tmp_path / "whole.parquet")
    assert frame.crs.to_epsg() == 32632
    assert set(frame.columns) == {"class", "name", "score", "angle", "length_m", "width_m", "geometry"}
    assert (frame.length_m >= frame.width_m).all()
    assert frame.within(GRID.extent.geom.buffer(80)).all()
    # Two workers of an array, the second one joins; half of it is there before.
    for index in (1, 2):
        predict(settings(model, scene, tmp_path / "cut.gpkg", shard=(512, 512), array=(index, 2)))
    assert rows(tmp_path / "cut.gpkg") == whole
    assert not list(tmp_path.glob(".cut*"))

    def stopped(*_: object) -> None:
        raise SkysenseError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.predict.objects.write_objects", stopped)
        with pytest.raises(SkysenseError, match="stopped"):
            predict(settings(model, scene, tmp_path / "again.gpkg", shard=(512, 512)))
    assert not (tmp_path / "again.gpkg").exists()
    shutil.rmtree(tmp_path / ".again.gpkg.shards" / "00001")
    again = predict(settings(model, scene, tmp_path / "again.gpkg", shard=(512, 512)))
    assert again.reused == again.shards - 1
    assert rows(tmp_path / "again.gpkg") == whole


@pytest.mark.slow
def test_a_box_gives_the_objects_whose_centre_lies_in_it(model: Path, scene: Path, tmp_path: Path) -> None:
    predict(settings(model, scene, tmp_path / "whole.parquet"))
    west, south, east, north = 500020.0, 5000030.0, 500110.0, 5000150.0
    predict(settings(model, scene, tmp_path / "part.parquet", bbox=(west, south, east, north)))
    whole, part = gpd.read_parquet(tmp_path / "whole.parquet"), gpd.read_parquet(tmp_path / "part.parquet")
    deep = shapely.box(west + 15, south + 15, east - 15, north - 15)
    inside = [frame[frame.centroid.within(deep)] for frame in (whole, part)]
    assert len(inside[0]) == len(inside[1]) > 3
    np.testing.assert_allclose(np.sort(inside[0].score), np.sort(inside[1].score), atol=1e-4)
    gpd.GeoDataFrame(geometry=[deep], crs=32632).to_file(tmp_path / "deep.gpkg")
    predict(settings(model, scene, tmp_path / "aoi.parquet", aoi=tmp_path / "deep.gpkg"))
    assert gpd.read_parquet(tmp_path / "aoi.parquet").centroid.within(deep.buffer(0.01)).all()


@pytest.mark.slow
def test_regions_and_a_cluster_give_the_objects_of_the_whole(model: Path, scene: Path, tmp_path: Path) -> None:
    predict(settings(model, scene, tmp_path / "whole.parquet", batch_size=1))
    whole = rows(tmp_path / "whole.parquet")
    left, bottom, right, top = GRID.boundingbox
    middle = GRID.affine.f - 0.3 * 350
    halves = [shapely.box(left, middle, right, top), shapely.box(left, bottom, right, middle)]
    gpd.GeoDataFrame({"name": ["north", "south"]}, geometry=halves, crs=32632).to_file(tmp_path / "halves.gpkg")
    given = settings(model, scene, tmp_path / "{id}.parquet", batch_size=1)
    outcomes = list(predict_regions(given, str(tmp_path / "halves.gpkg"), id_column="name"))
    assert [one.path.name for one in outcomes] == ["north.parquet", "south.parquet"]
    found = [gpd.read_parquet(one.path) for one in outcomes]
    for frame, half in zip(found, halves, strict=True):
        assert len(frame) > 5
        assert frame.centroid.within(half.buffer(0.01)).all()
    # Where halves meet an object may be found in another box on either side; all else is the same.
    apart = [one for one in whole if abs(np.mean(one[3::2]) - middle) > 40]
    assert len(apart) > 10
    assert set(apart) <= {one for name in ("north", "south") for one in rows(tmp_path / f"{name}.parquet")}
    predict(settings(model, scene, tmp_path / "workers.gpkg", batch_size=1, shard=(512, 512), cluster="local"))
    assert rows(tmp_path / "workers.gpkg") == whole


def test_regions_take_the_kind_of_file_that_the_model_makes(model: Path, scene: Path, tmp_path: Path) -> None:
    for name, message in (("{id}.tif", "this model finds objects"), ("{id}.png", "not the name of a GeoTIFF")):
        with pytest.raises(UsageError, match=message):
            next(predict_regions(settings(model, scene, tmp_path / name), str(tmp_path / "never_read.gpkg")))
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(model: Path, scene: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this model finds objects"):
        predict(settings(model, scene, tmp_path / "map.tif"))
    with pytest.raises(UsageError, match="--probabilities: objects have none"):
        predict(settings(model, scene, tmp_path / "a.gpkg", probabilities=True))
    loaded = load_model(model, torch.device("cpu"))
    maps = Segmentation(classes=("a", "b"))
    dense = maps.build_model(SkySense(ModelSpec(preset="nano", fusion=False), loaded.modalities))
    with pytest.raises(UsageError, match="this model makes a map"):
        predict(settings(model, scene, tmp_path / "b.gpkg"), replace(loaded, model=dense.eval(), task=maps))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".fgb", ".geojson"])
def test_sizes_are_metres_on_the_ground_and_angles_are_bearings(tmp_path: Path, suffix: str) -> None:
    """Web mercator stretches: at 60 degrees north its metres are half as long on the ground."""
    x, y = 1113194.9, 8399737.9  # 10 E, 60 N
    grid = GeoBox.from_bbox((x, y, x + 100, y + 100), "EPSG:3857", resolution=0.5)
    rotated = torch.tensor([[100.0, 100, 40, 12, math.radians(-30)]], dtype=torch.float64)
    corners = corners_of(rotated).numpy().reshape(1, 8)
    table = object_table(np.concatenate([corners, [[1, 0.75, 3]]], axis=1), grid, names=("a", "b"), oriented=True)
    write_objects(table, tmp_path / f"out{suffix}")
    read = gpd.read_parquet if suffix == ".parquet" else gpd.read_file
    frame = read(tmp_path / f"out{suffix}")
    assert frame.crs.to_epsg() == GEOJSON.get(suffix, 3857)
    one = frame.iloc[0]
    assert (one["class"], one["name"], one["score"]) == (1, "b", 0.75)
    assert one["length_m"] == pytest.approx(10.0, rel=0.01)
    assert one["width_m"] == pytest.approx(3.0, rel=0.01)
    assert one["angle"] == pytest.approx(60, abs=0.5)  # 30 degrees up from the east is 60 from the north
    assert frame.to_crs(3857).area.iloc[0] == pytest.approx(20 * 6, rel=0.01)


def test_a_scene_without_objects_gives_an_empty_file(
    model: Path, tmp_path: Path, write_raster: Callable[..., Path]
) -> None:
    grid = GeoBox.from_bbox((500000, 5000000, 500030, 5000030), "EPSG:32632", resolution=0.3)
    scene = write_raster(tmp_path / "empty.tif", np.zeros((3, 100, 100), np.uint8), grid, nodata=0)
    for suffix in (".gpkg", ".parquet", ".geojson"):
        predict(settings(model, scene, tmp_path / f"none{suffix}"))
        read = gpd.read_parquet if suffix == ".parquet" else gpd.read_file
        assert len(read(tmp_path / f"none{suffix}")) == 0
