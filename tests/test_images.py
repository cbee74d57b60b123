"""Material for pre-training without labels: folders of pictures, rasters alone, and several data sets as one."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from tiny_data import write_chips

from skysense_core import config, modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.sources.images import Images
from skysense_core.types import Split

WriteRaster = Callable[..., Path]
HR = {"hr": modalities.load("hr", {"window": 128})}


def picture(path: Path, height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """A PNG or JPEG of noise; the fourth band is alpha, transparent in the first ten rows."""
    pixels = np.random.default_rng(seed).integers(0, 255, (bands, height, width)).astype(np.uint8)
    if bands == 4:
        pixels[3] = 255
        pixels[3, :10] = 0
    driver = "JPEG" if path.suffix == ".jpg" else "PNG"
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver, width, height, bands, dtype="uint8") as dataset:
        dataset.write(pixels)
    return pixels


def opened(path: Path) -> Split:
    name, source = sources.from_table({"path": str(path)})
    assert name == "images"
    return source.open("train", HR)


def test_every_picture_is_used_whole_and_large_ones_in_windows(tmp_path: Path) -> None:
    small, large = picture(tmp_path / "a.png", 100, 150), picture(tmp_path / "deep" / "b.png", 600, 530, seed=1)
    picture(tmp_path / "c.jpg", 256, 256)
    picture(tmp_path / ".hidden.png", 20, 20)
    split = opened(tmp_path)
    by_picture: dict[str, list[int]] = {}
    for number in range(len(split)):
        by_picture.setdefault(split[number].id.split(":")[0], []).append(number)
    assert {name: len(numbers) for name, numbers in by_picture.items()} == {"a.png": 1, "c.jpg": 1, "deep/b.png": 4}
    first = split[by_picture["a.png"][0]].epochs[0]["hr"]
    assert np.array_equal(first.pixels[0], small)
    seen = np.zeros((600, 530), dtype=int)
    for number in by_picture["deep/b.png"]:
        row, col = map(int, split[number].id.split(":")[1].split(","))
        window = split[number].epochs[0]["hr"].pixels[0]
        assert split.size(number) == window.shape[1:]
        assert np.array_equal(window, large[:, row : row + window.shape[1], col : col + window.shape[2]])
        seen[row : row + window.shape[1], col : col + window.shape[2]] += 1
    assert (seen == 1).all()
    assert split.classes == ()
    assert split[0].label is None
    with pytest.raises(SkysenseError, match="a picture without label"):
        split.label(0)
    assert len(pickle.loads(pickle.dumps(split))) == len(split)


def test_alpha_says_what_is_valid_and_georeference_where_it_is(tmp_path: Path, write_raster: WriteRaster) -> None:
    picture(tmp_path / "a.png", 64, 64, bands=4)
    grid = GeoBox.from_bbox((500000, 5000000, 500019.2, 5000019.2), "EPSG:32632", resolution=0.3)
    write_raster(tmp_path / "b.tif", np.full((3, 64, 64), 7, np.uint8), grid, photometric="RGB")
    split = opened(tmp_path)
    valid = split[0].epochs[0]["hr"].valid[0]
    assert not valid[:10].any()
    assert valid[10:].all()
    assert split[0].lonlat is None
    lonlat = split[1].lonlat
    assert lonlat is not None
    assert lonlat == pytest.approx((9.0, 45.15), abs=0.01)


def test_pixels_of_another_size_are_told(tmp_path: Path, write_raster: WriteRaster) -> None:
    grid = GeoBox.from_bbox((500000, 5000000, 500320, 5000320), "EPSG:32632", resolution=5)
    write_raster(tmp_path / "b.tif", np.full((3, 64, 64), 7, np.uint8), grid, photometric="RGB")
    assert any("1 of 5 m" in note for note in opened(tmp_path).notes)


def test_an_empty_folder_another_modality_and_another_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SkysenseError, match="no picture"):
        Images(path=tmp_path).open("train", HR)
    picture(tmp_path / "a.png", 40, 40)
    with pytest.raises(UsageError, match="holds hr, not s2"):
        Images(path=tmp_path).open("train", {"s2": modalities.load("s2")})
    with pytest.raises(SkysenseError, match="no val part"):
        Images(path=tmp_path).open("val", HR)


def test_rasters_need_no_labels(tmp_path: Path, write_raster: WriteRaster) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 700, 1000)).astype(np.uint8)
    pixels[:, :, 800:] = 0
    grid = GeoBox.from_bbox((500000, 5000000, 500300, 5000210), "EPSG:32632", resolution=0.3)
    write_raster(tmp_path / "a.tif", pixels, grid, photometric="RGB", nodata=0)
    _, source = sources.from_table({"rasters": {"hr": str(tmp_path / "a.tif")}})
    split = source.open("train", HR)
    assert split.classes == ()
    corners = {tuple(map(int, split[i].id.split(":")[1].split(","))) for i in range(len(split))}
    assert max(col for _, col in corners) < 800  # windows that show nothing are left out
    assert {row for row, _ in corners} >= {0, 64, 128}
    first = split[0]
    assert first.label is None
    assert np.array_equal(first.epochs[0]["hr"].pixels[0], pixels[:, :128, :128])
    with pytest.raises(SkysenseError, match="without labels"):
        split.label(0)
    with pytest.raises(SkysenseError, match="the val part is empty"):
        source.open("val", HR)


@pytest.mark.parametrize("what", ["pictures", "rasters"])
def test_fine_tuning_without_labels_is_refused(tmp_path: Path, what: str) -> None:
    picture(tmp_path / "in" / "a.png", 40, 40)
    data = {"path": str(tmp_path / "in")}
    if what == "rasters":
        with rasterio.open(
            tmp_path / "a.tif",
            "w",
            "GTiff",
            200,
            200,
            3,
            dtype="uint8",
            crs="EPSG:32632",
            transform=rasterio.transform.from_origin(5e5, 5e6, 0.3, 0.3),
            photometric="RGB",
        ) as file:
            file.write(np.full((3, 200, 200), 9, np.uint8))  # fmt: skip
        data = {"rasters": {"hr": str(tmp_path / "a.tif")}}
    table = {
        "data": data,
        "task": {"name": "segmentation"},
        "out": str(tmp_path / "run"),
        "modalities": {"hr": {"window": 128}},
    }
    with pytest.raises(UsageError, match="no labels"):
        finetune(config.build(FinetuneConfig, table))
    assert not (tmp_path / "run").exists()


# Several data sets as one


def test_data_sets_are_mixed_by_weight_and_keep_their_modalities(tmp_path: Path) -> None:
    write_chips(tmp_path / "chips", side=32)
    for number in range(4):
        picture(tmp_path / "aerial" / f"{number}.png", 40, 40)
    (tmp_path / "all.toml").write_text(
        '[[data]]\npath = "aerial"\nweight = 0.5\n[[data]]\npath = "chips"\nmodality = "s2"\nweight = 2\n'
    )
    name, source = sources.from_table({"path": str(tmp_path / "all.toml")})
    assert name == "mixture"
    assert source.available() == ("hr", "s2")
    split = source.open("train", {"hr": HR["hr"], "s2": modalities.load("s2", {"window": 32})})
    ids = [split[i].id for i in range(len(split))]
    assert ids[:2] == ["1-images:0.png:0,0", "1-images:2.png:0,0"]
    assert sorted(ids[2:]) == sorted([f"2-folder:train{i}" for i in range(6)] * 2)
    assert [set(split[i].epochs[0]) for i in (0, 2)] == [{"hr"}, {"s2"}]
    assert all(split[i].label is None for i in range(len(split)))
    assert split.size(2) == (32, 32)
    only = source.open("train", {"s2": modalities.load("s2", {"window": 32})})
    assert len(only) == 12
    assert any("left out" in note for note in only.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = []", "no data set"),
        ('[[data]]\npath = "."\nweight = 0', "weight = 0"),
        ('[[data]]\nsource = "imges"\npath = "."', "images"),
        ('[[data]]\nsource = "images"\npath = "."\npaht = 1', "paht"),
    ],
)
def test_a_mixture_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "all.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        sources.from_table({"path": str(tmp_path / "all.toml")})[1].available()
