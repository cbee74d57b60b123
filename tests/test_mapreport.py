"""The page shows scene, map and confidence at the right place in every level, and asks no network for anything."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from PIL import Image

from skysense_core import mapreport, modalities
from skysense_core.errors import SkysenseError
from skysense_core.geo.raster import open_stack

GRID = GeoBox.from_bbox((300000, 5800000, 312000, 5806000), "EPSG:32633", resolution=10)
COLOURS = ("#ff0000", "#0000ff")


def write_page(folder: Path, write_raster: Callable[..., Path], out: Path) -> Path:
    """A scene bright in the west, of class 0 there and 1 in the east, nodata in the north, sure in the south."""
    h, w = GRID.shape
    pixels = np.full((3, h, w), 500, dtype=np.uint16)
    pixels[:, :, : w // 2] = 3000
    codes = np.zeros((1, h, w), dtype=np.uint8)
    codes[:, :, w // 2 :] = 1
    sure = np.full((1, h, w), 127, dtype=np.uint8)
    sure[:, h // 2 :] = 254
    for band in (codes, sure):
        band[:, : h // 8] = 255
    s2 = modalities.load("s2", {"bands": ["B04", "B03", "B02"]})
    scene = write_raster(folder / "scene.tif", pixels, GRID, names=("B04", "B03", "B02"))
    mapreport.write_map_report(
        out,
        title="A <map>",
        image=open_stack([scene], bands=[band.names for band in s2.bands], unit=s2.unit),
        modality=s2,
        codes=write_raster(folder / "map.tif", codes, GRID, nodata=255),
        confidence=write_raster(folder / "confidence.tif", sure, GRID, nodata=255),
        classes=("field", "lake & shore"),
        colours=COLOURS,
        areas=(2e6, 6e6),
        facts="by hand",
    )
    return out


def picture(level: dict, kind: str) -> np.ndarray:
    """The tiles of a level put together, as RGBA."""
    side, rows = mapreport.TILE, []
    across = -(-level["width"] // side)
    tiles = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.split(",")[1]))).convert("RGBA")) for tile in level[kind]
    ]
    for first in range(0, len(tiles), across):
        rows.append(np.concatenate(tiles[first : first + across], axis=1))
    return np.concatenate(rows)


def test_every_level_shows_scene_map_and_confidence_in_place(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    text = write_page(tmp_path, write_raster, tmp_path / "map.html").read_text()
    data = json.loads(re.search(r"const DATA = (\{.*?\});\n", text)[1])
    assert [(one["width"], one["height"]) for one in data["levels"]] == [(1200, 600), (600, 300), (300, 150)]
    for level in data["levels"]:
        h, w = level["height"], level["width"]
        drawn = picture(level, "map")
        assert drawn.shape[:2] == (h, w)
        assert drawn[h // 2, w // 4].tolist() == [255, 0, 0, 255]
        assert drawn[h // 2, 3 * w // 4].tolist() == [0, 0, 255, 255]
        assert drawn[h // 20, w // 4, 3] == 0
        scene = picture(level, "scene")
        assert scene[h // 2, w // 4, 0] > 240
        assert scene[h // 2, 3 * w // 4, 0] < 15
        sure = picture(level, "confidence")
        assert sure[3 * h // 4, w // 4].tolist() == [253, 231, 37, 255]
        assert sure[h // 4, w // 4].tolist() not in ([253, 231, 37, 255], [68, 1, 84, 255])
    assert "A &lt;map&gt;" in text
    assert "lake &amp; shore</td><td>600.0</td><td>75.0 %</td><td>0.7" in text
    assert not re.findall(r"(?:https?:)?//[a-z]|@import|<link", text.replace(json.dumps(data), ""))


def test_large_scenes_are_shown_as_a_quick_look(
    tmp_path: Path, write_raster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapreport, "SIDE", 500)
    text = write_page(tmp_path, write_raster, tmp_path / "map.html").read_text()
    data = json.loads(re.search(r"const DATA = (\{.*?\});\n", text)[1])
    assert [(one["width"], one["height"]) for one in data["levels"]] == [(500, 250)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    with pytest.raises(SkysenseError, match="absent"):
        write_page(tmp_path, write_raster, tmp_path / "absent" / "map.html")


@pytest.mark.slow
def test_a_browser_opens_it_without_an_error(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs Debian's package chromium")
    page = write_page(tmp_path, write_raster, tmp_path / "map.html")
    shot = tmp_path / "shot.png"
    command = (
        f"{browser} --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,700 "
        f"--virtual-time-budget=3000 --enable-logging=stderr --user-data-dir={tmp_path / 'profile'} "
        f"--screenshot={shot} {page.as_uri()}"
    )
    done = subprocess.run(
        command.split(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    drawn = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    # West of the divider, in the middle, the bright scene; east of it the blue class.
    blue = (abs(drawn - [0, 0, 255]).max(axis=2) < 3).nonzero()
    assert len(blue[0]) > 10_000
    assert blue[1].min() > 300
