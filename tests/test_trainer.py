"""The loop on a toy objective: resuming, accumulation, the NaN guard, signals, the optimiser's groups and rate."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skysense_core.data.batch import Batch, Series
from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.optim import OptimConfig, build_optimizer, decays, learning_rate, set_rates, weight_decay
from skysense_core.trainer import Objective, TrainConfig, Trainer

CONFIG = TrainConfig(batch_size=4, validate_every=4, save_every=3, log_every=1, keep=2, precision="fp32")


class Toy(Objective):
    """Regression with dropout, so that a wrong random state after a resume would show."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.GELU(), nn.Linear(8, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.epochs[0]["hr"].pixels.mean(dim=(1, 3, 4))
        error = self.net(x)[:, 0] - x.sum(dim=1)
        return {"square": (error**2).mean(), "size": 0.1 * error.abs().mean()}

    def after_step(self, step: int) -> None:
        self.steps.fill_(step)


def batches_of(size: int, spoil: int = -1) -> Callable[[int], Iterator[Batch]]:
    """Endless batches that depend on the global sample number alone; sample `spoil` is NaN."""

    def batches(start: int) -> Iterator[Batch]:
        while True:
            numbers = range(start * size, (start + 1) * size)
            x = torch.stack([torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(n)) for n in numbers])
            x[[n == spoil for n in numbers]] = float("nan")
            series = Series(
                pixels=x,
                valid=torch.ones(size, 1, 1, 1, dtype=torch.bool),
                day_of_year=torch.ones(size, 1, dtype=torch.int64),
                dated=torch.zeros(size, 1, dtype=torch.bool),
            )
            yield Batch(
                ids=tuple(f"sample-{n}" for n in numbers),
                epochs=({"hr": series},),
                lonlat=torch.zeros(size, 2),
                located=torch.zeros(size, dtype=torch.bool),
            )
            start += 1

    return batches


def trainer_in(folder: Path, **changes: Any) -> Trainer:
    """A trainer of the toy; `export` writes the weights' sum so that a test can see what was exported when."""
    objective = changes.pop("objective", None) or Toy()

    def export(name: str, scores: dict[str, float]) -> None:
        (folder / name).write_text(json.dumps(dict(scores)))

    def validate() -> dict[str, float]:
        assert not objective.training
        return {"minus_steps": -abs(float(objective.steps) - 8)}  # highest at step 8

    arguments: dict[str, Any] = {
        "batches": batches_of(4),
        "depth": lambda name: 0,
        "top": 1,
        "folder": folder,
        "steps": 12,
        "config": CONFIG,
        "optim_config": OptimConfig(lr=1e-2),
        "device": torch.device("cpu"),
        "settings": {"optim": {"lr": 1e-2}, "seed": 0},
        "written": {},
        "validate": validate,
        "best": "minus_steps",
        "export": export,
    }
    return Trainer(objective, **(arguments | changes))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stopping_and_resuming_is_bitwise_the_same_as_not_stopping(tmp_path: Path) -> None:
    whole = trainer_in(tmp_path / "whole")
    whole.run()

    class KilledError(Exception):
        pass

    stopped = trainer_in(tmp_path / "stopped", objective=(toy := Toy()))

    def kill(step: int) -> None:
        toy.steps.fill_(step)
        if step == 8:
            raise KilledError

    toy.after_step = kill  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        stopped.run()
    resumed = trainer_in(tmp_path / "stopped")
    resumed.run(resume=True)

    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    timeless = ("step", "kind", "loss", "square", "size", "lr", "grad_norm", "minus_steps")
    logs = [
        [{key: line.get(key) for key in timeless} for line in log_of(tmp_path / run)] for run in ("whole", "stopped")
    ]
    assert logs[0] == logs[1]
    assert sorted(p.name for p in (tmp_path / "whole" / "state").iterdir()) == [
        "000000009.safetensors",
        "000000012.safetensors",
    ]


def test_a_finished_run_resumes_to_nothing_and_an_empty_one_from_the_start(tmp_path: Path) -> None:
    first = trainer_in(tmp_path)
    first.run(resume=True)
    again = trainer_in(tmp_path)
    again.run(resume=True)
    assert [line["step"] for line in log_of(tmp_path) if line["kind"] == "train"] == list(range(1, 13))
    assert torch.equal(weights(first)["net.0.weight"], weights(again)["net.0.weight"])


def test_the_best_model_is_the_one_of_the_highest_score(tmp_path: Path) -> None:
    trainer_in(tmp_path).run()
    assert json.loads((tmp_path / "best").read_text()) == {"minus_steps": 0.0}
    assert json.loads((tmp_path / "last").read_text()) == {"minus_steps": -4.0}
    assert [line["step"] for line in log_of(tmp_path) if line["kind"] == "val"] == [4, 8, 12]


def test_resuming_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    trainer_in(tmp_path).run()
    with pytest.raises(UsageError, match=r"optim.lr: was 0.01, is now 0.02"):
        trainer_in(tmp_path, settings={"optim": {"lr": 2e-2}, "seed": 0}).run(resume=True)


def test_accumulating_twice_b_is_a_batch_of_two_b(tmp_path: Path) -> None:
    def trained(folder: Path, size: int, passes: int) -> dict[str, Tensor]:
        config = replace(CONFIG, batch_size=size * passes, micro_batch=size)
        trainer = trainer_in(folder, steps=6, config=config, batches=batches_of(size), objective=Toy(dropout=0.0))
        trainer.run()
        return weights(trainer)

    small, large = trained(tmp_path / "small", 2, 2), trained(tmp_path / "large", 4, 1)
    for name, tensor in large.items():
        torch.testing.assert_close(small[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_its_samples_and_stops(tmp_path: Path) -> None:
    config = replace(CONFIG, batch_size=4, micro_batch=2)
    trainer = trainer_in(tmp_path, config=config, batches=batches_of(2, spoil=21))
    with pytest.raises(
        SkysenseError, match=r"step 6: .*square.* not finite; the samples were sample-20, sample-21\n"
    ) as stop:
        trainer.run()
    assert "optim.lr" in str(stop.value)
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    assert trainer.state.saved()[-1].stem == "000000003"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_is_resumable(tmp_path: Path, number: int, code: int) -> None:
    whole = trainer_in(tmp_path / "whole")
    whole.run()
    trainer = trainer_in(tmp_path / "stopped", objective=(toy := Toy()))

    def after_step(step: int) -> None:
        toy.steps.fill_(step)
        if step == 5:
            os.kill(os.getpid(), number)

    toy.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="after step 5 of 12") as stop:
        trainer.run()
    assert stop.value.exit_code == code
    assert trainer.state.saved()[-1].stem == "000000005"
    resumed = trainer_in(tmp_path / "stopped")
    resumed.run(resume=True)
    assert torch.equal(weights(whole)["net.0.weight"], weights(resumed)["net.0.weight"])


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)
    trainer.run()
    before = [(path.name, path.read_bytes()) for path in trainer.state.saved()]

    def full(_tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skysense_core.runstate.save_file", full)
    with pytest.raises(SkysenseError, match="No space left"):
        trainer.state.save(99, trainer.objective, trainer.optimizer)
    assert [(path.name, path.read_bytes()) for path in sorted((tmp_path / "state").iterdir())] == before


def test_a_broken_state_file_is_refused(tmp_path: Path) -> None:
    trainer_in(tmp_path).run()
    state = tmp_path / "state" / "000000012.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(SkysenseError, match="not a readable state"):
        trainer_in(tmp_path).run(resume=True)


def test_speed_and_memory_are_logged(tmp_path: Path) -> None:
    trainer_in(tmp_path).run()
    line = log_of(tmp_path)[0]
    assert line["samples_per_s"] > 0
    assert 0 <= line["data_wait"] <= 1
    assert line["memory_gib"] > 0
    assert line["loss"] == pytest.approx(line["square"] + line["size"])
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_learning_rate_rises_then_falls_to_its_end() -> None:
    config = OptimConfig(lr=1.0, warmup=0.1, final=0.01)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.01)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert learning_rate(replace(config, schedule="constant"), 99, 100) == 1.0
    even = replace(config, schedule="poly", warmup=0.0)
    assert [learning_rate(even, step, 101) for step in (0, 50, 100)] == pytest.approx([1.0, 0.505, 0.01])
    assert learning_rate(replace(config, warmup=0.0), 0, 1) == pytest.approx(1.0)


def test_weight_decay_goes_along_a_cosine_to_its_final_value_or_stays() -> None:
    config = OptimConfig(weight_decay=0.04, final_weight_decay=0.4)
    decay = [weight_decay(config, step, 101) for step in range(101)]
    assert [decay[0], decay[50], decay[100]] == pytest.approx([0.04, 0.22, 0.4])
    assert sorted(decay) == decay
    assert {weight_decay(OptimConfig(weight_decay=0.05), step, 101) for step in range(101)} == {0.05}
    optimizer = build_optimizer(nn.Linear(2, 2), config, depth=lambda _: 0, top=0)
    set_rates(optimizer, 0.1, decay[50])
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == pytest.approx([0.0, 0.22])


def test_layers_learn_at_decayed_rates_and_only_kernels_are_decayed() -> None:
    model = nn.Module()
    model.low, model.high = nn.Linear(2, 2), nn.Linear(2, 2)
    model.norm, model.token = nn.LayerNorm(2), nn.Parameter(torch.zeros(1, 1, 2))
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    depths = {"low": 0, "norm": 1, "token": 1, "high": 2}
    config = OptimConfig(layer_decay=0.5, weight_decay=0.3)
    optimizer = build_optimizer(model, config, depth=lambda name: depths[name.split(".")[0]], top=2)
    found = {
        id(parameter): (group["scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert {name: found.get(id(parameter)) for name, parameter in model.named_parameters()} == {
        "token": (0.5, 0.0),
        "low.weight": (0.25, 0.3),
        "low.bias": (0.25, 0.0),
        "high.weight": (1.0, 0.3),
        "high.bias": (1.0, 0.0),
        "norm.weight": (0.5, 0.0),
        "norm.bias": (0.5, 0.0),
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert not decays("stages.0.attn.cpb_mlp.0.weight", nn.Parameter(torch.zeros(2, 2)))
