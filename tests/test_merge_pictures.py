"""A real object wherever the windows of a picture or a scene meet: found once, measured as a whole."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from torch import Tensor, nn

from skysense_core import modalities
from skysense_core.checkpoint import load_model, save_model
from skysense_core.data.batch import Batch
from skysense_core.data.chips import EvaluationChips
from skysense_core.data.loader import evaluation_loader
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.sources.coco import Coco
from skysense_core.tasks import evaluation_chips, measure
from skysense_core.tasks.detection import Detection

WINDOW, STRIDE = 128, 96
COLS, ROWS = 8, 12
HR = {"hr": modalities.load("hr", {"window": WINDOW, "gsd": 0.4})}
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder(Detection):
    """Finds copies of one object by their pixels, and boxes about what is visible of those that a border cuts."""

    looks: Any = None

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        one = torch.tensor([1 << 16, 1 << 8, 1], dtype=torch.int32)[:, None, None]  # a colour as one number
        images = (batch.epochs[0]["hr"].pixels[:, 0].to(torch.int32) * one).sum(dim=1, dtype=torch.int32)
        template = (torch.from_numpy(self.looks).to(torch.int32) * one).sum(dim=0)
        height, width = template.shape
        around = (width, width, height, height)
        inside = F.pad(torch.ones(WINDOW, WINDOW, dtype=torch.bool), around)
        images, sides = F.pad(images, around), (WINDOW + height, WINDOW + width)
        wrong = torch.zeros(len(images), *sides, dtype=torch.bool)
        visible = torch.zeros(sides)
        for row in range(0, height, 4):
            for col in range(0, width, 4):
                place = slice(row, row + sides[0]), slice(col, col + sides[1])
                wrong |= inside[place] & (images[:, *place] != template[row, col])
                visible += inside[place]
        visible /= visible.max()
        hits = (~wrong & (visible > 0.3)).nonzero()
        rows: list[list[Tensor]] = [[] for _ in images]
        for index, y, x in hits.tolist():
            left, right = (min(max(at, 0), WINDOW) for at in (x - width, x))
            top, bottom = (min(max(at, 0), WINDOW) for at in (y - height, y))
            box = [left, top, right, top, right, bottom, left, bottom]
            rows[index].append(torch.tensor([*box, 0, float(visible[y, x])]))
        most = max(map(len, rows))
        empty = torch.full((most, 10), torch.nan)
        return torch.stack([torch.cat([torch.stack(own), empty])[:most] if own else empty for own in rows])


@pytest.fixture(scope="module")
def looks(shared_data: Path) -> np.ndarray:
    """A building of Estonia, as its box cuts it out."""
    source = Coco(path=shared_data / "detection" / "estonia_40cm", classes=("Building",))
    split = source.open("train", {"hr": modalities.load("hr")})
    for index in range(len(split)):
        low, high = (split.label(index).corners[:, at].round().astype(int) for at in (0, 2))
        for (left, top), (right, bottom) in zip(low, high, strict=True):
            if 16 <= right - left <= 28 and 16 <= bottom - top <= 28:
                building = split[index].epochs[0]["hr"].pixels[0, :, top:bottom, left:right]
                if building.shape[1:] == (bottom - top, right - left):
                    return building
    raise AssertionError("no building of this size")


@pytest.fixture(scope="module")
def scene(shared_data: Path, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real ground with the building at every place that a border of windows can have to it, across and along."""
    source = Coco(path=shared_data / "detection" / "estonia_40cm")
    ground = source.open("test", {"hr": modalities.load("hr")})[0].epochs[0]["hr"].pixels[0]  # of another place
    height, width = (ROWS + 1) * STRIDE, (COLS + 1) * STRIDE
    ground = np.tile(ground, (1, 3, 3))[:, :height, :width].copy()
    _, high, wide = looks.shape
    places = []
    for row in range(ROWS):
        for col in range(COLS):
            left = col * STRIDE + (col * ROWS + row)  # every column modulo the stride
            top = row * STRIDE + (row * COLS + col)  # and every row
            ground[:, top : top + high, left : left + wide] = looks
            places.append((left, top))
    return ground, np.array(places)


def test_every_place_of_a_seam_is_tried(scene: tuple[np.ndarray, np.ndarray]) -> None:
    for axis in (0, 1):
        assert sorted(set((scene[1][:, axis] % STRIDE).tolist())) == list(range(STRIDE))


def test_a_large_picture_is_measured_as_a_whole(
    tmp_path: Path, looks: np.ndarray, scene: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, places = scene
    _, high, wide = looks.shape
    annotations = [
        {"id": n, "image_id": n % 2, "category_id": 1, "bbox": [int(x), int(y), wide, high]}
        for n, (x, y) in enumerate(np.repeat(places, 2, axis=0).tolist())
    ]
    for name in ("a.png", "b.png"):
        Image.fromarray(np.moveaxis(pixels, 0, 2)).save(tmp_path / name)
    images = [{"id": n, "file_name": name} for n, name in enumerate(("a.png", "b.png"))]
    table = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Building"}]}
    for part in ("train", "test"):
        (tmp_path / f"{part}.json").write_text(json.dumps(table))
    split, task = Coco(path=tmp_path).open("test", HR), Finder(classes=("Building",), looks=looks)
    chips = evaluation_chips(task, split, HR)
    assert len(chips) // 2 % 16  # a batch crosses from one picture into the next
    batches = evaluation_loader(chips, batch_size=16, workers=0)
    scores = measure(task, nn.Identity(), batches, CPU, "fp32", chips=chips)
    assert scores["support"] == scores["detections"] == 2 * len(places)
    assert scores["map50"] == scores["coco_map"] == 1.0
    apart = EvaluationChips(split, HR, task.encode)
    alone = measure(task, nn.Identity(), evaluation_loader(apart, batch_size=16, workers=0), CPU, "fp32")
    assert alone["detections"] > alone["support"]  # those that a border cuts are found in parts
    assert alone["map50"] < 1


def test_a_scene_has_each_object_once(tmp_path: Path, looks: np.ndarray, scene: Any, write_raster: Any) -> None:
    pixels, places = scene
    grid = GeoBox(pixels.shape[1:], Affine(0.4, 0, 0.4 * 9600 * 130, 0, -0.4, 0.4 * 9600 * 1300), "EPSG:32635")
    path = write_raster(tmp_path / "scene.tif", pixels, grid, names=HR["hr"].band_names)
    made = Detection(classes=("Building",))
    model = made.build_model(SkySense(ModelSpec(preset="nano", fusion=False), HR))
    save_model(tmp_path / "model", model, made, name="any", training={}, metrics={}, licence="none")
    loaded = replace(load_model(tmp_path / "model", CPU), task=Finder(classes=("Building",), looks=looks))
    given = PredictConfig(inputs=(str(path),), model=tmp_path / "model", out=tmp_path / "buildings.gpkg", device="cpu")
    predict(replace(given, precision="fp32"), loaded)
    found = gpd.read_file(tmp_path / "buildings.gpkg")
    assert len(found) == len(places)
    _, high, wide = looks.shape
    centres = places + np.array([wide / 2, high / 2])
    x, y = grid.affine * tuple(centres.T)
    apart = np.hypot(found.centroid.x.to_numpy()[:, None] - x, found.centroid.y.to_numpy()[:, None] - y)
    assert sorted(apart.argmin(axis=1).tolist()) == list(range(len(places)))
    assert apart.min(axis=1).max() < 0.01
