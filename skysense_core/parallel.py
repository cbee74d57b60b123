"""The processes of one training: who they are, how a model is spread over them, and what they tell each other.

`torchrun` starts them; a process on its own is the whole world and sends nothing. With DDP every process holds the
model; with `shard` (FSDP2) each holds a part of every parameter. Functions that say so are called by all or by none.

What torch brings for sharding takes seconds to import, so it is imported where it is used.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.runtime import rank, world

PATIENCE = timedelta(minutes=30)
"""Longest that one process may work alone, validating or writing, while the others wait for it."""
HEADER = "run.json"
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|heartbeat", re.IGNORECASE)
"""What torch says where another process of the group is gone."""


@contextlib.contextmanager
def joined(device: torch.device, *, alone: bool = False) -> Iterator[None]:
    """Within, the processes that torchrun started are one training. `alone`: a single process forms a group too.

    Raises SkysenseError where another process ends, UsageError for a device that all of them would share.
    """
    together = "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ
    if dist.is_initialized() or not (together or alone):
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if together:
        if device.type == "cuda":
            if device.index is not None:
                raise UsageError(f"--device {device}: each process takes a GPU of its own", fix="Use --device cuda.")
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and (isinstance(error, dist.DistError) or LOST.search(str(error))):
            reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip().splitlines()[0]).split(". ")[0]
            raise SkysenseError(
                f"process {rank()} of {world()} has lost the others: {reason}",
                fix="One of them has ended; its own message or torchrun says why. Start all again with --resume.",
            ) from error
        raise
    # After an error the group is left to the end of the process: taking it apart would wait for those that are gone.
    dist.destroy_process_group()


def wait() -> None:
    """Until all processes have come here."""
    if world() > 1:
        dist.barrier()


def highest(number: int, device: torch.device) -> int:
    """The highest of all processes' numbers. Called by all."""
    if world() == 1:
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def mean(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The mean over all processes. Called by all."""
    if world() > 1:
        dist.all_reduce(values)
    return values / world()


def told(names: Iterable[str]) -> list[str]:
    """The names of all processes, in their order. Called by all."""
    if world() == 1:
        return list(names)
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, list(names))
    return [name for part in found for name in part]


def copies(model: nn.Module) -> nn.Module:
    """The model, called through DDP where there are several processes: they average their gradients.

    Parameters without a gradient are looked for in every step: the last layers of heads are frozen at first, and a task
    may leave levels of an encoder unused. A zero-weighted term instead would feed zeros into their moments, which one
    process does not. Buffers are not sent: the losses keep them equal.
    """
    if world() == 1:
        return model
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer torch names the option otherwise
        return DistributedDataParallel(
            model, find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def shard(model: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Spread every parameter over the processes, in place; `parts` are gathered one by one, the rest at once."""
    from torch.distributed.fsdp import fully_shard

    # What parts return is a view, which must not be changed in place; nothing does that.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    for part in parts:
        fully_shard(part)
    fully_shard(model)


@contextlib.contextmanager
def gathering(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Around a forward and backward pass: gradients are averaged after the `last` pass of a step only."""
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
        yield


def whole(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The tensor that shards belong to; any other as it is. Called by all."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, in process 0; sharded tensors are put together one after the other. Called by all."""
    state = model.state_dict()
    if not is_sharded(model):
        return state
    found = {}
    for name, tensor in state.items():
        complete = whole(tensor)
        if rank() == 0:
            found[name] = complete.cpu()
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are spread over the processes."""
    return any(_is_shard(parameter) for parameter in model.parameters())


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def write_shards(folder: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Each process writes its part of a state into the folder. Called by all; raises OSError."""
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(dict(state), checkpoint_id=folder)
    except dcp.CheckpointException as error:
        raise OSError("; ".join(str(cause[0]) for cause in error.failures.values())) from error
    if rank() == 0:
        (folder / HEADER).write_text(json.dumps(header), encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """What was written beside the shards."""
    return json.loads((folder / HEADER).read_text(encoding="utf-8"))


def names_of_shards(folder: Path) -> set[str]:
    """The names of the tensors in a folder of shards."""
    import torch.distributed.checkpoint as dcp

    return set(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)


def read_shards(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Fill a state, in place, from the shards of any number of processes. Called by all."""
    import torch.distributed.checkpoint as dcp

    dcp.load(dict(state), checkpoint_id=folder)
