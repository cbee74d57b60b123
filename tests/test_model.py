"""The model through its public interface: sizes, invariances, absence, geo-context, saving, and what may be refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import WindowAttention as TimmWindowAttention
from torch import Tensor, nn

from skysense_core import config, modalities
from skysense_core.data.batch import Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.model import fusion
from skysense_core.model.dates import DateTable
from skysense_core.model.decoders import Fcn, FeaturePyramid, UperNet
from skysense_core.model.presets import PRESETS, FusionSpec, ModelSpec, PrototypeSpec, SwinSpec, VitSpec, preset
from skysense_core.model.prototypes import Prototypes
from skysense_core.model.skysense import Features, SkySense
from skysense_core.model.swin import SwinTransformer, WindowAttention, relative_positions, shift_mask
from skysense_core.model.vit import attend

ALL = {name: modalities.load(name) for name in ("hr", "s2", "s1")}
SMALL = replace(
    preset("nano"),
    swin=SwinSpec(embed=4, depths=(2, 2, 6, 2), heads=(1, 1, 2, 2)),
    vit=VitSpec(width=8, depth=2, heads=2, native=16),
    fusion=FusionSpec(width=8, depth=2, heads=2),
    prototypes=PrototypeSpec(rows=4, columns=16, count=3),
)
PARIS, PACIFIC = (2.35, 48.86), (-140.0, 0.0)


def build(*names: str, seed: int = 0, **options: object) -> SkySense:
    torch.manual_seed(seed)
    model = SkySense(ModelSpec(custom=SMALL, **options), {name: ALL[name] for name in names or ALL}).eval()
    if model.dates is not None:
        nn.init.normal_(model.dates.table)
    return model


def series(name: str, h: int, w: int, *, t: int = 1, b: int = 2, seed: int = 1) -> Series:
    """Random images in the modality's own unit, all valid, dated at random."""
    generator = torch.Generator().manual_seed(seed + len(name) + t)
    modality = ALL[name]
    noise = torch.randn(b, t, len(modality.bands), h, w, generator=generator)
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (modality.mean, modality.std))
    return Series(
        pixels=noise * std + mean,
        valid=torch.ones(b, t, h, w, dtype=torch.bool),
        day_of_year=torch.randint(1, 367, (b, t), generator=generator),
        dated=torch.ones(b, t, dtype=torch.bool),
    )


def triple(rows: int = 4, columns: int = 8, b: int = 2) -> dict[str, Series]:
    """hr, three dates of s2 and two of s1 of one footprint of rows x columns S2 pixels."""
    return {
        "hr": series("hr", 32 * rows, 32 * columns, b=b),
        "s2": series("s2", rows, columns, t=3, b=b),
        "s1": series("s1", rows, columns, t=2, b=b),
    }


def select_dates(given: Series, order: list[int]) -> Series:
    return Series(
        pixels=given.pixels[:, order],
        valid=given.valid[:, order],
        day_of_year=given.day_of_year[:, order],
        dated=given.dated[:, order],
    )


def fused(features: Features) -> Tensor:
    assert features.fused is not None
    return features.fused.tensor


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- sizes


def test_huge_has_the_papers_parameter_counts() -> None:
    with torch.device("meta"):
        model = SkySense(ModelSpec(preset="huge", prototypes=True), ALL)
        last_level = SwinTransformer(PRESETS["huge"].swin, 3, levels=(3,))
    assert count(last_level) == 655_074_704
    assert count(model.encoders["hr"]) == 655_079_632
    assert count(model.encoders["s2"]) == 302_738_432
    assert count(model.encoders["s1"]) == 302_607_360
    assert count(model.fusion) == 305_195_008
    assert count(model.rise["s2"]) == count(model.rise["s1"]) == 46_182_400
    assert count(model.dates) == 1_027_840
    assert tuple(model.prototypes.prototypes.shape) == (4096, 100, 1024)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_the_topology(name: str) -> None:
    sizes = preset(name)
    with torch.device("meta"):
        model = SkySense(ModelSpec(preset=name, prototypes=True), ALL)
    assert [len(stage.blocks) for stage in model.encoders["hr"].stages] == list(sizes.swin.depths)
    extra = [isinstance(block.norm3, nn.LayerNorm) for block in model.encoders["hr"].stages[2].blocks]
    assert [index for index, has in enumerate(extra) if has] == list(range(5, sizes.swin.depths[2], 6))
    assert len(sizes.vit.levels) == 4
    assert sizes.vit.levels[-1] == sizes.vit.depth - 1


def test_presets_grow_and_nano_is_small() -> None:
    totals = []
    for name in PRESETS:
        with torch.device("meta"):
            totals.append(count(SkySense(ModelSpec(preset=name), ALL)))
    assert totals == sorted(totals)
    assert totals[0] < 2.2e6
    assert PRESETS["huge"].vit.levels == (5, 11, 17, 23)


def test_spec_survives_a_model_folder() -> None:
    spec = ModelSpec(custom=replace(SMALL, own={"s1": VitSpec(width=12, depth=3, heads=3)}), dates_on=("s2",))
    assert config.build(ModelSpec, config.to_table(spec)) == spec
    assert config.build(ModelSpec, config.to_table(ModelSpec(preset="nano"))) == ModelSpec(preset="nano")


# --- attention


def test_window_attention_equals_timms() -> None:
    ours = WindowAttention(12, 3).eval()
    theirs = TimmWindowAttention(12, (8, 8), 3).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    windows = torch.randn(2, 6, 64, 12, generator=generator)
    mask = shift_mask(16, 24, 4, torch.device("cpu"), torch.float32)
    for given in (None, mask):
        expected = theirs(windows.flatten(0, 1), given).view_as(windows)
        torch.testing.assert_close(ours(windows, given), expected, rtol=0, atol=1e-5)


def test_tables_of_a_forward_without_gradient_serve_training() -> None:
    for cached in (shift_mask, relative_positions):
        cached.cache_clear()
    encoder = SwinTransformer(SMALL.swin, 3)
    images = torch.randn(1, 3, 72, 72)
    with torch.inference_mode():
        encoder(images)
    encoder(images)[-1].sum().backward()


# --- any size, any modalities


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (31, 33), (100, 37), (224, 224), (256, 64)])
def test_hr_of_any_size(size: tuple[int, int]) -> None:
    features = build("hr")({"hr": series("hr", *size)})
    for level, stride in zip(features.levels["hr"], (4, 8, 16, 32), strict=True):
        assert level.stride == stride
        assert level.tensor.shape[-2:] == tuple(-(-n // stride) for n in size)
    assert fused(features).shape == (2, 1, 8, *(-(-n // 32) for n in size))
    assert fused(features).isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (16, 16), (64, 4)])
def test_vit_of_any_size(size: tuple[int, int]) -> None:
    features = build("s2")({"s2": series("s2", *size, t=2)})
    assert fused(features).shape == (2, 1, 8, *size)
    assert features.aligned["s2"].tensor.shape == (2, 2, 32, *size)
    assert features.fused.stride == 1


@pytest.mark.parametrize("names", [("hr",), ("s2",), ("s1",), ("hr", "s2"), ("s2", "s1"), ("hr", "s2", "s1")])
def test_any_modalities(names: tuple[str, ...]) -> None:
    images = {name: triple()[name] for name in names}
    features = build(*names)(images)
    assert set(features.levels) == set(features.aligned) == set(names)
    assert fused(features).shape == (2, 1, 8, 4, 8)
    part_of_all = build()(images)
    assert set(part_of_all.aligned) == set(names)


def test_encoders_alone() -> None:
    model = build("hr", fusion=False)
    assert model.fusion is None
    assert not any(name.startswith(("dates", "rise", "fusion")) for name in model.state_dict())
    images = {"hr": triple()["hr"]}
    alone = model(images)
    assert alone.fused is None
    assert not alone.aligned
    whole = build("hr")
    whole.load_state_dict(model.state_dict(), strict=False)
    for a, b in zip(alone.levels["hr"], whole(images, fuse=False).levels["hr"], strict=True):
        assert torch.equal(a.tensor, b.tensor)


# --- invariances


def test_pixels_that_are_not_valid_change_nothing() -> None:
    model, images = build(prototypes=True), triple()
    generator = torch.Generator().manual_seed(5)
    for name, given in images.items():
        valid = torch.rand(given.valid.shape, generator=generator) > 0.6
        valid[0, 0] = False  # a whole image
        images[name] = replace(given, valid=valid)
    before = model(images)
    for junk in (1e30, float("nan"), float("inf")):
        spoilt = {
            name: replace(given, pixels=torch.where(given.valid[:, :, None], given.pixels, junk))
            for name, given in images.items()
        }
        after = model(spoilt)
        assert torch.equal(fused(before), fused(after))
        for name in images:
            for a, b in zip(before.levels[name], after.levels[name], strict=True):
                assert torch.equal(a.tensor, b.tensor)
            assert torch.equal(before.aligned[name].tensor, after.aligned[name].tensor)
    assert fused(before).isfinite().all()


def test_order_of_modalities_and_dates_changes_nothing() -> None:
    model, images = build(), triple()
    expected = fused(model(images))
    torch.testing.assert_close(fused(model(dict(reversed(images.items())))), expected, rtol=0, atol=1e-5)
    shuffled = images | {"s2": select_dates(images["s2"], [2, 0, 1]), "s1": select_dates(images["s1"], [1, 0])}
    torch.testing.assert_close(fused(model(shuffled)), expected, rtol=0, atol=1e-5)
    undated_order = replace(shuffled["s2"], day_of_year=images["s2"].day_of_year)
    assert not torch.allclose(fused(model(shuffled | {"s2": undated_order})), expected, atol=1e-3)


def test_absence_equals_not_being_there() -> None:
    """Padding in time, an absent modality and another sample in the batch leave no trace."""
    model, images = build(), triple()
    without_s1 = fused(model({name: images[name] for name in ("hr", "s2")}))
    absent = replace(images["s1"], valid=torch.zeros_like(images["s1"].valid))
    torch.testing.assert_close(fused(model(images | {"s1": absent})), without_s1, rtol=0, atol=1e-5)

    padded = replace(images["s2"], valid=images["s2"].valid.clone())
    padded.valid[0, 1:] = False
    batched = fused(model(images | {"s2": padded}))[0]
    alone = {name: replace_batch(given, 0) for name, given in images.items()}
    alone["s2"] = select_dates(alone["s2"], [0])
    torch.testing.assert_close(batched, fused(model(alone))[0], rtol=0, atol=1e-5)


def replace_batch(given: Series, index: int) -> Series:
    part = slice(index, index + 1)
    return Series(
        pixels=given.pixels[part],
        valid=given.valid[part],
        day_of_year=given.day_of_year[part],
        dated=given.dated[part],
    )


def test_a_place_without_any_token_is_finite_and_has_a_gradient() -> None:
    model, images = build(), triple()
    nothing = {name: replace(given, valid=torch.zeros_like(given.valid)) for name, given in images.items()}
    features = model(nothing)
    assert not any(present.any() for present in features.present.values())
    fused(features).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert fused(features).isfinite().all()


def test_hr_cell_needs_half_of_its_pixels() -> None:
    model, images = build("hr"), {"hr": series("hr", 64, 96, b=1)}
    valid = images["hr"].valid
    valid[0, 0, :32, :17] = False  # 17 of 32 columns gone
    valid[0, 0, :32, 32:48] = False  # 16 of 32 gone
    present = model({"hr": replace(images["hr"], valid=valid)}).present["hr"][0, 0]
    assert present.tolist() == [[False, True, True], [True, True, True]]


def test_large_grids_are_fused_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = build(), triple()
    whole = fused(model(images))
    monkeypatch.setitem(fusion.CHUNK, "cpu", 8 * 7 * 5)
    torch.testing.assert_close(fused(model(images)), whole, rtol=0, atol=1e-6)


# --- dates


def test_day_366_and_no_date() -> None:
    model, images = build("s2"), {"s2": series("s2", 4, 4, b=1)}

    def at(day: int, dated: bool = True) -> Tensor:
        given = replace(
            images["s2"], day_of_year=torch.full((1, 1), day), dated=torch.full((1, 1), dated, dtype=torch.bool)
        )
        return fused(model({"s2": given}))

    assert torch.equal(at(366), at(365))
    assert not torch.allclose(at(1), at(365))
    assert torch.equal(at(1, dated=False), at(200, dated=False))
    nn.init.zeros_(model.dates.table)
    assert torch.equal(at(1), at(100, dated=False))


def test_dates_begin_as_seasons_in_which_days_of_one_month_are_alike() -> None:
    table = DateTable(32, "seasons").table.detach()[0]
    apart = torch.cdist(table, table)
    assert apart[100, 104] < 0.5 * apart[100, 130]  # a month on is further than four days on
    assert apart[0, 364] < 0.5 * apart[0, 30]  # a year is round
    assert apart[0, 182] > 2 * apart[100, 104]
    spec, s2 = ModelSpec(custom=SMALL), {"s2": ALL["s2"]}
    assert SkySense(spec, s2).dates.table.any()
    assert not SkySense(replace(spec, dates_start="zeros"), s2).dates.table.any()


def test_dates_only_where_wanted() -> None:
    images = triple()
    model = build(dates_on=("s2",))
    expected = fused(model(images))
    other_s1 = replace(images["s1"], day_of_year=torch.full_like(images["s1"].day_of_year, 7))
    other_s2 = replace(images["s2"], day_of_year=torch.full_like(images["s2"].day_of_year, 7))
    assert torch.equal(fused(model(images | {"s1": other_s1})), expected)
    assert not torch.allclose(fused(model(images | {"s2": other_s2})), expected)
    assert build(dates_on=()).dates is None


# --- geo-context


def test_regions_are_of_equal_area_and_cyclic() -> None:
    grid = Prototypes(PrototypeSpec(rows=8, columns=32, count=1), 4)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200_000, 2, generator=generator)
    longitude = uniform[:, 0] * 360 - 180
    latitude = torch.rad2deg(torch.asin(uniform[:, 1] * 2 - 1))
    shares = torch.bincount(grid.regions(torch.stack((longitude, latitude), 1)), minlength=256) / len(uniform) * 256
    assert shares.min() > 0.8
    assert shares.max() < 1.2
    edge = torch.tensor([[180.0, 10], [-180, 10], [540, 10], [179.999, 10], [0, 90], [0, -90]])
    east, west, around, inside, north, south = grid.regions(edge).tolist()
    assert east == west == around
    assert inside == west + 31
    assert (north // 32, south // 32) == (7, 0)


def test_context_of_known_regions_only() -> None:
    model, images = build(prototypes=True), triple(b=3)
    places = torch.tensor([PARIS, PACIFIC, PARIS])
    located = torch.tensor([True, True, False])
    features = model(images, places, located)
    assert features.known_region.tolist() == [False, False, False]
    assert not fused(features)[:, :, 8:].any()

    region = model.prototypes.regions(places)
    assert region[0] != region[1]
    model.prototypes.visited[region[0]] = True
    features = model(images, places, located)
    assert features.known_region.tolist() == [True, False, False]
    own, context = fused(features)[:, 0].split(8, dim=1)
    assert torch.equal(own, features.fused_mm.tensor[:, 0])
    assert context[0].any()
    assert not context[1:].any()
    # Eq. 3 at one position, written out
    prototypes = model.prototypes.prototypes[region[0]]
    expected = torch.softmax(prototypes @ own[0, :, 1, 2] / 8**0.5, dim=0) @ prototypes
    torch.testing.assert_close(context[0, :, 1, 2], expected)
    assert model(images).known_region.tolist() == [False, False, False]


# --- grids


def test_grids_that_do_not_meet() -> None:
    images = triple() | {"hr": series("hr", 96, 160)}
    with pytest.raises(SkysenseError, match=r"hr has 96 x 160 pixels, .* takes 128 x 256 pixels"):
        build()(images)
    features = build(align="features")(images)
    assert features.aligned["hr"].tensor.shape[-2:] == (4, 8)
    assert features.aligned["hr"].stride == pytest.approx(24)
    assert fused(features).isfinite().all()
    meeting = triple()
    assert torch.equal(fused(build(align="features")(meeting)), fused(build()(meeting)))


# --- training


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model, images = build(drop_path=0.1).train(), triple()
    features = model(images)
    maps = [level.tensor for levels in features.levels.values() for level in levels]
    sum((m * torch.randn_like(m)).mean() for m in [*maps, fused(features)]).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_frozen_parts_stay() -> None:
    model = build(drop_path=0.5)
    model.freeze("encoders.hr", "dates")
    model.train()
    assert not model.encoders["hr"].training
    assert model.encoders["s2"].training
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"encoders", "rise", "fusion"}
    model.freeze()
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(UsageError, match=r"encoders\.s3"):
        model.freeze("encoders.s3")


def test_layers_are_numbered_from_the_pixels_up() -> None:
    model = build()
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["encoders.hr.patch_embed.projection.weight"] == 0
    assert layers["encoders.hr.stages.2.blocks.3.norm1.weight"] == 8
    assert layers["encoders.hr.stages.3.downsample.norm.weight"] == 11
    assert layers["encoders.hr.norms.3.weight"] == layers["encoders.s2.layers.1.mlp.fc1.weight"] == 12
    assert layers["encoders.s2.positions"] == 10
    assert layers["dates.table"] == layers["fusion.project.weight"] == layers["rise.s1.projection.weight"] == 13
    assert layers["fusion.layers.1.norm1.weight"] == 15
    assert model.n_layers == 16
    assert build("hr", fusion=False).n_layers == 13


def test_saved_and_loaded_it_gives_the_same() -> None:
    images = triple()
    places, located = torch.tensor([PARIS, PARIS]), torch.tensor([True, True])
    model, other = build(prototypes=True), build(prototypes=True, seed=1)
    model.prototypes.visited[:] = True
    assert not torch.allclose(fused(model(images, places, located)), fused(other(images, places, located)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(fused(model(images, places, located)), fused(other(images, places, located)))
    with torch.device("meta"):
        empty = SkySense(model.spec, model.modalities).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(fused(model(images, places, located)), fused(empty(images, places, located)))


# --- decoders


def test_decoders_answer_on_their_finest_map() -> None:
    levels = [torch.randn(1, c, h, w) for c, h, w in ((4, 17, 13), (8, 9, 7), (16, 5, 4), (32, 3, 2))]
    assert UperNet((4, 8, 16, 32), 8, 5)(levels).shape == (1, 5, 17, 13)
    assert UperNet((4, 8, 16, 32), 8, 5, pools=())(levels).shape == (1, 5, 17, 13)
    assert Fcn(32, 8, 5)(levels[3]).shape == (1, 5, 3, 2)
    pyramid = FeaturePyramid(4, 8)(levels[0])
    assert [tuple(level.shape[1:]) for level in pyramid] == [(8, 17, 13), (8, 9, 7), (8, 5, 4), (8, 3, 2)]
    assert UperNet((8,) * 4, 8, 5)(pyramid).shape == (1, 5, 17, 13)


@pytest.mark.parametrize("side", [1, 4])
def test_the_pyramid_of_a_point_learns_the_same_in_bfloat16(side: int) -> None:
    """Kernels reach beyond a map of one pixel: weights that touch nothing have no gradient, whatever lay in memory."""
    torch.manual_seed(0)
    pyramid, x = FeaturePyramid(32, 32), torch.randn(64, 32, side, side)
    found = []
    for half in (True, False):
        pyramid.zero_grad()
        rubbish = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in (9216, 36864, 100_000)]
        del rubbish
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            total = torch.stack([level.float().square().mean() for level in pyramid(x)]).sum()
        total.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in pyramid.parameters()]))
    scale = found[1].abs().max()
    assert torch.allclose(found[0] / scale, found[1] / scale, atol=0.05)


@pytest.mark.parametrize("decoder", [Fcn(4, 8, 3), UperNet((4,) * 4, 8, 3)])
def test_decoders_do_not_mix_samples(decoder: nn.Module) -> None:
    decoder.train()
    x = torch.randn(2, 4, 8, 8)

    def run(part: Tensor) -> Tensor:
        return decoder(part) if isinstance(decoder, Fcn) else decoder([part] * 4)

    torch.testing.assert_close(run(x)[:1], run(x[:1]), rtol=0, atol=1e-5)


# --- refusals


def test_refusals() -> None:
    with pytest.raises(UsageError, match="unknown preset 'hug'") as caught:
        SkySense(ModelSpec(preset="hug"), ALL)
    assert "did you mean huge" in str(caught.value)
    with pytest.raises(UsageError, match="at least one modality"):
        SkySense(ModelSpec(preset="nano"), {})
    model = build("s2")
    with pytest.raises(UsageError, match="unknown modality of this model 's1'"):
        model({"s1": series("s1", 4, 4)})
    with pytest.raises(UsageError, match="no images"):
        model({})
    four_bands = series("s2", 4, 4)
    with pytest.raises(UsageError, match="s2 has 4 bands, the model reads 10"):
        model({"s2": replace(four_bands, pixels=four_bands.pixels[:, :, :4])})


def test_training_on_a_cpu_in_bfloat16_attends_in_float32() -> None:
    torch.manual_seed(0)
    given = [torch.randn(2, 2, 5, 8).bfloat16().requires_grad_() for _ in range(3)]
    plain = [tensor.detach().float().requires_grad_() for tensor in given]
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])[:, None, None, :]
    expected = F.scaled_dot_product_attention(*plain, attn_mask=mask)
    expected.square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*given, mask)
        with torch.no_grad():
            assert attend(*given, mask).dtype == torch.bfloat16
    found.square().sum().backward()
    assert torch.equal(found, expected)
    for ours, theirs in zip(given, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.bfloat16())
