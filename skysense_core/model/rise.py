"""From a ViT's patches back to pixels, and to the channels that all modalities share (METHOD 2, Alignment)."""

from jaxtyping import Float
from torch import Tensor, nn

SCALE = 4


class Rise(nn.Module):
    """A 1x1 convolution to 16 D channels, then a pixel shuffle by 4: one cell per pixel of the modality."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, channels * SCALE**2, kernel_size=1)
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d2 h2 w2"]:
        """(b, width, h, w) at stride 4 to (b, D, 4h, 4w)."""
        return self.shuffle(self.projection(x))
