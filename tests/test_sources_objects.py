"""Data sets of detection in their official layouts, and what is odd in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from odc.geo.geobox import GeoBox

from skysense_core import config, modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.evaluate import EvaluateConfig, evaluate
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.geo import boxes
from skysense_core.sources.coco import Coco
from skysense_core.sources.dior import Dior
from skysense_core.sources.dior_r import DiorR
from skysense_core.sources.dota import Dota
from skysense_core.sources.fair1m import Fair1m
from skysense_core.sources.vector_boxes import VectorBoxes
from skysense_core.tasks.detection import Detection
from skysense_core.types import Objects

HR = {"hr": modalities.load("hr")}
SIDE = 96


def picture(path: Path, write_raster: Callable[..., Path], driver: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (3, SIDE, SIDE)).astype(np.uint8)
    return write_raster(path, pixels, driver=driver)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco_table(names: list[str], annotations: list[dict]) -> str:
    images = [{"id": i, "file_name": name, "width": SIDE, "height": SIDE} for i, name in enumerate(names)]
    categories = [{"id": 7, "name": "ship"}, {"id": 3, "name": "car"}]
    rows = [{"id": i, "iscrowd": 0, **one} for i, one in enumerate(annotations)]
    return json.dumps({"info": {}, "images": images, "categories": categories, "annotations": rows})


def write_coco(folder: Path, write_raster: Callable[..., Path], annotations: list[dict] | None = None) -> Path:
    names = [f"a {number}.png" for number in range(5)]
    for name in names:
        picture(folder / "images" / name, write_raster)
    given = annotations or [{"image_id": i, "category_id": 3, "bbox": [10, 20, 30, 15]} for i in range(5)]
    write(folder / "annotations.json", coco_table(names, given))
    return folder


def test_coco_of_one_file_is_dealt_and_of_several_is_as_given(
    tmp_path: Path, write_raster: Callable[..., Path]
) -> None:
    folder = write_coco(tmp_path / "one", write_raster)
    assert sources.detect(folder) == "coco"
    parts = {part: Coco(path=folder).open(part, HR) for part in ("train", "val", "test")}
    ids = [part[i].id for part in parts.values() for i in range(len(part))]
    assert sorted(ids) == [f"a {number}" for number in range(5)]
    train = parts["train"]
    assert train.classes == ("car", "ship")  # in the order of their numbers
    label = train.label(0)
    assert isinstance(label, Objects)
    np.testing.assert_array_equal(label.corners, boxes.from_bounds(np.array([[10.0, 20, 40, 35]])))
    assert train[0].epochs[0]["hr"].pixels.shape == (1, 3, *train.size(0))
    several = tmp_path / "several"
    for year, name in (("train2017", "b.png"), ("val2017", "c.png")):
        picture(several / year / name, write_raster)
        box = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 9, 9]}
        write(several / "annotations" / f"instances_{year}.json", coco_table([name], [box]))
    assert sources.detect(several) == "coco"
    assert [Coco(path=several).open(part, HR)[0].id for part in ("train", "val")] == ["b", "c"]
    with pytest.raises(SkysenseError, match="test part"):
        Coco(path=several).open("test", HR)


def test_coco_faults_are_named(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    odd = [
        {"image_id": 0, "category_id": 3, "bbox": [10, 20, 0, 15]},
        {"image_id": 0, "category_id": 3, "bbox": [200, 20, 10, 15]},
        *({"image_id": i, "category_id": 7, "bbox": [80, 80, 30, 10]} for i in range(5)),
    ]
    folder = write_coco(tmp_path / "odd", write_raster, odd)
    parts = [Coco(path=folder).open(part, HR) for part in ("train", "val", "test")]
    notes = " ".join(note for part in parts for note in part.notes)
    assert "1 objects have no area" in notes
    assert "1 objects lie off the picture" in notes
    assert sum(len(part.label(i).codes) for part in parts for i in range(len(part))) == 5
    cars = Coco(path=folder, classes=("car",)).open("train", HR)
    with pytest.raises(SkysenseError, match="no object"):
        Detection().completed(cars)
    with pytest.raises(UsageError, match="bus: no category"):
        Coco(path=folder, classes=("bus",)).open("train", HR)
    write(folder / "annotations.json", coco_table(["a 0.png"], []))
    with pytest.raises(SkysenseError, match="no annotation in it"):
        Coco(path=folder).open("train", HR)
    write(folder / "annotations.json", coco_table(["gone.png"], [{"image_id": 0, "category_id": 3, "bbox": [0] * 4}]))
    with pytest.raises(SkysenseError, match=r"picture gone.png is not there"):
        Coco(path=folder).open("train", HR)
    write(folder / "annotations.json", coco_table(["a 0.png"], [{"image_id": 9, "category_id": 3, "bbox": [0] * 4}]))
    with pytest.raises(SkysenseError, match="of image 9 and category 3"):
        Coco(path=folder).open("train", HR)
    with pytest.raises(UsageError, match="not s2"):
        Coco(path=folder).open("train", {"s2": modalities.load("s2")})


def test_coco_of_estonia(shared_data: Path) -> None:
    source = Coco(path=shared_data / "detection" / "estonia_40cm")
    assert sources.detect(source.path) == "coco"
    parts = [source.open(part, HR) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [15, 5, 5]
    counts = sum(np.bincount(part.label(i).codes, minlength=6) for part in parts for i in range(len(part)))
    assert dict(zip(parts[0].classes, counts.tolist(), strict=True))["Building"] == 305
    assert counts.sum() >= 2370  # of 2,382: some are empty boxes
    assert parts[0][0].epochs[0]["hr"].pixels.shape == (1, 3, 500, 500)


def write_dota(folder: Path, write_raster: Callable[..., Path], part: str, text: str, names: list[str]) -> None:
    for name in names:
        picture(folder / part / "images" / f"{name}.png", write_raster)
        write(folder / part / "labelTxt" / f"{name}.txt", text)


def test_dota_with_its_headers_difficult_objects_and_patches(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    text = (
        "imagesource:GoogleEarth\ngsd:0.146\n10 10 30 14 28 24 8 20 small-vehicle 0\n40 40 60 40 60 60 40 60 ship 1\n"
    )
    folder = tmp_path / "dota"
    write_dota(folder, write_raster, "train", text, ["P0001__1024__0___0", "P0001__1024__824___0", "P0002"])
    write_dota(folder, write_raster, "val", "", ["P0003"])
    assert sources.detect(folder) == "dota"
    train = Dota(path=folder).open("train", HR)
    assert len(train) == 3
    assert len(train.classes) == 15
    assert [train.classes[code] for code in train.label(0).codes] == ["small-vehicle", "ship"]
    assert train.label(0).difficult.tolist() == [False, True]
    assert len(Dota(path=folder, version="2.0").open("train", HR).classes) == 18
    test = Dota(path=folder).open("test", HR)
    assert len(test.label(0).codes) == 0  # an empty file is a picture without objects
    assert "not public" in " ".join(test.notes)
    alone = tmp_path / "alone"
    write_dota(alone, write_raster, "train", text, [f"P{n}__1__0___{x}" for n in range(5) for x in (0, 800)])
    scenes = [
        {part[i].id.partition("__")[0] for i in range(len(part))}
        for part in (Dota(path=alone).open(name, HR) for name in ("train", "val"))
    ]
    assert scenes[0] | scenes[1] == {f"P{n}" for n in range(5)}
    assert not scenes[0] & scenes[1]


def test_dota_faults_are_named(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    folder = tmp_path / "dota"
    write_dota(folder, write_raster, "train", "1 1 9 1 9 9 1 9 submarine 0", ["P1", "P2", "P3"])
    with pytest.raises(SkysenseError, match=r"P1.txt: class 'submarine'"):
        Dota(path=folder).open("train", HR)
    path = write(folder / "train" / "labelTxt" / "P1.txt", "1 1 9 1 9 9 ship")
    with pytest.raises(SkysenseError, match=r"P1.txt, line 1"):
        Dota(path=folder).open("train", HR)
    path.unlink()
    with pytest.raises(SkysenseError, match="nothing of P1"):
        Dota(path=folder).open("train", HR)
    # A quadrangle that crosses itself becomes the rectangle about it
    write_dota(tmp_path / "bow", write_raster, "train", "10 10 30 30 30 10 10 30 ship 0", ["P1", "P2", "P3"])
    split = Dota(path=tmp_path / "bow").open("train", HR)
    assert boxes.areas(boxes.rectangles(split.label(0).corners)) == pytest.approx([400])


def voc(box: str, name: str = "ship") -> str:
    return f"<annotation><object><name>{name}</name>{box}<difficult>0</difficult></object></annotation>"


def test_dior_upright_and_oriented(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    folder = tmp_path / "dior"
    upright = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    corners = {"left_top": (20, 10), "right_top": (40, 20), "right_bottom": (35, 30), "left_bottom": (15, 20)}
    turned = "".join(f"<{a}_{k}>{v}</{a}_{k}>" for k, xy in corners.items() for a, v in zip("xy", xy, strict=True))
    for part, names, images in (
        ("train", ["00001"], "trainval"), ("val", ["00002"], "trainval"), ("test", ["11726"], "test")
    ):  # fmt: skip
        write(folder / "ImageSets" / "Main" / f"{part}.txt", "\n".join(names) + "\n")
        for name in names:
            picture(folder / f"JPEGImages-{images}" / f"{name}.jpg", write_raster, "JPEG")
            write(folder / "Annotations" / Dior.boxes / f"{name}.xml", voc(upright))
            write(folder / "Annotations" / DiorR.boxes / f"{name}.xml", voc(f"<robndbox>{turned}</robndbox>"))
    assert sources.detect(folder) == "dior"
    for part, name in (("train", "00001"), ("val", "00002"), ("test", "11726")):
        split = Dior(path=folder).open(part, HR)
        assert [split[i].id for i in range(len(split))] == [name]
    assert len(split.classes) == 20
    np.testing.assert_array_equal(split.label(0).corners, boxes.from_bounds(np.array([[10.0, 20, 40, 30]])))
    oriented = DiorR(path=folder).open("test", HR).label(0)
    assert oriented.corners[0].tolist() == [list(map(float, xy)) for xy in corners.values()]
    write(folder / "Annotations" / Dior.boxes / "11726.xml", voc("<bndbox><xmin>10</xmin></bndbox>"))
    with pytest.raises(SkysenseError, match=r"11726.xml: cannot be read: a box without ymin"):
        Dior(path=folder).open("test", HR)
    (folder / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(SkysenseError, match=r"val.txt: no such file"):
        Dior(path=folder).open("val", HR)


def test_fair1m(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    folder = tmp_path / "fair1m"
    ring = [(10, 10), (30, 20), (25, 30), (5, 20), (10, 10)]
    points = "".join(f"<point>{x}.0,{y}.0</point>" for x, y in ring)
    text = (
        "<annotation><objects><object><possibleresult><name>Boeing737</name></possibleresult>"
        f"<points>{points}</points></object></objects></annotation>"
    )
    for part, names in (("train/part1", "abc"), ("train/part2", "de"), ("validation", "f")):
        for name in names:
            picture(folder / part / "images" / f"{name}.tif", write_raster, "GTiff")
            write(folder / part / ("labelXmls" if "part2" in part else "labelXml") / f"{name}.xml", text)
    assert sources.detect(folder) == "fair1m"
    parts = {part: Fair1m(path=folder).open(part, HR) for part in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [4, 1, 1]
    assert parts["test"].label(0).corners[0].tolist() == [list(map(float, xy)) for xy in ring[:4]]
    assert len(parts["test"].classes) == 37
    (folder / "validation" / "labelXml" / "f.xml").unlink()
    with pytest.raises(SkysenseError, match=r"f.xml: cannot be read"):
        Fair1m(path=folder).open("test", HR)
    (folder / "train" / "part2" / "labelXmls").rename(folder / "elsewhere")
    with pytest.raises(SkysenseError, match="part2: no labelXml/ beside images/"):
        Fair1m(path=folder).open("train", HR)


def houses(tmp_path: Path, write_raster: Callable[..., Path]) -> tuple[dict[str, Any], list[shapely.Polygon]]:
    """A raster of 700 x 300 pixels of 0.3 m and sixty turned rectangles of 3 x 6 m, which may overlap."""
    grid = GeoBox.from_bbox((500000, 5000000, 500000 + 0.3 * 700, 5000000 + 0.3 * 300), "EPSG:32632", resolution=0.3)
    pixels = np.random.default_rng(0).integers(1, 255, (3, *grid.shape)).astype(np.uint8)
    raster = write_raster(tmp_path / "a.tif", pixels, grid, names=("red", "green", "blue"))
    rng, shapes = np.random.default_rng(1), []
    for x, y in rng.uniform((500005, 5000005), (500205, 5000085), (60, 2)):
        shapes.append(shapely.affinity.rotate(shapely.box(x, y, x + 6, y + 3), rng.uniform(0, 180)))
    frame = gpd.GeoDataFrame({"kind": ["house"] * 60}, geometry=shapes, crs=32632).to_crs(4326)
    frame.to_file(tmp_path / "houses.gpkg")
    return {"rasters": {"hr": str(raster)}, "labels": str(tmp_path / "houses.gpkg"), "label_column": "kind"}, shapes


def test_a_run_on_polygons_is_measured_on_other_rasters_as_objects_too(
    tmp_path: Path, write_raster: Callable[..., Path]
) -> None:
    where, _ = houses(tmp_path, write_raster)
    given = {
        "data": {"source": "vector_boxes", **where, "block": 1, "classes": {"house": "roof"}},
        "out": tmp_path / "run", "task": {"name": "oriented_detection"}, "model": {"preset": "nano"},
        "modalities": {"hr": {"window": 64}}, "train": {"steps": 1, "batch_size": 1}, "device": "cpu",
    }  # fmt: skip
    model = finetune(config.build(FinetuneConfig, given)).model
    elsewhere = write(tmp_path / "scenes.toml", '[[scene]]\nhr = "a.tif"\nlabels = "houses.gpkg"\nsplit = "test"\n')
    for number, data in enumerate(({"path": str(elsewhere)}, {"rasters": where["rasters"], "labels": where["labels"]})):
        found = evaluate(EvaluateConfig(model=model, data=data, out=tmp_path / f"{number}", device="cpu"))
        assert "roof" in found.scores["model"]["classes"]
    areas = {"source": "scenes", "path": str(elsewhere), "label_column": "kind", "unlabelled": "background"}
    with pytest.raises(UsageError, match="the model has roof"):
        evaluate(EvaluateConfig(model=model, data=areas, out=tmp_path / "areas", device="cpu"))


def test_polygons_over_a_raster_are_objects_each_once(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    where, shapes = houses(tmp_path, write_raster)
    hr = {"hr": modalities.load("hr", {"window": 96})}
    table = {"source": "vector_boxes", **where}
    _, source = sources.from_table({**table, "block": 1, "val_share": 0.1, "test_share": 0.8})
    assert isinstance(source, VectorBoxes)
    test = source.open("test", hr)
    assert test.classes == ("house",)
    counted = [test.label(i).corners[~test.label(i).difficult] for i in range(len(test))]
    sides = np.linalg.norm(np.diff(np.concatenate(counted), axis=1), axis=2)[:, :2]
    np.testing.assert_allclose(np.sort(sides, axis=1), [[10, 20]] * len(sides), rtol=0.01)  # 3 x 6 m in pixels
    # A window's objects lie where its sample shows them.
    index = next(i for i in range(len(test)) if len(test.label(i).codes))
    name, place = test.inner.windows[index]
    assert name == "a"
    whole = test.inner.scenes[name][0].grid
    x, y = whole.affine * tuple(test.label(index).corners[0].mean(axis=0) + np.array([place.col, place.row]))
    assert min(shape.centroid.distance(shapely.Point(x, y)) for shape in shapes) < 0.05
    assert len(np.concatenate([one for split in ("train", "val", "test") for one in _once(source, split, hr)])) <= 60
    _, areas = sources.from_table({**table, "unlabelled": "ignore"})
    with pytest.raises(UsageError, match="no object"):
        areas.open("train", hr)


def test_crossed_polygons_are_objects_and_flat_ones_are_named(
    tmp_path: Path, write_raster: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    grid = GeoBox.from_bbox((500000, 5000000, 500090, 5000090), "EPSG:32632", resolution=0.3)
    pixels = np.random.default_rng(0).integers(1, 255, (3, *grid.shape)).astype(np.uint8)
    raster = write_raster(tmp_path / "a.tif", pixels, grid, names=("red", "green", "blue"))
    bow = shapely.Polygon([(500030, 5000030), (500036, 5000033), (500036, 5000030), (500030, 5000033)])
    flat = shapely.Polygon([(500060, 5000060), (500066, 5000060), (500070, 5000060)])
    assert not bow.is_valid
    frame = gpd.GeoDataFrame({"kind": ["house", "house"]}, geometry=[bow, flat], crs=32632)
    frame.to_file(tmp_path / "houses.gpkg")
    table = {"source": "vector_boxes", "rasters": {"hr": str(raster)}, "labels": str(tmp_path / "houses.gpkg")}
    _, source = sources.from_table({**table, "label_column": "kind", "block": 1, "val_share": 0.1, "test_share": 0.8})
    split = source.open("test", {"hr": modalities.load("hr", {"window": 96})})
    assert "1 objects of a" in split.notes
    assert "1 rows have no polygon and are left out" in caplog.text
    ((corners, _),) = split.known.values()
    np.testing.assert_allclose(np.ptp(corners[0], axis=0), [20, 10], atol=0.1)  # 3 x 6 m in pixels


def _once(source: VectorBoxes, part: str, hr: dict) -> list[np.ndarray]:
    """Objects of a part that count, of windows that do not overlap."""
    split = source.open(part, hr)
    if part == "train":
        return []
    return [split.label(i).corners[~split.label(i).difficult] for i in range(len(split))]
