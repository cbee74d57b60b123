"""Pictures and masks in a folder: RGB and RGBA PNGs and GeoTIFFs with masks of class codes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core import config, modalities, sources
from skysense_core.data.chips import Augment, EvaluationChips, TrainingChips
from skysense_core.data.loader import training_loader
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources.folder import Folder, FolderSplit
from skysense_core.types import IGNORE

WriteRaster = Callable[..., Path]
HR = modalities.load("hr", {"window": 128})
PARTS = ("train", "val", "test")


@pytest.fixture
def write_pair(write_raster: WriteRaster) -> Callable[..., None]:
    """An image whose red is `number`, beside its mask: by default 40 rows of 1 above 56 of 0."""

    def write(images: Path, masks: Path, number: int, *, bands: int = 3, mask: np.ndarray | None = None) -> None:
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        pixels = np.full((bands, 96, 160), 255, np.uint8)
        pixels[:3] = np.array([number, 100, 200])[:, None, None]
        write_raster(images / f"tile.{number}.png", pixels, driver="PNG")
        codes = np.repeat([1, 0], [40, 56]).astype(np.uint8)[:, None].repeat(160, axis=1) if mask is None else mask
        write_raster(masks / f"tile.{number}.png", codes[None], driver="PNG")

    return write


@pytest.fixture
def folder(tmp_path: Path, write_pair: Callable[..., None]) -> Path:
    """Ten pictures, every third with an alpha channel."""
    for number in range(10):
        write_pair(tmp_path / "images", tmp_path / "masks", number, bands=4 if number % 3 == 0 else 3)
    (tmp_path / "classes.txt").write_text("background\nroof\n")
    return tmp_path


def opened(folder: Path, split: str = "train", **fields: Any) -> FolderSplit:
    return config.build(Folder, {"path": str(folder), **fields}, "data").open(split, {"hr": HR})


def names(folder: Path, **fields: Any) -> dict[str, set[str]]:
    return {part: {pair.name for pair in opened(folder, part, **fields).pairs} for part in PARTS}


def test_rgb_and_rgba_in_one_folder(folder: Path) -> None:
    assert sources.detect(folder) == "folder"
    seen = set()
    for part in PARTS:
        split = opened(folder, part)
        assert split.classes == ("background", "roof")
        for index in range(len(split)):
            sample = split[index]
            image = sample.epochs[0]["hr"]
            assert image.pixels.shape == (1, 3, 96, 160)
            assert split.size(index) == (96, 160)
            assert image.pixels[0, :, 0, 0].tolist() == [int(sample.id.removeprefix("tile.")), 100, 200]
            assert image.valid.all()
            assert not image.dated.any()
            assert sample.lonlat is None
            assert (sample.label.codes[:40] == 1).all()
            assert (sample.label.codes[40:] == 0).all()
            seen.add(sample.id)
    assert len(seen) == 10


def test_without_lists_the_names_decide_and_it_is_said(folder: Path) -> None:
    parts = names(folder)
    assert {part: len(some) for part, some in parts.items()} == {"train": 6, "val": 2, "test": 2}
    assert len(set.union(*parts.values())) == 10
    assert names(folder) == parts
    assert names(folder, seed=1) != parts
    assert any("hash of the file names" in note for note in opened(folder).notes)


def test_lists_decide(folder: Path) -> None:
    (folder / "train.txt").write_text("tile.1\ntile.2.png\n\n")
    (folder / "val.txt").write_text("tile.3\n")
    (folder / "test.txt").write_text("tile.4\ntile.5\n")
    assert names(folder) == {"train": {"tile.1", "tile.2"}, "val": {"tile.3"}, "test": {"tile.4", "tile.5"}}
    assert opened(folder).notes == ()
    (folder / "val.txt").unlink()
    parts = names(folder)
    assert parts["train"] | parts["val"] == {"tile.1", "tile.2"}
    assert not parts["train"] & parts["val"]
    (folder / "test.txt").write_text("tile.99\n")
    with pytest.raises(SkysenseError, match=r"test.txt: not in .*images: tile.99"):
        opened(folder, "test")
    (folder / "test.txt").unlink()
    with pytest.raises(SkysenseError, match="no test part"):
        opened(folder, "test")


@pytest.mark.parametrize("form", ["{part}/images", "images/{part}"])
def test_subfolders_decide(tmp_path: Path, write_pair: Callable[..., None], form: str) -> None:
    for number, part in enumerate(PARTS):
        images = form.format(part=part)
        write_pair(tmp_path / images, tmp_path / images.replace("images", "masks"), number)
    assert sources.detect(tmp_path) == "folder"
    assert names(tmp_path, classes=["a", "b"]) == {part: {f"tile.{n}"} for n, part in enumerate(PARTS)}


def test_geotiffs_have_a_place(tmp_path: Path, write_raster: WriteRaster) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(5):
        grid = GeoBox((64, 64), Affine(0.3, 0, 300000 + 20 * number, 0, -0.3, 5800000), "EPSG:32633")
        pixels = np.full((3, 64, 64), number, np.uint8)
        write_raster(tmp_path / "images" / f"{number}.tif", pixels, grid, photometric="RGB")
        write_raster(tmp_path / "masks" / f"{number}.png", np.ones((1, 64, 64), np.uint8), driver="PNG")
    sample = opened(tmp_path, classes=["a", "b"])[0]
    assert sample.lonlat == pytest.approx((12.06, 52.31), abs=0.02)
    assert sample.label.geobox == sample.epochs[0]["hr"].geobox is not None
    source = config.build(Folder, {"path": str(tmp_path), "classes": ["a", "b"]})
    with pytest.raises(UsageError, match=r"pixels are 0\.3 m, the model's 1 m") as error:
        source.open("train", {"hr": modalities.load("hr", {"gsd": 1.0})})
    assert "--set modalities.hr.gsd=0.3" in str(error.value)


def test_codes_have_names_from_the_user_or_a_file(folder: Path) -> None:
    assert opened(folder, classes=["a", "b", "c"]).classes == ("a", "b", "c")
    assert opened(folder, classes={"1": "roof", "0": "rest"})[0].label.codes[0, 0] == 0
    (folder / "classes.txt").unlink()
    with pytest.raises(UsageError, match="what do the masks' codes mean"):
        opened(folder)


def test_values_beyond_the_classes_name_file_and_values(
    tmp_path: Path, write_pair: Callable[..., None], folder: Path
) -> None:
    mask = np.zeros((96, 160), np.uint8)
    mask[3, 3], mask[4, 4], mask[5, 5] = 9, 12, IGNORE
    for number in range(10):
        write_pair(folder / "images", folder / "masks", number, mask=mask)
    with pytest.raises(SkysenseError, match=r"tile\.\d\.png: values beyond the classes: 9, 12 \(known: 0 background"):
        opened(folder)[0]
    codes = opened(folder, classes={"0": "a", "9": "b", "12": "ignore", "255": "b"})[0].label.codes
    assert (codes[3, 3], codes[4, 4], codes[5, 5], codes[0, 0]) == (1, IGNORE, 1, 0)


def test_masks_of_0_and_255_need_a_mapping(write_pair: Callable[..., None], folder: Path) -> None:
    mask = np.zeros((96, 160), np.uint8)
    mask[:50] = 255
    for number in range(10):
        write_pair(folder / "images", folder / "masks", number, mask=mask)
    with pytest.raises(SkysenseError, match="masks of 0 and 255") as error:
        opened(folder)
    assert '255 = "roof"' in str(error.value)
    split = opened(folder, classes={"0": "ground", "255": "roof"})
    assert (split[0].label.codes[:50] == 1).all()


def test_small_pictures_are_padded_into_chips(folder: Path) -> None:
    split = opened(folder)
    chips = TrainingChips(split, {"hr": HR}, lambda label, _: label.codes, augment=Augment(), seed=0)
    batch = next(training_loader(chips, batch_size=4, start=0, workers=0))
    assert batch.epochs[0]["hr"].pixels.shape == (4, 1, 3, 128, 128)
    assert not batch.located.any()
    known = sum(int((target != IGNORE).sum()) for _, target in map(EvaluationChips(
        split, {"hr": HR}, lambda label, _: label.codes).__getitem__, range(12)))  # fmt: skip
    assert known == 6 * 96 * 160


def damage_size(folder: Path, write: WriteRaster) -> None:
    for path in (folder / "masks").iterdir():
        write(path, np.zeros((1, 96, 100), np.uint8), driver="PNG")


def damage_bands(folder: Path, write: WriteRaster) -> None:
    for path in (folder / "masks").iterdir():
        write(path, np.zeros((3, 96, 160), np.uint8), driver="PNG")


def damage_names(folder: Path, write: WriteRaster) -> None:
    (folder / "masks" / "tile.3.png").unlink()


def damage_images(folder: Path, write: WriteRaster) -> None:
    (folder / "images" / "tile.3.png").unlink()


def damage_all(folder: Path, write: WriteRaster) -> None:
    for name in ("images", "masks"):
        for path in (folder / name).iterdir():
            path.unlink()


def damage_twice(folder: Path, write: WriteRaster) -> None:
    write(folder / "images" / "tile.3.tif", np.zeros((3, 96, 160), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_size, r"differ in size: .*images.tile\.\d\.png has 96 x 160, .*masks.tile\.\d\.png has 96 x 100"),
        (damage_bands, r"masks.tile\.\d\.png: 3 bands; a mask has one"),
        (damage_names, r"masks: no mask of tile\.3"),
        (damage_images, r"images: no image of tile\.3"),
        (damage_all, r"images: no picture in this folder"),
        (damage_twice, r"tile\.3\.tif and tile\.3\.png have the same name"),
    ],
)
def test_what_does_not_belong_together_is_named(
    folder: Path, write_raster: WriteRaster, damage: Callable[[Path, WriteRaster], None], message: str
) -> None:
    damage(folder, write_raster)
    with pytest.raises(SkysenseError, match=message):
        opened(folder)


def test_another_modality_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds hr, not s2"):
        Folder(path=folder).open("train", {"s2": modalities.load("s2")})


def test_real_pictures_of_buildings(shared_data: Path, tmp_path: Path, write_raster: WriteRaster) -> None:
    tiles = sorted((shared_data / "seg_buildings" / "fair_zanzibar").glob("*-19.png"))[:12]
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for tile in tiles:
        (tmp_path / "images" / tile.name).symlink_to(tile)
        write_raster(tmp_path / "masks" / tile.name, np.zeros((1, 256, 256), np.uint8), driver="PNG")
    split = opened(tmp_path, classes=["background", "building"])
    assert all(split[i].epochs[0]["hr"].pixels.shape == (1, 3, 256, 256) for i in range(len(split)))
