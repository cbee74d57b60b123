"""Decoders of dense tasks: feature maps to logits at the resolution of the finest map.

All of them normalise over the channels of each pixel alone (LayerNorm2d): batch statistics are meaningless for the
batches of one or two samples that large windows allow, and group statistics would depend on what else is in the
window, so that overlapping windows would disagree about the same pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from skysense_core.losses.precision import in_float32
from skysense_core.model.swin import Size


def convolution(in_channels: int, width: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation of each pixel, GELU."""
    layer = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, LayerNorm2d(width), nn.GELU())


def resize(x: Float[Tensor, "b d h w"], size: Sequence[Size]) -> Float[Tensor, "b d h2 w2"]:
    """Bilinear interpolation to (rows, columns)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class Fcn(nn.Module):
    """3x3 convolutions on one map, then a linear classifier per pixel."""

    def __init__(self, in_channels: int, width: int, classes: int, *, depth: int = 1) -> None:
        super().__init__()
        widths = [in_channels] + [width] * depth
        self.layers = nn.Sequential(*(convolution(c, width, kernel=3) for c in widths[:-1]))
        self.classifier = nn.Conv2d(widths[-1], classes, kernel_size=1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        return self.classifier(self.layers(x))


class UperNet(nn.Module):
    """Pyramid pooling of the coarsest map, a top-down path over the others, and one classifier on all of them.

    `in_channels` are those of the maps, finest first; `pools` are the sides of the pooled maps.
    """

    def __init__(
        self, in_channels: Sequence[int], width: int, classes: int, *, pools: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), convolution(coarsest, width, kernel=1)) for side in pools
        )
        self.context = convolution(coarsest + len(pools) * width, width, kernel=3)
        self.laterals = nn.ModuleList(convolution(channels, width, kernel=1) for channels in finer)
        self.smooth = nn.ModuleList(convolution(width, width, kernel=3) for _ in finer)
        self.fuse = convolution(len(in_channels) * width, width, kernel=3)
        self.classifier = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k h w"]:
        """Maps, finest first, to logits at the resolution of the first."""
        *finer, coarsest = levels
        pooled = [resize(pool(coarsest), coarsest.shape[-2:]) for pool in self.pools]
        path = [self.context(torch.cat([coarsest, *pooled], dim=1))]
        for lateral, level in zip(reversed(self.laterals), reversed(finer), strict=True):
            path.insert(0, lateral(level) + resize(path[0], level.shape[-2:]))
        maps = [smooth(x) for smooth, x in zip(self.smooth, path[:-1], strict=True)] + path[-1:]
        maps = [resize(x, levels[0].shape[-2:]) for x in maps]
        return self.classifier(self.fuse(torch.cat(maps, dim=1)))


class FeaturePyramid(nn.Module):
    """One map to four, at 1, 2, 4 and 8 times its stride (sizes rounded up), for decoders that want levels."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.finest = convolution(in_channels, width, kernel=1)
        self.coarser = nn.ModuleList(convolution(width, width, kernel=3, stride=2) for _ in range(3))

    def forward(self, x: Float[Tensor, "b d h w"]) -> tuple[Float[Tensor, "b e _ _"], ...]:
        levels = [self.finest(x)]
        for layer in self.coarser:
            levels.append(halved(layer, levels[-1]))
        return tuple(levels)


def halved(layer: nn.Module, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h2 w2"]:
    """A convolution of stride 2; training on a CPU does it in float32 where the map has one column.

    In bfloat16 torch leaves unset there what no pixel has a part in: the gradient of the kernel's outer columns is
    whatever lay in memory (seen in 2.14, 3 x 3 kernels).
    """
    if torch.is_grad_enabled() and x.device.type == "cpu" and x.shape[-1] == 1:
        return in_float32(layer)(x.float())
    return layer(x)


class LevelPyramid(nn.Module):
    """Four maps of one stride, as a ViT gives them, to a pyramid at 1/2, 1, 2 and 4 times that stride (rounded up)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.finest = nn.ConvTranspose2d(in_channels, width, kernel_size=2, stride=2)
        self.coarser = nn.ModuleList(nn.Conv2d(in_channels, width, kernel_size=1) for _ in range(3))

    def forward(self, levels: Sequence[Float[Tensor, "b d h w"]]) -> tuple[Float[Tensor, "b e _ _"], ...]:
        finest, *coarser = levels
        maps = [layer(level) for layer, level in zip(self.coarser, coarser, strict=True)]
        return self.finest(finest), *(F.max_pool2d(x, 2**i, ceil_mode=True) for i, x in enumerate(maps))
