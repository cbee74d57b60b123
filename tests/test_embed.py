"""Features through the verb: their grid, values, means over polygons, prototypes, and every refusal."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio import features as rasterio_features
from rio_cogeo import cog_validate
from shapely import box
from typer.testing import CliRunner

from skysense_cli.app import app
from skysense_core import modalities
from skysense_core.checkpoint import load_bare, save_model
from skysense_core.embed import EmbedConfig, EmbedResult, embed, estimate
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.mosaic import open_result
from skysense_core.modalities import Modality
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.mosaic import MosaicConfig, mosaic
from skysense_core.predict.shards import folder_of
from skysense_core.tasks.segmentation import Segmentation

HR = modalities.load("hr", {"gsd": 0.3, "window": 128})
S2 = modalities.load("s2", {"window": 32})
GRID = GeoBox((190, 230), Affine(0.3, 0, 500_010.9, 0, -0.3, 4_000_000.8), "EPSG:32636")
GRID_S2 = GeoBox((50, 70), Affine(10, 0, 500_050, 0, -10, 4_000_070), "EPSG:32636")


def model(folder: Path, spec: ModelSpec, known: dict[str, Modality], task: Segmentation | None = None) -> Path:
    """A model folder of random weights; with prototypes, the region of the scenes is visited."""
    torch.manual_seed(1)
    encoder = SkySense(spec, known)
    if encoder.prototypes is not None:
        encoder.prototypes.visited[encoder.prototypes.regions(torch.tensor([[33.0, 36.1]]))] = True
    whole = Segmentation(classes=("a",)).build_model(encoder) if task is None else task.build_model(encoder)
    save_model(folder, whole, task, name=folder.name, training={}, metrics={}, licence="none")
    return folder


def bare(folder: Path, spec: ModelSpec, known: dict[str, Modality]) -> Path:
    """As `model`, of an encoder alone, as pretrain writes it."""
    torch.manual_seed(1)
    encoder = SkySense(spec, known)
    if encoder.prototypes is not None:
        encoder.prototypes.visited[encoder.prototypes.regions(torch.tensor([[33.0, 36.1]]))] = True
    holder = torch.nn.Module()
    holder.encoder = encoder
    save_model(folder, holder, None, name=folder.name, training={}, metrics={}, licence="none")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes and models."""
    folder = tmp_path_factory.mktemp("embed")
    rng = np.random.default_rng(5)
    hr = rng.integers(30, 220, (3, 19, 23), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
    hr[:, 120:, 160:] = 0
    s2 = rng.integers(300, 3000, (10, 5, 7), dtype=np.uint16).repeat(10, 1).repeat(10, 2)
    tall = rng.integers(30, 220, (3, 60, 4), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
    grid_tall = GeoBox((600, 40), GRID.affine, GRID.crs)
    (folder / "tall").mkdir()
    for name, pixels, grid, names in (
        ("hr", hr, GRID, HR.band_names),
        ("tall/hr", tall, grid_tall, HR.band_names),
        ("s2", s2, GRID_S2, S2.band_names),
    ):
        profile = {"count": len(pixels), "height": grid.shape.y, "width": grid.shape.x, "dtype": pixels.dtype}
        place = {"crs": str(grid.crs), "transform": grid.affine, "nodata": 0}
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", **profile, **place) as dataset:
            dataset.write(pixels)
            dataset.descriptions = names
    nano = ModelSpec(preset="nano", fusion=False)
    model(folder / "lone", nano, {"hr": HR}, Segmentation(classes=("a", "b")))
    bare(folder / "fused", replace(nano, fusion=True, prototypes=True), {"hr": HR, "s2": S2})
    bare(folder / "encoders", nano, {"hr": HR, "s2": S2})
    return folder


def run(place: Path, out: Path, scene: str = "hr.tif", model: str | Path = "lone", **settings: object) -> EmbedResult:
    inputs = tuple(f"{item.split('.')[0]}={place / item}" for item in scene.split())
    return embed(EmbedConfig(inputs=inputs, out=out, model=place / model, jobs=2, **settings))


def read(path: Path) -> np.ndarray:
    """Values (d, h, w), NaN where there is no data."""
    with rasterio.open(path) as dataset:
        stored = dataset.read().astype(float)
        scales, offsets = np.array(dataset.scales)[:, None, None], np.array(dataset.offsets)[:, None, None]
        gone = np.isnan(stored[0]) if np.isnan(dataset.nodata) else stored[0] == dataset.nodata
        return np.where(gone, np.nan, stored * scales + offsets)


@pytest.mark.parametrize(("level", "cell", "channels"), [(None, 32, 128), ("hr.1", 4, 16), ("hr.3", 16, 64)])
def test_features_lie_on_their_own_grid(place, tmp_path, level, cell, channels):
    """Cells are squares of pixels on a lattice that begins at the origin of the CRS."""
    result = run(place, tmp_path / "out.tif", features=level)
    assert (result.features, result.cell, result.channels) == (level or "hr.4", cell, channels)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.count == channels
        assert dataset.res == pytest.approx((0.3 * cell, 0.3 * cell))
        assert dataset.crs.to_epsg() == 32636
        for edge in (dataset.bounds.left, dataset.bounds.top):
            assert round(edge / 0.3) % cell == 0
        left, bottom, right, top = GRID.boundingbox
        assert 0 <= left - dataset.bounds.left < 0.3 * cell
        assert -1e-6 <= bottom - dataset.bounds.bottom < 0.3 * cell
        assert dataset.bounds.right >= right - 1e-6
        assert dataset.bounds.top >= top - 1e-6
        assert dataset.dtypes[0] == "int8"
        assert dataset.descriptions[1] == f"{result.features} 2"
        assert dataset.tags()["FEATURES"] == result.features
        assert dataset.tags()["MODEL"] == "lone"
    assert cog_validate(tmp_path / "out.tif", strict=True)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


def test_one_window_has_the_features_of_the_encoder(place, tmp_path, write_raster):
    """What lies in one window is what the model says of these pixels: no blending, no shift."""
    grid = GeoBox((128, 128), Affine(0.3, 0, 0.3 * 88 * 4000, 0, -0.3, 0.3 * 88 * 9000), "EPSG:32636")
    pixels = np.random.default_rng(0).integers(1, 255, (3, 128, 128), dtype=np.uint8)
    write_raster(tmp_path / "hr.tif", pixels, grid, names=HR.band_names)
    given = EmbedConfig(inputs=(str(tmp_path / "hr.tif"),), out=tmp_path / "out.tif", model=place / "lone")
    embed(replace(given, dtype="float16", features="hr.3", precision="fp32"))
    encoder = load_bare(place / "lone", torch.device("cpu"))[1]
    with torch.inference_mode():
        levels = encoder.encoder("hr")(encoder.normalise["hr"](torch.from_numpy(pixels)[None, None].float(),
            torch.ones(1, 1, 128, 128, dtype=torch.bool))[0])  # fmt: skip
    np.testing.assert_allclose(read(tmp_path / "out.tif"), levels[2][0].numpy(), atol=5e-3)


def test_bytes_are_the_halves_within_a_step_and_only_valid_cells_have_values(place, tmp_path):
    run(place, tmp_path / "bytes.tif")
    run(place, tmp_path / "halves.tif", dtype="float16")
    found, exact = read(tmp_path / "bytes.tif"), read(tmp_path / "halves.tif")
    with rasterio.open(tmp_path / "bytes.tif") as dataset:
        step = np.array(dataset.scales)[:, None, None]
        assert len(set(dataset.scales)) > 1
    assert open_result(str(tmp_path / "halves.tif")).product.dtype == "float16"
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    assert 0.02 < np.isnan(exact[0]).mean() < 0.4
    # Where the sample's range is passed, values stop at its end.
    assert (np.abs(found - exact) <= 0.51 * step + 4e-3)[~np.isnan(exact)].mean() > 0.999


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"shard": (128, 128)}], ids=str)
def test_no_setting_of_the_machine_changes_the_features(place, tmp_path, change):
    given = {"features": "hr.1", "dtype": "float16", "model": place / "lone"}
    one = run(place / "tall", tmp_path / "a.tif", shard=(256, 256), **given)
    other = run(place / "tall", tmp_path / "b.tif", **{"shard": (256, 256), **given, **change})
    assert (one.shards, other.shards) == (1, 2 if "shard" in change else 1)
    np.testing.assert_allclose(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"), atol=2e-3)


def test_a_part_has_the_features_of_the_whole(place, tmp_path):
    left, _, _, top = GRID.boundingbox
    run(place, tmp_path / "whole.tif", features="hr.2", dtype="float16")
    run(place, tmp_path / "part.tif", features="hr.2", dtype="float16", bbox=(left + 10, top - 40, left + 41, top - 12))
    with rasterio.open(tmp_path / "whole.tif") as whole, rasterio.open(tmp_path / "part.tif") as part:
        window = rasterio.windows.from_bounds(*part.bounds, whole.transform).round_offsets().round_lengths()
        np.testing.assert_allclose(whole.read(window=window), part.read(), atol=2e-3)


def test_what_was_stopped_goes_on_to_the_same_bytes(place, tmp_path, monkeypatch):
    """The scale is not fitted anew, and finished shards are not computed again."""
    given = {"features": "hr.1", "pca": 3, "shard": (128, 128), "model": place / "lone"}
    run(place / "tall", tmp_path / "whole.tif", **given)
    out = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.predict._join", lambda job, store, outs: False)
        assert run(place / "tall", out, **given).shards == 2
    shutil.rmtree(folder_of(out) / "00001")
    monkeypatch.setattr("skysense_core.embed.job.EmbedJob._sample", None)
    assert run(place / "tall", out, **given).reused == 1
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_principal_components_are_those_of_the_features(place, tmp_path):
    """Of numpy, on all cells; what the file says of itself reproduces its values."""
    run(place, tmp_path / "all.tif", dtype="float16", features="hr.3")
    run(place, tmp_path / "pca.tif", dtype="float16", features="hr.3", pca=2)
    everything, projected = read(tmp_path / "all.tif"), read(tmp_path / "pca.tif")
    with rasterio.open(tmp_path / "pca.tif") as dataset:
        tags = dataset.tags()
        assert dataset.descriptions == ("hr.3 PC 1", "hr.3 PC 2")
    mean, components, shares = (np.array(json.loads(tags[f"PCA_{n}"])) for n in ("MEAN", "COMPONENTS", "SHARES"))
    expected = np.einsum("kd,dhw->khw", components, everything - mean[:, None, None])
    np.testing.assert_allclose(projected, expected, atol=2e-2)
    np.testing.assert_allclose(components @ components.T, np.eye(2), atol=1e-6)
    assert 0 < shares[1] < shares[0] < 1
    flat = everything[:, ~np.isnan(everything[0])]
    assert flat.var(axis=1).sum() * shares[0] == pytest.approx(projected[0][~np.isnan(projected[0])].var(), rel=0.2)


def test_any_modalities_of_a_model_that_fuses(place, tmp_path):
    """The fused map lies on the pixels of Sentinel-2, with or without the finer modality."""
    alone = run(place, tmp_path / "s2.tif", "s2.tif", "fused")
    assert (alone.features, alone.cell, alone.channels) == ("fused", 1, 128)
    assert "hr is not given: embedded without it" in alone.notes
    with rasterio.open(tmp_path / "s2.tif") as dataset:
        assert (dataset.shape, dataset.transform) == (tuple(GRID_S2.shape), GRID_S2.affine)
    both = run(place, tmp_path / "both.tif", "hr.tif s2.tif", "fused", window=256, features="aligned.s2", pca=3)
    assert (both.cell, both.channels) == (32, 3)
    lone = run(place, tmp_path / "vit.tif", "s2.tif", "encoders")
    assert (lone.features, lone.cell, lone.channels) == ("s2.4", 4, 64)


def test_means_over_polygons_are_those_of_rasterio(place, tmp_path):
    left, _, _, top = GRID.boundingbox
    shapes = [
        box(left + 5, top - 35, left + 30, top - 8),
        box(left + 25, top - 41, left + 55, top - 20).buffer(3),
        box(left + 41.2, top - 10.3, left + 41.6, top - 10.1),  # smaller than a cell
        box(left - 500, top, left - 400, top + 50),  # outside
        box(left + 55, top - 55, left + 64, top - 43),  # without data
    ]
    frame = gpd.GeoDataFrame({"field": list("abcde")}, geometry=shapes, crs=GRID.crs.proj)
    frame.to_crs("EPSG:4326").to_file(tmp_path / "fields.gpkg")
    result = run(place, tmp_path / "emb.parquet", features="hr.3", polygons=tmp_path / "fields.gpkg")
    run(place, tmp_path / "map.tif", features="hr.3", dtype="float16")
    found = gpd.read_parquet(tmp_path / "emb.parquet")
    assert found.field.tolist() == ["a", "b", "c"]
    assert found.crs.to_epsg() == 4326
    assert found.cells.tolist()[2] == 0
    assert found.cells.tolist()[0] > 20
    assert any("2 of 5 polygons show no valid pixel" in note for note in result.notes)
    assert any("1 polygons hold no centre" in note for note in result.notes)
    values, transform = read(tmp_path / "map.tif"), rasterio.open(tmp_path / "map.tif").transform
    for number in (0, 1):
        inside = rasterio_features.geometry_mask([shapes[number]], values.shape[1:], transform, invert=True)
        inside &= ~np.isnan(values[0])
        assert found.cells[number] == inside.sum()
        np.testing.assert_allclose(found.embedding[number], values[:, inside].mean(axis=1), atol=2e-3)
    row, col = rasterio.transform.rowcol(transform, left + 41.4, top - 10.2)
    np.testing.assert_allclose(found.embedding[2], values[:, row, col], atol=4e-3)
    assert not list(tmp_path.glob(".*"))


def test_squares_cover_the_scene_and_leave_out_what_is_empty(place, tmp_path):
    result = run(place, tmp_path / "chips.parquet", grid=100, features="hr.3")
    assert "--grid 100: rounded to 96, whole cells of the features" in result.notes
    found = gpd.read_parquet(tmp_path / "chips.parquet")
    assert found.id[0] == "r00_c00"
    assert len(np.stack(found.embedding)[0]) == 64
    assert found.geometry[0].area == pytest.approx((96 * 0.3) ** 2)
    assert 4 < len(found) <= 12
    whole = run(place, tmp_path / "map.tif", features="hr.3", dtype="float16")
    assert found.cells.sum() == (~np.isnan(read(tmp_path / "map.tif")[0])).sum()
    assert whole.cell == 16


def test_the_nearest_prototypes_are_those_of_the_features(place, tmp_path):
    result = run(place, tmp_path / "proto.tif", "s2.tif", "fused", prototypes=True)
    run(place, tmp_path / "map.tif", "s2.tif", "fused", features="fused_mm", dtype="float16")
    with rasterio.open(tmp_path / "proto.tif") as dataset:
        codes, colours, tags = dataset.read(1), dataset.colormap(1), dataset.tags()
        assert (dataset.dtypes[0], dataset.nodata) == ("uint8", 255)
        assert dataset.colorinterp[0].name == "palette"
    assert result.channels == 8
    assert len({colours[code][:3] for code in range(8)}) == 8
    region = int(tags["CLASS_0"].split()[1].rstrip(","))
    encoder = load_bare(place / "fused", torch.device("cpu"))[1]
    own = torch.nn.functional.normalize(encoder.prototypes.prototypes[region], dim=-1).numpy()
    values = read(tmp_path / "map.tif")
    nearest = np.einsum("pd,dhw->phw", own, values / np.linalg.norm(values, axis=0)).argmax(axis=0)
    assert (codes == nearest).mean() > 0.97  # features are blended before they are normalised, and these after it
    assert len(set(codes.ravel().tolist())) > 1


def test_more_prototypes_than_a_byte_holds_have_a_palette_of_two_bytes(tmp_path):
    from skysense_core.geo.cog import Product, RowWriter, write_cog
    from skysense_core.geo.mosaic import write_vrt
    from skysense_core.geo.windows import Window

    colours = tuple(f"#{code % 256:02x}{code // 256:02x}10" for code in range(300))
    product = Product(
        kind="classes",
        bands=("p",),
        dtype="uint16",
        nodata=65535.0,
        classes=tuple(map(str, range(300))),
        colours=colours,
    )
    pixels = np.arange(300, dtype=np.uint16).reshape(1, 15, 20)
    grid = GeoBox((15, 20), GRID.affine, GRID.crs)
    with RowWriter(tmp_path / "shard.tif", grid, product) as writer:
        writer.write(Window(row=0, col=0, height=15, width=20), pixels)
    joined = write_vrt(
        [(tmp_path / "shard.tif", Window(row=0, col=0, height=15, width=20))], grid, product, tmp_path / "j"
    )
    with rasterio.open(write_cog(joined, product)) as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)
        assert dataset.colormap(1)[299] == (43, 1, 16, 255)
        assert dataset.nodata == 65535


def test_parts_of_an_embedding_are_joined_with_their_scales(place, tmp_path):
    run(place, tmp_path / "a.tif", features="hr.3")
    mosaic(MosaicConfig(inputs=(str(tmp_path / "a.tif"),), out=tmp_path / "b.tif"))
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_an_estimate_writes_nothing(place, tmp_path):
    one = estimate(EmbedConfig(inputs=(str(place / "hr.tif"),), out=tmp_path / "map.tif", model=place / "lone"))
    assert one.windows >= 4
    assert one.megapixels == pytest.approx(0.0437, rel=0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "hr.5"}, "unknown features 'hr.5'.*hr.1, hr.2, hr.3, hr.4"),
        ({"features": "fused"}, "unknown features 'fused'"),
        ({"pca": 129}, "--pca 129: hr.4 has 128 channels"),
        ({"prototypes": True, "pca": 3}, "do not go together"),
        ({"polygons": Path("f.gpkg"), "grid": 3}, "do not go together"),
        ({"grid": 64}, "GeoParquet"),
        ({"model": "encoders", "scene": "hr.tif s2.tif", "window": 256}, "does not fuse"),
        ({"model": "encoders", "scene": "s1.tif"}, "unknown modality 's1'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(place, tmp_path, settings, message):
    with pytest.raises(UsageError) as caught:
        run(place, tmp_path / "map.tif", **settings)
    assert re.search(message, str(caught.value), re.DOTALL)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_in_json(place, tmp_path):
    words = [str(place / "hr.tif"), "--out", str(tmp_path / "rgb.tif"), "--model", str(place / "lone"), "--pca", "3"]
    given = CliRunner().invoke(app, ["embed", *words, "--json", "--quiet"])
    assert given.exit_code == 0, given.output
    found = json.loads(given.stdout)
    assert (found["features"], found["channels"], found["cell"]) == ("hr.4", 3, 32)
    assert found["path"] == str(tmp_path / "rgb.tif")


def test_prototypes_need_a_model_and_a_place_that_have_them(place, tmp_path, write_raster):
    with pytest.raises(UsageError, match="no geo-context prototypes"):
        run(place, tmp_path / "map.tif", "s2.tif", "encoders", prototypes=True)
    with rasterio.open(place / "s2.tif") as dataset:
        pixels = dataset.read()
    away = GeoBox((50, 70), Affine(10, 0, 500_050, 0, -10, 7_000_000), "EPSG:32656")
    write_raster(tmp_path / "s2.tif", pixels, away, names=S2.band_names)
    with pytest.raises(UsageError, match="never visited the region"):
        embed(
            EmbedConfig(
                inputs=(f"s2={tmp_path / 's2.tif'}",), out=tmp_path / "p.tif", model=place / "fused", prototypes=True
            )
        )


def test_polygons_outside_and_scenes_without_a_pixel_are_refused(place, tmp_path, write_raster):
    far = gpd.GeoDataFrame({"id": [1]}, geometry=[box(0, 0, 10, 10)], crs=GRID.crs.proj)
    far.to_file(tmp_path / "far.gpkg")
    with pytest.raises(UsageError, match="all polygons lie outside the scene"):
        run(place, tmp_path / "emb.parquet", polygons=tmp_path / "far.gpkg")
    write_raster(
        tmp_path / "hr.tif", np.zeros((3, 100, 100), np.uint8), GRID[:100, :100], names=HR.band_names, nodata=0
    )
    with pytest.raises(SkysenseError, match="no valid pixel"):
        embed(EmbedConfig(inputs=(str(tmp_path / "hr.tif"),), out=tmp_path / "map.tif", model=place / "lone"))
    write_raster(tmp_path / "two.tif", np.ones((1, 100, 100), dtype=np.uint8), GRID[:100, :100], names=("red",))
    with pytest.raises(UsageError, match="green"):
        embed(EmbedConfig(inputs=(str(tmp_path / "two.tif"),), out=tmp_path / "map.tif", model=place / "lone"))
    assert not list(tmp_path.glob(".*"))
