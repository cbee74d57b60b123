"""What detectors look at: the encoder's levels as one feature pyramid of equal width [FPN, Lin et al., CVPR 2017]."""

from collections import OrderedDict
from collections.abc import Mapping

from einops import reduce
from jaxtyping import Bool, Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from skysense_core.data.batch import Series
from skysense_core.model.decoders import FeaturePyramid, LevelPyramid
from skysense_core.model.skysense import FeatureMap, Features, SkySense


class Pyramid(nn.Module):
    """Five maps of `width` channels, each half as fine as the one before, of the reference modality's four levels.

    With `fuse` the fused map takes the place of the coarsest level of a Swin, or of all levels of a ViT.
    """

    def __init__(self, encoder: SkySense, width: int, *, fuse: bool) -> None:
        super().__init__()
        sizes, self.reference, self.fuse = encoder.spec.sizes, encoder.reference, fuse
        fused = sizes.fusion.width * (2 if encoder.spec.prototypes else 1)
        modality = encoder.modalities[encoder.reference]
        self.levels: FeaturePyramid | LevelPyramid | None = None
        if modality.encoder == "swin":
            self.stride, channels = 4, [*sizes.swin.widths[:3], fused if fuse else sizes.swin.widths[3]]
        else:
            own, channels = sizes.own.get(modality.name, sizes.vit), [width] * 4
            self.levels = FeaturePyramid(fused, width) if fuse else LevelPyramid(own.width, width)
            self.stride = 1 if fuse else 2
        self.pyramid = FeaturePyramidNetwork(channels, width, LastLevelMaxPool(), norm_layer=LayerNorm2d)

    def forward(self, features: Features, reference: Series) -> dict[str, Float[Tensor, "b d _ _"]]:
        """Maps by the number of their level, finest first."""
        seen = reduce(reference.valid, "b t h w -> b t", "max")
        maps = [over_dates(level, seen) for level in features.levels[self.reference]]
        if features.fused is not None:
            fused = features.fused.tensor[:, 0]
            maps = [*maps[:3], fused] if self.levels is None else [fused]
        if self.levels is not None:
            maps = list(self.levels(maps[0] if self.fuse else maps))
        named: Mapping[str, Tensor] = self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps)))
        return {str(number): x for number, x in enumerate(named.values())}


def over_dates(level: FeatureMap, seen: Bool[Tensor, "b t"]) -> Float[Tensor, "b d h w"]:
    """The mean over the images that show anything."""
    weight = seen[:, :, None, None, None].to(level.tensor.dtype)
    return (level.tensor * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
