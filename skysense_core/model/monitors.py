"""Numbers in which a self-supervised training that goes wrong shows itself."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def spread(rows: Float[Tensor, "n d"]) -> dict[str, float]:
    """How features of n images differ.

    `std` is their deviation. `rank` is their effective rank, exp of the entropy of their covariance's eigenvalues: 1
    where all differ in one direction only.
    """
    apart = rows.float() - rows.float().mean(0)
    energy = torch.linalg.svdvals(apart) ** 2
    share = energy / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)
    return {"std": float(apart.pow(2).mean().sqrt()), "rank": float(torch.special.entr(share).sum().exp())}


def answers(scaled: Float[Tensor, "n k"]) -> dict[str, float]:
    """What the answers to n images tell; they are centred and divided by their temperature already.

    `entropy` is their own, from 0 (always sure) to 1 (none of the k is preferred). `information` is how much of it
    depends on the image, from 0 to 1: 0 both where all images have one answer and where no answer is preferred.
    """
    shares = torch.softmax(scaled.float(), dim=-1)
    own = float(torch.special.entr(shares).sum(-1).mean())
    together = float(torch.special.entr(shares.mean(0)).sum())
    n, k = shares.shape
    return {"entropy": own / math.log(k), "information": max(together - own, 0.0) / math.log(max(min(n, k), 2))}
