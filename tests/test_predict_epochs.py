"""Prediction from before and after: order, grids, shifts, holes, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from skysense_core import modalities
from skysense_core.checkpoint import load_model, save_model
from skysense_core.data.batch import collate
from skysense_core.data.scene import open_epochs
from skysense_core.errors import UsageError
from skysense_core.export import ExportConfig, export
from skysense_core.geo.shift import shift_between
from skysense_core.inference import plan_sweep
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, PredictResult, predict
from skysense_core.tasks.change import Change

SIDE = 96
GRID = GeoBox((SIDE, SIDE), Affine(1.0, 0, 500000, 0, -1.0, 5000000), "EPSG:32633")
CPU = torch.device("cpu")
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of 1 m pixels: what it says is noise, but it says it of both dates."""
    wanted = {"hr": modalities.load("hr", {"gsd": 1.0, "window": 64})}
    torch.manual_seed(0)
    task = Change(classes=("unchanged", "changed"))
    built = task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), wanted))
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(folder, built, task, name="pairs", training={}, metrics={}, licence="none")
    return folder


@pytest.fixture
def pair(tmp_path: Path, write_raster: Write) -> tuple[Path, Path]:
    return tuple(
        write_raster(tmp_path / f"{name}.tif", pixels(seed), GRID, photometric="RGB")
        for seed, name in enumerate(("before", "after"))
    )


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    """Patches of eight pixels, so that there are edges."""
    rng = np.random.default_rng(seed)
    return rng.integers(10, 240, (3, side // 8, side // 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)


def run(model: Path, out: Path, *inputs: Path | str, **options: object) -> PredictResult:
    given = tuple(str(path) for path in inputs)
    return predict(PredictConfig(inputs=given, out=out, model=model, device="cpu", precision="fp32", **options))


def bands(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_the_map_is_what_the_model_says_of_both_dates(model: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(model, tmp_path / "map.tif", *pair, probabilities=True, window=128, overlap=0)
    loaded = load_model(model, CPU)
    stacks, later = open_epochs([str(path) for path in pair], loaded.modalities, {}, 2)
    plan = plan_sweep(stacks, loaded.modalities, window=128, shared=0, later=[later])
    sample = plan.scene.read(plan.lattice.windows(plan.region)[0])
    for epoch, path in zip(sample.epochs, pair, strict=True):
        np.testing.assert_array_equal(epoch["hr"].pixels[0, :, :SIDE, :SIDE], bands(path))
    with torch.no_grad():
        expected = loaded.task.scores(loaded.model, collate([sample]))[0, :, :SIDE, :SIDE].numpy()
    stored = bands(tmp_path / "map_probabilities.tif") / 254
    np.testing.assert_allclose(stored, expected, atol=1 / 254)
    np.testing.assert_array_equal(bands(tmp_path / "map.tif")[0], expected.argmax(axis=0))
    assert [one.name for one in result.classes] == ["unchanged", "changed"]
    run(model, tmp_path / "swapped.tif", *pair[::-1], probabilities=True, window=128, overlap=0)
    assert not np.array_equal(bands(tmp_path / "swapped_probabilities.tif"), bands(tmp_path / "map_probabilities.tif"))


def test_polygons_of_the_change_have_areas(model: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(model, tmp_path / "map.tif", *pair, polygons=tmp_path / "change.gpkg")
    frame = gpd.read_file(tmp_path / "change.gpkg")
    for one in result.classes:
        assert frame[frame["name"] == one.name]["area_m2"].sum() == pytest.approx(one.square_metres)


def test_the_second_date_is_warped_onto_the_first(
    model: Path, pair: tuple[Path, Path], tmp_path: Path, write_raster: Write
) -> None:
    """A larger picture, of which the one before shows a part, is read where the one before lies."""
    before, after = pair
    wide = np.zeros((3, SIDE + 40, SIDE + 40), dtype=np.uint8)
    wide[:, 24:-16, 8:-32] = bands(after)
    grid = GeoBox(wide.shape[1:], GRID.affine * Affine.translation(-8, -24), "EPSG:32633")
    other = write_raster(tmp_path / "wide.tif", wide, grid, photometric="RGB")
    run(model, tmp_path / "map.tif", before, after)
    result = run(model, tmp_path / "other.tif", before, other)
    np.testing.assert_array_equal(bands(tmp_path / "other.tif"), bands(tmp_path / "map.tif"))
    assert any("has another grid" in note for note in result.notes)
    lonlat = GRID.footprint("EPSG:4326").boundingbox
    degrees = GeoBox.from_bbox(lonlat, "EPSG:4326", shape=(SIDE, SIDE))
    result = run(model, tmp_path / "degrees.tif", before, write_raster(tmp_path / "ll.tif", pixels(1), degrees))
    assert any("another grid (EPSG:4326" in note for note in result.notes)
    with rasterio.open(tmp_path / "degrees.tif") as file:
        assert (file.crs.to_epsg(), file.shape, file.transform) == (32633, (SIDE, SIDE), GRID.affine)


def test_nothing_is_said_where_a_date_shows_nothing(
    model: Path, pair: tuple[Path, Path], tmp_path: Path, write_raster: Write
) -> None:
    holes = bands(pair[1])
    holes[:, :, :30] = 0
    after = write_raster(tmp_path / "holes.tif", holes, GRID, photometric="RGB", nodata=0)
    run(model, tmp_path / "map.tif", pair[0], after, observations=True)
    assert (bands(tmp_path / "map.tif")[0, :, :30] == 255).all()
    assert (bands(tmp_path / "map.tif")[0, :, 30:] < 2).all()
    assert (bands(tmp_path / "map_observations.tif")[0, :, 30:] == 1).all()


def test_a_displaced_date_is_found_in_metres(
    model: Path, pair: tuple[Path, Path], tmp_path: Path, write_raster: Write
) -> None:
    moved = np.roll(bands(pair[0]), (3, -4), axis=(1, 2))
    after = write_raster(tmp_path / "moved.tif", moved, GRID, photometric="RGB")
    result = run(model, tmp_path / "map.tif", pair[0], after)
    (note,) = (note for note in result.notes if "displaced" in note)
    assert "moved.tif seems displaced by 5 m (3 px down, 4 px left)" in note
    result = run(model, tmp_path / "same.tif", pair[0], write_raster(tmp_path / "same_.tif", bands(pair[0]), GRID))
    assert not any("displaced" in note for note in result.notes)


def test_shifts_of_real_pairs(shared_data: Path) -> None:
    """Chips with a flood between the dates: most are seen to lie still, and to be displaced once they are."""
    still = moved = clear = 0
    folder = shared_data / "change_flood" / "ombria" / "OmbriaS1" / "test"
    for path in sorted((folder / "BEFORE").iterdir()):
        after = folder / "AFTER" / path.name.replace("before", "after")
        one, two = (np.asarray(Image.open(file)).astype(np.float64) for file in (path, after))
        found = shift_between(one, two), shift_between(one[20:230, 20:230], two[17:227, 25:235])
        clear += found[0] is not None
        still += found[0] is not None and max(map(abs, found[0])) <= 1
        moved += found[1] is not None and abs(found[1][0] - 3) <= 1 and abs(found[1][1] + 5) <= 1
    assert clear >= 12
    assert still >= clear - 1
    assert moved >= 12


def test_what_cannot_be_compared_is_refused(
    model: Path, pair: tuple[Path, Path], tmp_path: Path, write_raster: Write
) -> None:
    before, after = pair
    with pytest.raises(UsageError, match="hr has 1 of 2 dates") as caught:
        run(model, tmp_path / "map.tif", before)
    assert "hr=BEFORE hr=AFTER" in caught.value.fix
    with pytest.raises(UsageError, match="hr has 3 of 2 dates"):
        run(model, tmp_path / "map.tif", before, after, after)
    away = GeoBox(GRID.shape, Affine.translation(5000, 0) * GRID.affine, "EPSG:32633")
    with pytest.raises(UsageError, match=r"away.tif does not overlap .*before.tif"):
        run(model, tmp_path / "map.tif", before, write_raster(tmp_path / "away.tif", pixels(1), away))
    coarse = GeoBox(GRID.shape, GRID.affine * Affine.scale(5), "EPSG:32633")
    with pytest.raises(UsageError, match="pixels are 5 m, the model's 1 m"):
        run(model, tmp_path / "map.tif", before, write_raster(tmp_path / "coarse.tif", pixels(1), coarse))
    with pytest.raises(UsageError, match="compares 2 dates"):
        export(ExportConfig(model=model, out=tmp_path / "model.pt2"))
    assert not list(tmp_path.glob("map*"))


def test_two_modalities_have_two_dates_each() -> None:
    wanted = {name: modalities.load(name) for name in ("s2", "s1")}
    with pytest.raises(UsageError, match="s1 has 1 of 2 dates"):
        open_epochs(["s1=a.tif", "s2=b.tif", "s2=c.tif"], wanted, {}, 2)
