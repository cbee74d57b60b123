"""The collection of awkward files: read correctly, or refused with the reason and the fix."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from surfaces import HR
from torch import Tensor, nn

from skysense_core.checkpoint import LoadedModel
from skysense_core.data.batch import Batch
from skysense_core.errors import SkysenseError
from skysense_core.geo.raster import ReadOptions, ground_gsd, open_stack
from skysense_core.geo.windows import Window
from skysense_core.modalities import Band, Modality
from skysense_core.predict import PredictConfig, predict
from skysense_core.tasks.segmentation import Segmentation

READ = {
    "au-3577-rotated.tif": ("float32", 0.51),
    "RGB.byte.tif": ("uint8", 0.80),
    "RGBA.uint16.tif": ("uint16", None),
    "all-nodata.tif": ("uint16", 0.0),
    "alpha.tif": ("uint8", None),
    "float_raster_with_nodata.tif": ("float32", None),
    "goes.tif": ("uint8", None),
    "world.rgb.tif": ("uint8", 1.0),
    "bad_output_vrt.tif": ("uint8", 1.0),
    "image_float.tif": ("float64", None),
    "image_rgb_mask.tif": ("uint8", None),
    "blue.tif": ("uint16", None),
    "green.tif": ("uint16", None),
    "red.tif": ("uint16", None),
    "cog_cmap.tif": ("uint8", None),
    "cog_dateline.tif": ("uint16", 1.0),
    "cog_nodata.tif": ("uint16", None),
    "cog_nonearth.tif": ("float32", None),
    "cog_rgb_mask.tif": ("uint8", None),
    "cog_scale.tif": ("int16", None),
    "cog_world.tif": ("uint8", None),
    "inverted_lat.tif": ("float32", None),
}
EMPTY = {"all-nodata.tif", "inverted_lat.tif"}
REFUSED = {
    "au-gcp.tif": "ground control points",
    "389225main_sw_1965_1024.jpg": "without georeference",
    "RGB.byte.gcp.vrt": "ground control points",
    "RGB.byte.rpc.vrt": "RPC",
    "float_nan.tif": "CRS",
    "rotated.tif": "CRS",
    "white-gemini-iv.vrt": "ground control points",
    "cog_gcps.tif": "ground control points",
    "test_rpcs.tif": "RPC",
    "test_rpcs_ext_file.tif": "CRS",
}


def awkward(shared_data: Path, name: str) -> Path:
    return next((shared_data / "awkward").glob(f"*/{name}"))


@pytest.mark.parametrize("name", READ)
def test_awkward_files_that_are_read(shared_data, name):
    path = awkward(shared_data, name)
    dtype, share = READ[name]
    stack = open_stack(path, bands=None)
    assert stack.dtype == dtype
    height, width = (min(size, 600) for size in stack.geobox.shape)
    window = stack.geobox[:height, :width]
    raster = stack.read(window)
    with rasterio.open(path) as dataset:
        north_up = dataset.transform.e <= 0 or dataset.transform.b != 0
        top = 0 if north_up else dataset.height - height
        where = ((top, top + height), (0, width))
        indexes = [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha]
        stored, mask = dataset.read(indexes, window=where), dataset.read_masks(indexes, window=where)
    stored, mask = (stored, mask) if north_up else (stored[:, ::-1], mask[:, ::-1])
    expected = (mask > 0).any(axis=0) if stored.dtype == np.uint8 else (mask > 0).all(axis=0)
    if stored.dtype.kind == "f":
        expected &= np.isfinite(stored).all(axis=0)
    if "alpha" in name:
        assert (raster.valid[0] != expected).mean() < 0.01  # antialiased edges: valid where more than half opaque
    else:
        np.testing.assert_array_equal(raster.valid[0], expected)
    good = raster.valid[0] & expected
    np.testing.assert_array_equal(raster.pixels[0][:, good], stored[:, good])
    if share is not None:
        assert raster.valid.mean() == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("name", REFUSED)
def test_awkward_files_that_are_refused_with_reason_and_fix(shared_data, name):
    with pytest.raises(SkysenseError, match=REFUSED[name]) as caught:
        open_stack(awkward(shared_data, name), bands=None)
    assert caught.value.fix
    assert name in caught.value.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Segmentation):
    """The same class everywhere: the map shows where there is data."""

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        b, _, _, h, w = batch.epochs[0]["any"].pixels.shape
        return torch.tensor([0.2, 0.8]).view(1, 2, 1, 1).expand(b, 2, h, w)


def model_for(path: Path) -> LoadedModel:
    """A model of the file's own bands and pixel size."""
    with rasterio.open(path) as dataset:
        colours = dataset.colorinterp[0] == ColorInterp.palette
    stack = open_stack(path, bands=HR if colours else None)
    bands = tuple(Band(name=name, mean=0.0, std=1.0) for name in stack.band_names)
    gsd = ground_gsd(stack.geobox)
    any_kind = Modality(
        name="any", title="", encoder="swin", level="", unit="", gsd=gsd, window=128, dates=1, bands=bands
    )
    return LoadedModel(
        model=nn.Identity(),
        task=Constant(classes=("no", "yes")),
        folder=Path("model"),
        name="stand-in",
        version="0",
        digest="",
        licence="",
        task_name="segmentation",
        settings={},
        classes=("no", "yes"),
        spec={},
        modalities={"any": any_kind},
        training={},
        metrics={},
    )


@pytest.mark.parametrize("name", sorted(set(READ) - EMPTY - {"cog_nonearth.tif"}))
def test_the_map_of_an_awkward_file_lies_on_its_grid_and_shows_where_it_has_data(shared_data, tmp_path, name):
    path, out = awkward(shared_data, name), tmp_path / "map.tif"
    model = model_for(path)
    stack = open_stack(path, bands=[(band.name,) for band in model.modalities["any"].bands])
    (height, width), side = stack.geobox.shape, 400
    part = Window(row=0, col=0, height=height, width=width)
    if max(height, width) > 1300:  # the whole earth among them
        part = Window(row=height * 2 // 9, col=width * 19 // 36, height=side, width=side)
    grid = part.geobox(stack.geobox)
    predict(
        PredictConfig(inputs=(str(path),), out=out, bbox=tuple(grid.boundingbox) if part.height == side else None),
        model,
    )
    with rasterio.open(out) as dataset:
        codes = dataset.read(1)
        assert dataset.transform.almost_equals(grid.affine, 1e-9 * max(abs(value) for value in grid.affine[:6]))
        assert GeoBox(dataset.shape, dataset.transform, dataset.crs.to_wkt()).crs == grid.crs
    valid = stack.read(grid).valid[0]
    assert valid.any()
    np.testing.assert_array_equal(codes, np.where(valid, 1, 255))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("corrupt.tif", "rows .* columns .* cannot be read"),
        ("cog_nonearth.tif", "EUROPA and EPSG:4326 are of two celestial bodies"),
        ("all-nodata.tif", "no valid pixel"),
        ("inverted_lat.tif", "no valid pixel"),
    ],
)
def test_what_cannot_be_mapped_is_refused_and_leaves_no_map(shared_data, tmp_path, name, text):
    path = awkward(shared_data, name)
    with pytest.raises(SkysenseError, match=text):
        predict(PredictConfig(inputs=(str(path),), out=tmp_path / "map.tif"), model_for(path))
    assert not (tmp_path / "map.tif").exists()


def test_the_corrupt_file_is_refused_where_it_is_read(shared_data):
    stack = open_stack(awkward(shared_data, "corrupt.tif"), bands=None)
    assert stack.read(stack.geobox[:512, :512]).valid.all()
    with pytest.raises(SkysenseError, match=r"corrupt\.tif: rows 512 to 1024, columns 512 to 1024 cannot be read"):
        stack.read(stack.geobox[512:, 512:])


def test_every_awkward_file_is_listed(shared_data):
    files = {path.name for path in (shared_data / "awkward").glob("*/*") if path.suffix != ".json"}
    assert files == set(READ) | set(REFUSED) | {"corrupt.tif"}


def test_the_alpha_trap_in_real_imagery(shared_data):
    for path in sorted((shared_data / "points_trees" / "urban_tree" / "images").glob("*.tif"))[:6]:
        stack = open_stack(path, bands=[*HR, ("nir",)], unit="0-255")
        raster = stack.read(stack.geobox)
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(raster.pixels[0], dataset.read())
        assert raster.valid.all()
    prairie = next((shared_data / "scenes" / "naip_prairie").glob("*.tif"))
    named = ReadOptions(bands=("red", "green", "blue", "nir"))
    assert open_stack(prairie, bands=[*HR, ("nir",)], options=named).days.tolist() == [14474]  # 2009-08-18


def test_the_whole_earth_in_bounded_pieces(shared_data):
    """36000 x 18000 pixels read at a hundredth of their size: overviews do it, not memory."""
    stack = open_stack(awkward(shared_data, "cog_world.tif"), bands=None)
    raster = stack.read(stack.geobox.zoom_out(100))
    assert raster.pixels.shape == (1, 1, 180, 360)
    mercator = GeoBox((200, 200), Affine(200000, 0, -2e7, 0, -200000, 2e7), "EPSG:3857")
    assert stack.read(mercator).pixels.shape == (1, 1, 200, 200)


def test_a_crs_without_a_position_is_refused(tmp_path, write_raster):
    path = write_raster(tmp_path / "lost.tif", np.ones((1, 9, 9), np.uint8), crs="EPSG:32633")
    with pytest.raises(SkysenseError, match="has a CRS but no position") as caught:
        open_stack(path, bands=None)
    assert "gdal_edit.py -a_ullr" in (caught.value.fix or "")


def test_a_container_of_several_rasters_is_refused_with_one_of_them(tmp_path, write_raster):
    path = tmp_path / "both.gpkg"
    for number in range(2):
        pixels = np.full((3, 256, 256), 9, np.uint8)
        options = {"driver": "GPKG", "RASTER_TABLE": f"table{number}", "APPEND_SUBDATASET": number > 0}
        write_raster(path, pixels, GeoBox((256, 256), Affine(1, 0, 0, 0, -1, 256), "EPSG:3857"), **options)
    with pytest.raises(SkysenseError, match="a container of 2 rasters") as caught:
        open_stack(path, bands=None)
    assert "GPKG:" in (caught.value.fix or "")
