"""How many floating-point operations a training step needs, counted once on a real batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_flops(forward: Callable[[], Tensor]) -> float:
    """Of a forward pass to a scalar and its backward pass: matrix products, convolutions and attention.

    What is computed a second time because activations were not kept does not count. On a CPU the products inside
    attention are not seen.
    """
    counter = _Counter()
    with counter:
        loss = forward()
        counter.backward = True
        loss.backward()
    return counter.total


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        # A backward pass records no gradients, but what it recomputes does.
        if formula is not None and not (self.backward and torch.is_grad_enabled()):
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found
