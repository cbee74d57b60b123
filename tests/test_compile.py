"""`predict --compile`: one graph for the whole scene, edges and short batches included, and the same map."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from test_export import save


@pytest.mark.slow  # the compiler takes a minute
def test_a_compiled_model_draws_the_same_map_and_is_compiled_once(
    write_raster: Callable[..., Path], tmp_path: Path
) -> None:
    model = save(tmp_path / "roofs", {"hr": {"window": 64}})
    pixels = np.random.default_rng(0).integers(1, 255, (3, 150, 210)).astype(np.uint8)
    pixels[:, :80, :80] = 0  # empty windows are left out, so a batch in the middle is short too
    grid = GeoBox((150, 210), Affine(0.3, 0, 500000, 0, -0.3, 5000000), "EPSG:32632")
    scene = write_raster(tmp_path / "scene.tif", pixels, grid, names=("red", "green", "blue"), nodata=0)

    def mapped(name: str, *words: str) -> tuple[np.ndarray, str]:
        # A process of its own: the shape checks around functions in tests would be compiled with them.
        command = [sys.executable, "-m", "skysense_cli", "predict", str(scene), "--model", str(model)]
        command += ["--out", str(tmp_path / name), "--precision", "fp32", "--batch-size", "4", *words]
        done = subprocess.run(
            command, env={**os.environ, "TORCH_LOGS": "recompiles"}, capture_output=True, text=True, check=True
        )
        with rasterio.open(tmp_path / name) as dataset:
            return dataset.read(1), done.stderr

    plain, _ = mapped("plain.tif")
    compiled, said = mapped("compiled.tif", "--compile")
    assert "ecompiling" not in said, said
    assert len(np.unique(plain)) > 2  # several classes and nodata
    assert (plain == compiled).mean() > 0.999
