"""Model sizes and options: one name fixes every width. The topology is the paper's at every size (METHOD 2).

Free of torch, so that a model folder can be described without it.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from skysense_core.errors import unknown

DatesStart: TypeAlias = Literal["seasons", "zeros"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinSpec:
    """A Swin V2 encoder: four stages at strides 4, 8, 16, 32; the width doubles from stage to stage."""

    embed: int
    """Width of the first stage."""
    depths: tuple[int, ...]
    """Blocks per stage."""
    heads: tuple[int, ...]
    """Attention heads per stage."""
    extra_norm_every: int = 6
    """The output of every n-th block of a stage is normalised once more."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's output."""
        return tuple(self.embed * 2**stage for stage in range(len(self.depths)))


@dataclass(frozen=True, slots=True, kw_only=True)
class VitSpec:
    """A vision transformer with 4x4 patches."""

    width: int
    depth: int
    heads: int
    native: int = 64
    """Side in pixels of the picture that the position table was made for."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Four evenly spaced layers for dense heads, the last one among them: 5, 11, 17, 23 of 24."""
        return tuple(sorted({max(round(self.depth * quarter / 4) - 1, 0) for quarter in (1, 2, 3, 4)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionSpec:
    """The transformer over the tokens of one position."""

    width: int
    depth: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeSpec:
    """The globe is cut into rows x columns regions of equal area, each with `count` prototypes."""

    rows: int
    columns: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Every width of a model."""

    swin: SwinSpec
    vit: VitSpec
    fusion: FusionSpec
    prototypes: PrototypeSpec
    decoder_width: int
    """Channels inside the decoders of dense tasks."""
    own: dict[str, VitSpec] = field(default_factory=dict)
    """By modality: a ViT of other sizes than `vit`; converted checkpoints may have one."""

    @property
    def channels(self) -> int:
        """D: channels of every modality's map where they meet, those of the Swin encoder's last stage."""
        return self.swin.widths[-1]


PRESETS: dict[str, Preset] = {
    # 2.0 M parameters without prototypes: a CPU trains it in minutes.
    "nano": Preset(
        swin=SwinSpec(embed=16, depths=(2, 2, 6, 2), heads=(1, 2, 4, 8)),
        vit=VitSpec(width=64, depth=4, heads=4),
        fusion=FusionSpec(width=64, depth=2, heads=4),
        prototypes=PrototypeSpec(rows=4, columns=16, count=8),
        decoder_width=32,
    ),
    # 9.4 M
    "tiny": Preset(
        swin=SwinSpec(embed=32, depths=(2, 2, 6, 2), heads=(1, 2, 4, 8)),
        vit=VitSpec(width=128, depth=6, heads=4),
        fusion=FusionSpec(width=192, depth=6, heads=6),
        prototypes=PrototypeSpec(rows=8, columns=32, count=16),
        decoder_width=64,
    ),
    # 36 M
    "small": Preset(
        swin=SwinSpec(embed=64, depths=(2, 2, 6, 2), heads=(2, 4, 8, 16)),
        vit=VitSpec(width=256, depth=8, heads=8),
        fusion=FusionSpec(width=256, depth=8, heads=8),
        prototypes=PrototypeSpec(rows=16, columns=64, count=32),
        decoder_width=128,
    ),
    # 0.18 B
    "base": Preset(
        swin=SwinSpec(embed=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
        vit=VitSpec(width=512, depth=12, heads=8),
        fusion=FusionSpec(width=512, depth=12, heads=8),
        prototypes=PrototypeSpec(rows=32, columns=128, count=50),
        decoder_width=256,
    ),
    # 0.49 B
    "large": Preset(
        swin=SwinSpec(embed=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
        vit=VitSpec(width=768, depth=12, heads=12),
        fusion=FusionSpec(width=768, depth=12, heads=12),
        prototypes=PrototypeSpec(rows=32, columns=128, count=100),
        decoder_width=512,
    ),
    # 1.66 B: the paper's model
    "huge": Preset(
        swin=SwinSpec(embed=352, depths=(2, 2, 18, 2), heads=(8, 16, 32, 64)),
        vit=VitSpec(width=1024, depth=24, heads=16),
        fusion=FusionSpec(width=1024, depth=24, heads=16),
        prototypes=PrototypeSpec(rows=32, columns=128, count=100),
        decoder_width=512,
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name. Raises UsageError with the closest known name otherwise."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model is built from, besides its modalities; kept in the model folder."""

    preset: str = "tiny"
    custom: Preset | None = None
    """Sizes that are no preset's; they take the preset's place."""
    fusion: bool = True
    """Without it there are encoders only: no alignment, dates, fusion or prototypes."""
    prototypes: bool = False
    """Whether positions attend to the prototypes of their region; these mean something after pre-training only."""
    dates_on: Literal["all"] | tuple[str, ...] = "all"
    """Modalities whose tokens get a date: all as in the paper [P Eq. 2]; the authors' later code has ("s2",)."""
    dates_start: DatesStart = "seasons"
    """What the table of dates holds before training: waves of the year [A], or zeros as in the paper [P]."""
    align: Literal["input", "features"] = "input"
    """Where pixel sizes meet: "input" demands images whose maps coincide, "features" resamples the maps [A]."""
    class_token: bool = True
    """Whether a class token runs through the ViTs; the authors' two code bases differ."""
    vit_eps: float = 1e-5
    """Layer norms of the ViTs: 1e-5, or 1e-6 as in the authors' later code."""
    pad_small_map: bool = False
    """Swin keeps its shift on maps no larger than a window; an option of the authors'."""
    drop_path: float = 0.0
    """Rate of stochastic depth at the last layer of the encoders and of the fusion; it acts in training only."""

    @property
    def sizes(self) -> Preset:
        """The widths. Raises UsageError for an unknown preset."""
        return self.custom or preset(self.preset)
