"""Cross-modal alignment: what two modalities say of one place is closer than what they say of others [P Eq. 10]."""

from collections.abc import Mapping
from itertools import permutations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from skysense_core.losses import collectives
from skysense_core.losses.precision import in_float32

NEVER = -1e9
"""Logit of a place that has no such image; finite, so that a row without any stays free of NaN."""


@in_float32
def align(
    features: Mapping[str, Float[Tensor, "b d"]],
    present: Mapping[str, Bool[Tensor, "b"]],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The sum over ordered pairs of modalities i != j of InfoNCE against the places of the whole batch.

    For each place that has both: the cross-entropy of finding its own j among the j of all places of all processes,
    by cosine similarity / temperature, averaged over places. Computed in float32; 0 for a single modality. Every
    process gives the same modalities with the same number of places. This process's part; see `collectives.mean`.
    """
    unit = {name: F.normalize(x.float(), dim=-1) for name, x in features.items()}
    everywhere = {name: collectives.gather(x) for name, x in unit.items()}
    exists = {name: collectives.gather(present[name]) for name in features}
    total = temperature.new_zeros((), dtype=torch.float32)
    for i, j in permutations(features, 2):
        logits = (unit[i] @ everywhere[j].mT) / temperature
        own = torch.arange(len(logits), device=logits.device) + collectives.rank() * len(logits)
        loss = F.cross_entropy(logits.masked_fill(~exists[j], NEVER), own, reduction="none")
        total = total + collectives.mean(loss, (present[i] & present[j]).to(torch.float32))
    return total
