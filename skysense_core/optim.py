"""AdamW with layer-wise decay, and a learning rate that is a pure function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The `[optim]` table."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate, of the head and of the last layer."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    final_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Where weight decay ends, along a cosine; not given: where it begins."""
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: Share | None = None
    """Each layer of the encoder learns this much slower than the one above it (METHOD 4: 0.9). Not given: 0.9 where
    the encoder starts from trained weights, 1 where it starts from scratch."""
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    """poly falls evenly (METHOD 4, iSAID)."""
    warmup: Share = 0.05
    """Share of all steps over which the rate rises from 0."""
    final: Share = 0.01
    """Share of `lr` that is left at the last step of cosine and poly."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient; a longer one is scaled down to it. 0 turns clipping off."""


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0..steps-1: a linear rise over the warm-up, then down to `final`."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(steps - 1 - warmup, 1)
    fallen = progress if config.schedule == "poly" else (1 - math.cos(math.pi * progress)) / 2
    return config.lr * (config.final + (1 - config.final) * (1 - fallen))


def weight_decay(config: OptimConfig, step: int, steps: int) -> float:
    """The weight decay of step 0..steps-1: half a cosine from its first to its final value."""
    final = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    progress = step / max(steps - 1, 1)
    return final + (config.weight_decay - final) * (1 + math.cos(math.pi * progress)) / 2


def set_rates(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Give every parameter group its share of the learning rate, and the weight decay to those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices and kernels only.

    Norms, biases, tokens, position and date tables and logit scales are left alone, as is the MLP that makes Swin's
    position bias.
    """
    return parameter.ndim > 1 and name.endswith("weight") and "cpb_mlp" not in name


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, depth: Callable[[str], int], top: int
) -> torch.optim.AdamW:
    """AdamW over the parameters that take gradients.

    `depth` maps a parameter's name to its layer, 0 at the input and `top` at the head; the rate of a layer is
    lr * layer_decay ** (top - depth).
    """
    layer_decay = 1.0 if config.layer_decay is None else config.layer_decay
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (depth(name), decays(name, parameter))
        scale = layer_decay ** (top - key[0])
        group = groups.setdefault(key, {"params": [], "scale": scale, "decays": key[1]})
        group["params"].append(parameter)
    fused = any(parameter.is_cuda for group in groups.values() for parameter in group["params"])
    optimizer = torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=config.betas, fused=fused)
    set_rates(optimizer, config.lr, config.weight_decay)
    return optimizer
