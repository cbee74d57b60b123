"""What self-supervised training puts on top of a model and throws away afterwards (METHOD 3)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skysense_core.losses.collectives import moments

LEAST = 0.1


class AnswerHead(nn.Module):
    """Features to answers: three linear layers to a narrow unit vector, whose cosines to many directions are answers.

    As in DINO: exact GELU between the layers, directions of unit length. What enters is freed of its mean over the
    batch and brought to unit scale [A]: our features end in no norm, and what all places have in common would drown
    what tells them apart, until every answer is alike. The scale is one for all channels, so that those in which
    nothing differs stay small.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, *, hidden: int, bottleneck: int, answers: int) -> None:
        super().__init__()
        widths = (channels, hidden, hidden, bottleneck)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.directions = nn.Parameter(torch.randn(answers, bottleneck))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "n d"], *, freeze_last: bool = False
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "k c"]]:
        """Unit vectors and directions, in float32; the layers before them follow autocast.

        With `freeze_last` the directions take no gradient.
        """
        x = (x - self.mean) / self.scale
        *layers, last = self.layers
        for layer in layers:
            x = F.gelu(layer(x))
        directions = self.directions.detach() if freeze_last else self.directions
        return F.normalize(last(x).float(), dim=-1, eps=1e-6), F.normalize(directions, dim=-1)

    @torch.no_grad()
    def observe(self, x: Float[Tensor, "n d"], weight: Float[Tensor, "n"]) -> None:
        """Take mean and scale from some features of all processes; without any they stay.

        They are those of the last batch, not running ones: features move on faster than a running mean would follow.
        What differs by less than `LEAST` of the features' size is not brought to unit scale: two views of a single
        place differ by next to nothing, which would become noise.
        """
        mean, std, count = moments(x, weight)
        self.mean.copy_(torch.where(count > 0, mean, self.mean))
        spread, offset = std.square().mean(), mean.square().mean()
        scale = torch.maximum(spread, LEAST**2 * (spread + offset)).sqrt().clamp(min=1e-6)
        self.scale.copy_(torch.where(count > 0, scale, self.scale))
