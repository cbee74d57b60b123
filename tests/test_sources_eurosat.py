"""EuroSAT: both versions are read as rasterio reads them, with the bands under their names."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from skysense_core import modalities, sources
from skysense_core.errors import SkysenseError
from skysense_core.sources.eurosat import BANDS, Eurosat
from skysense_core.types import PartName, Tags

PARTS: tuple[PartName, ...] = ("train", "val", "test")
SIDE = 64


@pytest.fixture
def multispectral(shared_data: Path, tmp_path: Path) -> Path:
    """The three real patches under three names each, so that every part has one of each class."""
    for folder in (shared_data / "layouts" / "EuroSAT_MS").iterdir():
        (tmp_path / folder.name).mkdir()
        (file,) = folder.glob("*.tif")
        for number in range(1, 4):
            (tmp_path / folder.name / f"{folder.name}_{number}.tif").symlink_to(file)
    return tmp_path


def test_multispectral_patches_are_as_stored(multispectral: Path) -> None:
    assert sources.detect(multispectral) == "eurosat"
    source = Eurosat(path=multispectral)
    assert source.available() == ("s2",)
    (modality,) = source.described().values()
    assert modality.level == "L1C"
    seen = []
    for part in PARTS:
        split = source.open(part, source.described())
        assert split.classes == ("AnnualCrop", "Pasture", "SeaLake")
        for index in range(len(split)):
            sample = split[index]
            seen.append(sample.id)
            with rasterio.open(multispectral / sample.id) as file:
                stored = file.read()
            for number, name in enumerate(modality.band_names):
                np.testing.assert_array_equal(sample.epochs[0]["s2"].pixels[0, number], stored[BANDS.index(name)])
            assert sample.label == Tags(codes=(split.classes.index(Path(sample.id).parent.name),))
            assert sample.lonlat is not None
    assert len(set(seen)) == len(seen) == 9


def test_the_order_of_the_bands_is_that_of_the_ground(shared_data: Path) -> None:
    """Of a pasture, near infrared (B08, B8A) is bright, and red, water vapour and cirrus are dark."""
    with rasterio.open(shared_data / "layouts" / "EuroSAT_MS" / "Pasture" / "Pasture_300.tif") as file:
        means = dict(zip(BANDS, file.read().mean(axis=(1, 2)), strict=True))
    assert means["B10"] == min(means.values())
    assert means["B8A"] > 2 * means["B04"]
    assert means["B8A"] == pytest.approx(means["B08"], rel=0.25)


def test_pictures_are_of_ten_metres(shared_data: Path) -> None:
    path = shared_data / "layouts" / "EuroSAT_RGB"
    assert sources.detect(path) == "eurosat"
    source = Eurosat(path=path)
    assert {name: one.gsd for name, one in source.described().items()} == {"hr": 10.0}
    with pytest.raises(SkysenseError):
        source.open("train", {"s2": modalities.load("s2")})
