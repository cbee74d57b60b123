"""What is left out of a product or a file: clouds, shadows and defects by its classes, or by a mask of one's own."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import rasterio
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from products import L2A, metadata, open_products, write_l2a
from surfaces import S1, UTM
from torch import Tensor, nn

from skysense_core import modalities, predict, sources
from skysense_core.checkpoint import LoadedModel
from skysense_core.data.batch import Batch
from skysense_core.description import Description
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.raster import ReadOptions, open_stack
from skysense_core.predict import PredictConfig
from skysense_core.tasks.segmentation import Segmentation


def test_clouds_shadows_and_defects_are_left_out(tmp_path):
    scl = np.arange(30 * 40).reshape(30, 40) % 12
    folder = write_l2a(tmp_path / L2A, scl=scl.astype(np.uint8))
    raster = open_products(folder).read(UTM)
    expected = ~np.isin(scl.repeat(2, 0).repeat(2, 1), (1, 3, 8, 9, 10))
    np.testing.assert_array_equal(raster.valid[0], expected)
    travelled = pickle.loads(pickle.dumps(open_products(folder)))  # to the processes that read samples
    np.testing.assert_array_equal(travelled.read(UTM).valid, raster.valid)
    assert any("3 cloud shadow" in note and "--cloud-mask none" in note for note in open_products(folder).notes)
    whole = open_products(folder, cloud_mask="none")
    assert whole.read(UTM).valid.all()
    assert not any("cloud" in note for note in whole.notes)
    without = write_l2a(tmp_path / "S2A_without.SAFE")
    assert any("clouds are not left out" in note for note in open_products(without).notes)


def test_no_cloud_is_interpolated_and_another_tile_of_the_date_fills_it(tmp_path):
    scl = np.full((30, 40), 4, np.uint8)
    scl[10:14, 10:14] = 9
    bright = np.where(scl == 9, 16000, 2000).astype(np.uint16)
    values = {"B11": bright, "B02": bright.repeat(2, 0).repeat(2, 1)}
    cloudy = write_l2a(tmp_path / "S2A_1.SAFE", values=values, scl=scl)
    raster = open_products(cloudy).read(UTM)
    assert (~raster.valid).sum() == 8 * 8
    assert set(np.unique(raster.pixels)) == {0, 1000}
    coarse = open_products(cloudy).read(UTM.zoom_out(3))
    assert set(np.unique(coarse.pixels.round(2))) == {0, 1000}
    clear = write_l2a(tmp_path / "S2A_2.SAFE", scl=np.full((30, 40), 4, np.uint8))
    both = open_products(cloudy, clear).read(UTM)
    assert both.valid.all()
    assert (both.pixels == 1000).all()


def test_a_mask_of_the_users_own(tmp_path, write_raster):
    scl = np.full((30, 40), 9, np.uint8)
    folder = write_l2a(tmp_path / L2A, scl=scl)
    mask = np.zeros((1, 30, 20), np.uint8)
    mask[0, :10] = 1
    half = GeoBox((30, 20), UTM.zoom_out(2).affine, UTM.crs)  # the eastern half is not masked at all
    path = write_raster(tmp_path / "mask.tif", mask, half, nodata=0)
    stack = open_products(folder, cloud_mask=str(path))
    expected = np.ones(UTM.shape, bool)
    expected[:20, :40] = False
    np.testing.assert_array_equal(stack.read(UTM).valid[0], expected)
    assert str(path) in stack.paths  # a mask that changes changes the result

    dates = [metadata(day=day) for day in ("2023-08-21", "2023-09-05")]
    series = [write_l2a(tmp_path / f"S2A_{number}.SAFE", text=text) for number, text in enumerate(dates)]
    (tmp_path / "masks").mkdir()
    write_raster(tmp_path / "masks" / "clouds_20230905.tif", mask, half)
    assert open_products(*series, cloud_mask=str(tmp_path / "masks")).read(UTM).valid.mean(axis=(1, 2)).tolist() == [
        1,
        5 / 6,
    ]
    write_raster(tmp_path / "masks" / "clouds_20230906.tif", mask, half)
    with pytest.raises(UsageError, match="is of 2023-09-06, and no image is"):
        open_products(*series, cloud_mask=str(tmp_path / "masks"))
    with pytest.raises(UsageError, match="has 2 bands"):
        open_products(folder, cloud_mask=str(write_raster(tmp_path / "two.tif", np.zeros((2, 30, 20), np.uint8), half)))
    with pytest.raises(SkysenseError, match="no such file"):
        open_products(folder, cloud_mask=str(tmp_path / "none.tif"))

    radar = write_raster(tmp_path / "s1.tif", np.full((2, *UTM.shape), -9, "float32"), UTM, names=("VV", "VH"))
    seen = open_stack(radar, bands=S1, unit="dB", options=ReadOptions(cloud_mask=str(path)))
    assert seen.read(UTM).valid.all()
    assert any("cloud_mask" in note for note in seen.notes)


# Training and prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness(Segmentation):
    """A task whose map says whether blue reflectance is above 0.15."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        bright = (batch.epochs[0]["s2"].pixels[:, 0, 0] > 1500).long()
        return nn.functional.one_hot(bright, 2).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(("mask", "clear"), [(None, 15 / 16), ("none", 1.0)])
def test_a_product_becomes_a_map_with_holes_under_clouds(tmp_path, monkeypatch, mask, clear):
    grid = GeoBox((64, 64), UTM.affine, UTM.crs)
    blue = np.full((64, 64), 2400, np.uint16)
    blue[:, 32:] = 2600
    scl = np.full((32, 32), 4, np.uint8)
    scl[:8, :8] = 9
    folder = write_l2a(tmp_path / L2A, grid=grid, values={"B02": blue}, scl=scl)
    said = {"folder": tmp_path, "name": "stand-in", "version": "0", "digest": "abc", "licence": "", "settings": {}}
    said |= {"task_name": "segmentation", "classes": ("dark", "bright"), "spec": {}, "training": {}, "metrics": {}}
    said |= {"modalities": {"s2": modalities.load("s2")}}
    task = Brightness(classes=("dark", "bright"))
    monkeypatch.setattr(predict.job, "load_description", lambda path: Description(**said))
    monkeypatch.setattr(
        predict.job, "load_model", lambda path, device: LoadedModel(model=nn.Identity(), task=task, **said)
    )
    out = tmp_path / "map.tif"
    options = {} if mask is None else {"read": {"": ReadOptions(cloud_mask=mask)}}
    result = predict.predict(PredictConfig(inputs=(str(folder),), model=tmp_path, out=out, jobs=1, **options))
    assert any("offset -1000" in note for note in result.notes)
    with rasterio.open(out) as dataset:
        valid = dataset.read_masks(1) > 0
        assert valid.mean() == clear
        np.testing.assert_array_equal(dataset.read(1)[valid], (blue > 2500)[valid])


def test_products_with_labels_are_training_data(tmp_path, write_raster):
    grid = GeoBox((64, 64), UTM.affine, UTM.crs)
    scl = np.full((32, 32), 4, np.uint8)
    scl[:8] = 9
    write_l2a(tmp_path / L2A, grid=grid, scl=scl)
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[:, 32:] = 1
    write_raster(tmp_path / "labels.tif", labels, grid)
    table = {"rasters": {"s2": str(tmp_path / "S2A_*.SAFE")}, "labels": str(tmp_path / "labels.tif")}
    table |= {"classes": ("low", "high"), "block": 1}
    wanted = {"s2": modalities.load("s2", {"window": 16})}
    split = sources.from_table(table)[1].open("train", wanted)
    images = [split[number].epochs[0]["s2"] for number in range(len(split))]
    assert {value for image in images for value in np.unique(image.pixels[:, :, image.valid[0]])} == {1000}
    assert 0 < sum(image.valid.sum() for image in images) < 64 * 48
    everything = sources.from_table(table | {"read": {"s2": {"cloud_mask": "none"}}})[1].open("train", wanted)
    assert all(everything[number].epochs[0]["s2"].valid.any() for number in range(len(everything)))
