"""Training in several processes, on loopback: one with the double batch, kills, signals, shards, refusals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_chips, write_pastis

from skysense_core import config, modalities, runtime
from skysense_core.data.batch import collate
from skysense_core.data.loader import Order, completed
from skysense_core.errors import UsageError
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.flops import count_flops
from skysense_core.pretrain import PretrainConfig, pretrain
from skysense_core.trainer import TrainConfig
from skysense_core.types import Raster, Sample

CHILD = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from skysense_core import config, runtime
from skysense_core.data.chips import Kept
from skysense_core.errors import SkysenseError
from skysense_core.model.selfsupervised import SelfSupervised
from skysense_core.pretrain import PretrainConfig, pretrain

read, after_step = Kept.__getitem__, SelfSupervised.after_step

def without_s1(self, index):
    sample = read(self, index)
    if index not in LACKING:
        return sample
    return replace(sample, epochs=tuple({n: r for n, r in epoch.items() if n != "s1"} for epoch in sample.epochs))

def stopping(self, step):
    after_step(self, step)
    if (step, runtime.rank()) == (AT, RANK):
        os.kill(os.getpid(), SIGNAL)

Kept.__getitem__, SelfSupervised.after_step = without_s1, stopping
torch.set_num_threads(1)
try:
    pretrain(config.build(PretrainConfig, config.load_toml(Path(sys.argv[1]))))
except SkysenseError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
pytestmark = pytest.mark.timeout(900)
LACKING = {0, 2}
"""Samples without Sentinel-1: in some batches of two, only one of two processes has any."""


def table(path: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "data": {"path": str(path), "source": "pastis"},
        "out": str(out),
        "model": {"preset": "nano"},
        "views": {"global_cells": 8, "local_cells": 4, "window_cells": 12, "local_views": 1},
        "method": {"hidden": 32, "answers": 48, "bottleneck": 16, "clusters": 2},
        "train": {
            "steps": 4,
            "batch_size": 4,
            "micro_batch": 2,
            "precision": "fp32",
            "validate_every": 4,
            "save_every": 1,
            "log_every": 1,
        },
        # Weights have to move: what a head makes of the one place with s1 of a pass is next to nothing at first,
        # and the direction of that is rounding.
        "optim": {"lr": 5e-4},
        "device": "cpu",
    }
    return config.merge(given, changes)


STARTED: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().kill()


def start(folder: Path, given: dict[str, Any], *, world: int, stop: tuple[int, int, int] = (0, 0, 0)) -> list[Any]:
    """One process, or two as torchrun would start them; `stop` is a step, a process and the signal it gets then."""
    folder.mkdir(exist_ok=True)
    config.write_toml(folder / "given.toml", given)
    at, rank, number = stop
    code = f"AT, RANK, SIGNAL, LACKING = {at}, {rank}, {int(number)}, {LACKING}\n{CHILD}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for own in range(world):
        many = {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        one = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        env = os.environ | one | ({name: str(value) for name, value in many.items()} if world > 1 else {})
        words = [sys.executable, "-c", code, str(folder / "given.toml")]
        started.append(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
    STARTED.extend(started)
    return started


def ended(processes: list[Any]) -> list[tuple[int, str]]:
    return [(process.wait(), process.stderr.read()) for process in processes]


def train(folder: Path, given: dict[str, Any], *, world: int) -> Path:
    found = ended(start(folder, given, world=world))
    assert [code for code, _ in found] == [0] * world, found
    return Path(given["out"])


def losses(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timings = {"samples_per_s", "data_wait", "memory_gib", "kind", "step"}
    return {
        line["step"]: {key: value for key, value in line.items() if key not in timings}
        for line in lines
        if line["kind"] == "train"
    }


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "state" / "000000004.safetensors")


def assert_close(run: Path, other: Path) -> None:
    """Rounding differs (a loss by 0.25 % on some CPUs), and a parameter whose gradient is nothing but rounding may move
    by the learning rate."""
    for step, found in losses(run).items():
        assert losses(other)[step] == pytest.approx(found, rel=5e-3), step
    first, second = (load_file(folder / "last" / "model.safetensors") for folder in (run, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        apart = (tensor.float() - second[name].float()).abs().mean()
        assert apart < 1e-5 + 1e-5 * tensor.float().abs().mean(), name


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pastis(tmp_path_factory.mktemp("data") / "pastis", patches=8)


@pytest.fixture(scope="module")
def alone(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    return train(folder, table(patches, folder / "run"), world=1)


@pytest.fixture(scope="module")
def both(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    return train(folder, table(patches, folder / "run"), world=2)


# Two processes (each test starts two that import torch)


@pytest.mark.slow
def test_two_processes_are_one_also_where_only_one_of_them_has_a_modality(alone: Path, both: Path) -> None:
    assert_close(alone, both)
    assert {path.name for path in alone.iterdir()} == {path.name for path in both.iterdir()}
    assert len((both / "metrics.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_process_is_killed_the_other_stops_with_the_reason_and_the_run_goes_on_bitwise(
    patches: Path, both: Path, tmp_path: Path, rank: int
) -> None:
    given = table(patches, tmp_path / "run")
    processes = start(tmp_path, given, world=2, stop=(3, rank, signal.SIGKILL))
    assert processes[rank].wait() == -signal.SIGKILL
    killed = time.monotonic()
    code, said = ended(processes)[1 - rank]
    assert time.monotonic() - killed < 60
    assert code == 1
    assert f"process {1 - rank} of 2 has lost the others" in said
    assert "--resume" in said
    assert "Traceback" not in said
    train(tmp_path, given | {"resume": True}, world=2)
    assert losses(tmp_path / "run") == losses(both)
    assert all(torch.equal(tensor, state(both)[name]) for name, tensor in state(tmp_path / "run").items())


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_all_and_one_process_can_go_on(
    patches: Path, alone: Path, tmp_path: Path
) -> None:
    given = table(patches, tmp_path / "run", train={"save_every": 4})
    found = ended(start(tmp_path, given, world=2, stop=(2, 1, signal.SIGTERM)))
    assert [code for code, _ in found] == [143, 143], found
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["000000002.safetensors"]
    train(tmp_path, given | {"resume": True}, world=1)
    assert_close(alone, tmp_path / "run")


@pytest.mark.slow
def test_a_sharded_model_is_the_whole_one_and_its_state_serves_any_number_of_processes(
    patches: Path, alone: Path, tmp_path: Path
) -> None:
    given = table(patches, tmp_path / "run", train={"shard_model": True})
    found = ended(start(tmp_path, given, world=2, stop=(2, 1, signal.SIGTERM)))
    assert [code for code, _ in found] == [143, 143], found
    shards = tmp_path / "run" / "state" / "000000002"
    assert len(list(shards.glob("*.distcp"))) == 2
    train(tmp_path, given | {"resume": True}, world=1)
    assert_close(alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_torchrun_starts_the_commands(tmp_path: Path, command: str) -> None:
    chips = write_chips(tmp_path / "chips", side=32)
    words = [
        command,
        "--data",
        str(chips),
        "--source",
        "folder",
        "--preset",
        "nano",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    words += ["--set", "data.modality=s2", "--set", "modalities.s2.window=32", "--out", str(tmp_path / "run"), "--json"]
    words += ["--task", "landcover"] if command == "finetune" else ["--set", "method.answers=64"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    whole = [*torchrun, "-m", "skysense_cli", *words]
    done = subprocess.run(whole, capture_output=True, text=True, env=env, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2  # one process speaks
    assert len(re.findall("2 steps of 2 on cpu", done.stderr)) == 1
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_slurm_example_starts_and_goes_on(tmp_path: Path) -> None:
    """Slurm is played by its variables, an `srun` that runs the command and a `scontrol` that names this machine."""
    chips = write_chips(tmp_path / "chips", side=32)
    for name, line in (("srun", 'exec "$@"'), ("scontrol", "echo localhost")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"}
    one = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PATH": path}
    script = Path(__file__).resolve().parents[1] / "examples" / "pretrain_slurm.sh"
    words = [str(script), str(chips), str(tmp_path / "run"), "--source", "folder", "--preset", "nano", "--steps", "1"]
    words += ["--batch-size", "2", "--device", "cpu", "--set", "data.modality=s2", "--set", "modalities.s2.window=32"]
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | slurm | one, check=False)
        assert done.returncode == 0, done.stderr
    assert "resuming after step 1 of 1" in done.stderr


# What a process does of the whole


def test_processes_share_a_batch_without_changing_the_order_of_the_samples() -> None:
    whole = iter(Order(7, batch_size=6, seed=3, start=2))
    parts = [iter(Order(7, batch_size=2, seed=3, start=2, rank=rank, world=3)) for rank in range(3)]
    for _ in range(4):
        assert next(whole) == [key for part in parts for key in next(part)]


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "world", lambda: 4)
    assert TrainConfig(batch_size=12).own_part() == 3
    with pytest.raises(UsageError, match=r"train.batch_size = 10 .* 4 processes\n--batch-size 12"):
        TrainConfig(batch_size=10).own_part()
    assert TrainConfig(batch_size=24, micro_batch=8).own_part() == 2
    with pytest.raises(UsageError, match=r"train.micro_batch = 6 .* 4 processes\n--set train.micro_batch=8"):
        TrainConfig(batch_size=24, micro_batch=6).own_part()


def test_a_step_of_no_whole_number_of_passes_is_refused() -> None:
    assert TrainConfig(batch_size=24, micro_batch=8).passes == 3
    with pytest.raises(UsageError, match=r"24 is no multiple of train.micro_batch = 7\n--batch-size 28"):
        TrainConfig(batch_size=24, micro_batch=7).own_part()


def test_a_modality_that_no_sample_of_a_batch_has_is_there_as_an_invalid_image() -> None:
    known = {name: modalities.load(name) for name in ("hr", "s2", "s1")}

    def raster(name: str, side: int) -> Raster:
        return Raster(
            pixels=np.ones((1, len(known[name].bands), side, side), dtype=np.float32),
            valid=np.ones((1, side, side), dtype=bool),
            days=np.zeros(1, dtype=np.int64),
            dated=np.zeros(1, dtype=bool),
        )

    sides = {"s2": 16, "hr": 512}
    for name, side in sides.items():
        sample = Sample(id="a", epochs=({name: raster(name, side)},))
        (epoch,) = completed(collate([sample, sample]), known).epochs
        assert list(epoch) == sorted(known)
        assert {key: tuple(series.pixels.shape) for key, series in epoch.items()} == {
            "hr": (2, 1, 3, 512, 512),
            "s2": (2, 1, 10, 16, 16),
            "s1": (2, 1, len(known["s1"].bands), 16, 16),
        }
        assert {key for key, series in epoch.items() if series.valid.any()} == {name}


# The step


def test_operations_are_those_of_the_products_and_recomputing_does_not_count() -> None:
    from torch.utils.checkpoint import checkpoint

    first, second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)
    x = torch.randn(5, 8)
    whole = count_flops(lambda: second(first(x).relu()).sum())
    # Forward, then gradients of weights and inputs; nobody asks for the gradient of x.
    assert whole == 2 * 5 * (8 * 16 * 2 + 16 * 4 * 3)
    again = count_flops(lambda: second(checkpoint(lambda y: first(y).relu(), x, use_reentrant=False)).sum())
    assert again == whole


S2 = {"modalities": {"s2": {"window": 32}}}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chips(tmp_path_factory.mktemp("data") / "chips", side=32)


def on_chips(chips: Path, out: Path, **changes: Any) -> PretrainConfig:
    data = {"data": {"source": "folder", "modality": "s2"}, "train": {"steps": 2, "batch_size": 2}} | S2
    data |= {"model": {"drop_path": 0.3}}
    return config.build(PretrainConfig, table(chips, out, **config.merge(data, changes)))


@pytest.fixture(scope="module")
def plain(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(on_chips(chips, tmp_path_factory.mktemp("runs") / "plain")).folder


def test_recomputing_activations_changes_no_loss(chips: Path, plain: Path, tmp_path: Path) -> None:
    pretrain(on_chips(chips, tmp_path / "run", train={"checkpoint_activations": True}))
    assert losses(tmp_path / "run") == losses(plain)


@pytest.mark.slow  # the compiler takes a minute
def test_compiled_layers_learn_the_same(chips: Path, tmp_path: Path) -> None:
    for name, wanted in (("plain", False), ("compiled", True)):
        folder = tmp_path / name
        found = on_chips(chips, folder / "run", model={"drop_path": 0.0}, train={"compile": wanted, "steps": 4})
        train(folder, config.to_table(found), world=1)
    assert_close(tmp_path / "plain" / "run", tmp_path / "compiled" / "run")


def test_the_share_of_the_peak_is_logged_where_the_peak_is_known_and_changes_nothing(
    chips: Path, plain: Path, tmp_path: Path
) -> None:
    pretrain(on_chips(chips, tmp_path / "run", train={"peak_tflops": 0.1}))
    lines = losses(tmp_path / "run")
    assert all(0 < line.pop("mfu") < 10 for line in lines.values())
    assert lines == losses(plain)


def test_models_on_the_way_stay(chips: Path, tmp_path: Path) -> None:
    pretrain(on_chips(chips, tmp_path / "run", export_every=1))
    names = [path.name for path in sorted((tmp_path / "run" / "exports").iterdir())]
    assert names == ["000000001", "000000002"]
    first, second, last = (
        load_file(tmp_path / "run" / name / "model.safetensors") for name in (*(f"exports/{n}" for n in names), "last")
    )
    assert all(torch.equal(tensor, last[name]) for name, tensor in second.items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in first.items())
    data = {"path": str(chips), "source": "folder", "modality": "s2"}
    table = {"data": data, "task": {"name": "landcover"}, "device": "cpu"}
    table |= {"init": str(tmp_path / "run" / "exports" / names[0]), "out": str(tmp_path / "tuned"), **S2}
    finetune(config.build(FinetuneConfig, table | {"train": {"steps": 1, "batch_size": 2}}))


def test_a_single_process_may_shard_too_and_goes_on_from_its_shards(chips: Path, plain: Path, tmp_path: Path) -> None:
    pretrain(given := on_chips(chips, tmp_path / "run", train={"shard_model": True}))
    assert losses(tmp_path / "run") == {step: pytest.approx(found, rel=1e-4) for step, found in losses(plain).items()}
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["000000002"]
    pretrain(replace(given, resume=True))
