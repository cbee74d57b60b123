"""The preview shows what the map and the image hold, in the right colours and at the right place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from skysense_core import modalities, preview
from skysense_core.errors import SkysenseError
from skysense_core.geo.raster import open_stack
from skysense_core.types import IGNORE

GRID = GeoBox.from_bbox((300000, 5800000, 301200, 5800600), "EPSG:32633", resolution=10)
COLOURS = ("#ff0000", "#0000ff")


def scene_and_map(tmp_path: Path, write_raster: Callable[..., Path]) -> tuple[Path, Path]:
    """A scene bright in the west only, and a map of class 0 in the west, 1 in the east, nodata in the first row."""
    h, w = GRID.shape
    pixels = np.full((3, h, w), 500, dtype=np.uint16)
    pixels[:, :, : w // 2] = 3000
    codes = np.zeros((1, h, w), dtype=np.uint8)
    codes[:, :, w // 2 :] = 1
    codes[:, 0] = IGNORE
    scene = write_raster(tmp_path / "scene.tif", pixels, GRID, names=("B04", "B03", "B02"))
    return scene, write_raster(tmp_path / "map.tif", codes, GRID, nodata=IGNORE)


def test_the_picture_is_written_whole_and_shows_every_class(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    scene, codes = scene_and_map(tmp_path, write_raster)
    s2 = modalities.load("s2", {"bands": ["B04", "B03", "B02"]})
    out = tmp_path / "preview.png"
    image = open_stack([scene], bands=[band.names for band in s2.bands], unit=s2.unit)
    preview.write_preview(out, image=image, modality=s2, codes=codes, classes=("field", "lake"), colours=COLOURS)
    from matplotlib.image import imread

    drawn = imread(out)[..., :3]
    red, blue = (np.abs(drawn - colour).max(axis=-1) < 0.02 for colour in ((1, 0, 0), (0, 0, 1)))
    assert red.sum() == pytest.approx(blue.sum(), rel=0.1)
    assert np.nonzero(red)[1].mean() < np.nonzero(blue)[1].mean()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_natural_colour_takes_red_green_blue_by_name_and_leaves_invalid_pixels_white() -> None:
    hr = modalities.load("hr", {"bands": ["blue", "green", "red"]})
    pixels = np.zeros((3, 1, 2), dtype=np.uint8)
    pixels[2] = 255
    picture = preview.natural_colour(pixels, np.array([[True, False]]), hr)
    assert picture.tolist() == [[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]


def test_radar_is_drawn_in_grey() -> None:
    s1 = modalities.load("s1")
    pixels = np.linspace(-25, -5, 32, dtype=np.float32).reshape(2, 4, 4)
    picture = preview.natural_colour(pixels, np.ones((4, 4), dtype=bool), s1)
    assert (picture == picture[..., :1]).all()
    assert picture.min() == 0.0
    assert picture.max() == 1.0


def test_codes_are_painted_in_their_colours() -> None:
    painted = preview.painted(np.array([[0, 1, IGNORE]], dtype=np.uint8), COLOURS)
    assert painted.tolist() == [[[255, 0, 0], [0, 0, 255], [255, 255, 255]]]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    scene, codes = scene_and_map(tmp_path, write_raster)
    s2 = modalities.load("s2", {"bands": ["B04", "B03", "B02"]})
    image = open_stack([scene], bands=[band.names for band in s2.bands], unit=s2.unit)
    with pytest.raises(SkysenseError, match="absent"):
        preview.write_preview(
            tmp_path / "absent" / "a.png", image=image, modality=s2, codes=codes, classes=("a", "b"), colours=COLOURS
        )
