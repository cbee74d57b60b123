"""Swin Transformer V2 for the high-resolution modality (METHOD 2), numerically the authors' encoder.

timm carries the MLP and stochastic depth. Attention, block and merging are ours: timm's block rolls before it pads and
decides the shift per axis, its merging orders the 4C vector otherwise, and its attention keeps tables in buffers that
do not survive a build on the meta device.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from skysense_core.model.presets import SwinSpec

if TYPE_CHECKING:
    Size: TypeAlias = int
else:  # in a graph that is being exported sizes are not known yet, which torch's own annotations do not say
    Size = int | torch.SymInt
T = TypeVar("T")
PATCH = 4
WINDOW = 8
MAX_LOGIT_SCALE = math.log(100)
ALIGNED = 8
"""Heads are padded with zeros to a multiple of it: the fused kernels take no others, and `huge` has heads of 44."""


class SwinTransformer(nn.Module):
    """Images of any size to one feature map per level, at strides 4, 8, 16 and 32 (rounded up).

    `levels` are the stages whose output is normalised and returned. `pad_small_map` keeps the shift on maps that are
    no larger than one window (an option of the authors').
    """

    def __init__(
        self,
        spec: SwinSpec,
        bands: int,
        *,
        levels: Sequence[int] = (0, 1, 2, 3),
        pad_small_map: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.strides = tuple(PATCH * 2**level for level in self.levels)
        self.depths = spec.depths
        self.patch_embed = PatchEmbedding(bands, spec.embed)
        rates = torch.linspace(0, drop_path, sum(spec.depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for index, (width, depth, heads) in enumerate(zip(spec.widths, spec.depths, spec.heads, strict=True)):
            self.stages.append(
                Stage(
                    width,
                    heads,
                    merge=index > 0,
                    drop_paths=rates[sum(spec.depths[:index]) :][:depth],
                    extra_norm_every=spec.extra_norm_every,
                    pad_small_map=pad_small_map,
                )
            )
        self.norms = nn.ModuleDict({str(level): nn.LayerNorm(spec.widths[level]) for level in self.levels})

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h2 w2"], ...]:
        """Normalised images to the maps of `levels`, finest first."""
        x = self.patch_embed(images)
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if level in self.levels:
                maps.append(rearrange(self.norms[str(level)](x), "b h w d -> b d h w"))
        return tuple(maps)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.blocks]  # type: ignore[union-attr]

    @property
    def depth(self) -> int:
        """Blocks in all."""
        return sum(self.depths)

    def layer_of(self, parameter: str) -> int:
        """How deep a parameter lies: 0 for the patch embedding, then the number of its block from 1."""
        part, *place = parameter.split(".")
        if part == "patch_embed":
            return 0
        stage = int(place[0])
        if part == "norms":
            return sum(self.depths[: stage + 1])
        block = int(place[2]) if place[1] == "blocks" else 0
        return sum(self.depths[:stage]) + block + 1


class PatchEmbedding(nn.Module):
    """Patches of 4x4 pixels to tokens; the image is padded with zeros on its right and bottom."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(bands, width, kernel_size=PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h2 w2 d"]:
        h, w = images.shape[-2:]
        if not torch.compiler.is_exporting():  # graphs are for whole patches
            images = F.pad(images, (0, -w % PATCH, 0, -h % PATCH))
        return self.norm(rearrange(self.projection(images), "b d h w -> b h w d"))


class PatchMerging(nn.Module):
    """2x2 tokens to one of twice the width. The 4C vector is channel-major: channel, then row, then column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h2 w2 d2"]:
        rows, columns = cells(x.shape[1], 2), cells(x.shape[2], 2)
        x = pad_to(x, 2 * rows, 2 * columns)
        return self.norm(self.reduction(rearrange(x, "b (h i) (w j) d -> b h w (d i j)", h=rows, w=columns, i=2, j=2)))


class Stage(nn.Module):
    """Merging (but for the first stage), then blocks of which every second one shifts its windows."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        merge: bool,
        drop_paths: Sequence[float],
        extra_norm_every: int,
        pad_small_map: bool,
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(width // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                shift=index % 2 == 1,
                drop_path=drop_path,
                extra_norm=index % extra_norm_every == extra_norm_every - 1,
                pad_small_map=pad_small_map,
            )
            for index, drop_path in enumerate(drop_paths)
        )

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h2 w2 d2"]:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """Window attention and MLP, each normalised after it and added (res-post-norm)."""

    def __init__(
        self, width: int, heads: int, *, shift: bool, drop_path: float, extra_norm: bool, pad_small_map: bool
    ) -> None:
        super().__init__()
        self.shift = WINDOW // 2 if shift else 0
        self.pad_small_map = pad_small_map
        self.attn = WindowAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.norm2 = nn.LayerNorm(width)
        self.drop_path = DropPath(drop_path)
        self.norm3 = nn.LayerNorm(width) if extra_norm else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        x = x + self.drop_path(self.norm1(self.attend(x)))
        x = x + self.drop_path(self.norm2(self.mlp(x)))
        return self.norm3(x)

    def attend(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Attention within windows: pad, roll, cut, attend, and all of it back. Padded tokens take part as zeros."""
        h, w = x.shape[1:3]
        shift = self.shift_on(h, w)
        rows, columns = cells(h, WINDOW), cells(w, WINDOW)
        x = pad_to(x, WINDOW * rows, WINDOW * columns)
        mask = None
        if shift is not None:
            x = torch.roll(x, (-shift, -shift), dims=(1, 2))
            mask = shift_mask(WINDOW * rows, WINDOW * columns, shift, x.device, x.dtype)
        windows = rearrange(x, "b (y i) (x j) d -> b (y x) (i j) d", y=rows, x=columns, i=WINDOW, j=WINDOW)
        windows = self.attn(windows, mask)
        x = rearrange(windows, "b (y x) (i j) d -> b (y i) (x j) d", y=rows, x=columns, i=WINDOW, j=WINDOW)
        if shift is not None:
            x = torch.roll(x, (shift, shift), dims=(1, 2))
        return x[:, :h, :w]

    def shift_on(self, h: Size, w: Size) -> Size | None:
        """Tokens by which windows are shifted on an h x w map; None: not at all.

        A map whose shorter side is at most the window is not shifted [A: the authors' encoder stops where it is
        shorter]. A graph that is being exported is for small and large maps, and shifts by 0 on the small ones.
        """
        if not self.shift or self.pad_small_map:
            return self.shift or None
        if torch.compiler.is_exporting():
            return self.shift * torch.sym_min((torch.sym_min(h, w) - 1) // WINDOW, 1)  # type: ignore[return-value]
        return self.shift if min(h, w) > WINDOW else None


def cells(n: Size, side: int) -> Size:
    """How many cells of a side cover n tokens."""
    return (n + side - 1) // side


def pad_to(x: Float[Tensor, "b h w d"], rows: Size, columns: Size) -> Float[Tensor, "b h2 w2 d"]:
    """The map with zeros on its bottom and right, at most a window of them.

    A graph that is being exported pads whatever the size, because it cannot leave out a padding of nothing.
    """
    if torch.compiler.is_exporting():
        return F.pad(x, (0, 0, 0, WINDOW, 0, WINDOW))[:, :rows, :columns]
    return F.pad(x, (0, 0, 0, columns - x.shape[2], 0, rows - x.shape[1]))


class WindowAttention(nn.Module):
    """Cosine attention with a continuous position bias, through the fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.proj = nn.Linear(width, width)

    def forward(
        self, windows: Float[Tensor, "b m n d"], mask: Float[Tensor, "m n n"] | None
    ) -> Float[Tensor, "b m n d"]:
        """m windows of n tokens each; `mask` is added to the logits."""
        b = windows.shape[0]
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(windows, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b m n (three e c) -> three (b m) e n c", three=3, e=self.heads).unbind(0)
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = self.position_bias()[None]
        if mask is not None:
            logits = (logits + mask[:, None]).repeat(b, 1, 1, 1)
        logits = logits.to(v.dtype).expand(v.shape[0], -1, -1, -1)
        q, k, width = q.to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v.shape[-1]
        if width % ALIGNED:
            q, k, v = (F.pad(x, (0, -width % ALIGNED)) for x in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=logits, scale=1.0)[..., :width]
        return self.proj(rearrange(x, "(b m) e n c -> b m n (e c)", b=b))

    def position_bias(self) -> Float[Tensor, "e n n"]:
        """Bias between every two tokens of a window, per head: 16 sigmoid(mlp(log-spaced offsets))."""
        offsets, pairs = relative_positions(self.qkv.weight.device)
        table = 16 * torch.sigmoid(self.cpb_mlp(offsets.to(self.qkv.weight.dtype)))
        return rearrange(table[pairs], "(n m) e -> e n m", n=WINDOW**2)


def remembered(table: Callable[..., T]) -> Callable[..., T]:
    """Keep the last results of a function; a graph that is being exported computes its own.

    They are made outside of inference mode, because a kept tensor may serve training later.
    """
    kept = lru_cache(maxsize=8)(torch.inference_mode(False)(table))

    @wraps(table)
    def call(*arguments: Any) -> T:
        return table(*arguments) if torch.compiler.is_exporting() else kept(*arguments)

    call.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return call


@remembered
def relative_positions(device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-spaced offsets (row, column) of query minus key, (225, 2), and each token pair's index in them, (4096,)."""
    span = torch.arange(1 - WINDOW, WINDOW, device=device)
    offsets = torch.cartesian_prod(span, span).float() / (WINDOW - 1) * 8
    offsets = offsets.sign() * torch.log2(offsets.abs() + 1) / math.log2(8)
    side = torch.arange(WINDOW, device=device)
    row, column = torch.cartesian_prod(side, side).unbind(1)
    index = (row[:, None] - row + WINDOW - 1) * (2 * WINDOW - 1) + (column[:, None] - column + WINDOW - 1)
    return offsets, index.flatten()


@remembered
def shift_mask(h: Size, w: Size, shift: Size, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "m n n"]:
    """-100 between tokens that only meet because a rolled map wraps around, else 0.

    `h` and `w` are the padded map's: padding belongs to the region that it touches.
    """

    def bands(n: Size) -> Tensor:
        place = torch.arange(n, device=device)
        return (place >= n - WINDOW).int() + (place >= n - shift).int()

    regions = 3 * bands(h)[:, None] + bands(w)
    regions = rearrange(regions, "(y i) (x j) -> (y x) (i j)", i=WINDOW, j=WINDOW)
    return -100.0 * (regions[:, :, None] != regions[:, None, :]).to(dtype)
