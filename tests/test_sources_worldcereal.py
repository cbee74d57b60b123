"""WorldCereal's patches: read back equal to what xarray reads, with clouds left out and each sensor's own dates."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from surfaces import oracle

from skysense_core import config, modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.clouds import SCL
from skysense_core.sources.worldcereal import Worldcereal
from skysense_core.types import IGNORE, PartName, Raster, Split

BANDS = [band.name for band in modalities.load("s2").bands]


@pytest.fixture(scope="module")
def location(shared_data: Path) -> Path:
    return next((shared_data / "sits_patch" / "worldcereal").iterdir())


def opened(
    path: Path, fields: config.Table | None = None, part: PartName = "train", **overrides: config.Table
) -> Split:
    source = config.build(Worldcereal, {"path": path, **(fields or {})})
    wanted = {name: modalities.load(name, table) for name, table in (overrides or {"s2": {}, "s1": {}}).items()}
    return source.open(part, wanted)


def stored(location: Path, kind: str) -> xr.Dataset:
    return xr.open_dataset(next(location.glob(f"{kind}_*.nc")), mask_and_scale=False)


def clear(location: Path) -> np.ndarray:
    """Where SCL shows neither cloud nor shadow, at 20 m."""
    return ~np.isin(stored(location, "S2_L2A_20m").SCL.values, list(SCL))


def test_a_folder_and_a_location_are_found(location: Path) -> None:
    assert sources.detect(location) == sources.detect(location.parent) == "worldcereal"
    assert Worldcereal(path=location.parent).available() == ("s2", "s1")


@pytest.fixture(scope="module")
def images(location: Path) -> dict[str, Raster]:
    """The location with all bands of s2 at 10 m, and s1 at its own 20 m."""
    return opened(location, s2={}, s1={"gsd": 20.0})[0].epochs[0]


def test_ten_metre_bands_are_those_of_xarray(location: Path, images: dict[str, Raster]) -> None:
    raster, truth = images["s2"], stored(location, "S2_L2A_10m")
    valid = clear(location).repeat(2, axis=1).repeat(2, axis=2)
    assert 0.4 < valid.mean() < 0.6
    np.testing.assert_array_equal(raster.valid, valid)
    for band in ("B02", "B08"):
        np.testing.assert_array_equal(raster.pixels[:, BANDS.index(band)], np.where(valid, truth[band].values, 0))
    np.testing.assert_array_equal(raster.days, truth.timestamp.values.astype("datetime64[D]").astype(int))
    assert raster.dated.all()
    assert raster.geobox == GeoBox((64, 64), Affine(10, 0, 501360, 0, -10, 5629680), "EPSG:32631")


def test_twenty_metre_bands_lie_on_the_grid_of_ten(location: Path, images: dict[str, Raster], tmp_path: Path) -> None:
    raster = images["s2"]
    assert raster.pixels.shape == (118, 10, 64, 64)
    date = int(np.flatnonzero(clear(location).all(axis=(1, 2)))[0])
    for band in ("B05", "B12"):
        path = tmp_path / f"{band}.tif"
        values = stored(location, "S2_L2A_20m")[band].values[date]
        profile = {"width": 32, "height": 32, "count": 1, "dtype": "float32", "crs": "EPSG:32631"}
        with rasterio.open(path, "w", transform=Affine(20, 0, 501360, 0, -20, 5629680), **profile) as file:
            file.write(values[None].astype("float32"))
        truth = oracle(path, raster.geobox, Resampling.bilinear)
        np.testing.assert_allclose(raster.pixels[date, BANDS.index(band)], truth[0], atol=0.5)


def test_radar_keeps_its_own_dates_and_decibels(location: Path, images: dict[str, Raster]) -> None:
    raster, radar = images["s1"], stored(location, "S1_GRD-ASCENDING_20m")
    assert raster.pixels.shape == (159, 2, 32, 32)
    for number, band in enumerate(("VV", "VH")):
        np.testing.assert_allclose(raster.pixels[:, number], radar[band].values * 1e-4, rtol=1e-5)
    assert raster.valid.all()
    np.testing.assert_array_equal(raster.days, radar.timestamp.values.astype("datetime64[D]").astype(int))


@pytest.mark.parametrize("variable", ["CT", "LC"])
def test_labels_are_the_codes_of_a_variable(location: Path, variable: str) -> None:
    split = opened(location, {"label_column": variable})
    truth = stored(location, "OUTPUT")[variable].values
    assert split.classes == tuple(str(code) for code in np.unique(truth[truth > 0]))
    label = split.label(0)
    np.testing.assert_array_equal(label.codes == IGNORE, truth == 0)
    names = np.array([int(name) for name in split.classes])
    np.testing.assert_array_equal(names[label.codes[truth > 0]], truth[truth > 0])


def test_a_sample_has_its_label_and_its_place(location: Path) -> None:
    split = opened(location, s1={"gsd": 20.0})
    sample = split[0]
    assert sample.label is not None
    assert sample.label.codes.shape == split.size(0) == (32, 32)
    np.testing.assert_array_equal(sample.label.codes, split.label(0).codes)
    assert sample.lonlat == pytest.approx((3.0239, 50.8160), abs=1e-3)
    assert sample.id == location.name


def test_codes_may_be_grouped_and_others_are_ignored(location: Path) -> None:
    truth = stored(location, "OUTPUT").CT.values
    split = opened(location, {"classes": ("1200", "5100")})
    np.testing.assert_array_equal(split.label(0).codes != IGNORE, np.isin(truth, (1200, 5100)))
    everything = {str(code): "maize" if code == 1200 else "other" for code in np.unique(truth[truth > 0])}
    split = opened(location, {"classes": everything})
    assert set(split.classes) == {"maize", "other"}
    assert (split.label(0).codes == split.classes.index("maize")).sum() == (truth == 1200).sum()


def test_one_location_is_all_for_training(location: Path) -> None:
    split = opened(location.parent, s1={})
    assert len(split) == 1
    assert any("1 location" in note for note in split.notes)
    assert [len(opened(location.parent, part=part, s1={})) for part in ("val", "test")] == [0, 0]


def copies(location: Path, folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / f"place{number}").mkdir()
        for file in location.iterdir():
            (folder / f"place{number}" / file.name).symlink_to(file)
    return folder


def test_locations_are_split_as_wholes(location: Path, tmp_path: Path) -> None:
    copies(location, tmp_path, 10)
    parts = {part: opened(tmp_path, part=part, s1={}) for part in ("train", "val", "test")}
    ids = {name: {split.locations[index].name for index in range(len(split))} for name, split in parts.items()}
    assert {name: len(some) for name, some in ids.items()} == {"train": 6, "val": 2, "test": 2}
    assert len(set.union(*ids.values())) == 10


def test_what_is_missing_or_does_not_fit_is_said(location: Path, tmp_path: Path) -> None:
    copies(location, tmp_path, 1)
    with pytest.raises(UsageError, match="L2A") as error:
        opened(tmp_path, s2={"level": "L1C"})
    assert "--set modalities.s2.level=L2A" in str(error.value)
    with pytest.raises(UsageError, match=r"--set modalities\.s2\.gsd=10"):
        opened(tmp_path, s2={"gsd": 3.0})
    with pytest.raises(UsageError, match="has no hr"):
        opened(tmp_path, hr={})
    next((tmp_path / "place0").glob("OUTPUT_*")).unlink()
    assert opened(tmp_path, s1={"gsd": 20.0})[0].label is None
    with pytest.raises(SkysenseError, match="no OUTPUT"):
        opened(tmp_path, s1={}).label(0)
    next((tmp_path / "place0").glob("S2_L2A_20m_*")).unlink()
    assert Worldcereal(path=tmp_path).available() == ("s1",)


@pytest.mark.slow
def test_a_model_learns_from_locations(location: Path, tmp_path: Path) -> None:
    from skysense_core.finetune import FinetuneConfig, finetune

    (tmp_path / "data").mkdir()
    table = {
        "data": {"path": copies(location, tmp_path / "data", 3), "label_column": "LC"},
        "task": {"name": "crop"},
        "out": tmp_path / "run",
        "model": {"preset": "nano"},
        "modalities": {"s2": {"dates": 3}, "s1": {"dates": 2}},
        "train": {"steps": 2, "batch_size": 1},
        "device": "cpu",
    }
    result = finetune(config.build(FinetuneConfig, table))
    assert result.metrics["support"] > 0
    shutil.rmtree(tmp_path / "run")
