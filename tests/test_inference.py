"""The engine: tiled against whole-image prediction, and nothing but speed depends on batches, strips and threads."""

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from torch import nn

from skysense_core import modalities
from skysense_core.data.batch import Batch
from skysense_core.data.scene import Scene, model_grid
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.raster import open_stack
from skysense_core.geo.windows import Lattice, Window, lattice_for
from skysense_core.inference import Meter, strips_of, sweep, write_behind
from skysense_core.merge.raster import RasterMerger
from skysense_core.types import Sample

CPU = torch.device("cpu")
HR = modalities.load("hr", {"bands": ["red"]})


def utm(shape: tuple[int, int], gsd: float = 0.3) -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), "EPSG:32636")


class Network(nn.Module):
    """Three convolutions, receptive radius 3; with `glance` every pixel also sees its whole window."""

    def __init__(self, *, glance: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )
        self.glance = glance

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> torch.Tensor:
        image = batch.epochs[0]["hr"].pixels[:, 0] / 64 - 2
        logits = self.layers(image)
        if self.glance:
            logits = logits * (1 + image.mean(dim=(2, 3), keepdim=True))
        return (4 * logits).softmax(dim=1)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (1, 150, 200), dtype=np.uint8)


@pytest.fixture
def scene(tmp_path, write_raster, image) -> Scene:
    grid = utm((150, 200))
    path = write_raster(tmp_path / "scene.tif", image, grid, names=("red",))
    return Scene(stacks={"hr": open_stack([path], bands=[("red",)])}, modalities={"hr": HR}, reference="hr", grid=grid)


def predicted(
    scene: Scene, lattice: Lattice, score: Callable, *, region=None, width=10**6, batch_size=3, readers=2
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and validity of a region, whole."""
    region = region or Window.of(scene.grid)
    scores = np.full((3, *scene.grid.shape), np.nan, dtype=np.float32)
    valid = np.zeros(scene.grid.shape, dtype=bool)
    with Meter(0, 0) as meter:
        for part in sweep(
            scene,
            lattice,
            strips_of(region, width),
            score,
            lambda strip: RasterMerger(lattice, strip, 3, CPU),
            on=CPU,
            batch_size=batch_size,
            readers=readers,
            meter=meter,
        ):
            at = slice(part.window.row, part.window.row_stop), slice(part.window.col, part.window.col_stop)
            assert np.isnan(scores[:, *at]).all(), "every pixel comes out once"
            scores[:, *at], valid[at] = part.scores.numpy(), part.valid.numpy()
    here = slice(region.row, region.row_stop), slice(region.col, region.col_stop)
    assert not np.isnan(scores[:, *here]).any()
    return scores[:, *here], valid[here]


def test_a_convolutional_model_gives_the_same_tiled_and_whole(scene, image):
    network = Network(glance=False)
    lattice = Lattice(shape=(150, 200), origin=(-17, 40), window=64, trim=3, overlap=16)
    tiled, valid = predicted(scene, lattice, network)
    logits = network.layers(torch.from_numpy(image[None]).float() / 64 - 2)
    whole = (4 * logits).softmax(dim=1)[0].detach().numpy()
    np.testing.assert_allclose(tiled[:, 3:-3, 3:-3], whole[:, 3:-3, 3:-3], rtol=0, atol=2e-6)
    np.testing.assert_allclose(tiled.sum(axis=0), 1, atol=2e-6)
    assert valid.all()


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 1}, {"batch_size": 7}, {"readers": 1}, {"readers": 5}, {"width": 64}, {"width": 100}],
    ids=str,
)
def test_nothing_depends_on_batch_size_threads_and_strips(scene, change):
    lattice = lattice_for(scene.grid, 64, align=32)
    base, _ = predicted(scene, lattice, Network(glance=True))
    other, _ = predicted(scene, lattice, Network(glance=True), **change)
    np.testing.assert_allclose(other, base, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "region",
    [
        Window(row=0, col=0, height=1, width=1),
        Window(row=149, col=199, height=1, width=1),
        Window(row=40, col=77, height=90, width=83),
        Window(row=0, col=150, height=150, width=10),
    ],
    ids=str,
)
def test_a_part_gets_the_pixels_of_the_whole(scene, region):
    lattice = lattice_for(scene.grid, 64, align=32)
    whole, _ = predicted(scene, lattice, Network(glance=True))
    part, _ = predicted(scene, lattice, Network(glance=True), region=region)
    rows, cols = slice(region.row, region.row_stop), slice(region.col, region.col_stop)
    np.testing.assert_allclose(part, whole[:, rows, cols], rtol=0, atol=2e-6)


def test_empty_windows_are_skipped_and_invalid_pixels_marked(tmp_path, write_raster, image):
    image[:, :, 80:] = 0
    image[:, 50, 60] = 0
    grid = utm((150, 200))
    stack = open_stack([write_raster(tmp_path / "half.tif", image, grid, names=("red",), nodata=0)], bands=[("red",)])
    scene = Scene(stacks={"hr": stack}, modalities={"hr": HR}, reference="hr", grid=grid)
    seen = []

    def score(batch: Batch) -> torch.Tensor:
        seen.extend(batch.ids)
        return Network(glance=True)(batch)

    lattice = lattice_for(grid, 64, align=32)
    _, valid = predicted(scene, lattice, score)
    np.testing.assert_array_equal(valid, image[0] != 0)
    assert 0 < len(seen) < len(lattice.windows()) * 0.7


def test_other_modalities_lie_on_the_same_ground_at_their_own_pixel_size(tmp_path, write_raster, image):
    """hr at 0.3125 m and s2 at 10 m: one S2 pixel is 32 hr pixels, also where the window leaves the hr scene."""
    grid = utm((300, 300), 0.3125)
    hr = write_raster(tmp_path / "hr.tif", np.full((1, 300, 300), 9, np.uint8), grid, names=("red",))
    coarse = GeoBox((40, 40), Affine(10, 0, 499_800, 0, -10, 4_000_200), "EPSG:32636")
    numbers = np.arange(1600, dtype=np.uint16).reshape(1, 40, 40)
    s2 = write_raster(tmp_path / "s2.tif", numbers, coarse, names=("B04",))
    both = {"hr": HR, "s2": modalities.load("s2", {"bands": ["B04"]})}
    stacks = {"hr": open_stack([hr], bands=[("red",)]), "s2": open_stack([s2], bands=[("B04",)])}
    scene = Scene(stacks=stacks, modalities=both, reference="hr", grid=grid)
    sample = scene.read(Window(row=-128, col=128, height=256, width=256))
    assert sample.epochs[0]["hr"].pixels.shape == (1, 1, 256, 256)
    np.testing.assert_array_equal(sample.epochs[0]["s2"].pixels[0, 0], numbers[0, 16:24, 24:32])
    assert sample.epochs[0]["s2"].valid.all()
    far = scene.read(Window(row=256, col=256, height=256, width=256))
    assert far.epochs[0]["s2"].valid.sum() == 0 or far.epochs[0]["s2"].pixels.shape == (1, 1, 8, 8)
    lon, lat = sample.lonlat
    assert (round(lon, 3), round(lat, 3)) == (33.001, 36.145)


def test_a_reading_error_names_the_window(scene):
    class Broken(Scene):
        def read(self, window: Window) -> Sample | None:
            if window.row > 50:
                raise SkysenseError("block 7 is damaged", fix="Copy the file again.")
            return Scene.read(self, window)

    broken = Broken(stacks=scene.stacks, modalities=scene.modalities, reference="hr", grid=scene.grid)
    with pytest.raises(SkysenseError, match=r"block 7 is damaged \(window at rows 54-118") as caught:
        predicted(broken, lattice_for(scene.grid, 64, align=32), Network(glance=False))
    assert caught.value.fix == "Copy the file again."


def test_writing_behind_keeps_the_order_and_surfaces_errors():
    written: list[int] = []
    write_behind(range(20), written.append)
    assert written == list(range(20))

    made = []

    def fail(item: int) -> None:
        if item == 3:
            raise SkysenseError("disk full")

    def items():
        for item in itertools.count():
            made.append(item)
            yield item

    with pytest.raises(SkysenseError, match="disk full"):
        write_behind(items(), fail)
    assert len(made) < 12


def test_nothing_is_written_after_what_could_not_be():
    """The next items wait already when one fails; written, they would hide the hole."""
    written: list[int] = []

    def fail(item: int) -> None:
        time.sleep(0.01)
        if item == 3:
            raise SkysenseError("disk full")
        written.append(item)

    with pytest.raises(SkysenseError, match="disk full"):
        write_behind(range(9), fail)
    assert written == [0, 1, 2]


@pytest.mark.parametrize(
    ("gsd", "shape", "noted"), [(0.3, (100, 50), 0), (0.32, (100, 50), 0), (0.6, (200, 100), 1), (0.15, (50, 25), 1)]
)
def test_the_models_grid_is_the_scenes_or_resampled_within_a_factor_two(gsd, shape, noted):
    native = utm((100, 50), gsd)
    grid, notes = model_grid(native, HR)
    assert tuple(grid.shape) == pytest.approx(shape, abs=1)
    assert len(notes) == noted
    assert grid.affine.c == native.affine.c
    assert grid.affine.f == native.affine.f


@pytest.mark.parametrize("gsd", [0.1, 0.7, 10.0])
def test_other_pixel_sizes_are_refused_with_the_fix(gsd):
    with pytest.raises(UsageError, match=r"gdalwarp -tr 0\.3"):
        model_grid(utm((100, 50), gsd), HR)


def test_pixel_size_in_degrees_is_measured_on_the_ground():
    degrees = GeoBox((100, 50), Affine(0.3 / 111_320, 0, 36.5, 0, -0.3 / 111_320, 1.0), "EPSG:4326")
    assert model_grid(degrees, HR) == (degrees, [])
