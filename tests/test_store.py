"""The store on disk: chips come back as they were, shards are plain tars, statistics are those of all pixels."""

import tarfile
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from server import serving

from skysense_core import config, modalities
from skysense_core.data.histogram import Histogram
from skysense_core.data.shards import ShardWriter
from skysense_core.data.store import DESCRIPTION, FAILURES, load_description
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.chips import encode_chip, encode_label, read_chip, read_label, subfile
from skysense_core.ingest import IngestConfig, ingest
from skysense_core.ingest.pack import Tally
from skysense_core.sources import from_table
from skysense_core.sources.store import Store
from skysense_core.types import IGNORE, ClassMap, Raster

GRID = GeoBox((24, 24), Affine(10, 0, 500_160, 0, -10, 5_000_320), "EPSG:32633")
BANDS = ("VV", "VH")
NAMES = [("VV", "vv"), ("VH",)]
DAYS = np.array([17_000, 17_010, 0])
DATED = np.array([True, True, False])


def raster(dtype: str = "int16", *, complete: bool = False, grid: GeoBox | None = GRID, seed: int = 0) -> Raster:
    rng = np.random.default_rng(seed)
    valid = np.ones((3, 24, 24), dtype=bool) if complete else rng.random((3, 24, 24)) < 0.7
    pixels = rng.normal(0, 1000, (3, 2, 24, 24)) % 250 if dtype == "uint8" else rng.normal(0, 1000, (3, 2, 24, 24))
    pixels = np.where(valid[:, None], pixels, 0).astype(dtype)
    return Raster(pixels=pixels, valid=valid, days=DAYS, dated=DATED, geobox=grid)


def same(one: Raster, other: Raster) -> bool:
    arrays = all(np.array_equal(getattr(one, key), getattr(other, key)) for key in ("pixels", "valid", "days", "dated"))
    return arrays and one.geobox == other.geobox and one.pixels.dtype == other.pixels.dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_chip_comes_back_as_it_was(tmp_path: Path, dtype: str, complete: bool) -> None:
    before = raster(dtype, complete=complete)
    (tmp_path / "chip.tif").write_bytes(encode_chip(before, BANDS, {"UNIT": "dB"}))
    assert same(read_chip(str(tmp_path / "chip.tif"), NAMES), before)
    with rasterio.open(tmp_path / "chip.tif") as dataset:
        assert dataset.descriptions[:3] == ("2016-07-18 VV", "2016-07-18 VH", "2016-07-28 VV")
        assert dataset.descriptions[5] == "undated VH"
        assert dataset.count == (6 if complete else 9)
        assert dataset.tags()["UNIT"] == "dB"
        assert dataset.compression.name == "zstd"
        assert dataset.interleaving.name == "band"


def test_a_chip_without_a_place_and_one_of_several_blocks(tmp_path: Path) -> None:
    picture = raster(grid=None)
    large = Raster(
        pixels=np.arange(700 * 530, dtype=np.uint32).reshape(1, 1, 700, 530),
        valid=np.ones((1, 700, 530), dtype=bool),
        days=DAYS[:1],
        dated=DATED[:1],
    )
    for number, (before, names) in enumerate([(picture, NAMES), (large, [("VV",)])]):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(encode_chip(before, [name[0] for name in names], {}))
        assert same(read_chip(str(path), names), before)


def test_bands_are_found_by_any_of_their_names_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path, before = tmp_path / "chip.tif", raster()
    path.write_bytes(encode_chip(before, BANDS, {}))
    assert np.array_equal(read_chip(str(path), [("cross", "vh")]).pixels[:, 0], before.pixels[:, 1])
    with pytest.raises(UsageError, match="no band is called HH"):
        read_chip(str(path), [("HH",)])


def test_a_tar_holds_files_that_anyone_can_open_and_its_parts_are_read_in_place(tmp_path: Path) -> None:
    label = ClassMap(codes=np.tile(np.array([0, 1, IGNORE], dtype=np.uint8), (24, 8)), geobox=GRID)
    chips = {f"{seed}.s1.tif": encode_chip(raster(seed=seed), BANDS, {}) for seed in range(3)}
    members = {**chips, "0.label.tif": encode_label(label, ("water", "forest"), ("#0000ff", "#00ff00"))}
    for name in ("one.tar", "two.tar"):
        with ShardWriter(tmp_path / name) as tar:
            places = {member: tar.add(member, content) for member, content in members.items()}
            assert not (tmp_path / name).exists()
            size = tar.close()
        assert (tmp_path / name).stat().st_size == size
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        tar.extractall(tmp_path / "out", filter="data")
        assert tar.getnames() == list(members)
    for seed in range(3):
        part = subfile(str(tmp_path / "one.tar"), *places[f"{seed}.s1.tif"])
        loose = str(tmp_path / "out" / f"{seed}.s1.tif")
        assert same(read_chip(part, NAMES), raster(seed=seed))
        assert same(read_chip(loose, NAMES), raster(seed=seed))
    back = read_label(str(tmp_path / "out" / "0.label.tif"))
    assert np.array_equal(back.codes, label.codes)
    with rasterio.open(tmp_path / "out" / "0.label.tif") as dataset:
        assert dataset.tags()["CLASS_1"] == "forest"
        assert dataset.colormap(1)[1] == (0, 255, 0, 255)


def test_an_unfinished_tar_leaves_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "one.tar") as tar:
        tar.add("a.tif", b"abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["reflectance", "decibels", "few values", "mixed"])
def test_percentiles_are_those_of_all_values_however_they_are_divided(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "reflectance": rng.gamma(4, 400, 20_000).astype(np.uint16),
        "decibels": rng.normal(-14, 5, 20_000).astype(np.float32),
        "few values": rng.integers(0, 3, 20_000).astype(np.uint8),
        "mixed": np.concatenate([rng.normal(0, 1e-3, 9_000), rng.normal(0, 1e4, 11_000)]),
    }[kind]
    whole = Histogram.of(values)
    parts = sum((Histogram.of(part) for part in np.array_split(values, 7)), Histogram.of(values[:0]))
    assert parts.first == whole.first
    assert np.array_equal(parts.counts, whole.counts)
    shares = np.array([0.02, 0.5, 0.98])
    expected = np.percentile(values, 100 * shares)
    assert np.allclose(whole.percentiles(shares), expected, rtol=0.003, atol=0.02 if kind != "few values" else 0.01)


def test_tallies_of_shards_add_up_to_that_of_all_and_survive_a_file() -> None:
    rasters = [raster("float32", seed=seed) for seed in range(5)]
    whole, sums = Tally(), Tally()
    for one in rasters:
        whole.add(one)
    whole.count()
    for some in (rasters[:2], rasters[2:4], [], rasters[4:]):
        part = Tally()
        for one in some:
            part.add(one)
        sums.include(Tally.of_table(part.table()))
    pixels = np.concatenate([one.pixels.swapaxes(0, 1)[:, one.valid] for one in rasters], axis=1).astype(np.float64)
    assert sums.moments is not None
    assert sums.moments.count == pixels.shape[1]
    assert np.allclose(sums.moments.mean, pixels.mean(axis=1))
    assert np.allclose(sums.moments.std, pixels.std(axis=1))
    assert (sums.samples, sums.images) == (5, 15)
    assert all(np.array_equal(a.counts, b.counts) for a, b in zip(sums.histograms, whole.histograms, strict=True))


@pytest.fixture(scope="module")
def imagery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of radar over 64 x 48 pixels, the second with a gap."""
    folder = tmp_path_factory.mktemp("s1")
    rng = np.random.default_rng(3)
    profile = {"driver": "GTiff", "count": 2, "height": 48, "width": 64, "dtype": "float32", "nodata": -9999}
    for day in ("20200101", "20200113"):
        pixels = rng.normal(-12, 3, (2, 48, 64)).astype(np.float32)
        if day == "20200113":
            pixels[:, :20, :20] = -9999
        with rasterio.open(
            folder / f"s1_{day}.tif", "w", crs="EPSG:32633", transform=GRID.affine, **profile
        ) as dataset:
            dataset.write(pixels)
            dataset.descriptions = BANDS
    return folder


@pytest.fixture(scope="module")
def store(imagery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    given = IngestConfig(
        out=out,
        inputs={"s1": str(imagery)},
        size=16,
        shard_size=4,
        val_share=0.0,
        test_share=0.0,
        read={"s1": {"unit": "dB"}},
    )
    assert ingest(given).samples == 12
    return out


def test_the_index_is_geoparquet_that_says_what_there_is(store: Path) -> None:
    frame = gpd.read_parquet(store / "index.parquet")
    assert frame.crs == "EPSG:4326"
    assert len(frame) == 12
    row = frame.iloc[0]
    assert (row["split"], row["crs"]) == ("train", "EPSG:32633")
    assert row.geometry.contains(gpd.points_from_xy([row.lon], [row.lat])[0])
    assert set(frame["items"].explode()) == {"s1_20200101.tif", "s1_20200113.tif"}
    assert frame["id"].is_unique
    valid = {tuple(dates): share for dates, share in zip(frame["s1_dates"], frame["s1_valid"], strict=True)}
    assert ("2020-01-01", "2020-01-13") in valid
    # A footprint that the gap covers wholly has the first date only.
    assert valid["2020-01-01",] == 1
    description = load_description(store)
    assert description.samples == 12
    assert description.facts["s1"].images == frame["s1_dates"].str.len().sum()
    assert description.modalities["s1"].bands[0].mean == pytest.approx(-12, abs=0.2)


def test_the_store_is_a_source_of_samples_without_labels(store: Path) -> None:
    name, source = from_table({"path": str(store)})
    assert name == "store"
    split = source.open("train", Store(path=str(store)).described())
    assert split.classes == ()
    assert split[0].label is None
    assert split.size(0) == (16, 16)
    with pytest.raises(SkysenseError, match="no labels"):
        split.label(0)
    with pytest.raises(SkysenseError, match="test part is empty"):
        source.open("test", Store(path=str(store)).described())


def test_some_bands_are_read_by_name_and_another_level_or_pixel_size_is_refused(store: Path) -> None:
    source = Store(path=str(store))
    own = source.described()["s1"]
    whole, part = (source.open("train", {"s1": one})[3].epochs[0]["s1"] for one in (own, own.with_bands(("vh",))))
    assert np.array_equal(part.pixels[:, 0], whole.pixels[:, 1])
    for change, message in (({"level": "GRD"}, "level RTC"), ({"gsd": 20.0}, "10 m"), ({"unit": "linear"}, "unit dB")):
        with pytest.raises(UsageError, match=message):
            source.open("train", {"s1": replace(own, **change)})
    with pytest.raises(UsageError, match="has no s2"):
        source.open("train", {"s2": modalities.load("s2")})


def copied(store: Path, to: Path) -> Path:
    for path in store.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(store)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def test_damage_is_said_before_training(store: Path, tmp_path: Path) -> None:
    own = Store(path=str(store)).described()
    short = copied(store, tmp_path / "short")
    shard = sorted((short / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(SkysenseError, match=r"00000.tar has 3,000 bytes of at least"):
        Store(path=str(short)).open("train", own)
    shard.unlink()
    with pytest.raises(SkysenseError, match="is missing"):
        Store(path=str(short)).open("train", own)
    newer = copied(store, tmp_path / "newer")
    config.write_toml(newer / DESCRIPTION, config.load_toml(newer / DESCRIPTION) | {"version": 2, "skysense": "9.9"})
    with pytest.raises(SkysenseError, match=r"version 2, written by skysense 9.9.*\n.*Update"):
        Store(path=str(newer)).open("train", own)


def test_a_store_is_read_from_a_web_server_as_it_lies(store: Path) -> None:
    files = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    local = Store(path=str(store))
    here = local.open("train", local.described())
    with serving(files) as server:
        for address in (server.root, f"/vsicurl/{server.root}"):
            name, source = from_table({"path": address})
            there = source.open("train", local.described())
            assert name == "store"
            assert len(there) == len(here)
            assert same(there[5].epochs[0]["s1"], here[5].epochs[0]["s1"])


def test_a_store_that_is_complete_has_no_ledger(store: Path) -> None:
    assert sorted(path.name for path in store.iterdir()) == ["index.parquet", "shards", DESCRIPTION]
    assert not (store / FAILURES).exists()
