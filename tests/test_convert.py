"""`skysense convert`: files as a user has them become a model folder, every tensor accounted for, nothing run."""

import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from official_layout import one_file
from safetensors.torch import load_file, save_file
from test_finetune import settings as finetune_settings
from test_parity import check_undated, close, joint_case, parity, read_case, series  # noqa: F401 - parity is a fixture
from timm.models.swin_transformer_v2 import SwinTransformerV2
from tiny_data import write_chips
from torch import Tensor

from skysense_cli.app import main
from skysense_core import checkpoint, config, modalities, runtime
from skysense_core.convert import OFFICIAL, ConvertConfig, ConvertResult, convert
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.finetune import finetune
from skysense_core.model.official import load_official
from skysense_core.model.presets import FusionSpec, ModelSpec, Preset, PrototypeSpec, SwinSpec, VitSpec, preset
from skysense_core.model.skysense import SkySense

SIZES = Preset(
    swin=SwinSpec(embed=4, depths=(1, 1, 6, 1), heads=(1, 1, 2, 2)),
    vit=VitSpec(width=8, depth=2, heads=2, native=8),
    fusion=FusionSpec(width=8, depth=1, heads=2),
    prototypes=PrototypeSpec(rows=2, columns=8, count=2),
    decoder_width=8,
)
HEADS = {"s2": 2, "s1": 2, "fusion": 2}
"""What the small files do not say of themselves."""
ARGUMENTS = [word for place, number in HEADS.items() for word in ("--set", f"heads.{place}={number}")]


@pytest.fixture(scope="session")
def whole() -> dict[str, Tensor]:
    """The tensors of a one-file checkpoint, filled with random numbers."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 5 for name, shape in one_file(SIZES).items()}


@pytest.fixture
def files(whole: dict[str, Tensor], tmp_path: Path) -> Path:
    """A folder with the split files as published, and the one file."""
    folder = tmp_path / "published"
    folder.mkdir()
    split: dict[str, dict[str, Tensor]] = {}
    for key, tensor in whole.items():
        part, _, name = key.partition(".")
        if name:
            part = part.replace("gep", "hr")
            split.setdefault(part, {})[f"backbone.{name}" if part == "backbone_hr" else name] = tensor
    for part, tensors in split.items():
        dates = {"ctpe": whole["ctpe"]} if part.startswith("backbone") else {}
        torch.save(dates | tensors, folder / f"skysense_model_{part}.pth")
    torch.save({"model": whole, "epoch": 3}, folder / "whole.pth")
    return folder


def converted(paths: Iterable[Path], out: Path, **changes: Any) -> ConvertResult:
    given: dict[str, Any] = {"files": {"": list(paths)}, "out": out, "heads": dict(HEADS)} | changes
    return convert(config.build(ConvertConfig, given))


def loaded(folder: Path) -> SkySense:
    """The encoder of a model folder, for inputs that are normalised already."""
    said = checkpoint.load_description(folder)
    unit = {
        name: one.with_statistics(np.zeros(len(one.bands)), np.ones(len(one.bands)))
        for name, one in said.modalities.items()
    }
    encoder = SkySense(config.build(ModelSpec, said.spec, "model"), unit).eval()
    checkpoint.load_encoder(encoder, folder)
    return encoder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def split_files(folder: Path, *parts: str) -> list[Path]:
    return [folder / f"skysense_model_{part}.pth" for part in parts]


@pytest.fixture
def expected(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the whole model by the mapping that the parity fixtures hold fast."""
    model = SkySense(ModelSpec(custom=SIZES), {name: modalities.load(name) for name in ("hr", "s2", "s1")})
    load_official(model, whole)
    return {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("parts", "fusion"),
    [
        (("backbone_hr",), False),
        (("backbone_s2",), False),
        (("backbone_s1",), False),
        (("backbone_hr", "backbone_s2"), False),
        (("backbone_hr", "fusion"), True),
        (("backbone_s2", "head_s2", "fusion"), True),
        (("backbone_hr", "backbone_s2", "head_s2", "fusion"), True),
        (("backbone_hr", "backbone_s2", "backbone_s1", "head_s2", "head_s1", "fusion"), True),
    ],
)
def test_any_subset_of_the_files_is_a_model_with_those_parts(
    files: Path, tmp_path: Path, expected: dict[str, Tensor], parts: tuple[str, ...], fusion: bool
) -> None:
    names = [part.partition("_")[2] for part in parts if part.startswith("backbone")]
    heads = {place: 2 for place in HEADS if place in names or (place == "fusion" and fusion)}
    result = converted(split_files(files, *parts), tmp_path / "out", heads=heads)
    found = weights(tmp_path / "out")
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []
    places = [f"encoder.{kind}.{name}." for name in names for kind in ("encoders", "normalise")]
    places += [f"encoder.rise.{name}." for name in names if fusion]
    places += ["encoder.fusion.", "encoder.dates."] if fusion else []
    assert set(found) == {name for name in expected if name.startswith(tuple(places))}
    assert tuple(result.modalities) == tuple(names)
    assert result.fusion is fusion
    said = checkpoint.load_description(tmp_path / "out")
    assert (said.task_name, said.licence, said.classes) == (None, OFFICIAL, ())


def test_name_variants_and_containers_give_the_same_weights(
    files: Path, whole: dict[str, Tensor], tmp_path: Path
) -> None:
    converted([files / "whole.pth"], tmp_path / "out")
    expected = weights(tmp_path / "out")
    variants: dict[str, Any] = {
        "flat.pth": {name.replace("gep", "hr"): tensor for name, tensor in whole.items()},
        "prefix.pth": {"state_dict": {f"module.{name}": tensor for name, tensor in whole.items()}},
        "wqkv.pth": {name.replace(".in_proj_", ".Wqkv."): tensor for name, tensor in whole.items()},
    }
    for name, content in variants.items():
        torch.save(content, files / name)
    torch.save(whole, files / "old.pth", _use_new_zipfile_serialization=False)
    save_file(whole, files / "whole.safetensors")
    plain = torch.load(files / "skysense_model_fusion.pth", weights_only=True)
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in plain.items()}}, files / "nested_fusion.pth")
    others = split_files(files, "backbone_hr", "backbone_s2", "backbone_s1", "head_s2", "head_s1")
    for paths in (*([files / name] for name in (*variants, "old.pth", "whole.safetensors")),):
        converted(paths, tmp_path / paths[0].stem)
        found = weights(tmp_path / paths[0].stem)
        assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
    converted([files / "nested_fusion.pth", *others], tmp_path / "split")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "split").items())


def test_a_file_of_any_name_is_known_by_its_tensors_or_by_what_the_user_says(files: Path, tmp_path: Path) -> None:
    s1, head = (torch.load(path, weights_only=True) for path in split_files(files, "backbone_s1", "head_s1"))
    torch.save(s1, files / "radar.pth")
    torch.save(head, files / "up.pth")
    assert tuple(converted([files / "radar.pth"], tmp_path / "a", heads={"s1": 2}).modalities) == ("s1",)
    with pytest.raises(UsageError, match=r"of which modality it is: s1, s2\nSay it: s1="):
        converted([files / "radar.pth", files / "up.pth"], tmp_path / "b")
    fusion = files / "skysense_model_fusion.pth"
    named = {"": (files / "radar.pth", fusion), "s1": (files / "up.pth",)}
    assert converted([], tmp_path / "b", files=named, heads={"s1": 2, "fusion": 2}).report.matched
    with pytest.raises(UsageError, match="holds a vit, and hr is read by a swin"):
        converted([], tmp_path / "c", files={"hr": (files / "radar.pth",)})


def test_modalities_can_be_left_out_of_the_one_file(files: Path, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    result = converted([files / "whole.pth"], tmp_path / "s2", only=("s2",), heads={"s2": 2, "fusion": 2})
    assert tuple(result.modalities) == ("s2",)
    assert "left out: backbone_hr, backbone_s1, head_s1" in result.notes
    bare = {"only": ("hr",), "heads": {}, "model": {"fusion": False}}
    assert converted([files / "whole.pth"], tmp_path / "hr", **bare).fusion is False
    for folder in ("s2", "hr"):
        found = weights(tmp_path / folder)
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    with pytest.raises(UsageError, match="s3 is not in the files"):
        converted([files / "whole.pth"], tmp_path / "x", only=("s3",))


def test_other_bands_take_their_inputs_from_those_of_the_weights(
    files: Path, tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    key = "encoder.encoders.hr.patch_embed.projection.weight"
    rgb = whole["backbone_gep.patch_embed.projection.weight"]
    result = converted(
        split_files(files, "backbone_hr"), tmp_path / "a", bands={"": ("red", "green", "blue", "nir")}, heads={}
    )
    assert torch.equal(weights(tmp_path / "a")[key], torch.cat((rgb, rgb[:, :1]), dim=1))
    hr = checkpoint.load_description(tmp_path / "a").modalities["hr"]
    assert (hr.band_names, hr.bands[3].mean, hr.bands[3].std) == (("red", "green", "blue", "nir"), 123.675, 58.395)
    assert "hr: input weights of red, green, blue, nir from red" in result.notes

    converted(split_files(files, "backbone_hr"), tmp_path / "b", bands={"hr": ("blue", "green", "red")}, heads={})
    assert torch.equal(weights(tmp_path / "b")[key], rgb.flip(1))

    four = {"bands": {"s2": ("blue", "green", "red", "nir")}, "heads": {"s2": 2}}
    converted(split_files(files, "backbone_s2"), tmp_path / "c", **four)
    ten = whole["backbone_s2.patch_embed.projection.weight"]
    key = "encoder.encoders.s2.projection.weight"
    assert torch.equal(weights(tmp_path / "c")[key], ten[:, [0, 1, 2, 6]] * 2.5)
    s2 = checkpoint.load_description(tmp_path / "c").modalities["s2"]
    assert s2.band_names == ("B02", "B03", "B04", "B08")
    assert s2.bands[3].mean == modalities.load("s2").bands[6].mean

    two = [*split_files(files, "backbone_hr", "backbone_s2")]
    with pytest.raises(UsageError, match=r"of which modality\? There are hr, s2\nSay it: --bands hr=red"):
        converted(two, tmp_path / "d", bands={"": ("red",)}, heads={"s2": 2})
    with pytest.raises(UsageError, match="nothing is known of thermal"):
        converted(two[:1], tmp_path / "d", bands={"hr": ("red", "thermal")}, heads={})
    assert not (tmp_path / "d").exists()


def change(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = torch.load(path, weights_only=True)
    edit(tensors)
    torch.save(tensors, path)


def test_gaps_surplus_and_clashes_are_refused_unless_they_are_named(
    files: Path, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    s2, head, fusion = split_files(files, "backbone_s2", "head_s2", "fusion")
    heads = {"s2": 2, "fusion": 2}
    out = tmp_path / "out"

    def refused(paths: list[Path], message: str, **changes: Any) -> None:
        with pytest.raises(SkysenseError, match=message):
            converted(paths, out, **{"heads": heads} | changes)
        assert [path.name for path in tmp_path.iterdir()] == ["published"]

    refused([s2, fusion], r"2 tensors of the model are not in the file: rise.s2.*\n.*--allow-missing head_s2")
    refused([fusion], "no encoder is among the files")
    refused([s2, s2], "both hold backbone_s2")
    refused([s2, fusion], "unknown part 'head_s3'", allow_missing=("head_s3",))
    refused([s2], "attention heads these have.*s2 .2 layers of width 8.*\n.*--set heads.s2=N", heads={})
    refused([s2], "heads.s2: 3 does not divide the width 8", heads={"s2": 3})
    refused([s2], "model.preset follows from the files", model={"preset": "tiny"}, heads={"s2": 2})

    result = converted([s2, fusion], out, heads=heads, allow_missing=("head_s2",))
    assert "start anew: rise" in result.notes
    assert all(tensor.isfinite().all() for tensor in weights(out).values())
    result = converted([s2, head], tmp_path / "b", heads={"s2": 2}, allow_missing=("fusion",))
    assert result.report.parts["fusion"].matched == 0
    found = weights(tmp_path / "b")
    assert 0 < float(found["encoder.fusion.project.weight"].std()) < 1
    assert torch.equal(found["encoder.rise.s2.projection.weight"], expected["encoder.rise.s2.projection.weight"])

    # A named part that does not fit starts anew as a whole, never in half.
    for spoil in (lambda t: t.pop("decoder.0.bias"), lambda t: t.update({"decoder.0.bias": torch.zeros(3)})):
        spoiled = tmp_path / "spoiled.pth"
        shutil.copy(head, spoiled)
        change(spoiled, spoil)
        given = {"": [s2, fusion], "s2": [spoiled]}
        with pytest.raises(SkysenseError, match="start anew: --allow-missing head_s2"):
            converted([], tmp_path / "c", heads=heads, files=given, overwrite=True)
        result = converted([], tmp_path / "c", heads=heads, files=given, overwrite=True, allow_missing=("head_s2",))
        assert result.report.parts["head_s2"].matched == 0
        name = "encoder.rise.s2.projection.weight"
        assert not torch.equal(weights(tmp_path / "c")[name], expected[name])
    spoiled.unlink()

    for path in (out, tmp_path / "b", tmp_path / "c"):
        shutil.rmtree(path)
    change(s2, lambda tensors: tensors.update({"layers.0.ln3.bias": torch.zeros(8)}))
    refused([s2], "1 tensors of the file have no place in the model: backbone_s2.layers.0.ln3.bias", heads={"s2": 2})
    result = converted([s2], out, heads={"s2": 2}, allow_missing=("backbone_s2",))
    assert "backbone_s2.layers.0.ln3.bias" in result.report.ignored
    shutil.rmtree(out)
    change(s2, lambda tensors: (tensors.pop("layers.0.ln3.bias"), tensors.pop("layers.1.ln2.bias")))
    refused([s2], "1 tensors of the model are not in the file: encoders.s2.layers.1.norm2.bias", heads={"s2": 2})
    change(s2, lambda tensors: tensors.update({"layers.1.ln2.bias": torch.zeros(9)}))
    refused([s2], r"encoders.s2.layers.1.norm2.bias is \(9,\), the model has \(8,\)", heads={"s2": 2})
    change(s2, lambda tensors: tensors.update({"layers.1.ln2.bias": torch.zeros(8, dtype=torch.int64)}))
    refused([s2], "not of floating-point numbers of 16 bits and more: encoders.s2.layers.1.norm2.bias", heads={"s2": 2})
    change(s2, lambda tensors: tensors.update({"layers.1.ln2.bias": torch.zeros(8).to(torch.float8_e4m3fn)}))
    refused([s2], "not of floating-point numbers", heads={"s2": 2})
    change(s2, lambda tensors: tensors.pop("patch_embed.projection.weight"))
    refused([s2], "projection.weight is missing, so its size cannot be told", heads={"s2": 2})


def test_half_precision_stays_half_and_is_read(files: Path, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    (hr,) = split_files(files, "backbone_hr")
    change(hr, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
    converted([hr], tmp_path / "out", heads={})
    key = "encoders.hr.stages.0.blocks.0.attn.qkv.weight"
    assert weights(tmp_path / "out")[f"encoder.{key}"].dtype == torch.float16
    found = loaded(tmp_path / "out").state_dict()[key]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected[f"encoder.{key}"], atol=1e-3, rtol=1e-3)


def test_dates_of_different_models_do_not_mix(files: Path, tmp_path: Path) -> None:
    hr, s2 = split_files(files, "backbone_hr", "backbone_s2")
    change(s2, lambda tensors: tensors.update(ctpe=tensors["ctpe"] + 1))
    with pytest.raises(SkysenseError, match="different dates"):
        converted([hr, s2], tmp_path / "out", heads={"s2": 2})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run `skysense convert` with some words in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skysense", "convert", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_the_report_counts_every_tensor(run: Callable[..., Any], files: Path, whole: dict[str, Tensor]) -> None:
    code, out, err = run(files / "whole.pth", "--out", "a", *ARGUMENTS, "--json")
    assert code == 0, err
    result = json.loads(out)
    report = result["report"]
    assert report["matched"] + sum(report["ignored"].values()) == len(whole)
    assert report["ignored"] == {"mask_token": 1, "relative_coords_table": 9}
    assert (report["permuted"], len(report["fresh"])) == (0, 6)
    assert report["parts"]["head_s1"] == {"matched": 2, "renamed": 2, "permuted": 0, "ignored": [], "fresh": []}
    assert (result["preset"], result["licence"]) == ("custom", OFFICIAL)
    code, out, _ = run(files / "skysense_model_backbone_hr.pth", "--out", "b", "--bands", "red,green,blue,nir")
    assert code == 0
    for word in ("matched", "backbone_hr", "9 relative_coords_table", "1 mask_token", "nir from red", OFFICIAL):
        assert word in out
    assert "start anew: encoders.hr.norms.0, encoders.hr.norms.1, encoders.hr.norms.2" in out
    assert run(files / "skysense_model_backbone_hr.pth", "--out", "c", "--quiet") == (0, "", "")


def test_the_card_and_the_refusal_to_predict_say_what_the_folder_is_for(files: Path, tmp_path: Path) -> None:
    converted(split_files(files, "backbone_hr"), tmp_path / "skysense-hr", heads={})
    text = (tmp_path / "skysense-hr" / "README.md").read_text()
    for word in ("skysense-hr", "non-commercial research only", "red, green, blue", "skysense finetune --init"):
        assert word in text
    assert "skysense_model_backbone_hr.pth" in text
    with pytest.raises(SkysenseError, match=r"an encoder without a task.*\nTrain a model from it: skysense finetune"):
        checkpoint.load_model(tmp_path / "skysense-hr", torch.device("cpu"))


def test_a_model_trained_from_it_inherits_weights_and_licence(files: Path, tmp_path: Path) -> None:
    converted(split_files(files, "backbone_s2"), tmp_path / "start", heads={"s2": 2})
    chips = write_chips(tmp_path / "chips")
    given = finetune_settings(
        chips, tmp_path / "run", init=str(tmp_path / "start"), freeze=True, train={"steps": 1}, statistics="modality"
    )
    given = config.build(type(given), config.to_table(given) | {"model": {}})
    best = finetune(given).model
    assert checkpoint.load_description(best).licence == OFFICIAL
    assert OFFICIAL in (best / "README.md").read_text()
    start, end = weights(tmp_path / "start"), weights(best)
    assert [name for name in start if not torch.equal(start[name], end[name])] == []


class Trap:
    """Unpickling it the naive way makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def plant_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb/data/0", "w") as record:
        for _ in range(16):
            record.write(bytes(2**20))


def plant_overlap(path: Path) -> None:
    """Many records that are one and the same piece of the file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bomb/data/0", bytes(2**16))
        archive.filelist *= 50


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def write_old(path: Path) -> None:
    torch.save({"a": torch.zeros(9)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a.pth", lambda p: p.write_bytes(pickle.dumps(Trap(p.with_name("sprung")))), "nothing in it was run"),
        ("a.pth", lambda p: p.write_bytes(pickle.dumps(Trap(p.with_name("sprung")), 2)), "nothing in it was run"),
        ("a.pth", lambda p: torch.save({"x": Trap(p.with_name("sprung"))}, p), "nothing in it was run"),
        ("a.safetensors", lambda p: p.write_bytes(pickle.dumps(Trap(p.with_name("sprung")))), "no file of weights"),
        ("a.pth", plant_bomb, "compressed or overlap"),
        ("a.pth", plant_overlap, "compressed or overlap"),
        ("a.pth", lambda p: torch.save({"x": torch.zeros(1).expand(2**16, 2**17)}, p), "would take 32 GiB"),
        ("skysense_model_backbone_hr.pth", shorten, "truncated or altered"),
        ("skysense_model_backbone_hr.pth", flip, "altered: the checksum of"),
        ("a.pth", lambda p: (write_old(p), shorten(p)), "truncated, altered"),
        ("a.safetensors", lambda p: (save_file({"x": torch.zeros(99)}, p), shorten(p)), "truncated, altered"),
        ("a.pth", lambda p: p.write_bytes(b""), "truncated, altered"),
        ("a.pth", lambda p: p.write_text("see the readme\n"), "truncated, altered"),
        ("a.pth", lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "truncated or altered"),
        ("a.pth", lambda p: torch.save([torch.zeros(2)], p), "holds a list"),
        ("a.pth", lambda p: torch.save({"epoch": 3}, p), "'epoch' is no tensor"),
        ("a.pth", lambda p: torch.save({"neck.w": torch.zeros(2)}, p), "no part of SkySense"),
        ("a.pth", lambda p: torch.save({"stages.0.blocks.0.x": torch.zeros(2)}, p), "not the four of a Swin V2"),
        ("a.pth", lambda p: torch.save({"w": torch.empty(2, device="meta")}, p), "holds no numbers"),
        ("absent.pth", lambda p: None, "absent.pth: no such file"),
        (".", lambda p: None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(
    run: Callable[..., Any], files: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    path = files / name
    damage(path)
    before = {path.name for path in Path().iterdir()}
    code, out, err = run(path, "--out", "model")
    assert code == 1, err
    assert message in err
    assert (out, err.count("error:"), "Traceback" in err, "Warning" in err) == ("", 1, False, False)
    assert len(err.splitlines()) == 2
    assert {path.name for path in Path().iterdir()} == before
    assert not (files / "sprung").exists()


def test_safetensors_of_other_shapes_are_refused(files: Path, whole: dict[str, Tensor], tmp_path: Path) -> None:
    path = files / "a.safetensors"
    save_file({name: tensor.flatten() for name, tensor in whole.items()}, path)
    with pytest.raises(SkysenseError, match=r"has shape .*so its size cannot be told"):
        converted([path], tmp_path / "out")
    wrong = whole | {"backbone_gep.stages.1.downsample.reduction.weight": torch.zeros(16, 8)}
    save_file(wrong, path)
    with pytest.raises(SkysenseError, match=r"reduction.weight is \(16, 8\), the model has \(8, 16\)"):
        converted([path], tmp_path / "out")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"[16,8]", b"[16,9]"))
    with pytest.raises(SkysenseError, match="truncated, altered or no file of weights"):
        converted([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_exists_is_replaced_only_if_it_is_a_model_and_the_user_wants_it(
    run: Callable[..., Any], files: Path, tmp_path: Path
) -> None:
    hr, s1 = split_files(files, "backbone_hr", "backbone_s1")
    assert run(hr, "--out", "model", "--quiet")[0] == 0
    code, _, err = run(s1, "--out", "model", "--set", "heads.s1=2")
    assert code == 2
    assert "--overwrite" in err
    assert tuple(checkpoint.load_description(tmp_path / "model").modalities) == ("hr",)
    assert run(s1, "--out", "model", "--set", "heads.s1=2", "--overwrite", "--quiet")[0] == 0
    assert tuple(checkpoint.load_description(tmp_path / "model").modalities) == ("s1",)
    for out in ("published", "."):
        code, _, err = run(hr, "--out", out, "--overwrite")
        assert code == 2, err
    assert len(list(files.iterdir())) == 7
    assert run(hr)[0] == 2  # without --out
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SkysenseError, match="No space left"):
        converted(split_files(files, "backbone_hr"), tmp_path / "out", heads={})
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def swin_of_timm() -> SwinTransformerV2:
    torch.manual_seed(0)
    model = SwinTransformerV2(
        img_size=256, window_size=8, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), num_classes=5
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # also what starts at 0 and 1 must be read
    return model.eval()


def test_swin_v2_of_timm_computes_the_same(tmp_path: Path) -> None:
    model = swin_of_timm()
    path = tmp_path / "swinv2.safetensors"
    save_file(model.state_dict(), path)
    result = converted([path], tmp_path / "out", heads={})
    assert (result.report.permuted, result.licence) == (3, "not stated")
    assert result.ignored == {"weight": 1, "bias": 1}  # the classifier
    images = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        found = loaded(tmp_path / "out").encoders["hr"](images)[-1]
        torch.testing.assert_close(found, model.forward_features(images).permute(0, 3, 1, 2), atol=1e-4, rtol=0)

    # Older files merge at the end of a stage.
    old = {
        (f"layers.{int(k[7]) - 1}{k[8:]}" if ".downsample." in k else k): v for k, v in model.state_dict().items()
    } | {"layers.0.blocks.0.attn.relative_coords_table": torch.zeros(1, 31, 31, 2)}
    torch.save({"model": old}, tmp_path / "old.pth")
    result = converted([tmp_path / "old.pth"], tmp_path / "old", heads={}, licence="MIT")
    assert "hr: trained with windows of 16 x 16 tokens, used with 8 x 8" in result.notes
    first, second = weights(tmp_path / "out"), weights(tmp_path / "old")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert checkpoint.load_description(tmp_path / "old").licence == "MIT"


@pytest.mark.parametrize("class_token", [True, False])
def test_vit_of_timm_computes_the_same(tmp_path: Path, class_token: bool) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 1, "num_classes": 5}
    pooling = {} if class_token else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    model = timm.models.VisionTransformer(**sizes, **pooling).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "vit.pth"
    torch.save(model.state_dict(), path)
    given = {"files": {"s2": (path,)}, "bands": {"": ("red", "green", "blue")}, "heads": {}}
    result = converted([], tmp_path / "out", **given)
    assert "s2: the final norm is left out" in result.notes
    model.norm = torch.nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found = loaded(tmp_path / "out").encoders["s2"](images)[-1].flatten(2).mT
        tokens = model.forward_features(images)[:, int(class_token) :]
    torch.testing.assert_close(found, tokens, atol=1e-4, rtol=0)


def test_encoders_of_timm_and_of_the_authors_come_together_where_they_can(files: Path, tmp_path: Path) -> None:
    save_file(swin_of_timm().state_dict(), tmp_path / "swin.safetensors")
    for name, options in (("s2", {}), ("s1", {"class_token": False, "global_pool": "avg", "fc_norm": False})):
        model = timm.models.VisionTransformer(patch_size=4, img_size=8, embed_dim=64, depth=1, num_heads=1, **options)
        torch.save(model.state_dict(), tmp_path / f"vit_{name}.pth")
    swin, s2, s1 = tmp_path / "swin.safetensors", tmp_path / "vit_s2.pth", tmp_path / "vit_s1.pth"
    spec = checkpoint.load_description(converted([swin, s2], tmp_path / "a", heads={}).folder).spec
    assert (spec["class_token"], spec["vit_eps"], spec["custom"]["vit"]["heads"]) == (True, 1e-6, 1)
    assert converted([swin, *split_files(files, "backbone_s2")], tmp_path / "b", heads={"s2": 2}).licence == OFFICIAL
    for pair in ([s2, s1], [s2, *split_files(files, "backbone_s1")]):
        with pytest.raises(UsageError, match="make no one model"):
            converted(pair, tmp_path / "c", heads={})


def test_the_input_layer_of_timm_is_adapted_to_bands_and_patches(tmp_path: Path) -> None:
    model = timm.models.VisionTransformer(img_size=64, patch_size=16, embed_dim=64, depth=1, num_heads=1)
    path = tmp_path / "vit_s2.pth"
    torch.save(model.state_dict(), path)
    result = converted([path], tmp_path / "out", heads={})
    weight = weights(tmp_path / "out")["encoder.encoders.s2.projection.weight"]
    assert weight.shape == (64, 10, 4, 4)
    # The same response to a constant grey picture, and to a constant red one 3/10 of it.
    before = model.patch_embed.proj.weight.detach().sum((2, 3))
    torch.testing.assert_close(weight.sum((1, 2, 3)), before.sum(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weight.sum((2, 3))[:, 2], 0.3 * before[:, 0], atol=1e-4, rtol=1e-4)
    notes = "\n".join(result.notes)
    assert "16 x 16 pixels resized to 4 x 4" in notes
    assert "those of B02, B03, B04 their own, all others the mean of red, green and blue; all times 3/10" in notes
    assert checkpoint.load_description(tmp_path / "out").spec["vit_eps"] == 1e-6


RELEASED = ("backbone_hr", "backbone_s2", "backbone_s1", "head_s2", "head_s1", "fusion")
RELEASED_HEADS = {"s2": 4, "s1": 3, "fusion": 4}


@pytest.mark.parametrize("split", [False, True])
def test_released_files_through_the_command_equal_the_authors(
    parity: Path,  # noqa: F811 - the fixture
    run: Callable[..., Any],
    tmp_path: Path,
    split: bool,
) -> None:
    folder = parity / "release_layout"
    paths = split_files(folder, *RELEASED) if split else [folder / "skysense_full.pth"]
    words = [word for place, number in RELEASED_HEADS.items() for word in ("--set", f"heads.{place}={number}")]
    code, out, err = run(*paths, "--out", "model", *words, "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["ignored"]["mask_token"] == 1
    _, stored = joint_case(parity, "e2_v1_nodates.npz")
    with torch.inference_mode():
        check_undated(loaded(tmp_path / "model"), stored)


def test_every_released_part_alone_and_its_other_bands_equal_the_authors(
    parity: Path,  # noqa: F811 - the fixture
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder = parity / "release_layout"
    _, stored = joint_case(parity, "e2_v1_nodates.npz")
    images = {"hr": stored["hr_img"][:, None]}
    images |= {name: stored[f"{name}_img"].transpose(1, 2) for name in ("s2", "s1")}
    for name, heads in (("hr", ()), ("s2", ("--set", "heads.s2=4")), ("s1", ("--set", "heads.s1=3"))):
        assert run(*split_files(folder, f"backbone_{name}"), "--out", name, *heads, "-q")[0] == 0
        with torch.inference_mode():
            features = loaded(tmp_path / name)({name: series(images[name].float())})
        found = features.levels[name][-1].tensor.flatten(0, 1)
        close(found, stored["hr_map" if name == "hr" else f"{name}_encoder_last"])

    def encoder(name: str, *words: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
        assert run(*split_files(folder, f"backbone_{name}"), "--out", name, "--overwrite", "-q", *words)[0] == 0
        return loaded(tmp_path / name).encoders[name]

    with torch.inference_mode():
        nir = read_case(folder / "f1_rgbnir_1x4x256x256.npz")
        close(encoder("hr", "--bands", "red,green,blue,nir")(nir["input"])[-1], nir["out"])
        four, heads = read_case(folder / "f2_s2_four_bands_1x4x32x32.npz"), ("--set", "heads.s2=4")
        close(encoder("s2", "--bands", "B02,B03,B04,B08", *heads)(four["input"])[-1], four["out"])
        table = read_case(folder / "f3_s2_table_shrunk_at_load.npz")
        small = encoder("s2", *heads, "--set", "native.s2=16")
        close(small(table["input_a"])[-1], table["out_a"])
        close(small(table["input_b"])[-1], table["out_b"])


def write_sparse(path: Path) -> int:
    """A one-file checkpoint with the names and shapes of the full release and without its numbers; bytes of it."""
    tensors = {name: torch.empty(shape) for name, shape in one_file(preset("huge")).items()}
    with torch.serialization.skip_data():
        torch.save({"model": tensors}, path)
    return path.stat().st_size


HUGE = 655_079_632 + 302_738_432 + 302_607_360 + 305_195_008 + 2 * 46_182_400 + 1_027_840
"""Parameters of the paper's model without prototypes: hr with four output norms, s2, s1, fusion, heads, dates."""


def test_the_full_release_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sparse(tmp_path / "skysense_full.pth")
    written: dict[str, Any] = {}
    monkeypatch.setattr("skysense_core.convert.save_model", lambda _folder, model, _task, **_: written.update(m=model))
    result = converted([tmp_path / "skysense_full.pth"], tmp_path / "out", heads={})
    assert (result.preset, result.parameters) == ("huge", HUGE)
    assert result.report.matched + len(result.report.ignored) == len(one_file(preset("huge")))
    assert {name.rpartition(".")[0] for name in result.report.fresh} == {f"encoders.hr.norms.{n}" for n in range(3)}
    assert [name for name, tensor in written["m"].state_dict().items() if tensor.is_meta] == []


@pytest.mark.slow
def test_the_full_release_converts_in_little_memory(tmp_path: Path) -> None:
    size = write_sparse(tmp_path / "skysense_full.pth")
    held = runtime.resident_memory()
    used = runtime.working_memory(
        torch.device("cpu"), lambda: converted([tmp_path / "skysense_full.pth"], tmp_path / "out", heads={})
    )
    weights = tmp_path / "out" / "model.safetensors"
    assert weights.stat().st_size > 0.99 * size
    weights.unlink()  # gigabytes that pytest would keep
    assert held + used <= 0.5 * size
