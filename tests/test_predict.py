"""From a scene to a map through the verb: georeference, nodata, parts, grids, products, and every refusal."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from rio_cogeo import cog_validate
from torch import Tensor, nn

from skysense_core import modalities, predict
from skysense_core.checkpoint import LoadedModel, save_model
from skysense_core.data.batch import Batch
from skysense_core.description import Description
from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.geo.mosaic import open_result
from skysense_core.geo.raster import ReadOptions
from skysense_core.modalities import Modality
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, PredictResult
from skysense_core.tasks.segmentation import Segmentation
from skysense_core.types import UNSURE

K = 7
NAMES = tuple(f"class {code}" for code in range(K))
HR = modalities.load("hr", {"bands": ["red"]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(Segmentation):
    """A task that predicts what the imagery says: the value of the first band is the class."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        codes = batch.epochs[0]["hr"].pixels[:, 0, 0].round().long().clamp(0, K - 1)
        return nn.functional.one_hot(codes, K).permute(0, 3, 1, 2).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Segmentation):
    """Always the same probabilities."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        b, _, _, h, w = batch.epochs[0]["hr"].pixels.shape
        return torch.tensor([0.05, 0.05, 0.1, 0.4, 0.2, 0.15, 0.05]).view(1, K, 1, 1).expand(b, K, h, w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance(Segmentation):
    """Probabilities that depend on the pixel, its neighbours and the whole window: seams would show."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        image = batch.epochs[0]["hr"].pixels[:, 0] / K
        shifted = torch.cat([torch.roll(image, (code, 2 * code), (2, 3)) for code in range(K)], dim=1)
        return (shifted * (1 + image.mean(dim=(2, 3), keepdim=True))).softmax(dim=1)


@pytest.fixture
def use_task(monkeypatch):
    """Let predict load a model that is nothing but a task."""

    def use(task: Segmentation, window: int = 64, **changes: Modality) -> None:
        from dataclasses import replace

        described = {
            "folder": Path("model"),
            "name": "stand-in",
            "version": "0",
            "digest": "abc",
            "licence": "",
            "task_name": "segmentation",
            "settings": {},
            "classes": NAMES,
            "spec": {},
            "modalities": changes or {"hr": replace(HR, window=window)},
            "training": {},
            "metrics": {},
        }
        monkeypatch.setattr(predict.job, "load_description", lambda path: Description(**described))
        monkeypatch.setattr(
            predict.job, "load_model", lambda path, device: LoadedModel(model=nn.Identity(), task=task, **described)
        )

    return use


def grid(shape: tuple[int, int], gsd: float = 0.3, crs: str = "EPSG:32636") -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), crs)


def codes(shape: tuple[int, int]) -> np.ndarray:
    """A value that tells every place: no window can be misplaced unseen."""
    return np.random.default_rng(3).integers(1, K, (1, *shape), dtype=np.uint8)


def run(scene: Path, out: Path, **settings) -> PredictResult:
    settings = {"inputs": (str(scene),), "model": Path("model"), "jobs": 2, **settings}
    return predict.predict(PredictConfig(out=out, **settings))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.fixture
def scene(tmp_path, write_raster) -> Path:
    return write_raster(tmp_path / "scene.tif", codes((200, 333)), grid((200, 333)), names=("red",))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 200), (30, 5), (64, 64), (65, 65), (200, 333)], ids=lambda shape: f"{shape[0]}x{shape[1]}"
)
def test_every_pixel_of_every_shape_lands_in_its_place(tmp_path, write_raster, use_task, shape):
    use_task(Mirror(classes=NAMES))
    pixels = codes(shape)
    scene = write_raster(tmp_path / "scene.tif", pixels, grid(shape), names=("red",))
    result = run(scene, tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), pixels)
    assert cog_validate(tmp_path / "map.tif", strict=True) == (True, [], [])
    assert sum(area.square_metres for area in result.classes) == pytest.approx(0.09 * pixels.size, rel=2e-3)
    assert sum(area.share for area in result.classes) == pytest.approx(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "map.qml",
        "map.tif",
        "map.tif.aux.xml",
        "scene.tif",
    ]


@pytest.mark.parametrize("overlap", [0, 32], ids=["stride equals window", "half a window"])
def test_any_overlap_covers_everything(scene, tmp_path, use_task, overlap):
    use_task(Mirror(classes=NAMES))
    run(scene, tmp_path / "map.tif", overlap=overlap)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(scene))


def test_windows_are_rounded_to_whole_tokens_and_it_is_said(scene, tmp_path, use_task):
    use_task(Mirror(classes=NAMES))
    result = run(scene, tmp_path / "map.tif", window=100, overlap=10)
    assert [note.split(",")[0] for note in result.notes] == [
        "--window 100: rounded to 96",
        "--overlap 10: rounded to 0",
    ]
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(scene))


def test_a_constant_predictor_is_constant_in_every_pixel(scene, tmp_path, use_task):
    use_task(Constant(classes=NAMES))
    result = run(scene, tmp_path / "map.tif", confidence="max", probabilities=True)
    assert (read(tmp_path / "map.tif") == 3).all()
    assert (read(tmp_path / "map_confidence.tif") == round(0.4 * 254)).all()
    assert [set(band.ravel().tolist()) for band in read(tmp_path / "map_probabilities.tif")[2:5]] == [{25}, {102}, {51}]
    with rasterio.open(tmp_path / "map_probabilities.tif") as dataset:
        assert dataset.descriptions[3] == "probability of class 3"
        assert dataset.scales[3] == 1 / 254
        assert dataset.nodata == 255
    for path in result.paths:
        assert cog_validate(path, strict=True) == (True, [], [])


@pytest.mark.parametrize(
    ("affine", "crs"),
    [
        (Affine(0.3, 0, 5e5, 0, -0.3, 4e6) * Affine.rotation(25), "EPSG:32636"),
        (Affine(0.3, 0, 5e5, 0, 0.3, 4e6), "EPSG:32636"),
        (Affine(2.7e-6, 0, 36.5, 0, -2.7e-6, -1.25), "EPSG:4326"),
        (Affine(0.372, 0, 4e6, 0, -0.372, 4.3e6), "EPSG:3857"),
    ],
    ids=["rotated", "south-up", "degrees", "web mercator"],
)
def test_any_georeference_keeps_every_pixel_on_its_ground(tmp_path, write_raster, use_task, affine, crs):
    use_task(Mirror(classes=NAMES))
    pixels = codes((90, 130))
    scene = write_raster(tmp_path / "scene.tif", pixels, GeoBox((90, 130), affine, crs), names=("red",))
    run(scene, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as dataset, rasterio.open(scene) as truth:
        assert dataset.crs == truth.crs
        rows, cols = np.mgrid[0:90:7, 0:130:11].reshape(2, -1)
        places = [truth.xy(row, col) for row, col in zip(rows, cols, strict=True)]
        assert [int(value[0]) for value in dataset.sample(places)] == pixels[0, rows, cols].tolist()
        assert dataset.shape == (90, 130)


def test_a_jpeg_2000_scene_gives_a_georeferenced_class_map(tmp_path, write_raster, use_task):
    use_task(Mirror(classes=NAMES))
    pixels = codes((150, 150))
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    scene = write_raster(tmp_path / "scene.jp2", pixels, grid((150, 150)), **lossless)
    run(scene, tmp_path / "map.tif", read={"hr": ReadOptions(bands=("red",))})
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.transform == grid((1, 1)).affine
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_nodata_stays_nodata_and_empty_windows_are_skipped(tmp_path, write_raster, use_task):
    use_task(Mirror(classes=NAMES))
    pixels = codes((200, 333))
    pixels[:, :, 150:] = 0
    pixels[:, 20:23, 40] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, grid((200, 333)), names=("red",), nodata=0)
    result = run(scene, tmp_path / "map.tif", confidence="max")
    expected = np.where(pixels == 0, 255, pixels)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
    np.testing.assert_array_equal(read(tmp_path / "map_confidence.tif") == 255, pixels == 0)
    assert result.skipped > result.windows / 3
    assert sum(area.square_metres for area in result.classes) == pytest.approx(0.09 * (pixels > 0).sum(), rel=2e-3)


def test_a_scene_without_a_valid_pixel_is_refused(tmp_path, write_raster, use_task):
    use_task(Mirror(classes=NAMES))
    pixels = np.zeros((1, 100, 100), dtype=np.uint8)
    scene = write_raster(tmp_path / "scene.tif", pixels, grid((100, 100)), names=("red",), nodata=0)
    with pytest.raises(SkysenseError, match="no valid pixel"):
        run(scene, tmp_path / "map.tif")
    assert list(tmp_path.iterdir()) == [scene]


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 5}, {"jobs": 1}, {"shard": (512, 512)}], ids=str)
def test_the_map_depends_on_nothing_but_the_windows(tmp_path, write_raster, use_task, change):
    use_task(Glance(classes=NAMES))
    scene = write_raster(tmp_path / "wide.tif", codes((70, 1100)), grid((70, 1100)), names=("red",))
    run(scene, tmp_path / "a.tif", probabilities=True)
    run(scene, tmp_path / "b.tif", probabilities=True, **change)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))
    np.testing.assert_array_equal(read(tmp_path / "a_probabilities.tif"), read(tmp_path / "b_probabilities.tif"))


def test_a_box_gets_the_pixels_of_the_whole(scene, tmp_path, use_task):
    use_task(Glance(classes=NAMES))
    run(scene, tmp_path / "whole.tif", probabilities=True)
    box = (500_030.0, 3_999_960.0, 500_075.1, 3_999_985.0)
    run(scene, tmp_path / "part.tif", probabilities=True, bbox=box)
    with rasterio.open(tmp_path / "part_probabilities.tif") as part:
        window = rasterio.windows.from_bounds(*part.bounds, transform=grid((1, 1)).affine).round_offsets().round_shape()
        assert part.bounds.left <= box[0] < part.bounds.left + 0.3
        assert part.bounds.top - 0.3 < box[3] <= part.bounds.top
        with rasterio.open(tmp_path / "whole_probabilities.tif") as whole:
            np.testing.assert_array_equal(part.read(), whole.read(window=window))


def test_a_box_in_degrees(scene, tmp_path, use_task):
    use_task(Mirror(classes=NAMES))
    lon, lat = 33.0002, 36.1445
    run(scene, tmp_path / "map.tif", bbox=(lon, lat, lon + 2e-4, lat + 1e-4), bbox_crs="EPSG:4326")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.crs.to_epsg() == 32636
        assert 50 < dataset.width < 70
        assert 30 < dataset.height < 50


def test_an_area_of_interest_masks_and_skips(scene, tmp_path, use_task):
    use_task(Mirror(classes=NAMES))
    triangle = shapely.Polygon([(500_003, 3_999_997), (500_060, 3_999_997), (500_003, 3_999_950)])
    gpd.GeoDataFrame(geometry=[triangle], crs="EPSG:32636").to_crs(4326).to_file(tmp_path / "aoi.gpkg")
    result = run(scene, tmp_path / "map.tif", aoi=tmp_path / "aoi.gpkg")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        made = dataset.read(1)
        rows, cols = np.mgrid[0 : dataset.height, 0 : dataset.width]
        x, y = dataset.transform * (cols + 0.5, rows + 0.5)
        inside = shapely.contains_xy(triangle, x, y)
        offset_row = round((4_000_000 - dataset.transform.f) / 0.3)
        offset_col = round((dataset.transform.c - 500_000) / 0.3)
    truth = read(scene)[0, offset_row : offset_row + made.shape[0], offset_col : offset_col + made.shape[1]]
    assert (made != 255).mean() > 0.4
    near = shapely.dwithin(triangle.boundary, shapely.points(x, y), 1e-3)
    np.testing.assert_array_equal(made[~near], np.where(inside, truth, 255)[~near])
    assert result.skipped > 0


def test_a_scene_of_another_pixel_size_is_resampled_and_mapped_back_to_its_own_grid(tmp_path, write_raster, use_task):
    use_task(Mirror(classes=NAMES))
    blocks = codes((10, 12)).repeat(10, 1).repeat(10, 2)
    blocks[:, :20, :20] = 0
    scene = write_raster(tmp_path / "scene.tif", blocks, grid((100, 120), 0.5), names=("red",), nodata=0)
    result = run(scene, tmp_path / "map.tif", confidence="max")
    assert any("resampled from 0.5 m to the model's 0.3 m" in note for note in result.notes)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.transform, dataset.shape) == (grid((1, 1), 0.5).affine, (100, 120))
        made = dataset.read()
    centre = np.zeros((10, 10), dtype=bool)
    centre[3:7, 3:7] = True
    centre = np.tile(centre, (10, 12))
    np.testing.assert_array_equal(made[0, centre], np.where(blocks == 0, 255, blocks)[0, centre])
    assert read(tmp_path / "map_confidence.tif").shape == made.shape


def test_a_part_of_a_resampled_scene_equals_the_whole(tmp_path, write_raster, use_task):
    use_task(Glance(classes=NAMES))
    scene = write_raster(tmp_path / "scene.tif", codes((150, 160)), grid((150, 160), 0.4), names=("red",))
    run(scene, tmp_path / "whole.tif", probabilities=True)
    run(scene, tmp_path / "part.tif", probabilities=True, bbox=(500_020.0, 3_999_960.0, 500_048.0, 3_999_980.0))
    whole, part = read(tmp_path / "whole_probabilities.tif"), read(tmp_path / "part_probabilities.tif")
    np.testing.assert_array_equal(part, whole[:, 50:100, 50:120])


def test_the_grid_of_another_raster(scene, tmp_path, write_raster, use_task):
    use_task(Mirror(classes=NAMES))
    larger = GeoBox((50, 60), Affine(0.6, 0, 499_997, 0, -0.6, 4_000_003), "EPSG:32636")
    like = write_raster(tmp_path / "like.tif", np.zeros((1, 50, 60), np.uint8), larger)
    run(scene, tmp_path / "map.tif", like=like)
    with rasterio.open(tmp_path / "map.tif") as dataset, rasterio.open(scene) as truth:
        assert (dataset.transform, dataset.shape) == (larger.affine, (50, 60))
        made = dataset.read(1)
        assert (made[:5] == 255).all()
        places = [dataset.xy(row, col) for row in range(6, 50, 5) for col in range(6, 60, 5)]
        expected = [int(value[0]) for value in truth.sample(places)]
    assert [int(made[row, col]) for row in range(6, 50, 5) for col in range(6, 60, 5)] == expected


def test_tags_name_the_model_and_the_inputs(scene, tmp_path, use_task):
    use_task(Mirror(classes=NAMES))
    run(scene, tmp_path / "map.tif", creation_options={"COMPRESS": "LZW"})
    with rasterio.open(tmp_path / "map.tif") as dataset:
        tags = dataset.tags()
        assert (tags["MODEL"], tags["MODEL_DIGEST"], tags["INPUTS"]) == ("stand-in", "abc", str(scene))
        assert tags["TIFFTAG_SOFTWARE"].startswith("skysense")
        assert tags["CLASS_6"] == "class 6"
        assert dataset.compression.name == "lzw"


def test_two_modalities_on_their_own_grids(tmp_path, write_raster, use_task):
    seen = []

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Shapes(Mirror):
        def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
            seen.append({name: tuple(series.pixels.shape[1:]) for name, series in batch.epochs[0].items()})
            return Mirror.scores(self, model, batch)

    s2 = modalities.load("s2", {"bands": ["B04"]})
    use_task(Shapes(classes=NAMES), hr=modalities.load("hr", {"bands": ["red"], "window": 128}), s2=s2)
    hr = write_raster(tmp_path / "hr.tif", codes((300, 300)), grid((300, 300)), names=("red",))
    dates = []
    for date in ("20240105", "20240215"):
        far = GeoBox((30, 30), Affine(20, 0, 499_900, 0, -20, 4_000_100), "EPSG:32636")
        dates.append(write_raster(tmp_path / f"s2_{date}.tif", np.ones((1, 30, 30), np.uint16), far, names=("B04",)))
    result = run(hr, tmp_path / "map.tif", inputs=(f"hr={hr}", *(f"s2={path}" for path in dates)))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), codes((300, 300)))
    assert seen[0] == {"hr": (1, 1, 128, 128), "s2": (2, 1, 4, 4)}
    alone = run(hr, tmp_path / "alone.tif", inputs=(f"hr={hr}",))
    assert not any("not given" in note for note in result.notes)
    assert "s2 is not given: predicted without it" in alone.notes
    with pytest.raises(UsageError, match=r"reads hr, s2: which is it\?"):
        run(hr, tmp_path / "bare.tif")
    with pytest.raises(UsageError, match="no input for hr"):
        run(hr, tmp_path / "bare.tif", inputs=(f"s2={dates[0]}",))
    with pytest.raises(UsageError, match="unknown modality 's3'"):
        run(hr, tmp_path / "bare.tif", inputs=(f"hr={hr}", f"s3={dates[0]}"))


def test_the_reference_model_from_its_folder(tmp_path, write_raster):
    """The real thing at the smallest size: a saved SkySense model, three bands, a COG on the scene's grid."""
    torch.manual_seed(0)
    task = Segmentation(classes=("field", "forest"))
    hr = {"hr": modalities.load("hr", {"window": 128})}
    model = task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), hr)).eval()
    save_model(tmp_path / "model", model, task, name="tiny fields", training={}, metrics={}, licence="MIT")
    pixels = np.random.default_rng(0).integers(1, 255, (3, 150, 170), dtype=np.uint8)
    scene = write_raster(tmp_path / "scene.tif", pixels, grid((150, 170)), photometric="RGB")
    outputs = {"probabilities": True, "confidence": "max", "preview": tmp_path / "map.png"}
    result = run(scene, tmp_path / "map.tif", model=tmp_path / "model", **outputs)
    assert result.model == "tiny fields"
    assert result.paths[-1].read_bytes().startswith(b"\x89PNG")
    probabilities = read(tmp_path / "map_probabilities.tif").astype(int)
    assert (abs(probabilities.sum(axis=0) - 254) <= 1).all()
    confident = abs(probabilities[0] - probabilities[1]) > 1
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0][confident], probabilities.argmax(axis=0)[confident])


def test_the_packaged_model_that_reads_the_scene_is_chosen(scene, tmp_path, monkeypatch, use_task):
    use_task(Mirror(classes=NAMES))
    load, other = predict.job.load_description, modalities.load("s1")
    folders = {"reads-red": Path("a"), "reads-sar": Path("b")}

    def describe(path: Path) -> Description:
        from dataclasses import replace

        return load(path) if path == Path("a") else replace(load(path), name="reads-sar", modalities={"s1": other})

    monkeypatch.setattr(predict.job, "load_description", describe)
    monkeypatch.setattr(predict.job, "packaged_models", lambda: folders)
    result = run(scene, tmp_path / "map.tif", model=None)
    assert "the packaged one for red" in result.notes[0]
    monkeypatch.setattr(predict.job, "packaged_models", lambda: {"reads-red": Path("a"), "too": Path("a")})
    with pytest.raises(UsageError, match="several packaged models"):
        run(scene, tmp_path / "other.tif", model=None)
    monkeypatch.setattr(predict.job, "packaged_models", lambda: {"reads-sar": Path("b")})
    with pytest.raises(UsageError, match=r"(?s)no packaged model.*reads-sar: no band is called VV"):
        run(scene, tmp_path / "other.tif", model=None)


def test_what_is_wrong_is_said_before_any_work(scene, tmp_path, write_raster, use_task, monkeypatch):
    use_task(Mirror(classes=NAMES))
    out = tmp_path / "map.tif"

    def refused(match: str, error: type[SkysenseError] = UsageError, **settings) -> None:
        monkeypatch.setattr(predict.job, "sweep", None)
        with pytest.raises(error, match=match):
            run(**{"scene": scene, "out": out, **settings})
        assert not out.exists()

    refused(r"(?s)outside the scene: .* in EPSG:32636; the scene is 500000, .*--bbox-crs", bbox=(0.0, 0.0, 1.0, 1.0))
    refused(r"the box lies outside (?!(.|\n)*bbox-crs)", bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="EPSG:32636")
    refused("--bbox-crs EPSG:99999999: no such CRS", bbox=(0.0, 0.0, 1.0, 1.0), bbox_crs="EPSG:99999999")
    refused("no such folder", SkysenseError, out=tmp_path / "missing" / "map.tif")
    refused("not the name of a GeoTIFF", out=tmp_path / "map.png")
    refused("no such file", SkysenseError, scene=tmp_path / "scene.tiff")
    far = GeoBox((5, 5), Affine(10, 0, 0, 0, -10, 0), "EPSG:32636")
    refused("--like", like=write_raster(tmp_path / "far.tif", np.zeros((1, 5, 5), np.uint8), far))
    coarse = write_raster(tmp_path / "coarse.tif", codes((20, 20)), grid((20, 20), 10.0), names=("red",))
    refused(r"(?s)pixels are 10 m, the model's 0\.3 m.*gdalwarp", scene=coarse)
    unnamed = write_raster(tmp_path / "nir.tif", codes((20, 20)), grid((20, 20)), names=("nir",))
    refused(r"(?s)red.*--bands", scene=unnamed)
    placeless = write_raster(tmp_path / "placeless.tif", codes((20, 20)), names=("red",))
    refused("CRS", SkysenseError, scene=placeless)
    refused("--overlap", overlap=60)
    refused("not available", device="cuda:7")


def test_an_existing_map_is_kept_unless_told_otherwise(scene, tmp_path, use_task):
    use_task(Mirror(classes=NAMES))
    (tmp_path / "map_confidence.tif").write_text("precious")
    with pytest.raises(UsageError, match=r"map_confidence\.tif exists"):
        run(scene, tmp_path / "map.tif", confidence="max")
    assert not (tmp_path / "map.tif").exists()
    run(scene, tmp_path / "map.tif", confidence="max", overwrite=True)
    assert read(tmp_path / "map_confidence.tif").shape == (1, 200, 333)


def test_another_product_level_is_refused(tmp_path, write_raster, use_task):
    use_task(Mirror(classes=NAMES), s2=modalities.load("s2", {"bands": ["B04"]}))
    pixels = codes((70, 70)).astype(np.uint16)
    scene = write_raster(tmp_path / "T36_20240101T101010_B04.tif", pixels, grid((70, 70), 10.0), names=("B04",))
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(PROCESSING_LEVEL="Level-1C", PRODUCT_TYPE="S2MSI1C")
    with pytest.raises(UsageError, match="is L1C, and the model was trained on L2A"):
        run(scene, tmp_path / "map.tif")


def test_a_failing_writer_or_model_leaves_nothing(scene, tmp_path, use_task, monkeypatch):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Broken(Mirror):
        def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
            raise SkysenseError("the third window is cursed")

    use_task(Broken(classes=NAMES))
    with pytest.raises(SkysenseError, match="cursed"):
        run(scene, tmp_path / "map.tif")
    assert list(tmp_path.iterdir()) == [scene]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "writer"))]


def test_an_interrupt_ends_with_130_and_leaves_nothing(scene, tmp_path, use_task):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Slow(Mirror):
        def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            return Mirror.scores(self, model, batch)

    use_task(Slow(classes=NAMES))
    with pytest.raises(Interrupted) as caught:
        run(scene, tmp_path / "map.tif")
    assert caught.value.exit_code == 130
    assert list(tmp_path.iterdir()) == [scene]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height():
    """2,048 px wide, valid throughout; eight times as high takes at most a tenth more."""
    script = Path(__file__).parents[1] / "benchmarks" / "memory.py"

    def peak(height: int) -> int:
        command = [sys.executable, str(script), "--child", str(height), "2048", "nano"]
        return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])

    assert peak(16_384) <= 1.1 * peak(2048)


def test_pixels_that_the_model_is_not_sure_of_get_no_class(scene, tmp_path, use_task):
    use_task(Glance(classes=NAMES))
    whole = run(scene, tmp_path / "whole.tif", confidence="max")
    with rasterio.open(tmp_path / "whole_confidence.tif") as dataset:
        sure = dataset.read(1) * dataset.scales[0]
    assert 'classificationMax="1"' in (tmp_path / "whole_confidence.qml").read_text()
    limit = float(np.median(sure))
    result = run(scene, tmp_path / "map.tif", unsure=limit, polygons=tmp_path / "map.gpkg")
    drawn, plain = read(tmp_path / "map.tif")[0], read(tmp_path / "whole.tif")[0]
    clear = abs(sure - limit) > 1 / 254  # confidence is stored in steps
    assert (drawn[clear & (sure < limit)] == UNSURE).all()
    assert (drawn[clear & (sure > limit)] == plain[clear & (sure > limit)]).all()
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.tags()[f"CLASS_{UNSURE}"] == "unsure"
        assert dataset.colormap(1)[UNSURE] == (140, 140, 140, 255)
    assert 'label="unsure"' in (tmp_path / "map.qml").read_text()
    assert open_result(str(tmp_path / "map.tif")).product.unsure
    polygons = gpd.read_file(tmp_path / "map.gpkg")
    assert set(polygons["name"]) <= set(NAMES)
    assert sum(one.square_metres for one in result.classes) < sum(one.square_metres for one in whole.classes)
