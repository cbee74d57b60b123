"""fMoW-Sentinel: a data set in its layout is read as it was written, date by date."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core import modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources.fmow import Fmow, FmowSplit
from skysense_core.types import PartName, Tags

ROWS = [
    ("train", "airport", 0, 0, "2016-05-01T10:00:00Z", (100, 120)),
    ("train", "airport", 0, 3, "2015-07-25T00:05:17Z", (101, 119)),
    ("train", "dam", 7, 1, "2019-02-03T10:00:00Z", (60, 50)),
    ("val", "dam", 9, 0, "2019-02-03T10:00:00Z", (100, 100)),
    ("test_gt", "airport", 4, 2, "2018-02-03T10:00:00Z", (100, 100)),
]


@pytest.fixture
def folder(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test_gt"):
        mine = [row for row in ROWS if row[0] == part]
        table = pd.DataFrame([row[1:5] for row in mine], columns=["category", "location_id", "image_id", "timestamp"])
        table.assign(polygon="POLYGON EMPTY").to_csv(tmp_path / f"{part}.csv")
        for _, category, place, image, _, (height, width) in mine:
            own = tmp_path / part / category / f"{category}_{place}"
            own.mkdir(parents=True, exist_ok=True)
            grid = GeoBox((height, width), Affine(10, 0, 500000, 0, -10, 4000000), "EPSG:32633")
            pixels = rng.integers(1, 10000, (13, height, width)).astype(np.uint16)
            write_raster(own / f"{category}_{place}_{image}.tif", pixels, grid)
    return tmp_path


def opened(folder: Path, part: PartName = "train") -> FmowSplit:
    source = Fmow(path=folder)
    return source.open(part, source.described())


def test_a_place_is_the_middle_of_its_series(folder: Path) -> None:
    import rasterio

    assert sources.detect(folder) == "fmow"
    split = opened(folder)
    assert split.classes == ("airport", "dam")
    assert [place.number for place in split.places] == ["0", "7"]
    sample = split[0]
    raster = sample.epochs[0]["s2"]
    assert [str(day) for day in raster.days.astype("datetime64[D]")] == ["2015-07-25", "2016-05-01"]
    assert raster.pixels.shape[-2:] == split.size(0)
    with rasterio.open(folder / "train" / "airport" / "airport_0" / "airport_0_0.tif") as file:
        stored = file.read()[:, 2:98, 12:108]
    # B8A is the ninth band of the files, and the eighth of the ten that are read.
    np.testing.assert_array_equal(raster.pixels[1, 0], stored[1])
    np.testing.assert_array_equal(raster.pixels[1, 7], stored[8])
    assert sample.label == Tags(codes=(0,))
    small = split[1].epochs[0]["s2"].valid[0]
    assert small.sum() == 60 * 50  # what lies around a small image is not valid


def test_parts_are_those_of_the_tables(folder: Path) -> None:
    assert [opened(folder, part).places[0].category for part in ("val", "test")] == ["dam", "airport"]
    assert opened(folder, "test").label(0) == Tags(codes=(0,))


def test_what_is_missing_or_odd_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="is L1C"):
        Fmow(path=folder).open("train", {"s2": modalities.load("s2")})
    (folder / "train" / "dam" / "dam_7" / "dam_7_1.tif").unlink()
    with pytest.raises(SkysenseError, match=r"dam_7_1\.tif: no such image"):
        opened(folder)[1]
    (folder / "val.csv").write_text("category,location_id\nzoo,1\n")
    with pytest.raises(SkysenseError, match=r"val\.csv: not a table"):
        opened(folder, "val")
    (folder / "val.csv").write_text("category,location_id,image_id,timestamp\nzoo,1,0,2019-02-03T10:00:00Z\n")
    with pytest.raises(SkysenseError, match="no training place is zoo"):
        opened(folder, "val")
    (folder / "val.csv").unlink()
    with pytest.raises(SkysenseError, match=r"val\.csv: no such file"):
        opened(folder, "val")
