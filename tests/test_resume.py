"""Nothing starts over: what stops goes on from its finished shards, and the map is the same to the last byte."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core import modalities, runtime
from skysense_core.checkpoint import save_model
from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, estimate, finish, predict
from skysense_core.predict.elsewhere import compute_elsewhere
from skysense_core.predict.job import Job
from skysense_core.predict.shards import Plan, folder_of, of_array, runs
from skysense_core.tasks.segmentation import Segmentation

ROOT = Path(__file__).parents[1]
GRID = GeoBox((1100, 560), Affine(0.3, 0, 500_000.3, 0, -0.3, 4_000_000.9), "EPSG:32636")
"""Three rows and two columns of shards of 512 px."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each worker of a cluster has."""
    with runtime.threads(1):
        yield


def write_scene(path: Path, grid: GeoBox = GRID) -> Path:
    """Blocks of colour with noise in them."""
    rng = np.random.default_rng(5)
    height, width = grid.shape
    blocks = rng.integers(30, 220, (3, height // 50 + 1, width // 50 + 1)).repeat(50, 1).repeat(50, 2)
    pixels = (blocks[:, :height, :width] + rng.integers(-25, 25, (3, height, width))).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=str(grid.crs), transform=grid.affine, photometric="RGB") as dataset:
        dataset.write(pixels)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene and a model of random weights: its scores differ in every window."""
    folder = tmp_path_factory.mktemp("resume")
    write_scene(folder / "scene.tif")
    torch.manual_seed(1)
    task = Segmentation(classes=("a", "b", "c", "d"))
    hr = modalities.load("hr", {"gsd": 0.3, "window": 256})
    model = task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), {"hr": hr}))
    save_model(folder / "model", model, task, name="random", training={}, metrics={}, licence="none")
    return folder


def settings(folder: Path, out: Path, **changes) -> PredictConfig:
    given = {"inputs": (str(folder / "scene.tif"),), "model": folder / "model", "shard": (512, 512), "batch_size": 3}
    return PredictConfig(out=out, **{**given, "confidence": "margin", **changes})


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    result = predict(settings(folder, folder / "whole.tif"))
    assert (result.shards, result.reused) == (6, 0)
    assert not folder_of(folder / "whole.tif").exists()
    return {path.name.replace("whole", "map"): path.read_bytes() for path in result.paths}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out, out.with_name("map_confidence.tif"))}


@dataclass
class Stopper:
    """Lets the writing of shards end after some of them."""

    after: int
    error: Exception
    done: int = 0

    def __call__(self, original: Callable) -> Callable:
        def rename(path: Path, target: Path) -> Path:
            if path.suffix == ".tmp" and path.is_dir():
                if self.done == self.after:
                    raise self.error
                self.done += 1
            return original(path, target)

        return rename


@pytest.mark.parametrize("after", [1, 3, 5])
def test_what_failed_goes_on_with_the_missing_shards_alone(tmp_path, folder, whole, monkeypatch, after):
    out = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", Stopper(after, SkysenseError("disk full"))(Path.rename))
        with pytest.raises(SkysenseError, match="disk full") as caught:
            predict(settings(folder, out))
    assert f"{after} of 6 shards are finished and kept" in caught.value.fix
    assert not out.exists()
    result = predict(settings(folder, out))
    assert result.reused == after
    assert f"{after} of 6 shards were finished before and are reused" in result.notes
    assert files(out) == whole
    assert not folder_of(out).exists()


def test_without_a_finished_shard_nothing_stays(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Path, "rename", Stopper(0, SkysenseError("disk full"))(Path.rename))
    with pytest.raises(SkysenseError, match="disk full"):
        predict(settings(folder, tmp_path / "map.tif"))
    assert list(tmp_path.iterdir()) == []


def test_any_missing_shard_is_computed_as_if_all_were(tmp_path, folder, whole, monkeypatch):
    """Shards are deleted here and there: what is around them is not computed again, and every byte is the same."""
    out = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.predict._join", lambda job, store, outs: False)
        predict(settings(folder, out))
    for number in (1, 3, 5):
        store = folder_of(out) / f"{number:05}"
        for item in store.iterdir():
            item.unlink()
        store.rmdir()
    assert predict(settings(folder, out)).reused == 3
    assert files(out) == whole


@pytest.mark.parametrize("jobs", [1, 4])
def test_readers_change_no_byte(tmp_path, folder, whole, jobs):
    predict(settings(folder, tmp_path / "map.tif", jobs=jobs))
    assert files(tmp_path / "map.tif") == whole


def test_the_parts_of_a_job_array_make_the_same_map_and_the_last_one_joins(tmp_path, folder, whole):
    out = tmp_path / "map.tif"
    for part in (2, 3):
        result = predict(settings(folder, out, array=(part, 3)))
        assert result.paths == ()
        assert "shards are left to other processes" in result.notes[-1]
        assert not out.exists()
    assert predict(settings(folder, out, array=(1, 3))).paths
    assert files(out) == whole


def test_one_process_joins_at_a_time_and_a_dead_one_is_told_of(tmp_path, folder, whole):
    out = tmp_path / "map.tif"
    predict(settings(folder, out, array=(1, 2)))
    (folder_of(out) / "joining").mkdir()
    result = predict(settings(folder, out, array=(2, 2)))
    assert result.paths == ()
    assert result.notes[-1].endswith(f"skysense mosaic --finish {out}")
    finish(out, {})
    assert files(out) == whole


def test_shards_that_nobody_joined_are_joined_by_themselves(tmp_path, folder, whole, monkeypatch):
    out = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.predict._join", lambda job, store, outs: False)
        predict(settings(folder, out))
    finish(out, {})
    assert files(out) == whole
    with pytest.raises(UsageError, match="no shards of a prediction"):
        finish(out, {})


def test_joined_later_the_map_is_sieved_as_it_was_asked_for(tmp_path, folder, whole, monkeypatch):
    out = tmp_path / "map.tif"
    given = settings(folder, out, min_area=20.0)
    predict(given)
    sieved = files(out)
    assert sieved["map.tif"] != whole["map.tif"]
    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.predict._join", lambda job, store, outs: False)
        predict(replace(given, overwrite=True))
    finish(out, {})
    assert files(out) == sieved


def test_unfinished_shards_are_not_joined(tmp_path, folder):
    out = tmp_path / "map.tif"
    predict(settings(folder, out, array=(1, 3)))
    with pytest.raises(SkysenseError, match="4 of 6 shards are not finished"):
        finish(out, {})
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 2}, "batch_size was 3, is 2"),
        ({"overlap": 96}, "lattice was"),
        ({"confidence": "max"}, "confidence was"),
        ({"bbox": (500_000.3, 3_999_900.0, 500_100.0, 4_000_000.9)}, "grid was"),
    ],
)
def test_another_prediction_is_refused_and_told_apart(tmp_path, folder, change, said):
    out = tmp_path / "map.tif"
    predict(settings(folder, out, array=(1, 3)))
    with pytest.raises(UsageError, match=said):
        predict(settings(folder, out, **change))
    assert len(list(folder_of(out).iterdir())) == 3
    assert predict(settings(folder, out, overwrite=True, **change)).reused == 0


def test_a_changed_input_is_another_prediction(tmp_path, folder):
    write_scene(tmp_path / "scene.tif")
    (tmp_path / "model").symlink_to(folder / "model")
    out = tmp_path / "map.tif"
    predict(settings(tmp_path, out, array=(1, 3)))
    os.utime(tmp_path / "scene.tif", ns=(1, 1))
    with pytest.raises(UsageError, match="inputs was"):
        predict(settings(tmp_path, out))


def test_sizes_chosen_before_are_chosen_again(tmp_path, folder):
    """What memory allows may be another thing on another day; the plan remembers."""
    out = tmp_path / "map.tif"
    predict(settings(folder, out, array=(1, 3)))
    result = predict(settings(folder, out, batch_size=None, shard=None))
    assert result.reused == 2


def test_a_broken_plan_is_said_to_be_broken(tmp_path, folder):
    out = tmp_path / "map.tif"
    predict(settings(folder, out, array=(1, 3)))
    (folder_of(out) / "plan.json").write_text("{")
    with pytest.raises(SkysenseError, match=r"plan\.json: cannot be read"):
        predict(settings(folder, out))


def test_a_damaged_input_names_the_place_and_keeps_the_rest(tmp_path, folder):
    path = write_scene(tmp_path / "scene.tif")
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.truncate(size * 19 // 20)
    (tmp_path / "model").symlink_to(folder / "model")
    with pytest.raises(SkysenseError, match=r"scene\.tif.*window at rows") as caught:
        predict(settings(tmp_path, tmp_path / "map.tif", shard=(512, 2048)))
    assert "shards are finished and kept" in caught.value.fix


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_what_is_finished(tmp_path, folder, whole, monkeypatch, number, code):
    out = tmp_path / "map.tif"
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        moved = original(path, target)
        if path.suffix == ".tmp" and path.is_dir() is False and target.name == "00001":
            os.kill(os.getpid(), number)
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Interrupted, match="run the same command again") as caught:
            predict(settings(folder, out))
    assert caught.value.exit_code == code
    assert predict(settings(folder, out)).reused >= 2
    assert files(out) == whole


def test_an_unknown_precision_is_refused_before_any_work(tmp_path, folder):
    with pytest.raises(UsageError, match="unknown precision 'bf32'"):
        predict(settings(folder, tmp_path / "map.tif", precision="bf32"))
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_counts_what_is_left_and_writes_nothing(tmp_path, folder):
    out = tmp_path / "map.tif"
    everything = estimate(settings(folder, out))
    assert list(tmp_path.iterdir()) == []
    assert everything.megapixels == 0.616
    assert everything.disk > 2 * 0.616e6
    assert everything.seconds > 0
    predict(settings(folder, out, array=(1, 3)))
    left = estimate(settings(folder, out))
    assert (left.shards, left.reused) == (6, 2)
    assert left.windows < everything.windows


def test_memory_chooses_the_sizes_and_too_little_is_refused(tmp_path, folder):
    given = replace(settings(folder, tmp_path / "map.tif"), batch_size=None, shard=None)
    wide = estimate(replace(given, max_memory=runtime.resident_memory() + 2**31))
    assert wide.batch_size > 1
    with pytest.raises(UsageError, match=r"--max-memory: one window takes [\d,]+ MiB"):
        estimate(replace(given, max_memory=2**20))


def test_consecutive_shards_of_a_strip_are_one_sweep():
    table = {"shape": [1300, 1200], "affine": [1, 0, 0, 0, -1, 0], "crs": "EPSG:32636"}
    plan = Plan(made_by={}, grid=table, target=table, products={}, shard=(512, 512))
    shards = plan.shards
    assert len(shards) == 9
    assert sum(shard.window.height * shard.window.width for shard in shards) == 1300 * 1200
    chosen = [shards[number] for number in (0, 1, 2, 3, 5, 7, 8)]
    assert [[shard.number for shard in run] for run in runs(chosen)] == [[0, 1, 2], [3], [5], [7, 8]]
    assert [shard.number for index in (1, 2, 3, 4) for shard in of_array(index, 4, shards)] == list(range(9))


def test_polygons_and_sieve_come_from_the_same_run(tmp_path, folder):
    import geopandas as gpd

    out = tmp_path / "map.tif"
    result = predict(settings(folder, out, polygons=tmp_path / "map.gpkg", min_area=20.0, confidence=None))
    assert set(result.paths) == {out, tmp_path / "map.gpkg"}
    frame = gpd.read_file(tmp_path / "map.gpkg")
    assert frame.crs == GRID.crs.proj
    assert set(frame["name"]) <= {"a", "b", "c", "d"}
    assert frame.area.min() >= 20.0
    assert frame.confidence.between(0, 1).all()
    areas = {one.name: one.square_metres for one in result.classes}
    found = frame.groupby("name").area_m2.sum()
    for name, area in found.items():
        assert area == pytest.approx(areas[name], rel=2e-3)


@pytest.mark.slow
def test_two_workers_make_the_bytes_of_one_process_and_one_may_be_killed(tmp_path, folder, whole):
    out = tmp_path / "map.tif"
    distributed = pytest.importorskip("distributed")
    nodes = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with mock.patch.dict(os.environ), distributed.LocalCluster(**nodes) as cluster:  # Dask changes the environment
        pids = [worker.pid for worker in cluster.workers.values()]

        def kill_one_when_a_shard_is_there() -> None:
            while not list(folder_of(out).glob("0????")):
                time.sleep(0.05)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one_when_a_shard_is_there)
        killer.start()
        result = predict(settings(folder, out, cluster=cluster.scheduler_address))
        killer.join()
        assert result.shards == 6
        assert files(out) == whole
        assert cluster.workers[0].pid != pids[0]


@pytest.mark.slow
def test_a_cluster_of_ones_own(tmp_path, folder, whole):
    predict(settings(folder, tmp_path / "map.tif", cluster="local"))
    assert files(tmp_path / "map.tif") == whole


def test_a_worker_that_sees_other_files_refuses(tmp_path, folder):
    given = settings(folder, tmp_path / "map.tif")
    plan = Job(given).shard_plan()
    with pytest.raises(SkysenseError, match="would compute something else: model was"):
        compute_elsewhere(given, replace(plan, made_by={**plan.made_by, "model": "another"}), (0,))


CHILD = """
import sys
from pathlib import Path
from skysense_core.predict import PredictConfig, predict
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
result = predict(PredictConfig(inputs=(str(folder / "scene.tif"),), model=folder / "model", out=out, shard=(512, 512),
                               batch_size=3, confidence="margin"))
print(result.reused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 60_000, 90_000, 120_000])
def test_a_full_disk_leaves_no_shard_that_is_not_whole(tmp_path, folder, whole, limit):
    """A limit on the size of every file strikes in the middle of shards, at their ends or in the joined map."""
    out = tmp_path / "map.tif"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{CHILD}"
    one = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", limited, str(folder), str(out)]
    ended = subprocess.run(words, capture_output=True, text=True, env=one)
    if ended.returncode:
        assert "SkysenseError" in ended.stderr
        assert not out.exists()
    else:
        assert max(map(len, whole.values())) <= limit
    predict(settings(folder, out, overwrite=True))
    assert files(out) == whole


def test_what_a_killed_join_leaves_goes_with_the_shards(tmp_path, folder, whole, monkeypatch):
    """A kill runs no clean-up: here its stand-in is a folder that cannot be removed while the map is written."""
    out = tmp_path / "map.tif"

    def killed(*_: object) -> None:
        raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr("skysense_core.predict.shards.write_cog", killed)
        patch.setattr("skysense_core.geo.cog.shutil.rmtree", lambda _: None)
        with pytest.raises(KeyError):
            predict(settings(folder, out))
    predict(settings(folder, out))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tif") == sorted(whole)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path, folder, whole):
    out, chance = tmp_path / "map.tif", random.Random(7)
    one = {**os.environ, "OMP_NUM_THREADS": "1"}

    def started() -> subprocess.Popen[bytes]:
        """A prediction that has a finished shard, or is over."""
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(out)], stdout=subprocess.PIPE, env=one)
        while not list(folder_of(out).glob("0????")) and child.poll() is None:
            time.sleep(0.02)
        return child

    def begin_anew() -> None:
        """Where a child was faster than the killer, its map is there."""
        if out.exists():
            assert files(out) == whole
            out.unlink()
            out.with_name("map_confidence.tif").unlink()

    # How long it takes here: after a fixed time a fast machine would be done, and be struck rarely.
    begun = time.perf_counter()
    child = started()
    shard = time.perf_counter()
    child.wait()
    end = time.perf_counter()
    begin_anew()
    kills = 0
    while kills < 20:
        goes_on = folder_of(out).exists()
        child = started()
        time.sleep(chance.uniform(0, end - begun if goes_on else end - shard))
        if child.poll() is None:
            child.kill()
            kills += 1
        child.wait()
        begin_anew()
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(out)], check=True, capture_output=True, env=one
    )
    assert int(ended.stdout) >= 0
    assert files(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tif") == sorted(whole)
