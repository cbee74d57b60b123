"""Multi-modal temporal fusion: a transformer over the tokens of one position [P Eq. 2, METHOD 2]."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skysense_core.model.presets import FusionSpec
from skysense_core.model.vit import attend, transformer

CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Most numbers in the token tensor of one pass: it bounds memory on large grids, and on a CPU stays near the cache."""


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
        if torch.compiler.is_exporting():  # a graph for any batch cannot know how many passes there are
            return rearrange(self.fuse(tokens, exists), "(b h w) e -> b e h w", b=b, h=h, w=w)
        positions = max(CHUNK.get(tokens.device.type, CHUNK["cpu"]) // (self.width * (1 + tokens.shape[1])), 1)
        fused = [self.fuse(*part) for part in zip(tokens.split(positions), exists.split(positions), strict=True)]
        return rearrange(torch.cat(fused), "(b h w) e -> b e h w", b=b, h=h, w=w)

    def fuse(self, tokens: Float[Tensor, "n t e"], exists: Bool[Tensor, "n t"]) -> Float[Tensor, "n e"]:
        """The fused feature of n positions with t projected tokens each."""
        x = torch.cat((self.extra_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        mask = torch.cat((torch.ones_like(exists[:, :1]), exists), dim=1)[:, None, None, :]
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, attn_mask=mask)
        return extra_token_after(last, x, mask)


def extra_token_after(layer: Any, x: Float[Tensor, "n t e"], mask: Bool[Tensor, "n 1 1 t"]) -> Float[Tensor, "n e"]:
    """The first token after a layer (timm's Block): nothing else is read after the last one, so no more is computed."""
    width, h = x.shape[-1], layer.attn.num_heads
    weight, bias = layer.attn.qkv.weight, layer.attn.qkv.bias
    y = layer.norm1(x)
    q = rearrange(F.linear(y[:, :1], weight[:width], bias[:width]), "n t (h d) -> n h t d", h=h)
    k, v = rearrange(F.linear(y, weight[width:], bias[width:]), "n t (two h d) -> two n h t d", two=2, h=h)
    seen = rearrange(attend(q, k, v, mask), "n h t d -> n t (h d)")
    first = x[:, :1] + layer.drop_path1(layer.attn.proj(seen))
    return (first + layer.drop_path2(layer.mlp(layer.norm2(first))))[:, 0]
