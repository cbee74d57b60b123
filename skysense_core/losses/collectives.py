"""What the processes of one training share: sums, means and gathered features. A process on its own sends nothing.

Gradients are averaged over the processes afterwards, as data-parallel training does; everything here is such that this
average is the gradient of one process that holds the whole batch. Each function is called by all processes or by none.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Num, Shaped
from torch import Tensor

from skysense_core.losses.precision import in_float32
from skysense_core.runtime import rank, world


def summed(x: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
    """The sum of all processes' tensors, which are of one shape. No gradient."""
    x = x.detach().clone()
    if world() > 1:
        dist.all_reduce(x)
    return x


def log_summed(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(sum(exp(x))) over all processes; -inf stays -inf. No gradient."""
    if world() == 1:
        return x.detach()
    highest = x.detach().clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    offset = torch.where(highest.isfinite(), highest, 0.0)
    return summed((x - offset).exp()).log() + offset


def gather(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b2 ..."]:
    """The rows of all processes in their order, with the gradients that every process has for each row.

    All processes give tensors of one shape.
    """
    return _Gather.apply(x) if world() > 1 else x


def mean(values: Float[Tensor, "n"], weight: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """This process's part of the weighted mean over all processes: the average of all parts is that mean.

    Processes may hold different numbers of values; where nothing has a weight, the mean is 0 and has a gradient of 0.
    """
    return (torch.where(weight > 0, values, 0.0) * shares(weight)).sum()


def shares(weight: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """What each value of this process adds to its part of that mean; zeros where nothing has a weight."""
    total = summed(weight.sum())
    return weight * world() / torch.where(total > 0, total, 1.0)


@in_float32
@torch.no_grad()
def moments(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "n"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"], Float[Tensor, ""]]:
    """Weighted mean and deviation of the rows of all processes, and their total weight, in float32;
    zeros where that is zero."""
    x, weight = x.float(), weight.float()
    count = summed(weight.sum())
    whole = torch.where(count > 0, count, 1.0)
    mean = summed(weight @ x) / whole
    return mean, (summed(weight @ (x - mean) ** 2) / whole).sqrt(), count


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0]).chunk(world())[rank()]
