"""Files out: what a COG carries, how it is laid out, and that nothing half-written stays."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rio_cogeo import cog_validate

from skysense_core.errors import SkysenseError
from skysense_core.geo.cog import BLOCK, Product, RowWriter, class_areas, publish, scratch_beside, warp, write_cog
from skysense_core.geo.windows import Window

CLASSES = Product(
    kind="classes",
    bands=("class",),
    classes=("background", "building", "road & rail"),
    colours=("#000000", "#ff8000", "#00ff10"),
    tags={"MODEL": "nano 1234"},
)
CONFIDENCE = Product(kind="continuous", bands=("confidence", "margin"), scale=1 / 254)


def utm(shape: tuple[int, int], gsd: float = 10.0) -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), "EPSG:32636")


def write(path: Path, grid: GeoBox, product: Product, pixels: np.ndarray, rows: int = 352, strip: int = 10**6) -> Path:
    """Pixels through a RowWriter, in pieces that fit no block."""
    _, height, width = pixels.shape
    with RowWriter(path, grid, product) as writer:
        for col in range(0, width, strip):
            for row in range(0, height, rows):
                piece = pixels[:, row : row + rows, col : col + strip]
                writer.write(Window(row=row, col=col, height=piece.shape[1], width=piece.shape[2]), piece)
    return path


def codes(shape: tuple[int, int], values=(0, 1, 2, 255)) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array(values, dtype=np.uint8), (1, *shape))


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (513, 512), (1100, 1300)])
def test_rows_arrive_unchanged_whatever_the_pieces(tmp_path, shape):
    pixels = codes(shape)
    for rows, strip in ((352, 10**6), (1, 512), (5000, 1024)):
        path = write(tmp_path / "rows.tif", utm(shape), CLASSES, pixels, rows if shape[0] < 600 else 97, strip)
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(dataset.read(), pixels)
            assert dataset.block_shapes == [(BLOCK, BLOCK)]


def test_a_class_map_carries_all_it_needs_and_is_a_strict_cog(tmp_path):
    pixels = codes((1100, 1300))
    out = tmp_path / "map.tif"
    with scratch_beside(out) as scratch:
        publish(write_cog(write(scratch / "rows.tif", utm((1100, 1300)), CLASSES, pixels), CLASSES), out)
    assert cog_validate(out, strict=True) == (True, [], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]
    legend = [dict(entry.attrib) for entry in ET.parse(tmp_path / "map.qml").iter("paletteEntry")]
    assert [(one["value"], one["label"], one["color"]) for one in legend] == [
        (str(code), name, colour)
        for code, (name, colour) in enumerate(zip(CLASSES.classes, CLASSES.colours, strict=True))
    ]
    assert "<Category>road &amp; rail</Category>" in (tmp_path / "map.tif.aux.xml").read_text()
    with rasterio.open(out) as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)
        assert dataset.transform == utm((1, 1)).affine
        assert dataset.crs.to_epsg() == 32636
        assert dataset.nodata == 255
        assert dataset.descriptions == ("class",)
        assert dataset.colormap(1)[1] == (255, 128, 0, 255)
        assert dataset.colormap(1)[255] == (0, 0, 0, 0)
        assert dataset.tags()["CLASS_2"] == "road & rail"
        assert dataset.tags()["MODEL"] == "nano 1234"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert dataset.compression.name == "deflate"


def test_overviews_of_classes_invent_no_class(tmp_path):
    """Averaging {1, 9} would give 5."""
    product = Product(kind="classes", bands=("class",), classes=tuple("abcdefghij"), colours=("#102030",) * 10)
    out = tmp_path / "map.tif"
    with scratch_beside(out) as scratch:
        publish(
            write_cog(write(scratch / "r.tif", utm((1500, 1500)), product, codes((1500, 1500), (1, 9))), product), out
        )
    with rasterio.open(out, overview_level=0) as overview:
        assert set(np.unique(overview.read())) == {1, 9}


def test_values_are_averaged_and_scaled(tmp_path):
    out = tmp_path / "confidence.tif"
    pixels = np.tile(np.array([[0, 200], [100, 100]], dtype=np.uint8), (2, 550, 550))
    with scratch_beside(out) as scratch:
        publish(write_cog(write(scratch / "r.tif", utm((1100, 1100)), CONFIDENCE, pixels), CONFIDENCE), out)
    assert cog_validate(out, strict=True) == (True, [], [])
    with rasterio.open(out) as dataset:
        assert dataset.scales == (1 / 254, 1 / 254)
        assert dataset.descriptions == ("confidence", "margin")
    with rasterio.open(out, overview_level=0) as overview:
        assert set(np.unique(overview.read())) == {100}


def test_creation_options_of_the_user_win(tmp_path):
    out = tmp_path / "map.tif"
    with scratch_beside(out) as scratch:
        rows = write(scratch / "r.tif", utm((600, 600)), CLASSES, codes((600, 600)))
        publish(write_cog(rows, CLASSES, {"compress": "LZW", "BLOCKSIZE": "256"}), out)
    with rasterio.open(out) as dataset:
        assert dataset.compression.name == "lzw"
        assert dataset.block_shapes == [(256, 256)]


def test_warping_to_a_grid_keeps_classes_and_marks_the_outside(tmp_path):
    pixels = codes((100, 100), (0, 1, 2))
    write(tmp_path / "a.tif", utm((100, 100)), CLASSES, pixels)
    finer = GeoBox((240, 240), Affine(5, 0, 499_900, 0, -5, 4_000_100), "EPSG:32636")
    with rasterio.open(warp(tmp_path / "a.tif", finer, CLASSES)) as dataset:
        warped = dataset.read(1)
        assert dataset.transform == finer.affine
    np.testing.assert_array_equal(warped[20:220, 20:220], pixels[0].repeat(2, 0).repeat(2, 1))
    assert (warped[:20] == 255).all()
    assert (warped[:, 220:] == 255).all()


def test_areas_are_square_metres_on_the_ground(tmp_path):
    """In degrees at 60 N as in metres: a pixel of 0.0001 degrees is half as wide as on the equator."""
    pixels = np.zeros((1, 100, 100), dtype=np.uint8)
    pixels[0, :25] = 1
    pixels[0, 25:30] = 255
    write(tmp_path / "utm.tif", utm((100, 100)), CLASSES, pixels)
    assert class_areas(tmp_path / "utm.tif", 3) == pytest.approx((7000 * 100, 2500 * 100, 0), rel=1e-3)
    degrees = GeoBox((100, 100), Affine(1e-4, 0, 20, 0, -1e-4, 60), "EPSG:4326")
    write(tmp_path / "degrees.tif", degrees, CLASSES, pixels)
    assert class_areas(tmp_path / "degrees.tif", 3)[1] == pytest.approx(2500 * 11.14 * 5.58, rel=5e-3)


def test_a_raster_above_four_gigabytes_becomes_a_bigtiff(tmp_path):
    """Only the first rows are written; the file is sparse."""
    grid = utm((70_000, 70_000), 0.5)
    with RowWriter(tmp_path / "big.tif", grid, CLASSES) as writer:
        rows = np.ones((1, BLOCK, 70_000), dtype=np.uint8)
        writer.write(Window(row=0, col=0, height=BLOCK, width=70_000), rows)
    with (tmp_path / "big.tif").open("rb") as file:
        assert file.read(4) == b"II+\x00"
    with rasterio.open(tmp_path / "big.tif") as dataset:
        assert dataset.read(1, window=((69_000, 69_002), (69_000, 69_002))).tolist() == [[255, 255], [255, 255]]


@pytest.mark.slow
def test_a_sparse_cog_above_four_gigabytes_is_a_bigtiff(tmp_path):
    out = tmp_path / "map.tif"
    with scratch_beside(out) as scratch:
        grid = utm((66_000, 66_000), 0.5)
        with RowWriter(scratch / "big.tif", grid, CLASSES) as writer:
            rows = np.ones((1, BLOCK, 66_000), dtype=np.uint8)
            writer.write(Window(row=0, col=0, height=BLOCK, width=66_000), rows)
        publish(write_cog(scratch / "big.tif", CLASSES, {"SPARSE_OK": "YES", "OVERVIEWS": "NONE"}), out)
    with out.open("rb") as file:
        assert file.read(4) == b"II+\x00"


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(SkysenseError, match="missing: cannot write there"),
        scratch_beside(tmp_path / "missing" / "a.tif"),
    ):
        pass


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_cog import CLASSES, codes, publish, scratch_beside, utm, write, write_cog
from skysense_core.errors import SkysenseError
pixels = np.random.default_rng(0).integers(0, 250, (1, 2000, 2000), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
out = Path({out!r})
try:
    with scratch_beside(out) as scratch:
        publish(write_cog(write(scratch / "rows.tif", utm((2000, 2000)), CLASSES, pixels), CLASSES), out)
except SkysenseError as error:
    print(error)
    sys.exit(error.exit_code)
"""


# Where the limit strikes: in the temporary file, at its end, in the overviews, in the COG, in its last block.
@pytest.mark.parametrize("limit", [1_000_000, 4_000_000, 4_400_000, 5_200_000, 5_260_000])
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, limit):
    out = tmp_path / "map.tif"
    out.write_text("an older map")
    script = FULL_DISK.format(tests=str(Path(__file__).parent), limit=limit, out=str(out))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "disk" in done.stdout
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text() == "an older map"
