"""PASTIS, read from a small data set that is written here in exactly its published layout (METHOD 4)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skysense_core import config, modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources.pastis import CLASSES, Pastis
from skysense_core.types import IGNORE, Split

S2_DATES = [20180917, 20181230, 20190104, 20190303]
S1A_DATES = [20180905, 20190110]
S1D_DATES = [20180920, 20181231, 20190401]


def write_pastis(folder: Path) -> Path:
    """Ten patches, two per fold; pixels are their own patch, date and band numbers."""
    rng = np.random.default_rng(0)
    for name in ("DATA_S2", "DATA_S1A", "DATA_S1D", "ANNOTATIONS"):
        (folder / name).mkdir(parents=True)
    features = []
    for number in range(10):
        patch = 10000 + number
        x, y = 700000.0 + 1280 * number, 6600000.0
        ring = [[x, y], [x + 1280, y], [x + 1280, y - 1280], [x, y - 1280], [x, y]]
        features.append(
            {
                "type": "Feature",
                "properties": {
                    "ID_PATCH": patch,
                    "Fold": number % 5 + 1,
                    "N_Parcel": 3,
                    "Parcel_Cover": 0.5,
                    "TILE": "t31tfm",
                    "dates-S2": {str(i): day for i, day in enumerate(S2_DATES)},
                    "dates-S1A": {str(i): day for i, day in enumerate(S1A_DATES)},
                    "dates-S1D": {str(i): day for i, day in enumerate(S1D_DATES)},
                },
                "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]},
            }
        )
        s2 = np.zeros((4, 10, 128, 128), dtype=np.int16)
        s2 += np.arange(4, dtype=np.int16)[:, None, None, None] * 100
        s2 += np.arange(10, dtype=np.int16)[None, :, None, None] + 1000 * number
        np.save(folder / "DATA_S2" / f"S2_{patch}.npy", s2)
        for track, dates, base in (("S1A", S1A_DATES, -10.0), ("S1D", S1D_DATES, -20.0)):
            s1 = np.full((len(dates), 3, 128, 128), base, dtype=np.float32)
            s1 += np.arange(len(dates), dtype=np.float32)[:, None, None, None]
            s1[:, 2] = 99
            np.save(folder / f"DATA_{track}" / f"{track}_{patch}.npy", s1)
        target = rng.integers(0, 20, (3, 128, 128)).astype(np.uint8)
        np.save(folder / "ANNOTATIONS" / f"TARGET_{patch}.npy", target)
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    table = {"type": "FeatureCollection", "crs": crs, "features": features}
    (folder / "metadata.geojson").write_text(json.dumps(table))
    for track in ("S2", "S1A", "S1D"):
        (folder / f"NORM_{track}_patch.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pastis(tmp_path_factory.mktemp("pastis"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy to be broken."""
    return write_pastis(tmp_path / "pastis")


def opened(folder: Path, split: str = "train", *names: str, fold: int = 1) -> Split:
    wanted = {name: modalities.load(name) for name in names or ("s2", "s1")}
    return config.build(Pastis, {"path": str(folder), "fold": fold}).open(split, wanted)


def test_the_layout_is_recognised(folder: Path) -> None:
    assert sources.detect(folder) == "pastis"
    assert Pastis(path=folder).available() == ("s2", "s1")


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_the_official_folds(folder: Path, fold: int) -> None:
    ids = {split: {sample.id for sample in map(opened(folder, split, fold=fold).__getitem__, range(n))} for split, n in
           (("train", 6), ("val", 2), ("test", 2))}  # fmt: skip
    assert {int(name) % 5 + 1 for name in ids["test"]} == {fold}
    assert {int(name) % 5 + 1 for name in ids["val"]} == {fold % 5 + 1}
    assert len(ids["train"] | ids["val"] | ids["test"]) == 10


def test_a_sample_is_what_the_files_hold(folder: Path) -> None:
    split = opened(folder, "test")
    sample = split[1]
    assert sample.id == "10005"
    (images,) = sample.epochs
    s2 = images["s2"]
    assert s2.pixels.shape == (4, 10, 128, 128)
    assert s2.pixels.dtype == np.int16
    assert s2.pixels[2, 3, 0, 0] == 5203
    assert s2.days.astype("datetime64[D]").astype(str).tolist()[:2] == ["2018-09-17", "2018-12-30"]
    assert s2.dated.all()
    assert s2.valid.all()
    target = np.load(folder / "ANNOTATIONS" / "TARGET_10005.npy")[0]
    assert (sample.label.codes[target == 19] == IGNORE).all()
    assert (sample.label.codes[target != 19] == target[target != 19]).all()
    assert split.classes == CLASSES
    assert len(CLASSES) == 19


def test_both_tracks_are_one_s1_series_in_order_of_date(folder: Path) -> None:
    s1 = opened(folder)[0].epochs[0]["s1"]
    assert s1.pixels.shape == (5, 2, 128, 128)
    assert s1.days.astype("datetime64[D]").astype(str).tolist() == [
        *("2018-09-05", "2018-09-20", "2018-12-31", "2019-01-10", "2019-04-01")
    ]
    assert s1.pixels[:, 0, 0, 0].tolist() == [-10, -20, -19, -9, -18]
    assert s1.pixels.max() < 0


def test_place_and_grid_come_from_the_outline(folder: Path) -> None:
    sample = opened(folder, "test")[0]
    grid = sample.epochs[0]["s2"].geobox
    assert grid.crs.epsg == 2154
    assert tuple(grid.extent.boundingbox) == (700000, 6598720, 701280, 6600000)
    assert sample.label.geobox == grid
    lon, lat = sample.lonlat
    assert (lon, lat) == pytest.approx((3.0085, 46.4945), abs=2e-3)
    assert sample.footprint.contains(sample.footprint.centroid)


def test_nan_is_invalid(own: Path) -> None:
    path = own / "DATA_S1A" / "S1A_10000.npy"
    pixels = np.load(path)
    pixels[1, 1, 5, 7] = np.nan
    np.save(path, pixels)
    valid = opened(own, "test", "s1")[0].epochs[0]["s1"].valid
    assert not valid[3, 5, 7]
    assert valid.sum() == valid.size - 1


def test_a_band_subset_in_any_order(folder: Path) -> None:
    s2 = modalities.load("s2", {"bands": ["B08", "B02"]})
    split = Pastis(path=folder).open("test", {"s2": s2})
    assert split[0].epochs[0]["s2"].pixels[0, :, 0, 0].tolist() == [6, 0]


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_an_aerial_image_brings_the_label_onto_its_grid(
    own: Path, suffix: str, write_raster: Callable[..., Path]
) -> None:
    (own / "AERIAL").mkdir()
    pixels = np.arange(3 * 512 * 512, dtype=np.int64).reshape(3, 512, 512).astype(np.uint8)
    for number in range(10):
        path = own / "AERIAL" / f"HR_{10000 + number}{suffix}"
        if suffix == ".npy":
            np.save(path, pixels)
        else:
            write_raster(path, pixels)
    wanted = {"hr": modalities.load("hr", {"gsd": 2.5}), "s2": modalities.load("s2")}
    source = Pastis(path=own, hr_folder="AERIAL")
    assert source.available() == ("hr", "s2", "s1")
    split = source.open("test", wanted)
    sample = split[0]
    assert split.size(0) == (512, 512)
    assert (sample.epochs[0]["hr"].pixels[0] == pixels).all()
    coarse = opened(own, "test")[0].label.codes
    assert (sample.label.codes == np.kron(coarse, np.ones((4, 4), np.uint8))).all()
    assert sample.label.geobox.extent.boundingbox == sample.epochs[0]["s2"].geobox.extent.boundingbox
    assert sample.epochs[0]["hr"].geobox.shape == (512, 512)
    with pytest.raises(SkysenseError, match=r"modalities\.hr\.gsd=2\.5"):
        source.open("test", {"hr": modalities.load("hr")})


def delete(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def save(path: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / path, array)


def truncate(folder: Path) -> None:
    path = folder / "DATA_S2" / "S2_10000.npy"
    path.write_bytes(path.read_bytes()[:1000])


def edit(key: str) -> Callable[[Path], None]:
    def without(folder: Path) -> None:
        table = json.loads((folder / "metadata.geojson").read_text())
        for feature in table["features"]:
            del feature["properties"][key]
        (folder / "metadata.geojson").write_text(json.dumps(table))

    return without


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete("DATA_S2/S2_10000.npy"), r"S2_10000.npy: no such file"),
        (delete("DATA_S1D/S1D_10005.npy"), r"S1D_10005.npy: no such file"),
        (delete("ANNOTATIONS/TARGET_10000.npy"), r"TARGET_10000.npy: no such file"),
        (delete("metadata.geojson"), r"metadata.geojson: no such file"),
        (truncate, r"S2_10000.npy: not a readable .npy file"),
        (save("DATA_S2/S2_10000.npy", np.zeros((4, 10, 64, 64), np.int16)), r"expected \(T, 10, 128, 128\)"),
        (save("DATA_S2/S2_10000.npy", np.zeros((3, 10, 128, 128), np.int16)), r"3 images, but 4 dates-S2"),
        (save("ANNOTATIONS/TARGET_10000.npy", np.full((3, 128, 128), 31, np.uint8)), r"codes 0..19"),
        (edit("Fold"), r"a patch has no 'Fold'"),
        (edit("dates-S1A"), r"a patch has no 'dates-S1A'"),
        (lambda folder: (folder / "metadata.geojson").write_text("{"), r"not the metadata of PASTIS"),
    ],
)
def test_what_is_missing_or_odd_is_named(own: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(own)
    with pytest.raises(SkysenseError, match=message):
        opened(own, "test")[0]


def test_modalities_that_are_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match="has no hr"):
        opened(folder, "test", "hr")
    with pytest.raises(UsageError, match="fold"):
        opened(folder, fold=6)


def test_a_fold_without_patches(own: Path) -> None:
    table = json.loads((own / "metadata.geojson").read_text())
    table["features"] = table["features"][1:4]
    (own / "metadata.geojson").write_text(json.dumps(table))
    with pytest.raises(SkysenseError, match="no patch in fold 1"):
        opened(own, "test")
