"""What self-supervised training puts on top of a model and throws away afterwards (METHOD 3)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class AnswerHead(nn.Module):
    """Features to answers: three linear layers to a narrow unit vector, then its cosine to each of many directions.

    As in DINO: exact GELU between the layers, directions of unit length.
    """

    def __init__(self, channels: int, *, hidden: int, bottleneck: int, answers: int) -> None:
        super().__init__()
        widths = (channels, hidden, hidden, bottleneck)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.directions = nn.Parameter(torch.randn(answers, bottleneck))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n d"], *, freeze_last: bool = False) -> Float[Tensor, "n k"]:
        """Answers within -1..1. With `freeze_last` the directions take no gradient."""
        *layers, last = self.layers
        for layer in layers:
            x = F.gelu(layer(x))
        directions = self.directions.detach() if freeze_last else self.directions
        return F.linear(F.normalize(last(x), dim=-1, eps=1e-6), F.normalize(directions, dim=-1))
