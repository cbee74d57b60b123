"""The production classes against stored outputs of the authors' modules, at small sizes with random weights."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from skysense_core import modalities
from skysense_core.data.batch import Series
from skysense_core.modalities import Modality
from skysense_core.model.adapt import resize_positions
from skysense_core.model.inputs import select_bands
from skysense_core.model.official import load_official, with_part
from skysense_core.model.presets import FusionSpec, ModelSpec, Preset, SwinSpec, VitSpec, preset
from skysense_core.model.skysense import SkySense

close = partial(torch.testing.assert_close, rtol=0, atol=1e-4)
close_fused = partial(torch.testing.assert_close, rtol=0, atol=3e-4)


@pytest.fixture(scope="session")
def parity(shared_data: Path) -> Path:
    folder = shared_data / "official_parity"
    if not folder.is_dir():
        pytest.skip("needs the stored outputs of the authors' modules in ../shared/data/official_parity")
    return folder


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.inference_mode():
        yield


def read_case(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def unit(name: str, bands: int | None = None) -> Modality:
    """The packaged modality with statistics 0 and 1: the stored inputs are already normalised."""
    modality = modalities.load(name)
    if bands is not None:
        modality = modality.with_bands((modality.band_names * 2)[:bands])
    return modality.with_statistics(np.zeros(len(modality.bands)), np.ones(len(modality.bands)))


def swin_spec(config: Mapping[str, Any]) -> SwinSpec:
    arch = config["arch"]
    return SwinSpec(
        embed=arch["embed_dims"],
        depths=tuple(arch["depths"]),
        heads=tuple(arch["num_heads"]),
        extra_norm_every=arch["extra_norm_every_n_blocks"],
    )


def vit_spec(config: Mapping[str, Any]) -> VitSpec:
    return VitSpec(
        width=config["embed_dims"], depth=config["num_layers"], heads=config["num_heads"], native=config["img_size"]
    )


def sizes(**changes: Any) -> Preset:
    nano = preset("nano")
    fields = {name: getattr(nano, name) for name in ("swin", "vit", "fusion", "prototypes", "decoder_width")}
    return Preset(**fields | changes)


def vit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"class_token": config["with_cls_token"], "vit_eps": config["norm_cfg"].get("eps", 1e-5)}


def cases(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = json.loads((folder / "config.json").read_text())
    return config.get("constructor", {}), config["cases"]


def case_input(folder: Path, case: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The picture of a case, and its outputs where another case has the same ones too."""
    stored = read_case(folder / case["file"])
    if "input_from" not in case:
        return stored["input"], stored
    other = read_case(folder / case["input_from"])
    shared = {name: other[name] for name in case.get("outputs_equal_to_that", ())}
    return other["input"], shared | stored


def watch(root: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The outputs of submodules, filled in as the root runs."""
    seen: dict[str, Tensor] = {}
    for name in names:
        root.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    return seen


def hr_encoder(folder: Path, **options: Any) -> nn.Module:
    config, _ = cases(folder)
    spec = ModelSpec(custom=sizes(swin=swin_spec(config)), fusion=False, **options)
    model = SkySense(spec, {"hr": unit("hr")}).eval()
    report = load_official(model, with_part("backbone_hr", load_file(folder / "weights.safetensors")))
    assert not report.fresh
    assert all("relative" in name for name in report.ignored)
    return model.encoders["hr"]


def test_swin_equals_the_authors(parity: Path) -> None:
    config, all_cases = cases(parity / "hr")
    for case in all_cases:
        if case["file"].startswith("trace"):
            continue
        encoder = hr_encoder(parity / "hr", pad_small_map=case["constructor_changes"].get("pad_small_map", False))
        images, outputs = case_input(parity / "hr", case)
        maps = encoder(images)
        for index, level in enumerate(config["out_indices"]):
            close(maps[level], outputs[f"out_{index}"], msg=lambda m, c=case, i=index: f"{c['file']} out_{i}: {m}")


def test_swin_equals_the_authors_at_every_step(parity: Path) -> None:
    trace = read_case(parity / "hr" / "trace_a6_padsmall_1x3x96x160.npz")
    encoder = hr_encoder(parity / "hr", pad_small_map=True)
    seen = watch(encoder, [name for name in trace if not name.endswith(".attn")])
    attended: list[Tensor] = []
    for stage in encoder.stages:
        for block in stage.blocks[:2]:
            block.attend = lambda x, attend=block.attend: attended.append(attend(x)) or attended[-1]
    encoder(read_case(parity / "hr" / "a6_padsmall_1x3x96x160.npz")["input"])
    seen |= dict(zip([name for name in trace if name.endswith(".attn")], attended, strict=True))
    for name, expected in trace.items():
        close(rearrange(seen[name], "b h w d -> b (h w) d"), expected, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["s2", "s1"])
def test_vit_equals_the_authors(parity: Path, name: str) -> None:
    folder = parity / f"vit_{name}"
    config, all_cases = cases(folder)
    tensors = with_part(f"backbone_{name}", load_file(folder / "weights.safetensors"))
    for case in all_cases:
        changed = config | case["constructor_changes"]
        spec = ModelSpec(custom=sizes(vit=vit_spec(config)), fusion=False, **vit_options(changed))
        model = SkySense(spec, {name: unit(name)}).eval()
        report = load_official(model, tensors)
        assert report.matched + len(report.ignored) == len(tensors)
        encoder = model.encoders[name]
        encoder.levels = tuple(changed["out_indices"])
        tokens = watch(encoder, [f"layers.{level}" for level in encoder.levels])
        images, outputs = case_input(folder, case)
        maps = encoder(images)
        results = {f"out_{i}": m for i, m in enumerate(maps)}
        results |= {f"out_{i}_cls": tokens[f"layers.{level}"][:, 0] for i, level in enumerate(encoder.levels)}
        expected = {key: value for key, value in outputs.items() if key.startswith("out_")}
        assert expected
        for key, value in expected.items():
            close(results[key], value, msg=lambda m, c=case, k=key: f"{c['file']} {k}: {m}")


def test_rise_equals_the_authors(parity: Path) -> None:
    config, all_cases = cases(parity / "uphead")
    swin = SwinSpec(embed=config["out_dim"] // 8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    vit = VitSpec(width=config["in_dim"], depth=1, heads=1)
    model = SkySense(ModelSpec(custom=sizes(swin=swin, vit=vit)), {"s2": unit("s2")}).eval()
    tensors = with_part("head_s2", load_file(parity / "uphead" / "weights.safetensors"))
    load_official(model, tensors, allow_missing=("backbone_s2", "fusion", "ctpe"))
    for case in all_cases:
        stored = read_case(parity / "uphead" / case["file"])
        close(model.rise["s2"](stored["input"]), stored["out"])


def test_fusion_equals_the_authors(parity: Path) -> None:
    config, all_cases = cases(parity / "fusion")
    swin = SwinSpec(embed=config["input_dims"] // 8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    spec = FusionSpec(width=config["embed_dims"], depth=config["num_layers"], heads=config["num_heads"])
    model = SkySense(ModelSpec(custom=sizes(swin=swin, fusion=spec)), {"hr": unit("hr")}).eval()
    tensors = with_part("fusion", load_file(parity / "fusion" / "weights.safetensors"))
    load_official(model, tensors, allow_missing=("backbone_hr", "ctpe"))
    *inner, last = range(spec.depth)
    blocks = watch(model.fusion, [f"layers.{index}" for index in inner])
    for case in all_cases:
        stored = read_case(parity / "fusion" / case["file"])
        tokens = rearrange(stored["input"], "n t d -> n t d 1 1")
        fused = model.fusion([tokens], [torch.ones(tokens.shape[0], tokens.shape[1], 1, 1, dtype=torch.bool)])
        close(fused[..., 0, 0], stored["out"])
        for index in inner:
            close(blocks[f"layers.{index}"], stored[f"block_{index}"])
        # The model computes its extra token alone after the last layer; the layer itself gives all of them.
        tokens = model.fusion.layers[last](blocks[f"layers.{inner[-1]}"])
        close(tokens, stored[f"block_{last}"])
        close(tokens[:, 1:], stored["other_tokens"])


def joint_model(config: Mapping[str, Any], names: tuple[str, ...] = ("hr", "s2", "s1"), **options: Any) -> SkySense:
    """A model of the sizes of a joint case, not yet loaded."""
    fusion = config["necks"]
    custom = sizes(
        swin=swin_spec(config["backbone_hr"]),
        own={name: vit_spec(config[f"backbone_{name}"]) for name in ("s2", "s1")},
        fusion=FusionSpec(width=fusion["embed_dims"], depth=fusion["num_layers"], heads=fusion["num_heads"]),
    )
    options = vit_options(config["backbone_s2"]) | options
    return SkySense(ModelSpec(custom=custom, **options), {name: unit(name) for name in names}).eval()


def joint_case(parity: Path, file: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _, all_cases = cases(parity / "joint")
    config = next(case["constructor"] for case in all_cases if case["file"] == file)
    return config, read_case(parity / "joint" / file)


def series(pixels: Tensor, days: Tensor | None = None) -> Series:
    """Images (b, t, c, h, w), all valid; `days` are 0-based as stored."""
    b, t, _, h, w = pixels.shape
    return Series(
        pixels=pixels.float(),
        valid=torch.ones(b, t, h, w, dtype=torch.bool),
        day_of_year=torch.ones(b, t, dtype=torch.int64) if days is None else days + 1,
        dated=torch.full((b, t), days is not None),
    )


def joint_images(stored: Mapping[str, Tensor], days: Mapping[str, Tensor]) -> dict[str, Series]:
    return {
        "hr": series(stored["hr_img"][:, None], days.get("hr")),
        "s2": series(rearrange(stored["s2_img"], "b c t h w -> b t c h w"), days.get("s2")),
        "s1": series(rearrange(stored["s1_img"], "b c t h w -> b t c h w"), days.get("s1")),
    }


def test_joint_with_dates_equals_the_authors(parity: Path) -> None:
    config, stored = joint_case(parity, "e1_pp_dates.npz")
    model = joint_model(config, dates_on=("s2",))
    weights = load_file(parity / "joint" / "weights.safetensors")
    report = load_official(model, weights)
    assert report.matched == len([name for name in model.state_dict() if not name.startswith("normalise")]) - 6
    assert {name.split(".")[2] for name in report.fresh} == {"norms"}

    images = joint_images(stored, {"s2": stored["s2_dates"], "s1": stored["s2_dates"][:, :1]})
    features = model(images)
    close(features.aligned["hr"].tensor[:, 0], stored["hr_map"])
    close(features.levels["s2"][-1].tensor.flatten(0, 1), stored["s2_encoder_last"])
    close(features.aligned["s2"].tensor.flatten(0, 1), stored["s2_map"])
    close(features.levels["s1"][-1].tensor.flatten(0, 1), stored["s1_encoder_last"])
    maps = [model.add_dates(name, features.aligned[name].tensor, images[name]) for name in ("hr", "s2", "s1")]
    close(rearrange(torch.cat(maps, dim=1)[..., 0, :], "b t d w -> b w t d"), stored["fusion_in_first_row"])
    close_fused(features.fused.tensor[:, 0], stored["fused"])

    # Upstream dates the two halves of the rows separately; each position is a sequence of its own.
    halves = read_case(parity / "joint" / "e1b_pp_two_halves.npz")
    rows = halves["fused"].shape[2] // 2
    first = model(joint_images(stored, {"s2": halves["s2_dates"]})).fused.tensor[:, 0, :, :rows]
    second = model(joint_images(stored, {"s2": halves["s2_dates_second_half"]})).fused.tensor[:, 0, :, rows:]
    close_fused(torch.cat((first, second), dim=2), halves["fused"])


def check_undated(model: SkySense, stored: Mapping[str, Tensor]) -> None:
    """The stored stages of the joint case without dates, all modalities present."""
    features = model(joint_images(stored, {}))
    close(features.aligned["hr"].tensor[:, 0], stored["hr_map"])
    for name in ("s2", "s1"):
        close(features.levels[name][-1].tensor.flatten(0, 1), stored[f"{name}_encoder_last"])
        close(features.aligned[name].tensor.flatten(0, 1), stored[f"{name}_map"])
    tokens = torch.cat([features.aligned[name].tensor for name in ("hr", "s2", "s1")], dim=1)
    close(rearrange(tokens, "b t d h w -> (b h w) t d"), stored["fusion_in"])
    close_fused(features.fused.tensor[:, 0], stored["fused"])


def test_joint_without_dates_and_parts_of_it_equal_the_authors(parity: Path) -> None:
    config, stored = joint_case(parity, "e2_v1_nodates.npz")
    weights = load_file(parity / "joint" / "weights.safetensors")
    model = joint_model(config)
    load_official(model, weights)
    check_undated(model, stored)

    own = read_case(parity / "joint" / "e2b_own_wiring.npz")
    days = {name: own[f"{name}_dates"] for name in ("hr", "s2", "s1")}
    close_fused(model(joint_images(stored, days)).fused.tensor[:, 0], own["fused_dates_on_all"])
    s2_only = model(joint_images(stored, {"s2": days["s2"]}))
    close_fused(s2_only.fused.tensor[:, 0], own["fused_dates_on_s2"])
    for names in (("hr", "s2"), ("hr", "s1"), ("s2", "s1"), ("s2",), ("s1",), ("hr",)):
        expected = own["fused_" + "_".join(names)]
        images = {name: joint_images(stored, {})[name] for name in names}
        close_fused(model(images).fused.tensor[:, 0], expected)
        alone = joint_model(config, names)
        surplus = {"hr", "s2", "s1"} - set(names)
        load_official(alone, weights, allow_missing={f"{part}_{n}" for part in ("backbone", "head") for n in surplus})
        close_fused(alone(images).fused.tensor[:, 0], expected)


def released(parity: Path, *parts: str) -> dict[str, Tensor]:
    """Split files as a user would give them, joined under their parts."""
    joined: dict[str, Tensor] = {}
    for part in parts:
        file = parity / "release_layout" / f"skysense_model_{part}.pth"
        joined |= with_part(part, torch.load(file, weights_only=True))
    return joined


def test_released_files_give_the_same_model(parity: Path) -> None:
    config, stored = joint_case(parity, "e2_v1_nodates.npz")
    parts = ("backbone_hr", "backbone_s2", "backbone_s1", "head_s2", "head_s1", "fusion")
    whole = torch.load(parity / "release_layout" / "skysense_full.pth", weights_only=True)
    for tensors in (whole, released(parity, *parts), {"state_dict": released(parity, *parts)}):
        model = joint_model(config)
        report = load_official(model, tensors)
        assert any(name.endswith("mask_token") for name in report.ignored)
        assert len(report.fresh) == 6
        check_undated(model, stored)


def test_other_bands_and_tables_equal_the_authors(parity: Path) -> None:
    config, _ = joint_case(parity, "e2_v1_nodates.npz")

    nir = read_case(parity / "release_layout" / "f1_rgbnir_1x4x256x256.npz")
    tensors = released(parity, "backbone_hr")
    key = "backbone_hr.patch_embed.projection.weight"
    tensors[key] = select_bands(tensors[key], (0, 1, 2, 0))
    close(tensors[key], nir["patch_weight"], atol=0)
    spec = joint_model(config).spec
    model = SkySense(ModelSpec(custom=spec.custom, fusion=False), {"hr": unit("hr", 4)}).eval()
    load_official(model, tensors)
    close(model.encoders["hr"](nir["input"])[-1], nir["out"])

    four = read_case(parity / "release_layout" / "f2_s2_four_bands_1x4x32x32.npz")
    tensors = released(parity, "backbone_s2")
    key = "backbone_s2.patch_embed.projection.weight"
    tensors[key] = select_bands(tensors[key], (0, 1, 2, 6))
    close(tensors[key], four["patch_weight"], atol=1e-7)
    model = SkySense(ModelSpec(custom=spec.custom, fusion=False), {"s2": unit("s2", 4)}).eval()
    load_official(model, tensors)
    close(model.encoders["s2"](four["input"])[-1], four["out"])

    table = read_case(parity / "release_layout" / "f3_s2_table_shrunk_at_load.npz")
    tensors = released(parity, "backbone_s2")
    tensors["backbone_s2.pos_embed"] = resize_positions(tensors["backbone_s2.pos_embed"], 4)
    close(tensors["backbone_s2.pos_embed"], table["pos_embed"], atol=1e-6)
    small = vit_spec(config["backbone_s2"] | {"img_size": 16})
    model = SkySense(ModelSpec(custom=sizes(vit=small), fusion=False), {"s2": unit("s2")}).eval()
    load_official(model, tensors)
    close(model.encoders["s2"](table["input_a"])[-1], table["out_a"])
    close(model.encoders["s2"](table["input_b"])[-1], table["out_b"])
