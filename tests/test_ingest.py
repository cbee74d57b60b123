"""Ingest: what is stored is what the files show there, on a lattice that no scene shifts; no work is lost or mixed."""

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from products import write_l2a
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from surfaces import S2
from tiny_data import write_pastis

from skysense_cli.app import main
from skysense_core import ingest as verb
from skysense_core import modalities
from skysense_core.data.shards import ShardWriter
from skysense_core.data.store import FAILURES, load_description, read_index
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.raster import open_stack
from skysense_core.geo.vector import rasterize
from skysense_core.info import info, next_command
from skysense_core.ingest import IngestConfig, IngestResult, ingest
from skysense_core.ingest.layout import LayoutWork
from skysense_core.ingest.pack import WORK
from skysense_core.sources.pastis import Pastis
from skysense_core.sources.store import Store, StoreSplit
from skysense_core.types import IGNORE

NAMES = tuple(names[0] for names in S2)
GRID = GeoBox((150, 200), Affine(10, 0, 500_030, 0, -10, 5_000_990), "EPSG:32633")
Write = Callable[..., Path]
ALL_TRAIN = {"val_share": 0.0, "test_share": 0.0}


def surface(grid: GeoBox, bands: int = 10, seed: int = 0) -> np.ndarray:
    """Smooth where it is interpolated, different everywhere, never 0."""
    height, width = grid.shape
    rows, cols = np.mgrid[:height, :width]
    waves = [2000 + 900 * np.sin((rows + 3 * band + seed) / 17) * np.cos(cols / (11 + band)) for band in range(bands)]
    return np.array(waves).round().astype(np.uint16)


def scene(
    folder: Path, write: Write, *, day: str = "20200105", grid: GeoBox = GRID, seed: int = 0, **more: object
) -> Path:
    """One date of ten bands of 10 m, nodata 0."""
    folder.mkdir(parents=True, exist_ok=True)
    return write(folder / f"scene_{day}_{seed}.tif", surface(grid, seed=seed), grid, names=NAMES, nodata=0, **more)


def stored(out: Path, part: str = "train") -> StoreSplit:
    source = Store(path=str(out))
    return source.open(part, source.described())  # type: ignore[arg-type]


def run(out: Path, inputs: Mapping[str, str | tuple[str, ...]], **settings: object) -> IngestResult:
    defaults: dict[str, object] = {"size": 16, "shard_size": 9, **ALL_TRAIN}
    return ingest(IngestConfig(out=out, inputs=dict(inputs), **(defaults | settings)))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_chips_equal_a_warped_vrt_on_the_same_lattice_and_interpolated_in_another_zone(
    tmp_path: Path, write_raster: Write
) -> None:
    path = scene(tmp_path / "s2", write_raster)
    run(tmp_path / "own", {"s2": str(path)})
    run(tmp_path / "other", {"s2": str(path)}, crs="EPSG:3035")
    for name, crs, most, resampling in (
        ("own", "EPSG:32633", 0, Resampling.nearest),
        ("other", "EPSG:3035", 6, Resampling.bilinear),
    ):
        split = stored(tmp_path / name)
        assert len(split) > 50
        with rasterio.open(path) as dataset:
            for index in range(0, len(split), 7):
                chip = split[index].epochs[0]["s2"]
                grid = chip.geobox
                assert str(grid.crs) == crs
                place = {"transform": grid.affine, "height": 16, "width": 16, "resampling": resampling}
                with WarpedVRT(dataset, crs=crs, **place) as vrt:
                    inside = chip.valid[0] & (vrt.read(1) > 0)
                    assert inside.mean() > 0.4
                    assert np.abs(chip.pixels[0].astype(float) - vrt.read())[:, inside].max() <= most
        assert chip.pixels.dtype == np.uint16


def test_a_place_has_one_footprint_whatever_scene_shows_it(tmp_path: Path, write_raster: Write) -> None:
    shifted = GeoBox((150, 200), GRID.affine * Affine.translation(37, -21), GRID.crs)
    for name, grid in (("a", GRID), ("b", shifted)):
        run(tmp_path / f"store_{name}", {"s2": str(scene(tmp_path / name, write_raster, grid=grid))}, min_valid=0.0)
    a, b = (read_index(tmp_path / f"store_{name}").to_pandas().set_index("id") for name in "ab")
    both = a.index.intersection(b.index)
    assert 0.5 < len(both) / len(a) < 1
    assert (a.loc[both, "geometry"] == b.loc[both, "geometry"]).all()
    lefts = {split_id: [stored(tmp_path / f"store_{name}") for name in "ab"] for split_id in both[:1]}
    (one, two), chosen = next(iter(lefts.values())), both[0]
    grids = [next(s[i].epochs[0]["s2"].geobox for i in range(len(s)) if s[i].id == chosen) for s in (one, two)]
    assert grids[0] == grids[1]
    assert grids[0].affine.c % 160 == grids[0].affine.f % 160 == 0


def test_several_zones_in_one_run_have_each_place_once(tmp_path: Path, write_raster: Write) -> None:
    # Around 12 degrees east, where zone 32 ends.
    grid = GeoBox((120, 400), Affine(10, 0, 273_700, 0, -10, 5_301_000), "EPSG:32633")
    run(tmp_path / "store", {"s2": str(scene(tmp_path, write_raster, grid=grid))}, min_valid=1.0)
    frame = gpd.read_parquet(tmp_path / "store" / "index.parquet")
    assert set(frame["crs"]) == {"EPSG:32632", "EPSG:32633"}
    assert ((frame["lon"] < 12) == (frame["crs"] == "EPSG:32632")).all()
    for code, some in frame.groupby("crs"):
        boxes = some.geometry.to_crs(code)
        assert len(boxes.sindex.query(boxes.buffer(-5), "intersects")[0]) == len(boxes)
    shares = frame.geometry.to_crs("EPSG:32633").union_all().area / frame.geometry.to_crs("EPSG:32633").area.sum()
    assert shares > 0.95  # cells of two zones overlap by less than a cell along the border


def test_both_sides_of_the_antimeridian_have_their_own_footprints(tmp_path: Path, write_raster: Write) -> None:
    grid = GeoBox((60, 400), Affine(10, 0, 817_000, 0, -10, 1_900_000), "EPSG:32660")
    run(tmp_path / "store", {"s2": str(scene(tmp_path, write_raster, grid=grid))}, min_valid=1.0)
    frame = gpd.read_parquet(tmp_path / "store" / "index.parquet")
    assert ((frame["lon"] < 0) == (frame["crs"] == "EPSG:32601")).all()
    assert frame["crs"].nunique() == 2
    assert (frame.geometry.bounds["maxx"] - frame.geometry.bounds["minx"]).max() < 0.01
    shown = stored(tmp_path / "store")
    assert all(shown[index].epochs[0]["s2"].valid.all() for index in range(len(shown)))


def test_modalities_share_footprints_each_at_its_own_pixel_size_and_dates(tmp_path: Path, write_raster: Write) -> None:
    fine = GeoBox((1500, 1200), Affine(0.5, 0, 500_400, 0, -0.5, 5_000_700), GRID.crs)
    aerial = write_raster(
        tmp_path / "ortho.tif", surface(fine, 3).astype(np.uint8), fine, names=("red", "green", "blue")
    )
    scene(tmp_path / "s2", write_raster, day="20200105")
    scene(tmp_path / "s2", write_raster, day="20200210", seed=1)
    result = run(tmp_path / "store", {"hr": str(aerial), "s2": str(tmp_path / "s2")})
    split = stored(tmp_path / "store")
    assert len(split) == result.samples > 5
    for index in range(len(split)):
        images = split[index].epochs[0]
        assert images["hr"].pixels.shape == (1, 3, 512, 512)
        assert images["s2"].pixels.shape == (2, 10, 16, 16)
        assert not images["hr"].dated.any()
        assert images["s2"].dated.all()
        assert images["hr"].geobox.boundingbox == images["s2"].geobox.boundingbox
        assert images["hr"].pixels.dtype == np.uint8
    assert split.size(0) == (512, 512)
    assert load_description(tmp_path / "store").modalities["hr"].gsd == 0.3125


def test_offsets_of_a_product_are_removed_and_its_level_and_clouds_are_kept(tmp_path: Path) -> None:
    scl = np.full((30, 40), 4, np.uint8)
    scl[:8, :] = 9
    product = write_l2a(tmp_path / "S2A_MSIL2A_20230821T101601_N0509_R065_T33UUU_20230821T161500.SAFE", scl=scl)
    result = ingest(
        IngestConfig(out=tmp_path / "store", inputs={"": str(product)}, size=16, min_valid=0.1, **ALL_TRAIN)
    )
    description = load_description(tmp_path / "store")
    assert description.facts["s2"].offsets == (-1000.0,)
    assert (description.facts["s2"].level, description.modalities["s2"].level) == ("L2A", "L2A")
    split = stored(tmp_path / "store")
    values = np.unique(np.concatenate([split[i].epochs[0]["s2"].pixels.ravel() for i in range(len(split))]))
    assert set(values) == {0, 1000}
    shares = [split[i].epochs[0]["s2"].valid.mean() for i in range(len(split))]
    assert min(shares) < 0.9 < max(shares)
    assert result.samples == len(split)
    assert read_index(tmp_path / "store")["items"][0].as_py() == [product.name]


def test_labels_travel_with_the_samples(tmp_path: Path, write_raster: Write) -> None:
    path = scene(tmp_path, write_raster)
    shapes = [shapely.box(500_100, 5_000_000, 500_700, 5_000_600), shapely.Point(501_000, 5_000_300).buffer(150)]
    fields = gpd.GeoDataFrame({"crop": ["wheat", "maize"]}, geometry=shapes, crs="EPSG:32633")
    fields.to_file(tmp_path / "fields.gpkg")
    result = run(tmp_path / "store", {"s2": str(path)}, labels=str(tmp_path / "fields.gpkg"), label_column="crop")
    split = stored(tmp_path / "store")
    assert split.classes == ("maize", "wheat")
    counts = np.zeros(2, dtype=int)
    for index in range(len(split)):
        sample = split[index]
        expected = rasterize(fields, [1, 0], sample.epochs[0]["s2"].geobox, fill=IGNORE)
        assert np.array_equal(sample.label.codes, expected)
        assert (expected != IGNORE).any()
        counts += np.bincount(expected.ravel(), minlength=256)[:2]
    assert list(result.classes.values()) == counts.tolist()
    assert abs(counts[1] - 3600) < 400  # 600 m x 600 m


def test_ingest_and_info_name_the_same_next_command(
    tmp_path: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, fields, store = scene(tmp_path, write_raster), tmp_path / "fields.gpkg", tmp_path / "store"
    ground = shapely.box(500_100, 5_000_000, 500_700, 5_000_600)
    gpd.GeoDataFrame({"crop": ["wheat"]}, geometry=[ground], crs="EPSG:32633").to_file(fields)
    words = ["ingest", f"s2={path}", "--labels", str(fields), "--label-column", "crop", "--size", "16"]
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["skysense", *words, "--out", str(store)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("next")]
    assert line.split(maxsplit=1)[1].strip() == next_command(info(str(store)))


def test_labels_count_in_every_zone_and_may_lie_in_one_alone(tmp_path: Path, write_raster: Write) -> None:
    # Around 12 degrees east, where zone 32 ends, at x = 275 km of zone 33.
    grid = GeoBox((48, 192), Affine(10, 0, 274_500, 0, -10, 5_300_800), "EPSG:32633")
    inputs = {"s2": str(scene(tmp_path / "s2", write_raster, grid=grid))}
    shapes = [shapely.box(274_600, 5_300_400, 275_900, 5_300_700), shapely.box(276_000, 5_300_400, 276_300, 5_300_700)]
    fields = gpd.GeoDataFrame({"crop": ["wheat", "maize"]}, geometry=shapes, crs="EPSG:32633")
    found: dict[str, StoreSplit] = {}
    for name, some in (("both", fields), ("one", fields[1:])):
        some.to_file(tmp_path / f"{name}.gpkg")
        run(tmp_path / name, inputs, labels=str(tmp_path / f"{name}.gpkg"), label_column="crop")
        split = found[name] = stored(tmp_path / name)
        codes = [split.classes.index(crop) for crop in some["crop"]]
        for sample in (split[index] for index in range(len(split))):
            expected = rasterize(some, codes, sample.epochs[0]["s2"].geobox, fill=IGNORE)
            assert np.array_equal(sample.label.codes, expected)
    zones = {name: set(read_index(tmp_path / name)["crs"].to_pylist()) for name in found}
    assert zones == {"both": {"EPSG:32632", "EPSG:32633"}, "one": {"EPSG:32633"}}
    # The same as a raster of codes, which is warped where polygons are drawn anew.
    painted = write_raster(tmp_path / "codes.tif", rasterize(fields, [1, 0], grid, fill=IGNORE)[None], grid)
    run(tmp_path / "painted", inputs, labels=str(painted), classes=("maize", "wheat"))
    codes_of = [
        {sample.id: sample.label.codes for sample in some} for some in (found["both"], stored(tmp_path / "painted"))
    ]
    common = codes_of[0].keys() & codes_of[1].keys()
    assert {name[:5] for name in common} == {"32632", "32633"}
    assert np.mean([codes_of[0][name] == codes_of[1][name] for name in common]) > 0.95
    fields.translate(50_000, 0).to_frame("geometry").assign(crop="wheat").to_file(tmp_path / "beyond.gpkg")
    with pytest.raises(SkysenseError, match="labels lie outside of the raster"):
        run(tmp_path / "none", inputs, labels=str(tmp_path / "beyond.gpkg"), label_column="crop")


def test_dates_are_dropped_chosen_and_mosaicked(tmp_path: Path, write_raster: Write) -> None:
    folder, grid = tmp_path / "s2", GRID[:64, :]
    for number, day in enumerate(("20200101", "20200111", "20200121", "20200131", "20200210")):
        scene(folder, write_raster, day=day, seed=number, grid=grid)
    gap = surface(grid, seed=9)
    gap[:, :, 100:] = 0
    write_raster(folder / "scene_20200220.tif", gap, grid, names=NAMES, nodata=0)
    other = surface(grid, seed=9)
    other[:, :, :90] = 0
    write_raster(folder / "second_orbit_20200220.tif", other, grid, names=NAMES, nodata=0)
    half = surface(grid, seed=5)
    half[:, :, 60:] = 0
    write_raster(folder / "scene_20200301.tif", half, grid, names=NAMES, nodata=0)
    run(tmp_path / "all", {"s2": str(folder)}, min_valid=1.0)
    index = read_index(tmp_path / "all").to_pandas()
    days = {len(dates) for dates in index["s2_dates"]}
    assert days == {6, 7}  # the last one is nowhere east of its border
    split = stored(tmp_path / "all")
    assert all(split[i].epochs[0]["s2"].valid[5].all() for i in range(len(split)))  # two orbits, one date
    run(tmp_path / "few", {"s2": str(folder)}, min_valid=1.0, max_dates=3)
    few = read_index(tmp_path / "few").to_pandas()
    assert {tuple(dates) for dates in few["s2_dates"] if len(dates)} >= {("2020-01-01", "2020-01-21", "2020-02-20")}
    run(tmp_path / "strict", {"s2": str(folder)}, min_valid=1.0, min_date_valid=1.0)
    strict = stored(tmp_path / "strict")
    assert all(strict[i].epochs[0]["s2"].valid.all() for i in range(len(strict)))


def test_parts_lie_apart_and_every_one_has_samples(tmp_path: Path, write_raster: Write) -> None:
    path = scene(tmp_path, write_raster, grid=GeoBox((112, 240), GRID.affine, GRID.crs))
    settings = {"val_share": 0.2, "test_share": 0.2, "split_block": 480.0}
    for buffer, stride in ((None, None), (0.0, 8), (100.0, None)):
        out = tmp_path / f"{buffer}"
        run(out, {"s2": str(path)}, buffer=buffer, stride=stride, **settings)
        frame = gpd.read_parquet(out / "index.parquet").to_crs("EPSG:32633")
        parts = {part: frame[frame["split"] == part].geometry for part in ("train", "val", "test")}
        assert all(len(some) for some in parts.values())
        apart = min(
            parts[a].distance(shape).min()
            for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
            for shape in parts[b]
        )
        assert apart >= (160 if buffer is None else buffer) - 1
        left = (frame["split"] == "").mean()
        assert left < 0.7


def test_little_ground_is_dealt_in_smaller_blocks(tmp_path: Path, write_raster: Write) -> None:
    path = scene(tmp_path, write_raster, grid=GeoBox((384, 384), GRID.affine, GRID.crs))  # 3.84 km, 576 footprints
    run(tmp_path / "store", {"s2": str(path)}, buffer=0.0, val_share=0.1, test_share=0.1)
    shares = gpd.read_parquet(tmp_path / "store" / "index.parquet")["split"].value_counts(normalize=True)
    assert shares["train"] > 0.6
    assert 0.03 < shares["val"] < 0.25
    assert 0.03 < shares["test"] < 0.25


def test_a_data_set_is_stored_with_its_parts_labels_and_grids(tmp_path: Path) -> None:
    folder = write_pastis(tmp_path / "pastis")
    result = ingest(IngestConfig(out=tmp_path / "store", inputs={"": str(folder)}, shard_size=2))
    assert result.splits == {"train": 3, "val": 1, "test": 1}
    source = Pastis(path=folder)
    kinds = {name: modalities.load(name) for name in source.available()}
    for part in ("train", "val", "test"):
        before, after = source.open(part, kinds), stored(tmp_path / "store", part)
        assert after.classes == before.classes
        for index in range(len(before)):
            one, two = before[index], after[index]
            assert one.id == two.id
            assert np.array_equal(one.label.codes, two.label.codes)
            for name in kinds:
                for key in ("pixels", "valid", "days", "dated"):
                    assert np.array_equal(getattr(one.epochs[0][name], key), getattr(two.epochs[0][name], key))
                assert one.epochs[0][name].geobox == two.epochs[0][name].geobox
    few = Store(path=str(tmp_path / "store")).open("train", {"s1": kinds["s1"]})
    assert few.size(0) == (128, 128)


REAL = ("sits_patch/worldcereal", "layouts/BigEarthNet-v1", "layouts/BigEarthNet", "layouts/SSL4EO-S12")


@pytest.mark.parametrize("name", REAL)
def test_a_real_data_set_comes_back_from_its_store_as_its_own_reader_has_it(
    tmp_path: Path, shared_data: Path, name: str
) -> None:
    given = IngestConfig(out=tmp_path / "store", inputs={"": str(shared_data / name)}, allow_leak=True)
    work = verb.plan(given)
    result = verb.run(work)
    assert isinstance(work, LayoutWork)
    assert not result.failures
    assert result.samples == sum(map(len, work.parts.values()))
    source = Store(path=str(tmp_path / "store"))
    for part, before in work.parts.items():
        compared = 0
        for key, modality in source.described().items():
            after = source.open(part, {key: modality})
            places = {name.removeprefix(f"{part}/"): at for at, name in enumerate(after.table["id"].to_pylist())}
            for index in range(0, len(before), max(len(before) // 5, 1)):
                sample = before[index]
                if key not in sample.epochs[0]:
                    assert sample.id not in places
                    continue
                one, two = sample.epochs[0][key], after[places[sample.id]].epochs[0][key]
                shown = np.broadcast_to(one.valid[:, None], one.pixels.shape)
                assert np.array_equal(one.pixels[shown], two.pixels[shown])
                assert np.array_equal(one.valid, two.valid)
                assert np.array_equal(one.dated, two.dated)
                assert np.array_equal(one.days[one.dated], two.days[two.dated])
                compared += int(shown.any())
        assert compared


def test_what_was_stopped_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / "s2", write_raster)
    run(tmp_path / "whole", {"s2": str(path)})
    done, write = [], verb.write_shard

    def stops(store: Path, number: int, *rest: object) -> None:
        if len(done) == 3:
            raise SkysenseError("stopped")
        done.append(number)
        write(store, number, *rest)  # type: ignore[arg-type]

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(verb, "write_shard", stops)
        with pytest.raises(SkysenseError, match="stopped"):
            run(out, {"s2": str(path)})
    assert not (out / "store.toml").exists()
    with pytest.raises(UsageError, match="max_dates was None, is 2"):
        run(out, {"s2": str(path)}, max_dates=2)
    # A shard that was cut off, a sidecar that is half there, and what a killed process leaves are made anew.
    first, second = sorted((out / "shards").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:2000])
    (out / WORK / f"{second.stem}.json").write_text('{"rows": [')
    (out / "shards" / ".00007.tar.123").write_bytes(b"half")
    result = run(out, {"s2": str(path)})
    assert result.reused == 1
    assert contents(out) == contents(tmp_path / "whole")
    again = run(out, {"s2": str(path)})
    assert again.reused == again.shards
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(UsageError, match="holds a complete store"):
        run(out, {"s2": str(path)}, max_dates=2)
    run(out, {"s2": str(path)}, max_dates=2, overwrite=True)


def test_a_file_that_is_damaged_is_noted_and_the_rest_is_done(
    tmp_path: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s2"
    scene(folder, write_raster, day="20200105")
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    broken = scene(folder, write_raster, day="20200210", seed=1, **tiles)
    empty = folder / "scene_20200301.tif"
    empty.write_bytes(b"II*\0nothing")
    content = bytearray(broken.read_bytes())
    start, stop = len(content) // 2, len(content) * 3 // 4
    content[start:stop] = bytes(stop - start)
    broken.write_bytes(content)
    words = [
        "skysense",
        "ingest",
        f"s2={folder}",
        "--out",
        str(tmp_path / "store"),
        "--size",
        "16",
        "--shard-size",
        "9",
    ]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [*words, "--val-share", "0", "--test-share", "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert ended.value.code == 3
    assert "2 inputs could not be read" in printed.err
    assert "2020-01-05 to 2020-02-10" in printed.out
    lines = [json.loads(line) for line in (tmp_path / "store" / FAILURES).read_text().splitlines()]
    assert {Path(line["item"]).name for line in lines} == {broken.name, empty.name}
    assert any("cannot be read" in line["error"] for line in lines)
    index = read_index(tmp_path / "store").to_pandas()
    assert {len(dates) for dates in index["s2_dates"]} == {1, 2}  # other blocks are sound
    whole = stored(tmp_path / "store")
    with rasterio.open(folder / "scene_20200105_0.tif") as dataset:
        chip = whole[len(whole) - 1].epochs[0]["s2"]
        col, row = ~dataset.transform * (chip.geobox.affine.c, chip.geobox.affine.f)
        window = rasterio.windows.Window(round(col), round(row), 16, 16)
        assert np.array_equal(chip.pixels[0], dataset.read(window=window, boundless=True))


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / "s2", write_raster)

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            if self.file.tell() > 60_000:  # type: ignore[attr-defined]
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content)  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    start = ShardWriter.__init__

    def opened(self: ShardWriter, where: Path) -> None:
        start(self, where)
        self._file = Full(self._file)  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "__init__", opened)
        with pytest.raises(SkysenseError, match=r"No space left.*\n.*run the same command"):
            run(tmp_path / "store", {"s2": str(path)}, shard_size=100)
    assert list((tmp_path / "store" / "shards").iterdir()) == []
    assert run(tmp_path / "store", {"s2": str(path)}, shard_size=100).samples > 50


def test_what_does_not_fit_together_gets_one_message(tmp_path: Path, write_raster: Write) -> None:
    here = scene(tmp_path / "here", write_raster)
    far = GeoBox((100, 100), Affine(10, 0, 700_000, 0, -10, 4_000_000), "EPSG:32633")
    radar = write_raster(
        tmp_path / "radar_20200101.tif", np.full((2, 100, 100), -12, np.float32), far, names=("VV", "VH")
    )
    out = tmp_path / "store"
    with pytest.raises(SkysenseError, match=r"s1 and s2 share no ground: s1 lies at 17\.\d+ to .* s2 lies at 15\."):
        run(out, {"s2": str(here), "s1": str(radar)}, read={"s1": {"unit": "dB"}})
    with pytest.raises(SkysenseError, match=r"area and the imagery share no ground: the area lies at 1\.0000 to 2"):
        run(out, {"s2": str(here)}, bbox=(1.0, 1.0, 2.0, 2.0))
    with pytest.raises(UsageError, match="not a projected CRS in metres"):
        run(out, {"s2": str(here)}, crs="EPSG:4326")
    with pytest.raises(SkysenseError, match=r"no sample: .* none shows 100%"):
        run(tmp_path / "none", {"s2": str(here)}, min_valid=1.0, aoi=_polygon(tmp_path, 500_030, 5_000_985))
    with pytest.raises(UsageError, match=r"pixels are 10 m, the modality's 2\.5 m"):
        run(out, {"s2": str(here)}, modalities={"s2": {"gsd": 2.5}})
    with pytest.raises(UsageError, match="of which modality"):
        run(out, {"": str(write_raster(tmp_path / "x.tif", np.ones((1, 20, 20), np.uint16), GRID[:20, :20]))})
    with pytest.raises(UsageError, match="nothing to ingest"):
        run(out, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"no store, but holds letter\.txt"):
        run(tmp_path / "full", {"s2": str(here)}, overwrite=True)
    assert not out.exists()


def _polygon(folder: Path, x: float, y: float) -> Path:
    gpd.GeoDataFrame(geometry=[shapely.Point(x, y).buffer(3)], crs="EPSG:32633").to_file(folder / "aoi.gpkg")
    return folder / "aoi.gpkg"


def test_undateable_images_of_one_place_are_refused_with_the_way_to_date_them(
    tmp_path: Path, write_raster: Write
) -> None:
    for name in ("first.tif", "second.tif"):
        write_raster(tmp_path / name, surface(GRID), GRID, names=NAMES)
    with pytest.raises(UsageError, match="show the same place, and neither says when") as refused:
        run(tmp_path / "store", {"s2": (str(tmp_path / "first.tif"), str(tmp_path / "second.tif"))})
    assert "--date-pattern" in str(refused.value)


def test_a_split_that_leaks_is_refused(tmp_path: Path, write_raster: Write) -> None:
    for part, shift in (("train", 0), ("val", 400), ("test", 8)):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
        grid = GeoBox((16, 16), GRID.affine * Affine.translation(shift, 0), GRID.crs)
        write_raster(tmp_path / part / "images" / f"{part}.tif", surface(grid), grid, names=NAMES)
        write_raster(tmp_path / part / "masks" / f"{part}.tif", np.ones((1, 16, 16), np.uint8), grid)
    data = {"path": str(tmp_path), "modality": "s2", "classes": ("a", "b")}
    with pytest.raises(SkysenseError, match="1 pairs of samples show the same ground in test and in train"):
        ingest(IngestConfig(out=tmp_path / "store", data=data))
    result = ingest(IngestConfig(out=tmp_path / "store", data=data, allow_leak=True, overwrite=True))
    assert result.splits == {"train": 1, "val": 1, "test": 1}


def test_the_dry_run_counts_at_least_what_is_made(tmp_path: Path, write_raster: Write) -> None:
    path = scene(tmp_path / "s2", write_raster)
    given = IngestConfig(out=tmp_path / "store", inputs={"s2": str(path)}, size=16, shard_size=9, min_valid=0.0)
    expected = verb.estimate(verb.plan(given))
    assert not (tmp_path / "store").exists()
    result = ingest(given)
    assert expected.samples >= result.samples > 0.9 * expected.samples
    assert expected.images["s2"] >= result.images["s2"]
    assert expected.size == expected.images["s2"] * 10 * 16 * 16 * 2
    assert expected.shards == result.shards


@pytest.mark.slow
def test_any_number_of_processes_and_a_kill_give_the_same_store(tmp_path: Path, write_raster: Write) -> None:
    path = scene(tmp_path / "s2", write_raster, grid=GeoBox((640, 800), GRID.affine, GRID.crs))
    words = [sys.executable, "-m", "skysense_cli", "ingest", f"s2={path}", "--size", "16", "--shard-size", "25"]
    for name, jobs in (("one", "1"), ("three", "3")):
        subprocess.run([*words, "--out", str(tmp_path / name), "-j", jobs, "-q"], check=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    out = tmp_path / "killed"
    for moment in (3, 12):
        process = subprocess.Popen([*words, "--out", str(out), "-q"])
        while process.poll() is None and len(list(out.glob(f"{WORK}/0*.json"))) < moment:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (out / "store.toml").exists()
    subprocess.run([*words, "--out", str(out), "-j", "2", "-q"], check=True)
    assert contents(out) == contents(tmp_path / "one")


def test_a_jpeg_2000_that_was_cut_off_is_no_ground_of_zeros(tmp_path: Path) -> None:
    """GDAL's own threads lose the error and leave zeros, which would be read as measurements."""
    grid = GeoBox((512, 512), GRID.affine, GRID.crs)
    path = tmp_path / "scene_20200105_B02.jp2"
    profile = {"driver": "JP2OpenJPEG", "count": 1, "height": 512, "width": 512, "dtype": "uint16"}
    noise = np.random.default_rng(0).integers(1, 4000, (512, 512)).astype(np.uint16)
    with rasterio.open(
        path,
        "w",
        crs="EPSG:32633",
        transform=grid.affine,
        BLOCKXSIZE=64,
        BLOCKYSIZE=64,
        QUALITY="100",
        REVERSIBLE="YES",
        **profile,
    ) as dataset:
        dataset.write(noise, 1)
    stack = open_stack(path, bands=[("B02",)])
    assert (stack.read(grid).pixels > 0).all()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    cut_off = open_stack(path, bands=[("B02",)])
    assert (cut_off.read(grid[:64, :64]).pixels > 0).all()
    with pytest.raises(SkysenseError, match=r"scene_20200105_B02\.jp2: rows .* cannot be read"):
        cut_off.read(grid)


def test_settings_come_from_a_file_too(tmp_path: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "s2", write_raster)
    table = f'size = 16\nval_share = 0.0\ntest_share = 0.0\n[inputs]\ns2 = "{path.parent}/*.tif"\n'
    (tmp_path / "ingest.toml").write_text(table + '[modalities.s2]\nbands = ["red", "nir"]\n')
    words = ["skysense", "ingest", "--config", str(tmp_path / "ingest.toml"), "--out", str(tmp_path / "store"), "-q"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert load_description(tmp_path / "store").modalities["s2"].band_names == ("B04", "B08")
    chip = stored(tmp_path / "store")[0].epochs[0]["s2"]
    with rasterio.open(path) as dataset:
        col, row = ~dataset.transform * (chip.geobox.affine.c, chip.geobox.affine.f)
        window = rasterio.windows.Window(round(col), round(row), 16, 16)
        assert np.array_equal(chip.pixels[0], dataset.read([3, 7], window=window, boundless=True))
