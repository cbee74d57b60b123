"""Multi-modal temporal fusion: a transformer over the tokens of one position [P Eq. 2, METHOD 2]."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skysense_core.model.presets import FusionSpec
from skysense_core.model.vit import transformer

CHUNK = 2**23
"""Most numbers in the token tensor of one pass: it bounds memory on large grids and stays near the cache."""


class Fusion(nn.Module):
    """Every position is a sequence of its own: one extra token, then a token per modality and date.

    The extra token's last state is the fused feature; there is no final norm. Absent tokens are masked. A position
    without any token keeps the extra token, which always attends to itself.
    """

    def __init__(self, spec: FusionSpec, channels: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.width = spec.width
        self.project = nn.Linear(channels, spec.width)
        self.extra_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.layers = transformer(spec.width, spec.depth, spec.heads, eps=1e-5, drop_path=drop_path)

    def forward(
        self, maps: Sequence[Float[Tensor, "b _ d h w"]], present: Sequence[Bool[Tensor, "b _ h w"]]
    ) -> Float[Tensor, "b e h w"]:
        """One map per modality, all on one grid, and which of their tokens exist, to the fused map."""
        b, _, _, h, w = maps[0].shape
        tokens = torch.cat([self.project(rearrange(m, "b t d h w -> (b h w) t d")) for m in maps], dim=1)
        exists = torch.cat([rearrange(p, "b t h w -> (b h w) t") for p in present], dim=1)
        positions = max(CHUNK // (self.width * (1 + tokens.shape[1])), 1)
        fused = [self.fuse(*part) for part in zip(tokens.split(positions), exists.split(positions), strict=True)]
        return rearrange(torch.cat(fused), "(b h w) e -> b e h w", b=b, h=h, w=w)

    def fuse(self, tokens: Float[Tensor, "n t e"], exists: Bool[Tensor, "n t"]) -> Float[Tensor, "n e"]:
        """The fused feature of n positions with t projected tokens each."""
        x = torch.cat((self.extra_token.expand(len(tokens), -1, -1), tokens), dim=1)
        mask = torch.cat((torch.ones_like(exists[:, :1]), exists), dim=1)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attn_mask=mask)
        return x[:, 0]
