"""Sinkhorn-Knopp: soft assignments that use every cluster equally (Cuturi 2013, as in SwAV), in float32 log space."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skysense_core.losses import collectives


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "n k"],
    group: Int[Tensor, "n"],
    groups: int,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    everywhere: bool = False,
) -> Float[Tensor, "n k"]:
    """The share of every row in each of the k clusters of its group; a row sums to one, without a gradient.

    Rows of one `group` (0..groups-1) compete for the same clusters: rows times exp(scores / epsilon) are scaled until
    each cluster holds the same mass, then each row the same, `iterations` times. Groups never touch each other.
    `everywhere`: rows of a group may lie in several processes, which then all call this with the same `groups`.
    """
    log_shares = scores.float() / epsilon
    for _ in range(iterations):
        mass = _log_mass(log_shares, group, groups)
        if everywhere:
            mass = collectives.log_summed(mass)
        log_shares = torch.log_softmax(log_shares - mass[group], dim=-1)
    return log_shares.exp()


def _log_mass(log_shares: Float[Tensor, "n k"], group: Int[Tensor, "n"], groups: int) -> Float[Tensor, "g k"]:
    """log(sum(exp)) of the rows of each group; -inf for a group without rows."""
    at = group[:, None].expand_as(log_shares)
    empty = log_shares.new_full((groups, log_shares.shape[1]), -torch.inf)
    highest = empty.scatter_reduce(0, at, log_shares, "amax")
    mass = torch.zeros_like(empty).index_add(0, group, (log_shares - highest[group]).exp())
    return mass.log() + torch.where(highest.isfinite(), highest, 0.0)
