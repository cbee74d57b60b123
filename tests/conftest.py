"""Shared fixtures. Shapes and types of every function of the core are checked while the tests run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook("skysense_core", "beartype.beartype")

import hypothesis  # noqa: E402
import rasterio  # noqa: E402
from odc.geo.geobox import GeoBox  # noqa: E402

# How long an example takes says more of the machine's load than of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the repository; a test that needs it skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real imagery in ../shared/data")
    return folder


@pytest.fixture
def write_raster() -> Callable[..., Path]:
    """Write (c, h, w) pixels as a GeoTIFF on a geobox; band names and any GTiff profile key may be given."""

    def write(
        path: Path,
        pixels: np.ndarray,
        geobox: GeoBox | None = None,
        *,
        names: tuple[str, ...] = (),
        **profile: object,
    ) -> Path:
        count, height, width = pixels.shape
        if geobox is not None:
            profile |= {"crs": str(geobox.crs), "transform": geobox.affine}
        shape = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
        with rasterio.open(path, "w", **(shape | profile)) as dataset:
            dataset.write(pixels)
            for index, name in enumerate(names, start=1):
                dataset.set_band_description(index, name)
        return path

    return write
