"""The authors' tensor layout into our model, in any clone: a file of our own making with their names."""

import re
from pathlib import Path

import pytest
import torch
from official_layout import one_file
from torch import Tensor, nn

from skysense_core import modalities
from skysense_core.errors import SkysenseError
from skysense_core.model.adapt import resize_positions
from skysense_core.model.inputs import select_bands
from skysense_core.model.official import load_official, with_part
from skysense_core.model.presets import FusionSpec, ModelSpec, Preset, PrototypeSpec, SwinSpec, VitSpec
from skysense_core.model.skysense import SkySense

SIZES = Preset(
    swin=SwinSpec(embed=4, depths=(1, 1, 6, 1), heads=(1, 1, 2, 2)),
    vit=VitSpec(width=8, depth=2, heads=2, native=8),
    fusion=FusionSpec(width=8, depth=1, heads=2),
    prototypes=PrototypeSpec(rows=2, columns=8, count=2),
    decoder_width=8,
)


def build(*names: str, **options: object) -> SkySense:
    return SkySense(ModelSpec(custom=SIZES, **options), {name: modalities.load(name) for name in names})


@pytest.fixture
def checkpoint() -> dict[str, Tensor]:
    """A one-file checkpoint with the authors' names, filled with random numbers."""
    shapes = one_file(SIZES)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def split(checkpoint: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same as split files: hr with `backbone.` before its names, the dates in every encoder's file."""
    files: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.items():
        part, _, name = key.partition(".")
        if name:
            part = part.replace("gep", "hr")
            files.setdefault(part, {})[f"backbone.{name}" if part == "backbone_hr" else name] = tensor
    for part, file in files.items():
        if part.startswith("backbone"):
            file["ctpe"] = checkpoint["ctpe"]
    return files


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_every_tensor_finds_its_place(checkpoint: dict[str, Tensor]) -> None:
    model = build("hr", "s2", "s1")
    report = load_official(model, checkpoint)
    ignored = [name for name in checkpoint if name.endswith(("mask_token", "relative_coords_table"))]
    assert list(report.ignored) == ignored
    assert report.matched == len(checkpoint) - len(ignored)
    assert sorted(report.fresh) == sorted(
        f"encoders.hr.norms.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")
    )
    assert 0 < report.renamed < report.matched
    given = sorted(float(tensor.double().sum()) for name, tensor in checkpoint.items() if name not in ignored)
    kept = tensors(model)
    taken = sorted(
        float(tensor.double().sum())
        for name, tensor in kept.items()
        if name not in report.fresh and not name.startswith("normalise")
    )
    assert given == pytest.approx(taken)
    assert torch.equal(
        kept["encoders.s1.layers.1.attn.qkv.bias"], checkpoint["backbone_s1.layers.1.attn.attn.in_proj_bias"]
    )
    assert torch.equal(
        kept["encoders.hr.stages.2.blocks.5.norm3.bias"], checkpoint["backbone_gep.stages.2.blocks.5.norm3.bias"]
    )


def test_finer_norms_start_at_one_and_zero(checkpoint: dict[str, Tensor]) -> None:
    model = build("hr", "s2", "s1")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    load_official(model, checkpoint)
    assert torch.equal(model.encoders["hr"].norms["0"].weight, torch.ones(4))
    assert torch.equal(model.encoders["hr"].norms["2"].bias, torch.zeros(16))
    dense = checkpoint | {f"backbone_gep.norm0.{kind}": torch.full((4,), 7.0) for kind in ("weight", "bias")}
    assert len(load_official(model, dense).fresh) == 4
    assert torch.equal(model.encoders["hr"].norms["0"].bias, torch.full((4,), 7.0))


def test_name_variants_give_the_same_model(
    checkpoint: dict[str, Tensor], split: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    model = build("hr", "s2", "s1")
    load_official(model, checkpoint)
    expected = tensors(model)
    joined = {key: value for part, file in split.items() for key, value in with_part(part, file).items()}
    nested = {
        key: value for part, file in split.items() for key, value in with_part(part, {"state_dict": file}).items()
    }
    variants = {
        "split": joined,
        "split under state_dict": nested,
        "under model": {"model": checkpoint, "epoch": 3},
        "hr for gep": {name.replace("backbone_gep", "backbone_hr"): tensor for name, tensor in checkpoint.items()},
        "module.": {"state_dict": {f"module.{name}": tensor for name, tensor in checkpoint.items()}},
        "Wqkv": {name.replace(".in_proj_", ".Wqkv."): tensor for name, tensor in checkpoint.items()},
    }
    for variant in variants.values():
        other = build("hr", "s2", "s1")
        load_official(other, variant)
        assert_equal(tensors(other), expected)


def test_any_partial_match_is_refused(checkpoint: dict[str, Tensor]) -> None:
    model = build("hr", "s2", "s1")
    before = tensors(model)

    def refused(given: dict[str, Tensor], message: str, **options: object) -> None:
        with pytest.raises(SkysenseError, match=message):
            load_official(model, given, **options)
        assert_equal(tensors(model), before)

    gap = {name: tensor for name, tensor in checkpoint.items() if name != "backbone_s2.layers.1.ln1.bias"}
    refused(gap, re.escape("1 tensors of the model are not in the file: encoders.s2.layers.1.norm1.bias"))
    refused(gap, "1 tensors of the model", allow_missing=("backbone_s2",))
    refused(checkpoint | {"backbone_s2.layers.2.ln1.bias": torch.zeros(8)}, "have no place in the model: backbone_s2")
    refused(
        checkpoint | {"neck.weight": torch.zeros(8)}, "1 tensors of the file have no place in the model: neck.weight"
    )
    refused(
        checkpoint | {"ctpe": torch.zeros(1, 366, 32)},
        re.escape("dates.table is (1, 366, 32), the model has (1, 365, 32)"),
    )
    twice = checkpoint | {"fusion.layers.0.attn.attn.Wqkv.bias": torch.zeros(24)}
    refused(twice, "1 tensors of the file have no place in the model: fusion")
    refused({}, "tensors of the model are not in the file")
    refused({"weights": "not a tensor"}, "'weights' is no tensor")


def test_parts_are_missing_only_where_allowed(checkpoint: dict[str, Tensor]) -> None:
    without_fusion = {name: tensor for name, tensor in checkpoint.items() if not name.startswith("fusion")}
    model = build("hr", "s2", "s1")
    with pytest.raises(SkysenseError, match="not in the file"):
        load_official(model, without_fusion)
    before = tensors(model)
    report = load_official(model, without_fusion, allow_missing=("fusion",))
    assert {name.split(".")[0] for name in report.fresh} == {"fusion", "encoders"}
    assert torch.equal(model.fusion.project.weight, before["fusion.project.weight"])

    s2 = build("s2", fusion=False)
    with pytest.raises(SkysenseError, match="have no place in the model"):
        load_official(s2, checkpoint)
    others = ("backbone_hr", "backbone_s1", "head_s2", "head_s1", "fusion")
    report = load_official(s2, checkpoint, allow_missing=others)
    assert report.matched == len(tensors(s2)) - 2
    assert not report.fresh


def test_what_the_spec_switches_off_is_ignored(checkpoint: dict[str, Tensor]) -> None:
    model = build("hr", "s2", "s1", class_token=False, dates_on=())
    report = load_official(model, checkpoint)
    assert {"ctpe", "backbone_s2.cls_token", "backbone_s1.cls_token"} < set(report.ignored)


def test_other_bands_keep_the_response_to_equal_ones() -> None:
    weight = torch.randn(8, 10, 4, 4)
    assert torch.equal(select_bands(weight, (0, 1, 2, 6))[:, 3], weight[:, 6] * 2.5)
    rgb = torch.randn(8, 3, 4, 4)
    assert torch.equal(select_bands(rgb, (0, 1, 2, 0))[:, 3], rgb[:, 0])
    table = torch.randn(1, 17, 8)
    assert torch.equal(resize_positions(table, 4), table)
    assert torch.equal(resize_positions(table, 2)[:, 0], table[:, 0])
    assert resize_positions(table, 2).shape == (1, 5, 8)
