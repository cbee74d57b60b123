"""`skysense info`: what lies at a path, printed, as JSON and on a map."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from shapely import box

from skysense_cli.app import main
from skysense_core import config, modalities, registry
from skysense_core.description import packaged_models
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.info import ModelInfo, RasterInfo, RunInfo, StoreInfo, as_table, info

DATES = (["2018-05-03", "2018-05-13", "2018-07-02"], ["2018-05-03", ""], [], ["2018-07-12"])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A store of four samples, the first two on the same ground, one without s2 and without labels."""
    folder = tmp_path / "store"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "00000.tar").write_bytes(b"x" * 2048)
    (folder / "failures.jsonl").write_text('{"item": "a", "reason": "b"}\n')
    tables = {name: config.to_table(modalities.load(name)) for name in ("s2", "s1")}
    description = {
        "version": 1,
        "skysense": "0.1.0",
        "plan": "0" * 8,
        "size": 64,
        "samples": 4,
        "classes": ["water", "forest"],
        "modalities": tables,
        "facts": {"s2": {"level": "L2A", "notes": ["-1000 added to 3 inputs"]}, "s1": {}},
    }
    config.write_toml(folder / "store.toml", description)
    corners = [(500000, 5500000), (500000, 5500000), (500640, 5500000), (501280, 5500000)]
    outlines = gpd.GeoSeries([box(x, y, x + 640, y + 640) for x, y in corners], crs="EPSG:32632").to_crs("EPSG:4326")
    frame = gpd.GeoDataFrame(
        {
            "id": ["a", "b<&>", "c", "d"],
            "split": ["train", "train", "val", ""],
            "crs": ["EPSG:32632"] * 4,
            "lon": outlines.centroid.x,
            "lat": outlines.centroid.y,
            "shard": ["shards/00000.tar"] * 4,
            "s2_offset": [0, 100, 0, 200],
            "s2_size": [100, 100, 0, 100],
            "s2_dates": DATES,
            "s2_valid": np.array([1.0, 0.5, 0.0, 0.75], dtype=np.float32),
            "s1_offset": [300] * 4,
            "s1_size": [100] * 4,
            "s1_dates": [["2018-05-04"]] * 4,
            "s1_valid": np.ones(4, dtype=np.float32),
            "label_offset": [0] * 4,
            "label_size": [10, 10, 10, 0],
            "label_counts": [[10, 30], [0, 40], [20, 0], []],
            "items": [["x"]] * 4,
        },
        geometry=outlines,
    )
    frame.to_parquet(folder / "index.parquet")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `skysense info` with some words: its exit code and what it printed."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skysense", "info", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


# Stores


def test_a_store_is_counted(written: Path) -> None:
    found = info(str(written))
    assert isinstance(found, StoreInfo)
    assert found.samples == 4
    assert found.area_km2 == pytest.approx(3 * 0.64**2, rel=2e-3)  # the ground of two samples is the same
    assert found.splits == {"train": 2, "val": 1, "": 1}
    assert found.crs == {"EPSG:32632": 4}
    assert found.labels == {"water": 30, "forest": 70}
    assert (found.shards, found.failures) == (1, 1)
    assert found.bytes == sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    s2 = found.modalities["s2"]
    assert (s2.samples, s2.images, s2.undated) == (3, 6, 1)
    assert s2.valid == pytest.approx(0.75)
    assert s2.months == {"2018-05": 3, "2018-06": 0, "2018-07": 2}
    assert s2.notes == ("-1000 added to 3 inputs",)
    assert found.modalities["s1"].months == {"2018-05": 4}


def test_a_store_is_printed_with_bars(written: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run(written)
    assert code == 0
    bars = {line.split()[0]: line.count("█") for line in out.splitlines() if "█" in line}
    assert bars["2018-07"] == round(bars["2018-05"] * 2 / 3)
    assert bars["water"] == round(bars["forest"] * 30 / 70)
    for text in ("in no part", "75.0 %", "1.23 km2", "without a date: 1", "failures.jsonl: 1"):
        assert text in out


def test_json_is_one_object_with_everything(written: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run(written, "--json")
    assert code == 0
    table = json.loads(out)
    assert table == json.loads(json.dumps(as_table(info(str(written))), default=str))
    assert table["kind"] == "store"
    assert table["next"].startswith("skysense finetune")
    assert table["modalities"]["s2"]["months"]["2018-06"] == 0


@pytest.mark.parametrize("name", ["map.html", "map.png"])
def test_a_map_shows_every_footprint(written: Path, tmp_path: Path, name: str, run: Callable) -> None:
    code, out, _ = run(written, "--map", tmp_path / name)
    assert code == 0
    assert name in out
    if name == "map.html":
        page = (tmp_path / name).read_text()
        assert page.count("<title>") == 1 + 4
        assert "b&lt;&amp;&gt;" in page
        assert not re.search(r"(?:src|href|url|import)\s*[=(:]|https?://", page)  # nothing comes from a network
        starts = [tuple(map(float, found)) for found in re.findall(r'<path d="M([\d.]+),([\d.]+)L', page)]
        assert starts[0] == starts[1]
        assert starts[2][0] - starts[0][0] == pytest.approx(starts[3][0] - starts[2][0], rel=0.01)
    else:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert run(written, "--map", tmp_path / name)[0] == 2
    assert run(written, "--map", tmp_path / name, "--overwrite")[0] == 0


def test_maps_of_other_formats_and_of_other_things_are_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png or a \.html"):
        info(str(written), tmp_path / "map.pdf")
    with pytest.raises(UsageError, match="no store"):
        info("buildings-hr", tmp_path / "map.png")
    frame = gpd.read_parquet(written / "index.parquet")
    frame.geometry = gpd.GeoSeries([None] * 4, crs="EPSG:4326")
    frame.to_parquet(written / "index.parquet")
    with pytest.raises(SkysenseError, match="no sample has a place"):
        info(str(written), tmp_path / "map.png")
    assert info(str(written)).area_km2 == 0


def test_a_store_of_a_newer_version_or_without_index_is_refused(written: Path) -> None:
    text = (written / "store.toml").read_text()
    (written / "store.toml").write_text(text.replace("version = 1", "version = 2", 1))
    with pytest.raises(SkysenseError, match="version 2"):
        info(str(written))
    (written / "store.toml").write_text(text)
    (written / "index.parquet").unlink()
    with pytest.raises(SkysenseError, match=r"index\.parquet is missing"):
        info(str(written))


# Models and runs


def test_the_speed_of_a_small_model_is_measured(run: Callable[..., tuple[int, str, str]]) -> None:
    (name, _), *_ = packaged_models().items()
    code, out, _ = run(name, "--json")
    assert code == 0
    speed = json.loads(out)["speed"]
    assert speed["windows_per_s"] > 0
    assert 0 < speed["megapixels_per_s"] < speed["windows_per_s"] * speed["window"] ** 2 / 1e6  # windows overlap
    assert "windows/s" in run(name)[1]


def test_a_large_model_is_measured_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skysense_core.info.trained.SMALL", 1000)
    (name, _), *_ = packaged_models().items()
    assert info(name).speed is None
    assert info(name, speed=True).speed.dates == 1


def test_a_model_says_its_licence(run: Callable[..., tuple[int, str, str]]) -> None:
    (name, folder), *_ = packaged_models().items()
    for path in (name, folder):
        found = info(str(path))
        assert isinstance(found, ModelInfo)
        assert found.classes == ("background", "building")
        assert found.parameters * 4 == pytest.approx(found.bytes, rel=0.02)
    code, out, _ = run(name)
    assert code == 0
    assert re.search(r"LICENCE\s+CC BY 4\.0", "\n".join(out.splitlines()[:2]))
    for text in ("red, green, blue", "0-255", "background", found.digest):
        assert text in out


def test_a_run_says_how_far_it_is(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (name, folder), *_ = packaged_models().items()
    table = {"task": {"name": "crop"}, "data": {"source": "pastis", "path": "there"}, "train": {"steps": 100}}
    config.write_toml(tmp_path / "config.toml", table)
    lines = [
        {"step": 40, "kind": "val", "oa": 0.5},
        {"step": 50, "kind": "train", "loss": 0.7},
        {"step": 60, "kind": "train", "loss": 0.4},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 7')
    (tmp_path / "best").symlink_to(folder)
    found = info(str(tmp_path))
    assert isinstance(found, RunInfo)
    assert (found.verb, found.data, found.step, found.steps) == ("finetune", "pastis there", 60, 100)
    assert found.metrics == {"val": {"step": 40, "oa": 0.5}, "train": {"step": 60, "loss": 0.4}}
    assert [model.name for model in found.models] == [name]
    code, out, _ = run(tmp_path)
    assert code == 0
    assert "60 of 100" in out
    assert "CC BY 4.0" in out


# Rasters


def test_a_raster_is_what_the_reader_finds(
    tmp_path: Path, write_raster: Callable[..., Path], run: Callable[..., tuple[int, str, str]]
) -> None:
    grid = GeoBox.from_bbox((300000, 5800000, 300640, 5800320), "EPSG:32633", resolution=10)
    pixels = np.ones((2, 32, 64), dtype="uint16")
    for day in ("20210503", "20210613"):
        write_raster(tmp_path / f"S2_L2A_{day}.tif", pixels, grid, names=("B02", "B03"))
    found = info(str(tmp_path))
    assert isinstance(found, RasterInfo)
    assert (found.files, found.height, found.width, found.crs) == (2, 32, 64, "EPSG:32633")
    assert found.gsd == pytest.approx(10, rel=2e-3)
    assert found.bounds == (300000, 5800000, 300640, 5800320)
    assert (found.bands, found.dates, found.level) == (("B02", "B03"), ("2021-05-03", "2021-06-13"), "L2A")
    code, out, _ = run(tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "raster"
    code, out, _ = run(tmp_path)
    assert "2021-05-03, 2021-06-13" in out


@pytest.fixture
def sentinel(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    """Ten bands as Sentinel-2 has them, each at its mean but B12, ten standard deviations higher; a quarter no data."""
    grid = GeoBox.from_bbox((300000, 5800000, 300640, 5800640), "EPSG:32633", resolution=10)
    s2 = modalities.load("s2")
    means = s2.mean + np.where(np.array(s2.band_names) == "B12", 10 * s2.std, 0)
    pixels = np.broadcast_to(means[:, None, None], (10, 64, 64)).round().astype("uint16")
    pixels[:, :32, :32] = 0
    return write_raster(tmp_path / "S2A_L2A_20240601.tif", pixels, grid, names=s2.band_names, nodata=0)


def test_a_raster_is_held_against_what_models_know(sentinel: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    found = info(str(sentinel))
    assert isinstance(found, RasterInfo)
    assert found.valid == pytest.approx(0.75)
    assert found.values["B02"].low == found.values["B02"].high == 884
    assert found.sensor.startswith("Sentinel-2: bands b05")
    assert found.scale.startswith("reflectance x 10000: uint16")
    assert found.storage is not None
    assert (found.storage.cog, found.storage.overviews, found.storage.nodata) == (False, (), 0)
    fits = {(fit.modality, fit.model): fit for fit in found.fits}
    assert fits["s2", None].refused is None
    assert fits["s2", None].far == ("B12",)
    assert fits["s2", None].bands["B12"].off == pytest.approx(10, abs=0.01)
    assert fits["s2", None].bands["B02"].off == pytest.approx(0, abs=0.01)
    assert "no band is called red, green, blue" in str(fits["hr", "buildings-hr"].refused)
    code, out, _ = run(sentinel)
    assert code == 0
    for text in ("yes, but far off: B12", "75.0 % of the sampled pixels", "GTiff, not a COG"):
        assert text in out
    assert out.splitlines()[-1].endswith(f"--data s2={sentinel} --labels LABELS --out RUN")


def test_a_raster_that_a_packaged_model_reads_is_to_be_predicted(
    tmp_path: Path, write_raster: Callable[..., Path], run: Callable[..., tuple[int, str, str]]
) -> None:
    grid = GeoBox.from_bbox((300000, 5800000, 300012.8, 5800012.8), "EPSG:32633", resolution=0.2)
    path = write_raster(
        tmp_path / "ortho.tif", np.full((3, 64, 64), 120, "uint8"), grid, names=("red", "green", "blue")
    )
    code, out, _ = run(path, "--json")
    assert code == 0
    assert json.loads(out)["next"] == f"skysense predict {path} --model buildings-hr --out map.tif"
    code, _, err = run("buildings-hr", "--model", "buildings-hr")
    assert code == 2
    assert "is no raster" in err


def test_a_large_cog_is_looked_at_by_its_overviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels without overviews would be read block by block; those at full size are damaged here and never read."""
    import rasterio
    from rasterio.shutil import copy

    plain, path = tmp_path / "plain.tif", tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": 4096, "width": 4096, "count": 1, "dtype": "uint16", "tiled": True}
    with rasterio.open(plain, "w", crs="EPSG:32633", transform=(10, 0, 3e5, 0, -10, 58e5), nodata=0, **profile) as file:
        file.write(np.full((1, 4096, 4096), 700, "uint16"))
    copy(plain, path, driver="COG", compress="deflate")
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)  # a COG holds its full size last
    path.write_bytes(content)
    found = info(str(path))
    assert found.storage is not None
    assert found.storage.cog
    assert (found.valid, found.values["band_1"].middle) == (1, 700)


def test_a_raster_is_looked_at_without_torch(sentinel: Path) -> None:
    """torch, and the libraries of tables, take longer to import than everything else here takes."""
    code = f"""
import atexit, sys
heavy = {{"torch", "pandas", "geopandas", "pyarrow", "xarray"}}
atexit.register(lambda: print("HEAVY", sorted(heavy & sys.modules.keys())))
sys.argv = ["skysense", "info", {str(sentinel)!r}]
from skysense_cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Who reads it" in done.stdout, done.stderr
    assert done.stdout.endswith("HEAVY []\n")


def test_the_machine_says_what_computes(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("--machine", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["kind"] == "machine"
    assert 0 < found["devices"]["cpu"]["free"] <= found["devices"]["cpu"]["memory"]
    assert found["extras"]["dev"] == []  # these tests need them all
    code, out, _ = run("--machine")
    assert "GDAL" in out
    assert run()[0] == run("here", "--machine")[0] == 2


def test_a_picture_without_a_place(tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    path = write_raster(tmp_path / "photo.png", np.zeros((3, 8, 9), dtype="uint8"), driver="PNG")
    found = info(str(path))
    assert (found.crs, found.gsd, found.lonlat, found.undated) == (None, None, None, 1)


def test_products_and_cubes(shared_data: Path) -> None:
    cube = info(str(next((shared_data / "sits_patch" / "worldcereal_cube").glob("*.nc"))))
    assert (len(cube.dates), cube.level, cube.dates[0]) == (12, "L2A", "2020-11-01")
    assert len(cube.bands) == 15


# Anything else


@pytest.mark.parametrize("kind", ["text", "folder"])
def test_anything_else_gets_one_message(tmp_path: Path, kind: str, run: Callable[..., tuple[int, str, str]]) -> None:
    path = tmp_path / "thing"
    if kind == "text":
        path.write_text("a,b\n")
    else:
        path.mkdir()
        (path / "notes.md").write_text("nothing\n")
    code, out, err = run(path)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "info shows stores, models" in err
    if kind == "folder":
        assert all(f"  {name}: " in err for name in registry.names("sources"))  # what was looked for


def test_nothing_there(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run(tmp_path / "absent")
    assert code == 1
    assert "no such file" in err


def test_every_source_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("sources", "--json")
    assert code == 0
    found = json.loads(out)["table"]
    assert set(found) == set(registry.names("sources"))
    for name, about in found.items():
        assert all(about.values()), f"{name}: nothing may be empty"
    code, out, _ = run("sources")
    assert code == 0
    assert "bigearthnet" in out
    (tmp_path / "sources").mkdir()  # what lies there is meant before the word
    assert run("sources")[0] != 0
