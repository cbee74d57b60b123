"""OSCD in the layout of its publication: cities, bands as files, maps of change of 1 and 2."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skysense_core import modalities, sources
from skysense_core.errors import SkysenseError
from skysense_core.sources.oscd import IMAGES, LABELS, Oscd

CITIES = {"train": ("abudhabi", "beirut", "paris"), "test": ("rio", "lasvegas")}
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")


@pytest.fixture
def oscd(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    for part, cities in CITIES.items():
        for number, city in enumerate(cities):
            for date in (1, 2):
                folder = tmp_path / IMAGES / city / f"imgs_{date}_rect"
                folder.mkdir(parents=True)
                for band, name in enumerate(BANDS):
                    value = 1000 * number + 100 * date + band
                    write_raster(folder / f"{name}.tif", np.full((1, 40, 56), value, dtype=np.uint16))
            folder = tmp_path / LABELS[part] / city / "cm"
            folder.mkdir(parents=True)
            codes = np.ones((1, 40, 56), dtype=np.uint8)
            codes[:, :10] = 2
            write_raster(folder / f"{city}-cm.tif", codes)
        (tmp_path / IMAGES / f"{part}.txt").write_text(",".join(cities) + "\n")
    return tmp_path


def test_cities_are_as_stored(oscd: Path) -> None:
    assert sources.detect(oscd) == "oscd"
    source = Oscd(path=oscd)
    wanted = source.described()
    parts = {part: source.open(part, wanted) for part in ("train", "val", "test")}
    assert [len(split) for split in parts.values()] == [2, 1, 2]
    sample = parts["test"][1]
    assert sample.id == "rio"
    for date, epoch in enumerate(sample.epochs, start=1):
        order = [BANDS.index(name) for name in wanted["s2"].band_names]
        assert epoch["s2"].pixels[0, :, 0, 0].tolist() == [100 * date + band for band in order]
        assert epoch["s2"].pixels.shape == (1, 10, 40, 56)
    assert (sample.label.codes[:10] == 1).all()
    assert (sample.label.codes[10:] == 0).all()


def test_a_missing_date_is_named(oscd: Path) -> None:
    for file in (oscd / IMAGES / "rio" / "imgs_2_rect").iterdir():
        file.unlink()
    (oscd / IMAGES / "rio" / "imgs_2_rect").rmdir()
    with pytest.raises(SkysenseError, match="rio/imgs_2_rect: no such file"):
        Oscd(path=oscd).open("test", {"s2": modalities.load("s2", {"level": "L1C"})})
