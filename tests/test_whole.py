"""Tasks whose answer is one class, some tags or a value: learnt, measured, and mapped over a scene."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from sklearn.metrics import average_precision_score, f1_score

from skysense_cli.app import main
from skysense_core import config, modalities, sources
from skysense_core.checkpoint import load_model, save_model
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.evaluate import EvaluateConfig, evaluate
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.metrics import ImageMetrics, TagMetrics, ValueMetrics
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.predict.chips import are_chips, predict_chips
from skysense_core.sources.class_folders import ClassFolders
from skysense_core.tasks.multilabel import Multilabel
from skysense_core.tasks.regression import Regression
from skysense_core.types import IGNORE, Tags, ValueMap

CLASSES = ("forest", "sand", "sea")
HR = modalities.load("hr")
COLOURS = np.array([(40, 90, 30), (210, 190, 140), (30, 60, 120)], dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 24 to 40 pixels below Images/, six of each class."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for code, name in enumerate(CLASSES):
        (root / "Images" / name).mkdir(parents=True)
        for number in range(6):
            side = (24, 32, 40)[number % 3]
            pixels = np.clip(COLOURS[code][:, None, None] + rng.normal(0, 8, (3, side, side)), 0, 255)
            path = root / "Images" / name / f"{name}_{number}.png"
            with rasterio.open(path, "w", "PNG", width=side, height=side, count=3, dtype="uint8") as file:
                file.write(pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "scenes"
    train = {"steps": 40, "batch_size": 4, "validate_every": 20, "precision": "fp32"}
    given = {"data": {"path": str(folders)}, "task": {"name": "classification"}, "model": {"preset": "nano"}}
    given |= {"out": str(out), "train": train, "device": "cpu"}
    finetune(config.build(FinetuneConfig, given))
    return out


def test_classes_are_learnt_and_measured_beside_baselines(run: Path, tmp_path: Path) -> None:
    given = {"model": str(run), "out": str(tmp_path / "scores"), "baselines": True, "device": "cpu"}
    scores = evaluate(config.build(EvaluateConfig, given)).scores
    assert scores["model"]["oa"] == 1.0
    assert scores["model"]["support"] == 3
    assert scores["random_forest"]["oa"] == 1.0
    assert scores["majority"]["oa"] == pytest.approx(1 / 3)
    assert (tmp_path / "scores" / "confusion.png").is_file()
    assert json.loads((run / "metrics.json").read_text())["classes"].keys() == set(CLASSES)


def test_a_scene_becomes_a_map_with_a_pixel_for_every_window(run: Path, tmp_path: Path, write_raster) -> None:
    """Two halves of the scene, whose border is one of windows, get the classes that they show."""
    window = load_model(run, torch.device("cpu")).modalities["hr"].window
    assert window == 64  # whole tokens for the largest picture, of 40 pixels
    grid = GeoBox(
        (2 * window, 3 * window), Affine(0.3, 0, 0.3 * window * 9000, 0, -0.3, 0.3 * window * 9000), "EPSG:32636"
    )
    halves = np.repeat(COLOURS[[0, 2]].T[:, None, :], 2 * window, axis=1).repeat((window, 2 * window), axis=2)
    scene = write_raster(tmp_path / "scene.tif", halves, grid, names=HR.band_names)
    given = PredictConfig(inputs=(str(scene),), model=run, out=tmp_path / "map.tif", device="cpu", confidence="max")
    predict(given)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.res == pytest.approx((0.3 * window, 0.3 * window))
        assert file.bounds == pytest.approx(tuple(grid.boundingbox))
        assert [file.tags()[f"CLASS_{code}"] for code in file.read(1).ravel()] == ["forest", "sea", "sea"] * 2


def test_parts_are_those_of_folders_or_lists_or_shares(folders: Path, tmp_path: Path) -> None:
    source = ClassFolders(path=folders)
    assert sources.detect(folders) == "class_folders"
    parts = {part: source.open(part, {"hr": HR}) for part in ("train", "val", "test")}
    names = {part: {split[index].id for index in range(len(split))} for part, split in parts.items()}
    assert [len(one) for one in names.values()] == [9, 6, 3] or [len(one) for one in names.values()] == [12, 3, 3]
    assert len(set.union(*names.values())) == 18
    few = ClassFolders(path=folders, train_share=0.5)
    assert len(few.open("test", {"hr": HR})) == 9
    (tmp_path / "Images").symlink_to(folders / "Images")
    (tmp_path / "train.txt").write_text("forest_0.png\nsand_1\nsea_2\n")
    (tmp_path / "val.txt").write_text("sea_3\n")
    listed = ClassFolders(path=tmp_path)
    assert [listed.open("train", {"hr": HR}).label(index) for index in range(3)] == [Tags(codes=(n,)) for n in range(3)]
    assert listed.open("val", {"hr": HR})[0].id == "Images/sea/sea_3.png"
    with pytest.raises(SkysenseError, match="the test part is empty"):
        listed.open("test", {"hr": HR})
    (tmp_path / "val.txt").write_text("lake_3\n")
    with pytest.raises(SkysenseError, match=r"val\.txt: no picture lake_3"):
        listed.open("val", {"hr": HR})
    with pytest.raises(SkysenseError, match="no folder lake"):
        ClassFolders(path=folders, classes=("lake", "sea")).open("train", {"hr": HR})


@pytest.mark.parametrize(
    ("folder", "classes"),
    [
        ("scene_cls/sat6", ("barren_land", "building", "grassland", "roads", "trees", "water")),
        ("layouts/UCMerced_LandUse", ("airplane", "forest")),
        ("layouts/EuroSAT_RGB", ("AnnualCrop", "Pasture", "SeaLake")),
    ],
)
def test_real_layouts_are_read(shared_data: Path, folder: str, classes: tuple[str, ...]) -> None:
    source = ClassFolders(path=shared_data / folder)
    assert ClassFolders.detect(shared_data / folder)
    split = source.open("train", {"hr": HR})
    assert split.classes == classes
    sample = split[0]
    assert sample.epochs[0]["hr"].pixels.shape[-2:] == split.size(0)
    assert sample.epochs[0]["hr"].valid.all()
    assert classes[sample.label.codes[0]] in sample.id


def test_scores_of_one_class_count_the_five_best() -> None:
    metrics = ImageMetrics(tuple("abcdefg"))
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).expand(4, 7)[..., None, None]
    metrics.update(scores, torch.tensor([0, 4, 5, IGNORE], dtype=torch.uint8))
    found = metrics.compute()
    assert (found["support"], found["oa"], found["top5"]) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_scores_of_tags_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, scores = (
        (rng.random((60, 4)) < (0.5, 0.2, 0.7, 0.0)).astype(np.uint8),
        rng.random((60, 4)).astype(np.float32),
    )
    metrics = TagMetrics(("a", "b", "c", "never"))
    for part in (slice(0, 25), slice(25, 60)):
        metrics.update(torch.from_numpy(scores[part])[..., None, None], torch.from_numpy(truth[part]))
    found = metrics.compute()
    assert found["map_micro"] == pytest.approx(average_precision_score(truth, scores, average="micro"), abs=1e-5)
    macro = average_precision_score(truth[:, :3], scores[:, :3], average="macro")
    assert found["map_macro"] == pytest.approx(macro, abs=1e-5)
    f1 = f1_score(truth[:, :3], scores[:, :3] > 0.5, average=None)
    assert [one["f1"] for one in found["classes"].values()] == [*(pytest.approx(one, abs=1e-5) for one in f1), None]


def test_errors_of_values_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.normal(10, 3, (4, 8, 8)), rng.normal(10, 3, (4, 1, 8, 8))
    truth[rng.random(truth.shape) < 0.3] = np.nan
    metrics = ValueMetrics()
    for part in (slice(0, 1), slice(1, 4)):
        metrics.update(torch.from_numpy(scores[part]), torch.from_numpy(truth[part]))
    known = np.isfinite(truth)
    error = (scores[:, 0] - truth)[known]
    found = metrics.compute()
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["r2"] == pytest.approx(1 - (error**2).mean() / truth[known].var())
    assert found["support"] == known.sum()


def saved(folder: Path, task: Multilabel | Regression) -> Path:
    torch.manual_seed(0)
    model = task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), {"hr": HR}))
    save_model(folder, model, task, name="it", training={}, metrics={}, licence="none")
    return folder


def test_a_map_of_values_has_their_unit_and_no_data_where_nothing_is_seen(tmp_path: Path, write_raster) -> None:
    task = Regression(quantity="moisture", unit="%", mean=50.0, std=10.0)
    grid = GeoBox((80, 96), Affine(0.3, 0, 400000, 0, -0.3, 5000000), "EPSG:32636")
    pixels = np.random.default_rng(0).integers(1, 255, (3, 80, 96), dtype=np.uint8)
    pixels[:, :20] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, grid, names=HR.band_names, nodata=0)
    given = {"inputs": (str(scene),), "model": saved(tmp_path / "model", task), "out": tmp_path / "map.tif"}
    predict(PredictConfig(**given, device="cpu"))
    with rasterio.open(tmp_path / "map.tif") as file:
        values = file.read(1)
        assert (file.dtypes, file.descriptions, file.tags()["UNIT"]) == (("float32",), ("moisture",), "%")
    assert np.isnan(values[:20]).all()
    assert np.isfinite(values[20:]).all()
    assert values[20:].std() > 0
    for changes in ({"confidence": "max"}, {"probabilities": True}, {"polygons": tmp_path / "p.gpkg"}):
        with pytest.raises(UsageError, match=r"no probabilities|needs a map of classes"):
            predict(PredictConfig(**given, device="cpu", overwrite=True, **changes))


def test_a_map_of_tags_has_a_score_for_each(tmp_path: Path, write_raster) -> None:
    task = Multilabel(classes=CLASSES)
    grid = GeoBox((512, 512), Affine(0.3, 0, 0.3 * 512 * 2000, 0, -0.3, 0.3 * 512 * 9000), "EPSG:32636")
    pixels = np.random.default_rng(0).integers(1, 255, (3, 512, 512), dtype=np.uint8)
    scene = write_raster(tmp_path / "scene.tif", pixels, grid, names=HR.band_names)
    predict(PredictConfig(inputs=(str(scene),), model=saved(tmp_path / "model", task), out=tmp_path / "map.tif"))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert (file.count, file.shape) == (3, (1, 1))
        assert file.descriptions == tuple(f"probability of {name}" for name in CLASSES)
        assert 0 < file.read().max() <= 254


def test_labels_of_another_kind_are_refused() -> None:
    with pytest.raises(SkysenseError, match="multilabel needs samples with tags"):
        Multilabel(classes=CLASSES).encode(ValueMap(values=np.zeros((2, 2))), (2, 2))
    with pytest.raises(SkysenseError, match="regression needs maps of values"):
        Regression().encode(Tags(codes=(1,)), (2, 2))
    assert Multilabel(classes=CLASSES).encode(Tags(codes=(0, 2)), (2, 2)).tolist() == [1, 0, 1]


def test_a_folder_of_pictures_becomes_a_table(run: Path, folders: Path, tmp_path: Path) -> None:
    """Every picture gets its class and probabilities that sum to one; csv and parquet say the same."""
    tables = []
    for name in ("table.csv", "table.parquet"):
        given = PredictConfig(inputs=(str(folders),), model=run, out=tmp_path / name, device="cpu", precision="fp32")
        assert are_chips(given)
        result = predict_chips(given)
        tables.append(pd.read_csv(result.path) if name.endswith("csv") else pd.read_parquet(result.path))
    assert result.pictures == 18
    assert result.classes == dict.fromkeys(CLASSES, 6)
    for table in tables:
        assert [Path(path).parent.name for path in table.path] == table["class"].tolist()
        assert (folders / table.path[0]).is_file()
        np.testing.assert_allclose(table[[f"probability of {name}" for name in CLASSES]].sum(axis=1), 1, atol=1e-5)
    pd.testing.assert_frame_equal(*tables, atol=1e-5)
    assert not are_chips(replace(given, out=tmp_path / "map.tif"))
    with pytest.raises(UsageError, match="exists"):
        predict_chips(given)
    with pytest.raises(UsageError, match="--preview is for maps"):
        predict_chips(replace(given, preview=tmp_path / "map.png", overwrite=True))


def test_pictures_that_cannot_be_read_are_named(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed, out = tmp_path / "mixed", tmp_path / "table.csv"
    shutil.copytree(folders / "Images" / "sea", mixed)
    (mixed / "broken.png").write_bytes(b"no picture")
    words = ["skysense", "predict", str(mixed), "--model", str(run), "--out", str(out), "--device", "cpu"]
    for more, code in (([], 1), (["--keep-going"], 3)):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        assert "broken.png" in capsys.readouterr().err
        assert out.exists() is (code == 3)
    assert len(pd.read_csv(out)) == 6
    assert json.loads((tmp_path / "failures.jsonl").read_text())["path"] == "broken.png"
