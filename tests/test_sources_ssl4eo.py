"""SSL4EO-S12: the seasons of a place as a series, equal to what rasterio reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from surfaces import oracle

from skysense_core import modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources.ssl4eo import Ssl4eo
from skysense_core.types import PartName, Split


@pytest.fixture(scope="module")
def data(shared_data: Path) -> Path:
    return shared_data / "layouts" / "SSL4EO-S12"


def opened(path: Path, part: PartName = "train", **overrides: dict) -> Split:
    wanted = {name: modalities.load(name, table) for name, table in (overrides or {"s2": {}, "s1": {}}).items()}
    return Ssl4eo(path=path).open(part, wanted)


def acquisitions(data: Path, folder: str) -> list[Path]:
    return sorted((data / folder / "0000200").iterdir())


def test_it_is_found(data: Path) -> None:
    assert sources.detect(data) == "ssl4eo"
    assert Ssl4eo(path=data).available() == ("s2", "s1")


@pytest.mark.parametrize(("level", "folder"), [("L2A", "s2a"), ("L1C", "s2c")])
def test_the_level_says_the_folder_and_ten_metre_bands_are_as_stored(data: Path, level: str, folder: str) -> None:
    split = opened(data, s2={"level": level, "bands": ["B02", "B08"]})
    assert len(split) == 9
    scenes = acquisitions(data, folder)
    for index in (0, 5):
        raster = split[index].epochs[0]["s2"]
        row, col = 88 * (index // 3), 88 * (index % 3)
        for number, name in enumerate(("B2", "B8")):
            for moment, scene in enumerate(scenes):
                with rasterio.open(scene / f"{name}.tif") as file:
                    truth = file.read(1)[row : row + 88, col : col + 88]
                np.testing.assert_array_equal(raster.pixels[moment, number], truth)
        assert raster.valid.all()
    days = [np.datetime64(f"{scene.name[:4]}-{scene.name[4:6]}-{scene.name[6:8]}") for scene in scenes]
    np.testing.assert_array_equal(raster.days, np.array(days).astype("datetime64[D]").astype(int))


def test_other_grids_are_brought_to_that_of_the_reference(data: Path) -> None:
    sample = opened(data)[4]  # the middle one: no border of any grid lies in it
    images = sample.epochs[0]
    assert {name: raster.pixels.shape for name, raster in images.items()} == {
        "s2": (2, 10, 88, 88),
        "s1": (2, 2, 88, 88),
    }
    assert images["s1"].geobox == images["s2"].geobox
    for name, folder, file, band in (("s1", "s1", "VH", 1), ("s2", "s2a", "B11", 8)):
        for moment, scene in enumerate(acquisitions(data, folder)):
            truth = oracle(scene / f"{file}.tif", images[name].geobox, Resampling.bilinear)[0]
            found = images[name].pixels[moment, band]
            assert np.abs(found - truth).max() < 0.01 * np.ptp(truth)
    assert images["s1"].pixels.max() < 5  # dB


def test_samples_cover_a_place_and_know_where_they_are(data: Path) -> None:
    split = opened(data, s2={})
    samples = [split[index] for index in range(len(split))]
    assert len({sample.id for sample in samples}) == 9
    assert all(split.size(index) == (88, 88) for index in range(9))
    lon, lat = samples[4].lonlat
    assert (lon, lat) == pytest.approx((73.306, 30.464), abs=0.002)
    corners = [sample.epochs[0]["s2"].geobox.affine * (0, 0) for sample in samples]
    assert len(set(corners)) == 9


def test_there_are_no_labels_and_all_train(data: Path) -> None:
    split = opened(data)
    assert split.classes == ()
    assert split[0].label is None
    with pytest.raises(SkysenseError, match="no labels"):
        split.label(0)
    assert len(opened(data, "val")) == len(opened(data, "test")) == 0


def test_the_level_that_is_there_is_described(data: Path, tmp_path: Path) -> None:
    assert Ssl4eo(path=data).described()["s2"].level == "L2A"
    (tmp_path / "s2c").symlink_to(data / "s2c")
    (tmp_path / "s1").symlink_to(data / "s1")
    source = Ssl4eo(path=tmp_path)
    assert source.described()["s2"].level == "L1C"
    with pytest.raises(UsageError, match=r"--set modalities\.s2\.level=L1C"):
        source.open("train", {"s2": modalities.load("s2")})
    assert len(source.open("train", source.described() | {"s1": modalities.load("s1")})) == 9


def test_a_shifted_processing_baseline_is_refused(data: Path, tmp_path: Path) -> None:
    for scene in acquisitions(data, "s2a"):
        copy = tmp_path / "s2a" / "0000200" / scene.name
        copy.mkdir(parents=True)
        for file in scene.glob("*.tif"):
            (copy / file.name).symlink_to(file)
        (copy / "metadata.json").write_text(json.dumps({"PROCESSING_BASELINE": "04.00"}))
    with pytest.raises(SkysenseError, match=r"baseline 04\.00"):
        opened(tmp_path, s2={})[0]


@pytest.mark.slow
def test_a_model_is_pretrained_on_it(data: Path, tmp_path: Path) -> None:
    from skysense_core import config
    from skysense_core.pretrain import PretrainConfig, pretrain

    table = {
        "data": {"path": data},
        "out": tmp_path / "run",
        "model": {"preset": "nano"},
        "train": {"steps": 1, "batch_size": 2},
        "device": "cpu",
    }
    result = pretrain(config.build(PretrainConfig, table))
    assert set(result.features) >= {"s2.std", "s1.std", "fused.std"}
