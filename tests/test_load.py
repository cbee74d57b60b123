"""A model from Python: the same features and classes as the command line's, from every kind of array."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import skysense_core
from skysense_core import modalities
from skysense_core.checkpoint import save_model
from skysense_core.embed import EmbedConfig, embed
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.tasks.segmentation import Segmentation

ROOT = Path(__file__).parents[1]
S2 = modalities.load("s2", {"window": 32})
S1 = modalities.load("s1", {"window": 32})
STRIDE = 24
"""Pixels from window to window, whose lattice begins at the origin of the CRS."""
GRID = GeoBox((50, 60), Affine(10, 0, STRIDE * 10 * 2000, 0, -10, STRIDE * 10 * 19000), "EPSG:32632")
DATES = ("2024-05-01", "2024-06-30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of Sentinel-2 and one of Sentinel-1, and models with and without a task."""
    folder = tmp_path_factory.mktemp("load")
    rng = np.random.default_rng(3)
    s2 = rng.integers(300, 3000, (2, 10, 50, 60)).astype(np.uint16)
    s2[:, :, 30:, 40:] = 0
    s1 = rng.normal(-14, 3, (1, 2, 50, 60)).astype(np.float32)
    for name, series, known in (("s2", s2, S2), ("s1", s1, S1)):
        (folder / name).mkdir()
        for day, pixels in zip(DATES, series, strict=False):
            profile = {"count": len(pixels), "height": 50, "width": 60, "dtype": pixels.dtype}
            place = {"crs": str(GRID.crs), "transform": GRID.affine, "nodata": 0}
            with rasterio.open(folder / name / f"{day}.tif", "w", driver="GTiff", **profile, **place) as dataset:
                dataset.write(pixels)
                dataset.descriptions = known.band_names
                dataset.units = ("dB" if name == "s1" else "",) * len(pixels)
    torch.manual_seed(2)
    spec = ModelSpec(preset="nano")
    task = Segmentation(classes=("a", "b", "c"))
    both = task.build_model(SkySense(spec, {"s2": S2, "s1": S1}))
    save_model(folder / "task", both, task, name="task", training={}, metrics={}, licence="none")
    holder = torch.nn.Module()
    holder.encoder = SkySense(ModelSpec(preset="nano", fusion=False), {"s2": S2})
    save_model(folder / "bare", holder, None, name="bare", training={}, metrics={}, licence="none")
    np.save(folder / "s2.npy", s2)
    np.save(folder / "s1.npy", s1)
    return folder


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The pixels, as floats that are NaN where there is no data."""
    s2, s1 = (np.load(folder / f"{name}.npy").astype(np.float32) for name in ("s2", "s1"))
    return {"s2": np.where(s2 == 0, np.nan, s2), "s1": s1}


NAMES = {"bands": {"s2": S2.band_names, "s1": S1.band_names}, "dates": {"s2": DATES, "s1": DATES[:1]}}


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, np.ndarray]:
    """What the commands make of the files."""
    inputs = tuple(f"{name}={folder / name}" for name in ("s2", "s1"))
    embed(EmbedConfig(inputs=inputs, out=folder / "features.tif", model=folder / "task", dtype="float16"))
    predict(PredictConfig(inputs=inputs, out=folder / "map.tif", model=folder / "task", probabilities=True))
    found = {}
    for name in ("features", "map", "map_probabilities"):
        with rasterio.open(folder / f"{name}.tif") as dataset:
            found[name] = dataset.read()
    return found


@pytest.mark.parametrize("kind", ["numpy", "torch", "xarray"])
def test_arrays_give_what_the_command_line_gives(folder, written, kind):
    images = arrays(folder)
    if kind == "torch":
        images = {name: torch.from_numpy(pixels) for name, pixels in images.items()}
    given = NAMES
    if kind == "xarray":
        given, stack = {}, {}
        for name, dates in NAMES["dates"].items():
            days = [rioxarray.open_rasterio(folder / name / f"{day}.tif") for day in dates]
            series = xr.concat(days, dim=xr.Variable("time", np.array(dates, dtype="datetime64[ns]")))
            series = series.assign_coords(band=list(NAMES["bands"][name]))
            series.attrs = {"_FillValue": 0} | ({"units": "dB"} if name == "s1" else {})
            stack[name] = series
        images = stack
    model = skysense_core.load(folder / "task")
    assert model.classes == ("a", "b", "c")
    assert list(model.modalities) == ["s2", "s1"]
    features = model.features(images, **given)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, written["features"], atol=4e-3)
    codes = model.predict(images, **given)
    assert (codes != written["map"][0]).mean() < 1e-3  # ties
    assert (codes[30:, 40:] == 255).all()
    shares = model.predict(images, **given, probabilities=True)
    known = codes != 255
    np.testing.assert_allclose(shares[:, known], written["map_probabilities"][:, known] / 254, atol=3e-3)


def test_bands_are_put_in_order_by_name(folder):
    model, images = skysense_core.load(folder / "task"), arrays(folder)
    expected = model.features(images, **NAMES, level="aligned.s2")
    turned = {"s2": images["s2"][:, ::-1], "s1": images["s1"]}
    bands = {"s2": S2.band_names[::-1], "s1": ("VV", "VH")}
    np.testing.assert_array_equal(
        model.features(turned, bands=bands, dates=NAMES["dates"], level="aligned.s2"), expected
    )
    assert np.nanmax(np.abs(model.features(turned, **NAMES, level="aligned.s2") - expected)) > 0.1


def test_an_encoder_gives_features_and_no_classes(folder):
    model, one = skysense_core.load(folder / "bare"), arrays(folder)["s2"][0, :, :32, :32]
    assert model.levels == ("s2.1", "s2.2", "s2.3", "s2.4")
    assert model.features(one, bands=S2.band_names).shape == (64, 8, 8)
    assert model.features(one, bands=S2.band_names, level="s2.2", dates=["2024-05-01"]).shape == (64, 8, 8)
    with pytest.raises(SkysenseError, match="no task"):
        model.predict(one, bands=S2.band_names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": None}, r'which bands.*bands=\{"s2": \["B02"'),
        ({"bands": {"s2": (*S2.band_names[:9], "B01"), "s1": S1.band_names}}, "no band is called B12"),
        ({"bands": {"s2": S2.band_names[:9], "s1": S1.band_names}}, "9 bands for an array of 10"),
        ({"dates": None}, "an array of 2 dates, and which"),
        ({"dates": {"s2": ["2024-05-01"]}}, "1 dates for an array of 2"),
        ({"level": "fused_mn"}, "did you mean fused_mm"),
        ({"images": np.zeros((10, 8, 8))}, "of which modality"),
        ({"images": {"hr": np.zeros((3, 8, 8))}}, "unknown modality 'hr'"),
        ({"images": {"s2": np.zeros((8, 8))}}, "expected"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_fit_is_refused_with_the_fix(folder, change, message):
    given = {"images": arrays(folder), **NAMES, **change}
    with pytest.raises(UsageError) as caught:
        skysense_core.load(folder / "task").features(**given)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_the_package_is_light_until_a_model_is_loaded():
    code = "import sys, skysense_core; print(sorted({'torch', 'numpy', 'rasterio'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "[]\n"


def test_the_lines_of_the_readme_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    block = next(block for block in blocks if "skysense_core.load" in block)
    found: dict[str, np.ndarray] = {}
    exec(block, found)
    assert found["features"].shape == (128, 8, 8)
    assert found["codes"].shape == (256, 256)
    assert "building" in capsys.readouterr().out
