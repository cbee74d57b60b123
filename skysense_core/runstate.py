"""The state of a training that an exact resume needs, and its logs."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from skysense_core import config, parallel, runtime
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.runs import CONFIG, LOG, clear_folder, remove


def begin(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write the settings of a run, in place of an older run unless that goes on. Called by all; process 0 does it."""
    parallel.wait()  # all have looked at the folder
    if runtime.rank() == 0:
        if not resume:
            clear_folder(folder)
        if not (folder / CONFIG).exists():
            folder.mkdir(parents=True, exist_ok=True)
            config.write_toml(folder / CONFIG, settings)


class RunState:
    """Model, optimiser, step and best score, in one safetensors file per saved step; the newest `keep` stay.

    A model that is spread over processes is kept in a folder of shards instead, which any number of processes reads
    again. `settings` is everything that must be the same when the run goes on.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, keep: int) -> None:
        self.folder = folder
        self.settings = settings
        self.keep = keep
        self.best = float("-inf")

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `step`; a kill or a full disk meanwhile leaves the one before it. Called by all."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | _moments(optimizer)
        header = {"step": step, "best": self.best, "settings": self.settings}
        shards = parallel.is_sharded(model)
        path = self.folder / (f"{step:09d}" if shards else f"{step:09d}.safetensors")
        temporary = path.with_suffix(".tmp")
        try:
            if runtime.rank() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove(temporary)  # what a kill may have left
            if shards:
                parallel.wait()
                parallel.write_shards(temporary, tensors, header)
            elif runtime.rank() == 0:
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                save_file(contiguous, temporary, metadata={"run": json.dumps(header)})
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            if runtime.rank() == 0:
                remove(path)
                temporary.replace(path)
        except (OSError, SafetensorError) as error:
            if runtime.rank() == 0:
                remove(temporary)
            raise SkysenseError(
                f"{path}: the state of step {step} could not be written: {error}",
                fix="Make room there and run again with --resume: the state before it is intact.",
            ) from error
        if runtime.rank() == 0:
            for old in self.saved()[: -self.keep]:
                remove(old)

    def saved(self) -> list[Path]:
        """States, oldest first."""
        return sorted(path for path in self.folder.glob("?????????*") if path.suffix in ("", ".safetensors"))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put model and optimiser back to the newest state and return its step; 0 where none was saved yet.

        Raises UsageError naming every setting that has changed since, and SkysenseError for an unreadable file. Called
        by all, who see the same folder.
        """
        if not self.saved():
            return 0
        path = self.saved()[-1]
        try:
            if path.is_dir():
                header = parallel.read_header(path)
                self._refuse_changes(header["settings"])
                names = parallel.names_of_shards(path)
                own = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
                tensors = own | {name: tensor for name, tensor in _room(optimizer).items() if name in names}
                parallel.read_shards(path, tensors)
            else:
                with safe_open(path, framework="pt", device="cpu") as file:
                    header = json.loads(file.metadata()["run"])
                    self._refuse_changes(header["settings"])
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise SkysenseError(
                f"{path}: not a readable state: {error}", fix="Delete it to go on from an older one."
            ) from error
        model.load_state_dict(
            {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        )
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                entries.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        self.best = header["best"]
        return header["step"]

    def _refuse_changes(self, before: Mapping[str, Any]) -> None:
        old, new = _flat(before), _flat(json.loads(json.dumps(self.settings)))
        changed = [
            f"{key}: was {old.get(key, 'not set')}, is now {new.get(key, 'not set')}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise UsageError(
                f"{self.folder.parent}: cannot resume with other settings:\n" + "\n".join(changed),
                fix="Give the settings of the run, or another --out.",
            )


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimiser remembers, by the number of the parameter."""
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _room(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Tensors that AdamW's memory can be read into, spread over the processes as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"optimizer.{index}.{key}": torch.zeros(()) if key == "step" else torch.zeros_like(parameter.detach())
        for index, parameter in enumerate(parameters)
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class RunLog:
    """`metrics.jsonl` (one object per line) and TensorBoard, both cut back to step `after` when a run is resumed.

    Process 0 writes for all. `peak` is what the device could do per second, where it is known.
    """

    def __init__(self, folder: Path, *, after: int, peak: float | None = None) -> None:
        self._peak = peak
        self._samples, self._flops, self._busy, self._waited = 0, 0.0, 0.0, 0.0
        self._writes = runtime.rank() == 0
        if not self._writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if after and path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= after]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Around one training step: its time counts for samples per second."""
        start = time.perf_counter()
        yield
        self._busy += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around fetching a batch: its time is the loader's share."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, samples: int, flops: float = 0.0) -> None:
        """Samples of all processes, and the operations that this one has done."""
        self._samples += samples
        self._flops += flops

    def train(self, step: int, losses: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Record a training step together with the speed since the last record, and return all of it."""
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else runtime.peak_memory()
        numbers = {
            **losses,
            "samples_per_s": self._samples / self._busy,
            "data_wait": self._waited / self._busy,
            "memory_gib": memory / 2**30,
        }
        if self._peak is not None:
            numbers["mfu"] = self._flops / self._busy / self._peak
        self._samples, self._flops, self._busy, self._waited = 0, 0.0, 0.0, 0.0
        self._write("train", step, numbers)
        return numbers

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        self._write("val", step, scores)

    def _write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
