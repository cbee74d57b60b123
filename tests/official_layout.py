"""Names and shapes of the authors' files for a model of any size, written down from METHOD 5 and not from our code."""

from skysense_core.model.presets import FusionSpec, Preset, SwinSpec, VitSpec

Shapes = dict[str, tuple[int, ...]]


def layers(prefix: str, depth: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(depth):
        at = f"{prefix}layers.{layer}"
        for norm in ("ln1", "ln2"):
            shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
        shapes |= {f"{at}.attn.attn.in_proj_weight": (3 * width, width), f"{at}.attn.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{at}.attn.attn.out_proj.weight": (width, width), f"{at}.attn.attn.out_proj.bias": (width,)}
        shapes |= {f"{at}.ffn.layers.0.0.weight": (4 * width, width), f"{at}.ffn.layers.0.0.bias": (4 * width,)}
        shapes |= {f"{at}.ffn.layers.1.weight": (width, 4 * width), f"{at}.ffn.layers.1.bias": (width,)}
    return shapes


def vit(prefix: str, spec: VitSpec, bands: int) -> Shapes:
    entries, width = 1 + (spec.native // 4) ** 2, spec.width
    embedding: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, entries, width)}
    embedding |= {"patch_embed.projection.weight": (width, bands, 4, 4), "patch_embed.projection.bias": (width,)}
    return {f"{prefix}{name}": shape for name, shape in embedding.items()} | layers(prefix, spec.depth, width)


def swin(prefix: str, spec: SwinSpec) -> Shapes:
    """With what the released file has too much: the mask token, and one of the two recomputed tables."""
    shapes: Shapes = {"mask_token": (1, 1, spec.embed)}
    shapes |= {"norm3.weight": (8 * spec.embed,), "norm3.bias": (8 * spec.embed,)}
    shapes |= {"patch_embed.projection.weight": (spec.embed, 3, 4, 4), "patch_embed.projection.bias": (spec.embed,)}
    shapes |= {"patch_embed.norm.weight": (spec.embed,), "patch_embed.norm.bias": (spec.embed,)}
    for stage, (depth, heads) in enumerate(zip(spec.depths, spec.heads, strict=True)):
        width = spec.embed * 2**stage
        if stage:
            at = f"stages.{stage}.downsample"
            shapes |= {f"{at}.reduction.weight": (width, 2 * width)}
            shapes |= {f"{at}.norm.weight": (width,), f"{at}.norm.bias": (width,)}
        for block in range(depth):
            at = f"stages.{stage}.blocks.{block}"
            extra = block % spec.extra_norm_every == spec.extra_norm_every - 1
            for norm in ("norm1", "norm2", "norm3") if extra else ("norm1", "norm2"):
                shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
            attention = f"{at}.attn.w_msa"
            shapes |= {f"{attention}.logit_scale": (heads, 1, 1), f"{attention}.qkv.weight": (3 * width, width)}
            shapes |= {f"{attention}.q_bias": (width,), f"{attention}.v_bias": (width,)}
            shapes |= {f"{attention}.cpb_mlp.0.weight": (512, 2), f"{attention}.cpb_mlp.0.bias": (512,)}
            shapes |= {f"{attention}.cpb_mlp.2.weight": (heads, 512), f"{attention}.proj.bias": (width,)}
            shapes |= {f"{attention}.proj.weight": (width, width)}
            shapes |= {f"{attention}.relative_coords_table": (1, 15, 15, 2)}
            shapes |= {f"{at}.ffn.layers.0.0.weight": (4 * width, width), f"{at}.ffn.layers.0.0.bias": (4 * width,)}
            shapes |= {f"{at}.ffn.layers.1.weight": (width, 4 * width), f"{at}.ffn.layers.1.bias": (width,)}
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def head(prefix: str, width: int, channels: int) -> Shapes:
    return {f"{prefix}decoder.0.weight": (16 * channels, width, 1, 1), f"{prefix}decoder.0.bias": (16 * channels,)}


def fusion(prefix: str, spec: FusionSpec, channels: int) -> Shapes:
    shapes: Shapes = {f"{prefix}porj_linear.weight": (spec.width, channels), f"{prefix}porj_linear.bias": (spec.width,)}
    return shapes | {f"{prefix}cls_token": (1, 1, spec.width)} | layers(prefix, spec.depth, spec.width)


def one_file(sizes: Preset) -> Shapes:
    """The training checkpoint: every part under its prefix, the dates without any."""
    shapes = swin("backbone_gep.", sizes.swin) | vit("backbone_s2.", sizes.vit, 10) | vit("backbone_s1.", sizes.vit, 2)
    for name in ("head_s2.", "head_s1."):
        shapes |= head(name, sizes.vit.width, sizes.channels)
    return shapes | fusion("fusion.", sizes.fusion, sizes.channels) | {"ctpe": (1, 365, sizes.channels)}
