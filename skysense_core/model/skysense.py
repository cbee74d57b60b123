"""SkySense, as the paper's Fig. 2 draws it.

    images -> normalise -> encoder per modality -> align on one grid -> add dates -> fuse -> add geo-context -> Features

A modality is data: its file says which encoder reads it, and nothing here knows a modality's name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skysense_core.data.batch import Series
from skysense_core.errors import SkysenseError, UsageError, unknown
from skysense_core.modalities import Modality
from skysense_core.model.dates import DateTable
from skysense_core.model.fusion import Fusion
from skysense_core.model.presets import ModelSpec
from skysense_core.model.prototypes import Prototypes
from skysense_core.model.rise import Rise
from skysense_core.model.swin import Size, SwinTransformer
from skysense_core.model.vit import VisionTransformer

SWIN_STRIDE = 32
"""Pixels of a Swin modality per cell where the modalities meet; ViT modalities meet at their own pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """Features on a grid; a map that has no time of its own has t = 1."""

    tensor: Float[Tensor, "b t d h w"]
    stride: float
    """Pixels of its modality (of the finest given one for fused maps) per cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the model knows of a batch. Maps of absent images are zeros or without meaning; see `present`."""

    levels: dict[str, tuple[FeatureMap, ...]]
    """Per modality: the encoder's maps, finest first. Swin: strides 4, 8, 16, 32. ViT: four layers at stride 4."""
    aligned: dict[str, FeatureMap] = field(default_factory=dict)
    """Per modality: F_i on the fusion grid, D channels, without dates."""
    present: dict[str, Bool[Tensor, "b t h w"]] = field(default_factory=dict)
    """Per modality: which cells of `aligned` were seen; the others are no tokens."""
    fused_mm: FeatureMap | None = None
    """The fused map without geo-context."""
    fused: FeatureMap | None = None
    """The fused map; with prototypes their context is appended to it."""
    known_region: Bool[Tensor, "b"] | None = None
    """With prototypes: whether the sample lies in a region that pre-training has visited; elsewhere context is zero."""


class SkySense(nn.Module):
    """The model for any non-empty set of modalities; only what they need is built.

    Raises UsageError where no modality is given or the preset is unknown.
    """

    def __init__(self, spec: ModelSpec, modalities: Mapping[str, Modality]) -> None:
        super().__init__()
        if not modalities:
            raise UsageError("a model needs at least one modality", fix="For example --modalities hr")
        sizes = spec.sizes
        self.spec = spec
        self.modalities = dict(modalities)
        self.frozen: tuple[str, ...] = ()
        self.normalise = nn.ModuleDict({name: Normalise(modality) for name, modality in modalities.items()})
        self.encoders = nn.ModuleDict({name: build_encoder(spec, modality) for name, modality in modalities.items()})
        self.rise = nn.ModuleDict()
        self.dates, self.fusion, self.prototypes = None, None, None
        if spec.fusion:
            for name, modality in modalities.items():
                if modality.encoder == "vit":
                    self.rise[name] = Rise(sizes.own.get(name, sizes.vit).width, sizes.channels)
            if spec.dates_on:
                self.dates = DateTable(sizes.channels, spec.dates_start)
            self.fusion = Fusion(sizes.fusion, sizes.channels, drop_path=spec.drop_path)
            if spec.prototypes:
                self.prototypes = Prototypes(sizes.prototypes, sizes.fusion.width)
        self.apply(initialise)

    @property
    def reference(self) -> str:
        """The finest modality: dense outputs are drawn on its grid."""
        return self._finest(self.modalities)

    def forward(
        self,
        images: Mapping[str, Series],
        lonlat: Float[Tensor, "b 2"] | None = None,
        located: Bool[Tensor, "b"] | None = None,
        *,
        fuse: bool = True,
    ) -> Features:
        """Features of aligned series of any of the model's modalities, in their own units.

        `lonlat` (degrees) chooses the prototypes; None, or `located` False, means an unknown place. Without `fuse`,
        and in a model without fusion, only `levels` are computed. Pixels under `valid=False` change nothing.

        Raises UsageError for a modality that the model does not have and SkysenseError for images whose grids do not
        meet.
        """
        self._check(images)
        images = {name: images[name] for name in self.encoders if name in images}
        levels = {name: self.encode(name, series) for name, series in images.items()}
        if self.fusion is None or not fuse:
            return Features(levels=levels)

        aligned, present = {}, {}
        grid = self.fusion_grid(images, levels)
        for name, series in images.items():
            aligned[name], present[name] = self.align(name, levels[name][-1], series, grid)

        maps = [self.add_dates(name, aligned[name].tensor, series) for name, series in images.items()]
        fused_mm = self.fusion(maps, list(present.values()))

        fused, known_region = fused_mm, None
        if self.prototypes is not None:
            lonlat = torch.zeros(fused_mm.shape[0], 2, device=fused_mm.device) if lonlat is None else lonlat
            located = torch.zeros_like(lonlat[:, 0], dtype=torch.bool) if located is None else located
            fused, known_region = self.prototypes(fused_mm, lonlat, located)

        stride = aligned[self._finest(images)].stride
        return Features(
            levels=levels,
            aligned=aligned,
            present=present,
            fused_mm=FeatureMap(tensor=fused_mm[:, None], stride=stride),
            fused=FeatureMap(tensor=fused[:, None], stride=stride),
            known_region=known_region,
        )

    def encode(self, name: str, series: Series) -> tuple[FeatureMap, ...]:
        """Every image of a series on its own through its encoder [P Eq. 1]; those without a valid pixel are skipped."""
        encoder = self.encoder(name)
        pixels = self.normalise[name](series.pixels, series.valid)
        pixels = rearrange(pixels, "b t c h w -> (b t) c h w").to(next(encoder.parameters()).dtype)
        seen = rearrange(series.valid.any(-1).any(-1), "b t -> (b t)")
        # An exported graph cannot choose: there, the images that show nothing run too.
        if torch.compiler.is_exporting() or seen.all():
            maps = encoder(pixels)
        else:
            # One image at least: the sizes of the maps, and a gradient on every rank, come from running the encoder.
            index = seen.nonzero()[:, 0] if seen.any() else torch.zeros(1, dtype=torch.long, device=seen.device)
            some = encoder(pixels[index])
            maps = [m.new_zeros(len(pixels), *m.shape[1:]).index_copy(0, index, m) for m in some]
        return tuple(
            FeatureMap(tensor=rearrange(m, "(b t) d h w -> b t d h w", b=series.pixels.shape[0]), stride=float(stride))
            for m, stride in zip(maps, encoder.strides, strict=True)
        )

    def encoder(self, name: str) -> SwinTransformer | VisionTransformer:
        """The encoder of a modality."""
        return self.encoders[name]  # type: ignore[return-value]  # a ModuleDict does not know what it holds

    def fusion_grid(
        self, images: Mapping[str, Series], levels: Mapping[str, tuple[FeatureMap, ...]]
    ) -> tuple[Size, Size]:
        """(rows, columns) where the modalities meet: the pixels of the ViT modalities if any, else the Swin maps."""
        at_pixels = [name for name in images if name in self.rise]
        if at_pixels:
            h, w = images[self._finest(at_pixels)].pixels.shape[-2:]
        else:
            h, w = levels[self._finest(images)][-1].tensor.shape[-2:]
        return h, w

    def align(
        self, name: str, level: FeatureMap, series: Series, grid: tuple[Size, Size]
    ) -> tuple[FeatureMap, Bool[Tensor, "b t h w"]]:
        """F_i on the fusion grid, and which of its cells are tokens: those with at least half of their pixels valid."""
        x = rearrange(level.tensor, "b t d h w -> (b t) d h w")
        share = series.valid.to(torch.float32)
        if name in self.rise:
            stride = 1.0
            h, w = share.shape[-2:]
            x = self.rise[name](x)[..., :h, :w]
        else:
            stride = float(SWIN_STRIDE)
            share = F.avg_pool2d(share, SWIN_STRIDE, ceil_mode=True)
        rows, columns = x.shape[-2:]
        if (rows, columns) != grid:
            if self.spec.align == "input":
                raise self._grids_differ(name, series, stride, grid)
            x = F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
            stride = stride * rows / grid[0]
            share = F.interpolate(share, size=grid, mode="bilinear", align_corners=False)
        x = rearrange(x, "(b t) d h w -> b t d h w", b=share.shape[0])
        return FeatureMap(tensor=x, stride=stride), share >= 0.5

    def add_dates(self, name: str, x: Float[Tensor, "b t d h w"], series: Series) -> Float[Tensor, "b t d h w"]:
        """The map with each dated image's vector added [P Eq. 2], where the spec wants it for this modality."""
        if self.dates is None or (self.spec.dates_on != "all" and name not in self.spec.dates_on):
            return x
        return x + self.dates(series.day_of_year, series.dated)[..., None, None]

    def blocks(self) -> list[nn.Module]:
        """The transformer layers, but for the fusion's last one, of which a part is run only."""
        fusion = [] if self.fusion is None else [*self.fusion.layers][:-1]
        return [block for name in self.encoders for block in self.encoder(name).blocks] + fusion

    def parts(self) -> list[nn.Module]:
        """What is called on its own and holds all parameters."""
        single = [part for part in (self.dates, self.fusion) if part is not None]
        return [*self.encoders.values(), *self.rise.values(), *single]

    @property
    def n_layers(self) -> int:
        """The depth that a head has in `layer_of`'s count."""
        depth = self._encoder_depth + 1
        return depth if self.fusion is None else depth + 1 + len(self.fusion.layers)

    def layer_of(self, parameter: str) -> int:
        """How deep a parameter lies, for layer-wise learning rates: 0 is nearest to the pixels, then counted by layer.

        Encoders end at the same depth; what aligns and dates follows, then the fusion's layers.
        """
        part, _, rest = parameter.partition(".")
        if part == "encoders":
            name, _, rest = rest.partition(".")
            encoder = self.encoder(name)
            return self._encoder_depth - encoder.depth + encoder.layer_of(rest)
        if rest.startswith("layers."):
            return self._encoder_depth + 2 + int(rest.split(".")[1])
        return self._encoder_depth + 1

    def freeze(self, *parts: str) -> None:
        """Keep these modules as they are: no gradient, and evaluation mode even while the rest trains.

        Parts are module names such as `encoders`, `encoders.s2` or `fusion`; none named means all of the model. Raises
        UsageError for a name that the model does not have.
        """
        known = [name for name, _ in self.named_modules() if name and name.count(".") < 2]
        for part in parts:
            if part not in known:
                raise unknown("part of the model", part, known)
        self.frozen = parts or tuple(name for name, _ in self.named_children())
        for part in self.frozen:
            self.get_submodule(part).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SkySense":
        super().train(mode)
        for part in self.frozen:
            self.get_submodule(part).eval()
        return self

    @property
    def _encoder_depth(self) -> int:
        return max(self.encoder(name).depth for name in self.encoders)

    def _finest(self, names: Iterable[str]) -> str:
        return min(names, key=lambda name: self.modalities[name].gsd)

    def _check(self, images: Mapping[str, Series]) -> None:
        if not images:
            raise UsageError("no images given", fix=f"The model knows {', '.join(self.modalities)}.")
        for name, series in images.items():
            if name not in self.modalities:
                raise unknown("modality of this model", name, self.modalities)
            given, wanted = series.pixels.shape[2], len(self.modalities[name].bands)
            if given != wanted:
                bands = ", ".join(self.modalities[name].band_names)
                raise UsageError(f"{name} has {given} bands, the model reads {wanted}", fix=f"It reads {bands}.")

    def _grids_differ(self, name: str, series: Series, stride: float, grid: tuple[Size, Size]) -> SkysenseError:
        h, w = series.pixels.shape[-2:]
        rows, columns = grid
        return SkysenseError(
            f"{name} has {h} x {w} pixels, but the modalities meet on a grid of {rows} x {columns} cells,"
            f" which takes {rows * stride:g} x {columns * stride:g} pixels of {name}",
            fix='Resample the images to the pixel sizes of the modalities, or set align = "features".',
        )


class Normalise(nn.Module):
    """A modality's own unit to zero mean and unit variance per band; invalid pixels become 0, whatever they hold."""

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        for name, values in (("mean", modality.mean), ("std", modality.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, pixels: Float[Tensor, "b t c h w"], valid: Bool[Tensor, "b t h w"]) -> Float[Tensor, "b t c h w"]:
        return torch.where(valid[:, :, None], (pixels - self.mean) / self.std, 0.0)


def build_encoder(spec: ModelSpec, modality: Modality) -> SwinTransformer | VisionTransformer:
    """The encoder that a modality's file asks for."""
    bands, sizes = len(modality.bands), spec.sizes
    if modality.encoder == "swin":
        return SwinTransformer(sizes.swin, bands, pad_small_map=spec.pad_small_map, drop_path=spec.drop_path)
    return VisionTransformer(
        sizes.own.get(modality.name, sizes.vit),
        bands,
        class_token=spec.class_token,
        eps=spec.vit_eps,
        drop_path=spec.drop_path,
    )


def initialise(module: nn.Module) -> None:
    """Start values for training from scratch [A]; norms, biases, logit scales and the date table keep their own."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, VisionTransformer):
        nn.init.normal_(module.positions, std=0.02)
        if module.class_token is not None:
            nn.init.normal_(module.class_token, std=0.02)
    elif isinstance(module, Fusion):
        nn.init.normal_(module.extra_token, std=0.02)
