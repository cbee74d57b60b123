"""Maps of DataArrays: equal to the map of the same file, lazily or at once, and nothing is read that is not needed."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import torch
import xarray as xr
from affine import Affine
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from torch import Tensor, nn

from skysense_core import modalities
from skysense_core.checkpoint import LoadedModel
from skysense_core.data.batch import Batch
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.array import open_array
from skysense_core.geo.raster import ReadOptions, open_stack
from skysense_core.modalities import Modality
from skysense_core.predict import PredictConfig, arrays, predict
from skysense_core.predict.arrays import predict_array
from skysense_core.tasks.segmentation import Segmentation

K = 5
HR = replace(modalities.load("hr", {"bands": ["red", "green"]}), window=64)
S2 = modalities.load("s2", {"bands": ["B04", "B08"]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance(Segmentation):
    """Probabilities that depend on the pixel, its neighbours, the whole window, and what other modalities show."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        images = batch.epochs[0]
        image = images["hr"].pixels.mean(dim=(1, 2))[:, None] / 60
        other = sum(
            (series.pixels.mean(dim=(1, 2, 3, 4)) / 1000 + series.day_of_year.float().mean(dim=1) / 365)
            for name, series in images.items()
            if name != "hr"
        )
        shifted = torch.cat([torch.roll(image, (code, 2 * code), (2, 3)) for code in range(K)], dim=1)
        weight = 1 + image.mean(dim=(1, 2, 3)) + torch.as_tensor(other)
        return (shifted * weight.view(-1, 1, 1, 1)).softmax(dim=1)


def stand_in(**read: Modality) -> LoadedModel:
    """A model that is nothing but a task."""
    names = tuple(f"class {code}" for code in range(K))
    return LoadedModel(
        model=nn.Identity(),
        task=Glance(classes=names),
        folder=Path("model"),
        name="stand-in",
        version="0",
        digest="abc",
        licence="",
        task_name="segmentation",
        settings={},
        classes=names,
        spec={},
        modalities=read or {"hr": HR},
        training={},
        metrics={},
    )


def drawn(
    grid: GeoBox, names: tuple[str, ...], dtype: str = "uint8", high: int = 255, **coords: object
) -> xr.DataArray:
    """Noise on a grid, as an array with band names and a CRS."""
    height, width = grid.shape
    values = np.random.default_rng(0).integers(1, high, (len(names), height, width)).astype(dtype)
    x = grid.affine.c + grid.affine.a * (np.arange(width) + 0.5)
    y = grid.affine.f + grid.affine.e * (np.arange(height) + 0.5)
    array = xr.DataArray(values, dims=("band", "y", "x"), coords={"band": list(names), "y": y, "x": x, **coords})
    return array.rio.write_crs(str(grid.crs))


def utm(shape: tuple[int, int], gsd: float = 0.3) -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), "EPSG:32636")


@pytest.fixture
def scene() -> xr.DataArray:
    return drawn(utm((150, 200)), ("red", "green"))


@pytest.fixture
def picture(tmp_path, write_raster, shared_data) -> Path:
    """A part of an aerial image as a file of 0.2 m pixels with a hole and a strip without data."""
    with rasterio.open(next((shared_data / "scenes" / "deepforest").glob("5b90*.tif"))) as dataset:
        pixels = dataset.read(window=((1500, 1840), (600, 1080)))
    pixels[:, 30:60, 40:90] = 0
    pixels[:, :, -9:] = 0
    names = ("red", "green", "blue")
    return write_raster(tmp_path / "picture.tif", pixels, utm((340, 480), 0.2), names=names, nodata=0, tiled=True)


def test_a_map_equals_that_of_the_file_at_once_and_lazily(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 256)
    model = Path("buildings-hr")
    predict(
        PredictConfig(
            inputs=(str(picture),), out=tmp_path / "map.tif", model=model, confidence="max", probabilities=True
        )
    )
    at_once = predict_array(rioxarray.open_rasterio(picture), model, confidence=True, probabilities=True)
    chunked = rioxarray.open_rasterio(picture, chunks={"x": 256, "y": 256})
    lazy = predict_array(chunked, model, confidence=True, probabilities=True)
    assert {name: item.chunksizes["x"] for name, item in lazy.items()} == dict.fromkeys(lazy, (256, 224))
    with rasterio.open(tmp_path / "map.tif") as written:
        codes = written.read(1)
        assert at_once.rio.crs == written.crs
        assert at_once.rio.transform() == written.transform
        assert at_once.classes.rio.nodata == written.nodata == 255
    assert len(np.unique(codes)) == 3, "both classes and no data"
    np.testing.assert_array_equal(at_once.classes, codes)
    np.testing.assert_array_equal(lazy.classes, codes)
    for name, variable in (("confidence", "confidence"), ("probabilities", "probabilities")):
        with rasterio.open(tmp_path / f"map_{name}.tif") as written:
            expected = written.read(masked=True).filled(255) / 254.0
        values = np.nan_to_num(at_once[variable].values.reshape(expected.shape), nan=255 / 254)
        np.testing.assert_allclose(values, expected, rtol=0, atol=0.5 / 254 + 1e-6)
        np.testing.assert_allclose(lazy[variable], at_once[variable], rtol=0, atol=2e-6)
    assert at_once.probabilities["class"].values.tolist() == ["background", "building"]


@pytest.mark.parametrize("gsd", [0.25, 0.12])
def test_a_scene_of_other_pixel_size_gets_the_map_of_the_file(picture, tmp_path, monkeypatch, gsd):
    monkeypatch.setattr(arrays, "CHUNK", 256)
    with rasterio.open(picture, "r+") as dataset:
        dataset.transform = utm((340, 480), gsd).affine
    predict(PredictConfig(inputs=(str(picture),), out=tmp_path / "map.tif", model=Path("buildings-hr")))
    with rasterio.open(tmp_path / "map.tif") as written:
        codes = written.read(1)
    for chunks in (None, {"x": 256, "y": 256}):
        made = predict_array(rioxarray.open_rasterio(picture, chunks=chunks), "buildings-hr")
        assert (made.values != codes).mean() < 1e-4, "ties of batches of other sizes"
        assert made.rio.transform() == utm((340, 480), gsd).affine
        assert "resampled" in made.attrs["notes"]


def test_the_map_says_what_it_is(scene):
    made = predict_array(scene, stand_in())
    assert made.name == "classes"
    assert made.attrs["class_names"] == [f"class {code}" for code in range(K)]
    assert len(made.attrs["class_colours"]) == K
    assert made.attrs["flag_values"].tolist() == list(range(K))
    assert made.attrs["model"] == "stand-in"
    assert made.dims == ("y", "x")
    xr.testing.assert_identical(made.x, scene.x)
    xr.testing.assert_identical(made.y, scene.y)
    assert made.rio.crs == scene.rio.crs


def test_a_south_up_scene_gets_its_map_south_up(scene):
    upright, turned = predict_array(scene, stand_in()), predict_array(scene[:, ::-1, ::-1], stand_in())
    np.testing.assert_array_equal(turned.values, upright.values[::-1, ::-1])
    np.testing.assert_array_equal(turned.y, scene.y[::-1])


def test_a_part_gets_the_map_of_the_whole_away_from_its_border(scene):
    whole, part = predict_array(scene, stand_in()), predict_array(scene[:, 20:, 30:], stand_in())
    np.testing.assert_array_equal(part[64:-64, 64:-64], whole[84:-64, 94:-64])


def counted(array: xr.DataArray, side: int) -> tuple[xr.DataArray, Counter]:
    """The array in chunks that count how often each of them is computed."""
    counts: Counter = Counter()

    def load(block: np.ndarray, block_info: Mapping) -> np.ndarray:
        counts[block_info[0]["chunk-location"][-2:]] += 1
        return block

    lazy = da.from_array(array.values, chunks=(-1,) * (array.ndim - 2) + (side, side))
    return array.copy(data=lazy.map_blocks(load, dtype=array.dtype)), counts


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", 1)


@pytest.mark.usefixtures("small_chunks")
def test_nothing_is_computed_before_it_is_asked_for_and_nothing_twice():
    scene = drawn(utm((320, 320)), ("red", "green"))
    lazy, counts = counted(scene, 80)
    made = predict_array(lazy, stand_in())
    assert not counts
    assert made.chunks == ((80,) * 4, (80,) * 4)
    corner = made[:80, :80].compute()
    assert set(counts) <= {(row, col) for row in range(2) for col in range(2)}
    assert set(counts.values()) == {1}
    counts.clear()
    whole = made.compute()
    assert len(counts) == 16
    assert set(counts.values()) == {1}
    at_once = predict_array(scene, stand_in())
    np.testing.assert_array_equal(whole, at_once)
    np.testing.assert_array_equal(corner, at_once[:80, :80])


@pytest.mark.usefixtures("small_chunks")
def test_several_modalities_and_dates_lazily():
    """hr at 0.3125 m, a series of s2 on a grid that is not aligned, in another CRS and south-up."""
    grid = GeoBox((300, 260), Affine(0.3125, 0, 500_000, 0, -0.3125, 4_000_000), "EPSG:32636")
    hr = drawn(grid, ("red", "green"))
    coarse = GeoBox((60, 60), Affine(10.1, 0, 499_703, 0, 9.9, 3_999_655), "EPSG:32636").to_crs("EPSG:32637")
    days = np.array(["2024-03-01", "2024-06-01", "2024-09-01"], dtype="datetime64[ns]")
    base = drawn(coarse, ("B08", "B04"), "uint16", 3000)
    s2 = xr.concat([base, base // 2, base // 3], xr.Variable("time", days)).rio.write_crs("EPSG:32637")
    model = stand_in(hr=replace(HR, window=128), s2=S2)
    at_once = predict_array({"hr": hr, "s2": s2}, model, probabilities=True)
    lazy_hr, hr_counts = counted(hr, 100)
    lazy_s2, s2_counts = counted(s2, 20)
    lazy = predict_array({"hr": lazy_hr, "s2": lazy_s2}, model, probabilities=True).compute()
    np.testing.assert_allclose(lazy.probabilities, at_once.probabilities, rtol=0, atol=2e-6)
    assert set(hr_counts.values()) == {1}
    assert set(s2_counts.values()) == {1}
    assert len(s2_counts) < 9, "only the chunks under the scene"
    without = predict_array({"hr": hr}, model, probabilities=True)
    assert "s2 is not given" in without.classes.attrs["notes"]
    assert abs(without.probabilities - at_once.probabilities).max() > 0.01
    reordered = predict_array({"hr": hr, "s2": s2.isel(time=[0, 1])}, model, probabilities=True)
    assert abs(reordered.probabilities - at_once.probabilities).max() > 1e-4


@pytest.mark.filterwarnings("ignore:Scales differ", "ignore:Offsets differ")
def test_an_array_reads_as_the_file_that_it_is_of(tmp_path, write_raster):
    """The same pixels and validity on the own and another grid: nodata of 8 and 16 bits, scales, dates."""
    rng = np.random.default_rng(0)
    bands = [("B04", "red"), ("B08", "nir")]
    for dtype, unit in (("uint8", None), ("uint16", "reflectance x 10000"), ("float32", None)):
        pixels = rng.integers(0, 9, (2, 60, 80)).astype(dtype)
        path = write_raster(tmp_path / f"{dtype}.tif", pixels, utm((60, 80), 10), names=("nir", "red"), nodata=0)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ACQUISITION_DATE="2024-05-06")
            if dtype == "uint16":
                dataset.scales, dataset.offsets = (0.0001, 0.0002), (0.1, 0.0)
        file = open_stack(path, bands=bands, unit=unit)
        array = rioxarray.open_rasterio(path)
        stack = open_array(array, "s2", bands=bands, unit=unit)
        assert stack.days.tolist() == file.days.tolist()
        assert stack.dated.all()
        for grid in (file.geobox, file.geobox.pad(3), file.geobox.to_crs("EPSG:4326"), file.geobox.zoom_out(3)):
            one, other = stack.read(grid), file.read(grid)
            np.testing.assert_array_equal(one.valid, other.valid)
            np.testing.assert_allclose(one.pixels, other.pixels, rtol=1e-6)
            assert one.pixels.dtype == other.pixels.dtype


def test_bands_are_known_by_coordinate_or_description_in_any_order(scene):
    expected = predict_array(scene, stand_in())
    turned = scene.isel(band=[1, 0])
    described = turned.assign_coords(band=[1, 2]).assign_attrs(long_name=("green", "red"))
    unnamed = scene.assign_coords(band=[1, 2])
    told = {"": ReadOptions(bands=("red", "green"))}
    for array, read in ((turned, {}), (described, {}), (unnamed, told), (unnamed, {"hr": told[""]})):
        np.testing.assert_array_equal(predict_array(array, stand_in(), read=read), expected)
    with pytest.raises(UsageError, match="no band is called red, green; found hr: 2 bands without names"):
        predict_array(unnamed, stand_in())
    with pytest.raises(UsageError, match="no band is called green; found hr: 1 band"):
        predict_array(scene.isel(band=[0]), stand_in())
    alone = stand_in(hr=HR.with_bands(("green",)))
    np.testing.assert_array_equal(
        predict_array(scene.isel(band=1), alone), predict_array(scene.isel(band=1, drop=True).rename("green"), alone)
    )


def test_nodata_and_nan_are_no_data(scene):
    holed = scene.copy()
    holed[:, 3:5, 7] = 0
    stated = predict_array(holed.assign_attrs(_FillValue=0), stand_in())
    told = predict_array(holed, stand_in(), read={"": ReadOptions(nodata=0.0)})
    masked = holed.where(holed != 0).astype("float32")
    masked = predict_array(masked, stand_in(), read={"": ReadOptions(rescale=(0.0, 255.0))})
    for made in (stated, told, masked):
        assert (made[3:5, 7] == 255).all()
        assert (made == 255).sum() == 2
    nothing = predict_array(scene * np.uint8(0), stand_in(), read={"": ReadOptions(nodata=0.0)})
    assert (nothing == 255).all()
    with pytest.raises(UsageError, match=r"hr holds float32 values .* 0-255 is expected"):
        predict_array(scene.astype("float32"), stand_in())


def test_what_does_not_fit_is_refused_with_the_fix(scene):
    both = stand_in(hr=HR, s2=S2)
    rotated = scene.drop_vars(["x", "y"])
    for array, model, text, fix in (
        (scene, both, "the model reads hr, s2: which", 'Give {"hr": array}'),
        ({"h": scene}, both, "unknown modality 'h'", "hr"),
        ({"s2": scene}, both, "no array for hr", 'Add "hr"'),
        (scene.drop_vars("spatial_ref"), None, "no coordinate reference system", "write_crs"),
        (rotated, None, "no dimension with coordinates is called y", ""),
        (scene.expand_dims("height"), None, "dimension height is neither", "Select one"),
        (scene > 9, None, "values are bool", ""),
        (drawn(utm((50, 50), 2.0), ("red", "green")), None, r"pixels are 2 m, the model's 0\.3 m", "gdalwarp"),
    ):
        with pytest.raises(SkysenseError, match=text) as caught:
            predict_array(array, model or stand_in())
        assert fix in (caught.value.fix or "")


def test_judging_the_unit_of_lazy_radar_reads_a_few_chunks_only():
    s1 = modalities.load("s1")
    grid = utm((2000, 2000), 10)
    array = drawn(grid, s1.band_names, "float32", 9)
    lazy, counts = counted(array, 100)
    with pytest.raises(UsageError, match="linear power, where dB is expected"):
        predict_array(lazy, stand_in(s1=replace(s1, window=64)))
    assert len(counts) <= 16


def test_dask_is_imported_for_lazy_arrays_only(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    assert predict_array(scene, stand_in()).shape == (150, 200)
