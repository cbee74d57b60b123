"""Many maps of one grid become one: the same file as if it had been made whole, and every refusal."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rio_cogeo import cog_validate

from skysense_cli.app import main
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.cog import Product, RowWriter, write_cog
from skysense_core.geo.mosaic import lay_out, open_result, write_vrt
from skysense_core.geo.windows import Window
from skysense_core.mosaic import MosaicConfig, MosaicResult, mosaic

TAGS = {"TIFFTAG_SOFTWARE": "skysense 1.0", "MODEL": "nano", "MODEL_DIGEST": "12ab", "INPUTS": "scene.tif"}
CLASSES = Product(
    kind="classes",
    bands=("class",),
    nodata=255.0,
    classes=("background", "road & rail", "<unknown>"),
    colours=("#000000", "#ff8000", "#00ff10"),
    tags=TAGS,
)
CONFIDENCE = Product(kind="continuous", bands=("confidence",), scale=1 / 254, tags=TAGS)
PROBABILITIES = replace(CONFIDENCE, bands=("probability of a", "probability of b", "probability of c"))
HEIGHTS = Product(
    kind="continuous", bands=("height", "error"), dtype="float32", nodata=float("nan"), offset=-10.0, tags=TAGS
)
WHOLE = GeoBox((700, 900), Affine(0.2, 0, 390_000.3, 0, -0.2, 5_820_000.7), "EPSG:32633")
WINDOWS = [
    Window(row=row, col=col, height=min(333, 700 - row), width=min(520, 900 - col))
    for row in range(0, 700, 333)
    for col in range(0, 900, 520)
]
"""Parts that agree with no block."""


def make(path: Path, grid: GeoBox, product: Product, pixels: np.ndarray) -> Path:
    """A file such as predict publishes."""
    with RowWriter(path, grid, product) as writer:
        writer.write(Window.of(grid), pixels)
    copy = write_cog(path, product)
    return copy.replace(path)


def random(product: Product, shape: tuple[int, int] = (700, 900)) -> np.ndarray:
    rng = np.random.default_rng(7)
    shape = (len(product.bands), *shape)
    if product.dtype == "float32":
        return np.where(rng.random(shape) < 0.2, np.nan, rng.normal(size=shape)).astype("float32")
    values = np.array([*range(len(product.classes) or 255), 255], dtype=np.uint8)
    return rng.choice(values, shape)


def cut(folder: Path, product: Product, pixels: np.ndarray) -> list[Path]:
    folder.mkdir()
    return [
        make(
            folder / f"part{number}.tif",
            window.geobox(WHOLE),
            product,
            pixels[:, window.row : window.row_stop, window.col : window.col_stop],
        )
        for number, window in enumerate(WINDOWS)
    ]


def join(*inputs: str | Path, out: Path, **settings) -> MosaicResult:
    return mosaic(MosaicConfig(inputs=tuple(map(str, inputs)), out=out, **settings))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.mark.parametrize(
    "product", [CLASSES, CONFIDENCE, HEIGHTS], ids=["classes", "one band of bytes", "two of floats"]
)
def test_parts_become_the_file_that_the_whole_would_be(tmp_path, product):
    """Not a byte differs: pixels, overviews, colours, names, scale, nodata and tags are the same."""
    pixels = random(product)
    whole = make(tmp_path / "whole.tif", WHOLE, product, pixels)
    cut(tmp_path / "parts", product, pixels)
    result = join(tmp_path / "parts" / "*.tif", out=tmp_path / "all.tif")
    assert (result.parts, result.width, result.height, result.notes) == (len(WINDOWS), 900, 700, ())
    assert cog_validate(tmp_path / "all.tif", strict=True) == (True, [], [])
    assert (tmp_path / "all.tif").read_bytes() == whole.read_bytes()
    names = {path.name for path in tmp_path.iterdir() if path.is_file() and path.name.startswith("all")}
    style = ["all.qml"] if product.classes or product is CONFIDENCE else []
    assert names == {"all.tif", *style, *(["all.tif.aux.xml"] if product.classes else [])}
    if product.classes:
        assert "<Category>road &amp; rail</Category>" in (tmp_path / "all.tif.aux.xml").read_text()
        with rasterio.open(tmp_path / "all.tif") as dataset:
            assert dataset.colormap(1)[1] == (255, 128, 0, 255)
            assert dataset.tags()["CLASS_2"] == "<unknown>"


@pytest.mark.parametrize("count", [3, 4], ids=["three, as RGB", "four, as RGB and alpha"])
def test_bytes_of_several_bands_stay_values(tmp_path, count):
    product = replace(CONFIDENCE, bands=tuple(f"probability of {name}" for name in "abcd"[:count]))
    pixels = random(product)
    join(*cut(tmp_path / "parts", product, pixels), out=tmp_path / "all.tif")
    with rasterio.open(tmp_path / "all.tif") as dataset:
        assert [one.name for one in dataset.colorinterp] == ["gray"] + ["undefined"] * (count - 1)
        assert dataset.descriptions == product.bands
        assert dataset.scales == (1 / 254,) * count
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_a_result_says_what_it_is(tmp_path):
    for number, product in enumerate((CLASSES, CONFIDENCE)):
        found = open_result(str(make(tmp_path / f"{number}.tif", WHOLE, product, random(product))))
        assert found.product == product
        assert found.grid == WHOLE


def test_the_first_valid_pixel_wins_and_gaps_are_nodata(tmp_path):
    def part(name: str, col: int, code: int) -> Path:
        pixels = np.full((1, 40, 40), code, dtype=np.uint8)
        pixels[:, :10] = 255
        return make(tmp_path / name, Window(row=0, col=col, height=40, width=40).geobox(WHOLE), CLASSES, pixels)

    one, two, far = part("one.tif", 0, 1), part("two.tif", 30, 2), part("far.tif", 100, 0)
    low = make(
        tmp_path / "low.tif",
        Window(row=5, col=0, height=10, width=40).geobox(WHOLE),
        CLASSES,
        np.zeros((1, 10, 40), np.uint8),
    )
    join(one, two, far, low, out=tmp_path / "a.tif")
    expected = np.full((40, 140), 255)
    expected[10:, 100:] = 0
    expected[5:15, :40] = 0
    expected[10:, 30:70] = 2
    expected[10:, :40] = 1
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], expected)
    join(two, one, far, low, out=tmp_path / "b.tif")
    expected[10:, 30:70] = 2
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0], expected)


@pytest.mark.parametrize(
    "affine",
    [Affine(0.3, 0, 5e5, 0, -0.3, 4e6) * Affine.rotation(25), Affine(2.7e-6, 0, 36.5, 0, -2.7e-6, -1.25)],
    ids=["rotated", "degrees"],
)
def test_any_lattice_is_laid_out_in_whole_pixels(affine):
    whole = GeoBox((9000, 7000), affine, "EPSG:4326" if affine.is_rectilinear else "EPSG:32636")
    windows = [Window(row=7111, col=90, height=40, width=33), Window(row=0, col=6000, height=20, width=1000)]
    grid, places = lay_out([(str(window), window.geobox(whole)) for window in windows])
    assert grid.shape == (7151, 6910)
    np.testing.assert_allclose(grid.affine[:6], Window(row=0, col=90, height=1, width=1).geobox(whole).affine[:6])
    assert places == [replace(window, col=window.col - 90) for window in windows]


def test_a_part_may_be_a_bare_draft_with_a_name_of_any_kind(tmp_path):
    """What predict joins: drafts of shards, under a folder with a name that XML must escape."""
    folder = tmp_path / 'a&b "<c>'
    folder.mkdir()
    pixels = random(CLASSES)
    parts = []
    for number, window in enumerate(WINDOWS):
        path = folder / f"{number}.tif"
        with RowWriter(path, window.geobox(WHOLE), CLASSES) as writer:
            piece = pixels[:, window.row : window.row_stop, window.col : window.col_stop]
            writer.write(replace(window, row=0, col=0), piece)
        parts.append((path, window))
    made = write_cog(write_vrt(parts, WHOLE, CLASSES, folder / "all.parts"), CLASSES)
    np.testing.assert_array_equal(read(made), pixels)


def test_tags_that_differ_are_all_kept_and_several_models_are_noted(tmp_path):
    grids = [window.geobox(WHOLE) for window in WINDOWS]
    other = replace(CLASSES, tags={**TAGS, "INPUTS": "east.tif", "MODEL": "tiny", "MODEL_DIGEST": "34cd"})
    paths = [
        make(tmp_path / f"{number}.tif", grid, product, random(product, tuple(grid.shape)))
        for number, (grid, product) in enumerate(zip(grids[:3], (CLASSES, other, CLASSES), strict=True))
    ]
    result = join(*paths, out=tmp_path / "all.tif")
    with rasterio.open(tmp_path / "all.tif") as dataset:
        tags = dataset.tags()
    assert tags["INPUTS"] == "scene.tif; east.tif"
    assert tags["MODEL_DIGEST"] == "12ab; 34cd"
    assert tags["TIFFTAG_SOFTWARE"] == "skysense 1.0"
    assert result.notes == ("the parts were made by different models: nano; tiny",)


def moved(x: float = 0.0, y: float = 0.0, gsd: float = 0.2, turn: float = 0.0, crs: str = "EPSG:32633") -> GeoBox:
    affine = Affine(gsd, 0, 390_000.3 + 0.2 * x, 0, -gsd, 5_820_000.7 + 0.2 * y) * Affine.rotation(turn)
    return GeoBox((50, 60), affine, crs)


@pytest.mark.parametrize(
    ("grid", "product", "message"),
    [
        (moved(crs="EPSG:32634"), CLASSES, "its CRS is EPSG:32634, not EPSG:32633"),
        (moved(gsd=0.25), CLASSES, r"its pixels are 0\.25 x -0\.25, not 0\.2 x -0\.2"),
        (moved(x=70.25, y=8.5), CLASSES, r"shifted by 0\.25 columns and -0\.5 rows"),
        (moved(turn=10), CLASSES, "rotated otherwise"),
        (moved(), CONFIDENCE, "kind continuous, not classes"),
        (moved(), replace(CLASSES, classes=("background", "house", "tree")), "classes background, house, tree, not"),
        (moved(), replace(CLASSES, nodata=254.0), r"nodata 254\.0, not 255\.0"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_names(tmp_path, grid, product, message):
    first = make(tmp_path / "first.tif", moved(), CLASSES, random(CLASSES, (50, 60)))
    other = make(tmp_path / "other.tif", grid, product, random(product, (50, 60)))
    with pytest.raises(UsageError, match=rf"(?s)other\.tif.*first\.tif.*{message}"):
        join(first, other, out=tmp_path / "all.tif")
    assert not (tmp_path / "all.tif").exists()


def test_results_of_other_bands_or_scale_are_refused(tmp_path):
    first = make(tmp_path / "first.tif", moved(), PROBABILITIES, random(PROBABILITIES, (50, 60)))
    for product, message in (
        (replace(PROBABILITIES, bands=PROBABILITIES.bands[:2]), "bands probability of a, probability of b, not"),
        (replace(PROBABILITIES, scale=0.01), r"scale 0\.01, not 0\.0039"),
    ):
        other = make(tmp_path / "other.tif", moved(x=60), product, random(product, (50, 60)))
        with pytest.raises(UsageError, match=message):
            join(first, other, out=tmp_path / "all.tif")


def test_inputs_and_output_that_make_no_sense_are_refused(tmp_path, write_raster, monkeypatch):
    good = make(tmp_path / "good.tif", moved(), CLASSES, random(CLASSES, (50, 60)))
    out = tmp_path / "all.tif"

    def refused(match: str, *inputs: object, error: type[SkysenseError] = UsageError, out: Path = out) -> None:
        with pytest.raises(error, match=match):
            join(*map(str, inputs), out=out)

    foreign = write_raster(tmp_path / "foreign.tif", np.zeros((1, 50, 60), np.uint8), moved(), nodata=255)
    refused(r"(?s)foreign\.tif: not a result of skysense predict.*gdalbuildvrt", good, foreign)
    refused("absent.tif: no such file", good, tmp_path / "absent.tif", error=SkysenseError)
    refused("no file matches", tmp_path / "x*.tif", error=SkysenseError)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(good.read_bytes()[:300])
    refused(r"broken\.tif: cannot be read", good, broken, error=SkysenseError)
    refused("no raster given")
    refused("not the name of a GeoTIFF", good, out=tmp_path / "all.png")
    refused(r"--out .*good\.tif is one of the inputs", good, out=good)
    out.write_text("precious")
    refused(r"(?s)all\.tif exists.*--overwrite", good)
    assert out.read_text() == "precious"
    join(good, out=out, overwrite=True, creation_options={"COMPRESS": "LZW"})
    with rasterio.open(out) as dataset:
        assert dataset.compression.name == "lzw"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    refused("no raster given", "-", out=tmp_path / "new.tif")


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    pixels = random(CLASSES)
    paths = cut(tmp_path / "parts", CLASSES, pixels)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in paths)))
    monkeypatch.setattr(sys, "argv", ["skysense", "mosaic", "-", "--out", str(tmp_path / "all.tif"), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seconds"] > 0
    wanted = {"path": str(tmp_path / "all.tif"), "parts": len(paths), "width": 900, "height": 700, "notes": []}
    assert {key: said[key] for key in wanted} == wanted
    np.testing.assert_array_equal(read(tmp_path / "all.tif"), pixels)
