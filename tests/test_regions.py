"""A grid over anything, in pixels that meet; regions from files and stdin; and the parts of a scene equal the whole."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_cli.app import main
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.regions import Region, cut, over, read_regions, text_of, write_regions
from skysense_core.geo.vector import load_aoi
from skysense_core.geo.windows import Window
from skysense_core.mosaic import MosaicConfig, mosaic
from skysense_core.predict import PredictConfig, predict
from skysense_core.regions import RegionsConfig, RegionsResult, regions

UTM = "EPSG:32633"
GRID = GeoBox((300, 400), Affine(0.2, 0, 390_000.3, 0, -0.2, 5_820_000.7), UTM)


@pytest.fixture
def scene(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Blocks of colour with noise in them, 60 x 80 m."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(30, 220, (3, 15, 20)), np.ones((1, 20, 20), dtype=int))
    pixels = (blocks + rng.integers(-25, 25, blocks.shape)).astype(np.uint8)
    return write_raster(tmp_path / "scene.tif", pixels, GRID, photometric="RGB")


def run(scene: Path | None = None, **settings) -> RegionsResult:
    return regions(RegionsConfig(inputs=() if scene is None else (str(scene),), **settings))


def test_the_regions_of_a_scene_predicted_one_by_one_are_the_whole(tmp_path, scene):
    """With the packaged model: every file byte for byte, classes, confidence and probabilities."""

    def settings(out: Path) -> PredictConfig:
        # One window at a time: the last bits of a product of matrices depend on how many there are.
        return PredictConfig(inputs=(str(scene),), out=out, batch_size=1, confidence="max", jobs=2)

    predict(settings(tmp_path / "whole.tif"))
    (tmp_path / "parts").mkdir()
    found = run(scene, size="230").regions
    assert [region.id for region in found] == ["r00_c00", "r00_c01", "r01_c00", "r01_c01"]
    for region in found:
        bbox = tuple(map(float, text_of(region.bounds).split(",")))
        predict(replace(settings(tmp_path / "parts" / f"{region.id}.tif"), bbox=bbox))
    for kind in ("", "_confidence"):
        mosaic(MosaicConfig(inputs=(str(tmp_path / f"parts/r??_c??{kind}.tif"),), out=tmp_path / f"all{kind}.tif"))
        assert (tmp_path / f"all{kind}.tif").read_bytes() == (tmp_path / f"whole{kind}.tif").read_bytes()
    with rasterio.open(tmp_path / "all.tif") as dataset:
        assert set(np.unique(dataset.read())) <= {0, 1}
        assert dataset.shape == tuple(GRID.shape)


@pytest.mark.parametrize("size", [1000, 512, 333])
@pytest.mark.parametrize(
    "grid",
    [
        GeoBox((1000, 1300), Affine(0.2, 0, 390_000.3, 0, -0.2, 5_820_000.7), UTM),
        GeoBox((1000, 1300), Affine(2.7e-6, 0, 36.5, 0, -2.7e-6, -1.25), "EPSG:4326"),
        GeoBox((1000, 1300), Affine(0.373, 0, -4e6 / 3, 0, -0.373, 4.3e6 / 7), "EPSG:3857"),
        GeoBox((1000, 1300), Affine(0.1 / 3, 0, 390_000.1, 0, -0.1 / 3, 5_820_000.7), UTM),
    ],
    ids=["UTM", "degrees", "web mercator", "thirds"],
)
def test_as_text_they_cover_every_pixel_once(grid, size):
    covered = np.zeros(grid.shape, dtype=int)
    for region in cut(grid, size):
        xmin, ymin, xmax, ymax = map(float, text_of(region.bounds).split(","))
        window = over(grid, (xmin, ymin, xmax, ymax))
        covered[window.row : window.row_stop, window.col : window.col_stop] += 1
    assert (covered == 1).all()


def test_a_rotated_raster_is_covered_with_overlap():
    grid = GeoBox((500, 600), Affine(0.2, 0, 390_000.3, 0, -0.2, 5_820_000.7) * Affine.rotation(20), UTM)
    covered = np.zeros(grid.shape, dtype=int)
    for region in cut(grid, 200):
        window = over(grid, region.bounds)
        covered[window.row : window.row_stop, window.col : window.col_stop] += 1
    assert covered.min() >= 1


def test_ids_tell_row_and_column_and_sort():
    ids = [region.id for region in cut(GeoBox((2, 101), Affine(1, 0, 0, 0, -1, 0), UTM), 1)]
    assert ids[0] == "r000_c000"
    assert ids[101] == "r001_c000"
    assert ids == sorted(ids)


def test_an_area_keeps_the_regions_that_share_ground_with_it(tmp_path, scene):
    left, top = 390_000.3, 5_820_000.7
    # A triangle over the left and upper edge of a raster of 80 x 60 m; regions of 20 m begin at its corner.
    triangle = shapely.Polygon([(left, top), (left + 60, top), (left, top - 40)])
    path = tmp_path / "aoi.gpkg"
    gpd.GeoDataFrame(geometry=[triangle], crs=UTM).to_file(path)
    found = run(scene, size="20m", aoi=path)
    assert [region.id for region in found.regions] == ["r00_c00", "r00_c01", "r00_c02", "r01_c00", "r01_c01"]
    assert found.regions[4].bounds == pytest.approx((left + 20, top - 40, left + 40, top - 20))
    both = run(scene, size="20m", aoi=path, bbox=(left + 30, top - 20, left + 80, top))
    assert [region.bounds[0] for region in both.regions] == pytest.approx([left + 30, left + 50])


def test_without_a_raster_edges_are_round_and_sizes_are_metres(tmp_path):
    found = run(bbox=(13.1, 52.4, 13.9, 52.7), bbox_crs="EPSG:4326", crs=UTM, size="10km")
    bounds = np.array([region.bounds for region in found.regions])
    assert found.crs == UTM
    assert (bounds == bounds.round()).all()
    assert tuple(bounds[0, 2:] - bounds[0, :2]) == (10_000, 10_000)
    area = load_aoi((13.1, 52.4, 13.9, 52.7), UTM, bbox_crs="EPSG:4326")
    assert shapely.union_all(shapely.box(*bounds.T)).buffer(1e-6).covers(area)

    degrees = run(bbox=(13.1, 52.4, 13.2, 52.5), bbox_crs="EPSG:4326", size="5km")
    assert degrees.crs == "EPSG:4326"
    first = gpd.GeoSeries([shapely.box(*degrees.regions[0].bounds)], crs=4326).to_crs(UTM)
    assert first.area[0] == pytest.approx(25e6, rel=0.01)
    assert degrees.regions[-1].bounds[1] == pytest.approx(52.4, abs=1e-9)

    path = tmp_path / "aoi.geojson"
    gpd.GeoDataFrame(geometry=[shapely.box(13.1, 52.4, 13.2, 52.5)], crs=4326).to_file(path)
    assert run(aoi=path, size="5km") == degrees


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "5km"}, "nothing to cut"),
        ({"size": "5km", "bbox": (0.0, 0.0, 1.0, 1.0)}, "(?s)in which CRS.*--bbox-crs"),
        ({"size": "4096", "bbox": (0.0, 0.0, 1e5, 1e5), "crs": UTM}, "pixels of which raster"),
        ({"size": "5km", "bbox": (0.0, 0.0, 1.0, 1.0), "crs": "EPSG:0"}, "--crs EPSG:0: no such CRS"),
        ({"size": "1m", "bbox": (0.0, 0.0, 1e4, 1e4), "crs": UTM}, r"100,000,000 regions of 1 pixels: too many"),
    ],
)
def test_what_cannot_be_cut_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        run(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "0"}, "not a size"),
        ({"size": "12.5"}, "not whole pixels"),
        ({"size": "5 miles"}, "not a size"),
        ({"size": "100", "crs": UTM}, "--crs is for areas without a raster"),
        ({"size": "100", "bbox": (0.0, 0.0, 1.0, 1.0)}, "(?s)outside the raster: 0, 0, 1, 1; the raster is .*bbox-crs"),
        ({"size": "100", "out": Path("grid.shp")}, r"(?s)not a vector file.*\.gpkg"),
    ],
)
def test_what_does_not_suit_a_raster_is_refused(scene, settings, message):
    with pytest.raises(UsageError, match=message):
        run(scene, **settings)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson", ".fgb"])
def test_what_is_written_is_what_is_read(tmp_path, scene, suffix):
    out = tmp_path / f"grid{suffix}"
    found = run(scene, size="150", out=out)
    for again in (read_regions(out, UTM), read_regions(out, UTM, id_column="id")):
        order = sorted(again, key=lambda region: region.id)  # FlatGeobuf keeps an order of its own
        assert [region.id for region in order] == [region.id for region in found.regions]
        assert [region.polygon for region in order] == [None] * len(order)
        np.testing.assert_allclose(
            [region.bounds for region in order], [region.bounds for region in found.regions], rtol=0, atol=1e-6
        )
    with pytest.raises(UsageError, match=r"(?s)exists.*--overwrite"):
        run(scene, size="150", out=out)
    run(scene, size="400", out=out, overwrite=True)
    assert len(read_regions(out, UTM)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "scene.tif"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SkysenseError, match="missing: cannot write there"):
        write_regions([Region(id="a", bounds=(0.0, 0.0, 1.0, 1.0))], UTM, tmp_path / "missing" / "grid.gpkg")


@pytest.fixture
def counties(tmp_path: Path) -> Callable[..., Path]:
    """Two counties in degrees, one of them a triangle, with the columns that are given."""

    def write(**columns: list) -> Path:
        shapes = [shapely.box(13.1, 52.4, 13.2, 52.5), shapely.Polygon([(13.2, 52.4), (13.3, 52.4), (13.3, 52.5)])]
        path = tmp_path / "counties.gpkg"
        gpd.GeoDataFrame(columns, geometry=shapes, crs=4326).to_file(path)
        return path

    return write


def test_polygons_come_with_their_names_in_the_crs_of_the_scene(counties):
    path = counties(name=["Havelland (west)", "Märkisch-Oderland"], number=[7, 8])
    found = read_regions(path, UTM, id_column="name")
    assert [region.id for region in found] == ["Havelland (west)", "Märkisch-Oderland"]
    for region, shape in zip(found, gpd.read_file(path).to_crs(UTM).geometry, strict=True):
        assert region.polygon is not None
        assert region.polygon.equals(shape)
        assert region.bounds == shape.bounds
    assert [region.id for region in read_regions(path, UTM, id_column="number")] == ["7", "8"]
    assert [region.polygon is None for region in read_regions(path, "EPSG:4326", id_column="number")] == [True, False]


@pytest.mark.parametrize(
    ("columns", "id_column", "message"),
    [
        ({"name": ["a", "b"]}, None, "(?s)no column 'id'.*--id-column.*name"),
        ({"name": ["a", "b"]}, "nmae", "(?s)no column 'nmae'.*did you mean name"),
        ({"name": ["north", "north"]}, "name", "(?s)several regions have: north.*dissolve"),
        ({"name": ["north", None]}, "name", "1 regions have no name"),
        ({"name": ["a/b", "c"]}, "name", "cannot be file names: 'a/b'"),
        ({"name": ["..", ""]}, "name", r"cannot be file names: '\.\.', ''"),
        ({"name": ["x" * 201, "c"]}, "name", "cannot be file names: 'xxx"),
    ],
)
def test_ids_that_name_no_file_each_are_refused(counties, columns, id_column, message):
    with pytest.raises(UsageError, match=message):
        read_regions(counties(**columns), UTM, id_column=id_column)


def test_stdin_holds_what_the_command_prints(monkeypatch, capsys, scene):
    def skysense(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["skysense", "regions", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    lines = skysense(scene, "--size", "230")
    assert lines.splitlines()[0] == "r00_c00\t390000.3,5819954.7,390046.3,5820000.7"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    piped = read_regions("-", UTM)
    said = json.loads(skysense(scene, "--size", "230", "--json"))
    assert said["crs"] == UTM
    assert [(one["id"], one["bbox"]) for one in said["regions"]] == [
        (region.id, pytest.approx(region.bounds, abs=1e-9)) for region in piped
    ]


def test_lines_may_be_written_by_hand(monkeypatch):
    text = "# my regions\n\nBad Saarow\t13.1,52.4,13.2,52.5\neast 13.2,52.4,13.3,52.5 \n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    found = read_regions("-", UTM, bbox_crs="EPSG:4326")
    assert [region.id for region in found] == ["Bad Saarow", "east"]
    assert found[0].bounds == load_aoi((13.1, 52.4, 13.2, 52.5), UTM, bbox_crs="EPSG:4326").bounds
    assert found[0].polygon is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no region on stdin"),
        ("north 1,2,3,4\nsouth 1,2,3\n", "line 2: not a region: 'south 1,2,3'"),
        ("1,2,3,4\n", r"cannot be file names: ''"),
        ("north 1,2,3,4\nnorth 1,2,3,5\n", "stdin: ids that several regions have: north"),
        ("north 3,2,1,4\n", "not a box"),
    ],
)
def test_a_line_that_is_no_region_is_named(monkeypatch, text, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(UsageError, match=message):
        read_regions("-", UTM)


def test_a_window_over_nothing_is_empty():
    assert over(GRID, (0.0, 0.0, 1.0, 1.0)).empty
    assert over(GRID, GRID.boundingbox.bbox) == Window.of(GRID)
