"""Vision transformer for the Sentinel modalities (METHOD 2), numerically the authors' encoder.

timm carries the layers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from skysense_core.losses.precision import in_float32
from skysense_core.model.presets import VitSpec
from skysense_core.model.swin import Size

PATCH = 4


def transformer(width: int, depth: int, heads: int, *, eps: float, drop_path: float) -> nn.ModuleList:
    """Pre-norm layers with MLPs four times as wide; `drop_path` grows linearly to its value at the last layer."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    norm: Any = partial(nn.LayerNorm, eps=eps)
    layers = nn.ModuleList(Block(width, heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates)
    for layer in layers:
        layer.attn = SelfAttention(width, heads, qkv_bias=True)
    return layers


class SelfAttention(Attention):
    """timm's, through `attend`."""

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Bool[Tensor, "b 1 1 n"] | None = None, is_causal: bool = False
    ) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads).unbind(0)
        return self.proj(rearrange(attend(q, k, v, attn_mask), "b h n d -> b n (h d)"))


def attend(
    q: Float[Tensor, "b h m d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    mask: Bool[Tensor, "b 1 1 n"] | None,
) -> Float[Tensor, "b h m d"]:
    """Softmax attention; training on a CPU does it in float32, whatever autocast says.

    In bfloat16 torch's backward pass takes up to thirty times as long there (256 sequences of 17 tokens, AMX).
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled():
        exact = in_float32(F.scaled_dot_product_attention)
        return exact(q.float(), k.float(), v.float(), attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class VisionTransformer(nn.Module):
    """Images of any size to one feature map per level, all at stride 4 (rounded up), without a final norm.

    `levels` are layer numbers. With `class_token` a class token runs through the layers; its output is not returned.
    `eps` is that of the layer norms.
    """

    def __init__(
        self,
        spec: VitSpec,
        bands: int,
        *,
        levels: Sequence[int] | None = None,
        class_token: bool = True,
        eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = spec.levels if levels is None else tuple(levels)
        self.strides = (PATCH,) * len(self.levels)
        self.native = spec.native // PATCH
        self.projection = nn.Conv2d(bands, spec.width, kernel_size=PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width)) if class_token else None
        # The first entry belongs to the class token, whether it runs or not.
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.native**2, spec.width))
        self.layers = transformer(spec.width, spec.depth, spec.heads, eps=eps, drop_path=drop_path)

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h2 w2"], ...]:
        """Normalised images, zero padded on the right and bottom, to the residual stream after each of `levels`."""
        h, w = images.shape[-2:]
        if not torch.compiler.is_exporting():  # graphs are for whole patches
            images = F.pad(images, (0, -w % PATCH, 0, -h % PATCH))
        patches = self.projection(images)
        rows = patches.shape[2]
        x = rearrange(patches, "b d h w -> b (h w) d") + self.position_table(*patches.shape[2:])
        if self.class_token is not None:
            x = torch.cat(((self.class_token + self.positions[:, :1]).expand(x.shape[0], -1, -1), x), dim=1)
        first = int(self.class_token is not None)
        maps = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.levels:
                maps.append(rearrange(x[:, first:], "b (h w) d -> b d h w", h=rows))
        return tuple(maps)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers."""
        return list(self.layers)

    @property
    def depth(self) -> int:
        return len(self.layers)

    def layer_of(self, parameter: str) -> int:
        """How deep a parameter lies: 0 for patches and positions, then the number of its layer from 1."""
        part, *place = parameter.split(".")
        return 1 + int(place[0]) if part == "layers" else 0

    def position_table(self, h: Size, w: Size) -> Float[Tensor, "1 n d"]:
        """The table for h x w patches. As the authors do, it is only resized where the number of patches differs."""
        table = self.positions[:, 1:]
        if h * w == self.native**2 and not torch.compiler.is_exporting():  # a graph serves any size
            return table
        return resize_table(table, h, w)


def resize_table(table: Float[Tensor, "1 n d"], h: Size, w: Size) -> Float[Tensor, "1 m d"]:
    """A square position table (without class entry) for h x w patches: bicubic, corners not aligned, no antialias."""
    side = round(table.shape[1] ** 0.5)
    grid = rearrange(table, "1 (h w) d -> 1 d h w", h=side)
    return rearrange(F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False), "1 d h w -> 1 (h w) d")
