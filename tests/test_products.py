"""What is written beside the classes, and that modalities of other grids lie on their ground."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from torch import Tensor, nn

from skysense_core import modalities, predict
from skysense_core.checkpoint import LoadedModel
from skysense_core.data.batch import Batch
from skysense_core.description import Description
from skysense_core.predict import PredictConfig
from skysense_core.predict.products import measure_confidence
from skysense_core.tasks.segmentation import Segmentation

HR = GeoBox((640, 640), Affine(0.3125, 0, 832_000, 0, -0.3125, 4_000_000), "EPSG:32636")
"""Near the edge of its zone, so that the next zone's grid is turned against it."""
S1_CRS = "EPSG:32637"


@dataclass(frozen=True, slots=True, kw_only=True)
class FromS1(Segmentation):
    """The class is what Sentinel-1 says of a pixel: 0, or 1 above -10 dB; 2 where it saw nothing."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        series = batch.epochs[0]["s1"]
        codes = torch.where(series.valid[:, 0], (series.pixels[:, 0, 0] > -10).long(), 2)
        side = batch.epochs[0]["hr"].pixels.shape[-1]
        codes = nn.functional.interpolate(codes[:, None].float(), size=(side, side), mode="nearest")[:, 0].long()
        return nn.functional.one_hot(codes, 3).permute(0, 3, 1, 2).float()


@pytest.fixture
def scene(tmp_path: Path, write_raster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """hr in one UTM zone; s1 at 20 m in the next one, bright east of a line, and missing north of another."""
    hr = modalities.load("hr", {"bands": ["red"], "gsd": 0.3125, "window": 256})
    known = {"hr": hr, "s1": modalities.load("s1", {"bands": ["VV"]})}
    described = {
        "folder": Path("model"),
        "name": "stand-in",
        "version": "0",
        "digest": "abc",
        "licence": "",
        "task_name": "segmentation",
        "settings": {},
        "classes": ("dark", "bright", "unseen"),
        "spec": {},
        "modalities": known,
        "training": {},
        "metrics": {},
    }
    task = FromS1(classes=described["classes"])
    monkeypatch.setattr(predict.job, "load_description", lambda path: Description(**described))
    monkeypatch.setattr(
        predict.job, "load_model", lambda path, device: LoadedModel(model=nn.Identity(), task=task, **described)
    )
    red = np.full((1, 640, 640), 90, dtype=np.uint8)
    red[:, 600:, 600:] = 0
    write_raster(tmp_path / "hr.tif", red, HR, names=("red",), nodata=0)
    x, y = Transformer.from_crs(HR.crs, S1_CRS, always_xy=True).transform(832_100, 3_999_900)
    coarse = GeoBox((40, 40), Affine(20, 0, round(x) - 400, 0, -20, round(y) + 400), S1_CRS)
    columns, rows = np.meshgrid(np.arange(40), np.arange(40))
    for date, shift in (("20240101", 0.0), ("20240113", 0.5)):
        values = np.where(columns >= 20, -5.0 - shift, -20.0).astype(np.float32)
        values[rows < 18] = np.nan
        write_raster(tmp_path / f"s1_{date}.tif", values[None], coarse, names=("VV",))
    return (f"hr={tmp_path / 'hr.tif'}", f"s1={tmp_path / 's1_*.tif'}")


def test_another_zone_and_pixel_size_is_brought_onto_the_ground_and_what_is_missing_is_no_token(tmp_path, scene):
    out = tmp_path / "map.tif"
    result = predict.predict(PredictConfig(inputs=scene, out=out, model=Path("model"), observations=True))
    assert result.windows > 4
    with rasterio.open(out) as dataset:
        codes = dataset.read(1)
    with rasterio.open(tmp_path / "map_observations.tif") as dataset:
        seen = dataset.read(1)
    # The truth: where each pixel's centre lies in the other zone.
    x, y = Transformer.from_crs(HR.crs, S1_CRS, always_xy=True).transform(832_100, 3_999_900)
    left, top = round(x) - 400, round(y) + 400
    cols, rows = np.meshgrid(np.arange(640) + 0.5, np.arange(640) + 0.5)
    there = Transformer.from_crs(HR.crs, S1_CRS, always_xy=True).transform(
        832_000 + 0.3125 * cols, 4_000_000 - 0.3125 * rows
    )
    column, row = (there[0] - left) / 20, (top - there[1]) / 20
    truth = np.where(row < 18, 2, column >= 20).astype(np.uint8)
    valid = ~((rows > 600) & (cols > 600))
    # Away from the lines by more than the 10 m pixels that the model reads and their interpolation.
    clear = valid & (abs(column - 20) > 1.5) & (abs(row - 18) > 1.5)
    np.testing.assert_array_equal(codes[clear], truth[clear])
    np.testing.assert_array_equal(codes == 255, ~valid)
    np.testing.assert_array_equal(seen[clear], np.where(truth == 2, 1, 3)[clear])
    assert (seen[~valid] == 255).all()


@pytest.mark.parametrize("measure", ["max", "margin", "entropy"])
def test_confidence_runs_from_the_undecided_to_the_sure(measure):
    undecided = torch.full((4, 1, 1), 0.25)
    sure = torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1)
    between = torch.tensor([0.6, 0.2, 0.1, 0.1]).view(4, 1, 1)
    values = [measure_confidence(scores, measure).item() for scores in (undecided, between, sure)]
    expected = {
        "max": [0.25, 0.6, 1.0],
        "margin": [0.0, 0.4, 1.0],
        "entropy": [0.0, 1 - (-(0.6 * np.log(0.6) + 0.2 * np.log(0.2) + 0.2 * np.log(0.1))) / np.log(4), 1.0],
    }[measure]
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_batch_size_changes_only_pixels_between_two_equal_classes(tmp_path, write_raster):
    """With the packaged model in float32."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(30, 220, (3, 30, 40)).repeat(20, 1).repeat(20, 2).astype(np.uint8)
    grid = replace_size(HR, 0.2, pixels.shape[1:])
    scene = write_raster(tmp_path / "scene.tif", pixels, grid, photometric="RGB")
    maps, scores = [], []
    for size in (1, 7):
        out = tmp_path / f"{size}.tif"
        given = PredictConfig(inputs=(str(scene),), out=out, batch_size=size, precision="fp32", probabilities=True)
        predict.predict(given)
        with rasterio.open(out) as a, rasterio.open(out.with_name(f"{size}_probabilities.tif")) as b:
            maps.append(a.read(1))
            scores.append(b.read().astype(int))
    differ = maps[0] != maps[1]
    assert (abs(scores[0][0] - scores[0][1])[differ] <= 1).all()
    assert abs(scores[0] - scores[1]).max() <= 1


def replace_size(grid: GeoBox, gsd: float, shape: tuple[int, int]) -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, grid.affine.c, 0, -gsd, grid.affine.f), grid.crs)
