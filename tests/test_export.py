"""Models in a file: torch.export and ONNX give the model's own scores and maps, and nothing in a file is run unseen."""

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core import checkpoint, config, export, modalities
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.export import ExportConfig
from skysense_core.model.graph import example
from skysense_core.model.presets import FusionSpec, ModelSpec, Preset, PrototypeSpec, SwinSpec, VitSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.tasks.segmentation import Segmentation

CPU = torch.device("cpu")
SIZES = Preset(
    swin=SwinSpec(embed=4, depths=(1, 1, 2, 1), heads=(1, 1, 2, 2)),
    vit=VitSpec(width=8, depth=2, heads=2, native=8),
    fusion=FusionSpec(width=8, depth=1, heads=2),
    prototypes=PrototypeSpec(rows=2, columns=8, count=2),
    decoder_width=8,
)
TASK = Segmentation(classes=("water", "forest", "field"), colours=("#0000ff", "#00ff00", "#ffff00"))
LICENCE = "non-commercial research only"


def save(folder: Path, sensors: dict[str, dict[str, Any]], **spec: Any) -> Path:
    torch.manual_seed(0)
    wanted = {name: modalities.load(name, table) for name, table in sensors.items()}
    model = TASK.build_model(SkySense(ModelSpec(custom=SIZES, **spec), wanted)).eval()
    checkpoint.save_model(folder, model, TASK, name=folder.name, training={}, metrics={}, licence=LICENCE)
    return folder


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one modality with dates."""
    return save(tmp_path_factory.mktemp("one") / "fields", {"s2": {"window": 16, "bands": ["B02", "B03", "B04"]}})


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three modalities, dates, prototypes, and windows that the Swin encoder shifts."""
    sensors: dict[str, dict[str, Any]] = {"hr": {"window": 128}, "s2": {}, "s1": {}}
    return save(tmp_path_factory.mktemp("all") / "everything", sensors, prototypes=True)


@pytest.fixture(scope="session")
def files(fields: Path) -> dict[str, Path]:
    """The model of one modality in both formats."""
    outs = {suffix: fields.parent / f"fields.{suffix}" for suffix in ("pt2", "onnx")}
    for out in outs.values():
        result = export.export(ExportConfig(model=fields, out=out))
        assert result.difference <= 1e-3
        assert (result.licence, result.sides) == (LICENCE, {"s2": 16})
        assert (result.step, result.chips) == ((4, 6) if out.suffix == ".pt2" else (None, 4))
    return outs


@pytest.fixture
def scene(tmp_path: Path, write_raster: Callable[..., Path]) -> Path:
    pixels = np.random.default_rng(0).integers(1, 4000, (3, 40, 50)).astype(np.uint16)
    pixels[:, :9, :9] = 0
    grid = GeoBox((40, 50), Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32632")
    return write_raster(tmp_path / "20230704.tif", pixels, grid, names=("B02", "B03", "B04"), nodata=0)


def mapped(scene: Path, model: Path, out: Path, **changes: Any) -> tuple[np.ndarray, dict[str, str]]:
    """A map in fp32, which is what exported models compute in, whatever the machine has."""
    settings = {"precision": "fp32"} | changes
    predict(PredictConfig(inputs=(str(scene),), out=out, model=model, device="cpu", **settings))
    with rasterio.open(out) as dataset:
        return dataset.read(1), dataset.tags()


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_an_exported_model_draws_the_same_map(
    fields: Path, files: dict[str, Path], scene: Path, tmp_path: Path, suffix: str
) -> None:
    ours, _ = mapped(scene, fields, tmp_path / "ours.tif")
    theirs, tags = mapped(scene, files[suffix], tmp_path / "theirs.tif")
    assert (ours != theirs).mean() < 1e-3  # ties
    assert (theirs[:9, :9] == 255).all()
    said = checkpoint.load_description(files[suffix])
    assert (tags["MODEL"], tags["MODEL_DIGEST"]) == ("fields", said.digest)
    assert said.digest != checkpoint.load_description(fields).digest


def test_windows_of_other_sizes_give_the_same_map(
    fields: Path, files: dict[str, Path], scene: Path, tmp_path: Path
) -> None:
    for window in (8, 36):
        ours, _ = mapped(scene, fields, tmp_path / f"ours{window}.tif", window=window)
        theirs, _ = mapped(scene, files["pt2"], tmp_path / f"theirs{window}.tif", window=window)
        assert (ours != theirs).mean() < 1e-3  # ties


@pytest.mark.slow
def test_windows_that_swin_shifts_pads_or_does_neither_share_one_graph(tmp_path: Path) -> None:
    pictures = save(tmp_path / "pictures", {"hr": {"window": 128}}, fusion=False)
    result = export.export(ExportConfig(model=pictures, out=tmp_path / "pictures.pt2"))
    assert (result.step, result.sides) == (32, {"hr": 128})
    ours, theirs = (checkpoint.load_model(path, CPU).model for path in (pictures, tmp_path / "pictures.pt2"))
    sensors = checkpoint.load_description(pictures).modalities
    with torch.inference_mode():
        for side in (32, 96, 256, 288, 512):
            batch = example(sensors, {"hr": side}, b=1, t=1, seed=side)
            assert (ours(batch) - theirs(batch)).abs().max() <= 1e-3, side
        with pytest.raises(UsageError, match=r"any multiple of 32 pixels, not for 48 x 48"):
            theirs(example(sensors, {"hr": 48}, b=1, t=1, seed=0))
    fixed = export.export(ExportConfig(model=pictures, out=tmp_path / "fixed.pt2", window=64))
    assert (fixed.step, fixed.sides) == (None, {"hr": 64})


def test_a_file_describes_itself(fields: Path, files: dict[str, Path]) -> None:
    ours = checkpoint.load_description(fields)
    for kind, path in zip(("torch-export", "onnx"), files.values(), strict=True):
        said = checkpoint.load_description(path)
        assert (said.licence, said.classes, said.modalities) == (LICENCE, TASK.classes, ours.modalities)
        assert (said.export["format"], said.export["weights"]) == (kind, ours.digest)
    told = {one.key: one.value for one in onnx.load(files["onnx"]).metadata_props}
    assert (told["licence"], told["classes"], told["bands"]) == (LICENCE, "water, forest, field", "s2: B02, B03, B04")


def test_no_file_names_the_machine_that_made_it(files: dict[str, Path]) -> None:
    for path in files.values():
        assert str(Path(export.__file__).parents[1]).encode() not in path.read_bytes()


def test_a_model_of_many_sensors_leaves_with_dates_and_places(everything: Path, tmp_path: Path) -> None:
    result = export.export(ExportConfig(model=everything, out=tmp_path / "all.pt2"))
    assert result.sides == {"hr": 128, "s2": 4, "s1": 4}
    assert {"hr_pixels", "s2_day_of_year", "s1_dated", "lonlat", "located"} <= set(result.inputs)
    ours, theirs = (checkpoint.load_model(path, CPU).model for path in (everything, tmp_path / "all.pt2"))
    batch = example(checkpoint.load_description(everything).modalities, result.sides, b=2, t=4, seed=9)
    with torch.inference_mode():
        assert (ours(batch) - theirs(batch)).abs().max() <= 1e-3
    with pytest.raises(UsageError, match=r"hr, s2, s1: ONNX is for models of one modality.*\n.*torch-export"):
        export.export(ExportConfig(model=everything, out=tmp_path / "all.onnx"))


def test_what_gives_other_scores_does_not_appear(fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(SkysenseError, match="gives other scores"):
        export.export(ExportConfig(model=fields, out=tmp_path / "fields.pt2"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_meant_is_refused(fields: Path, files: dict[str, Path], scene: Path, tmp_path: Path) -> None:
    for change, message in (
        ({"out": tmp_path / "m.zip"}, "ends in .pt2 or .onnx"),
        ({"out": tmp_path / "m.pt2", "format": "onnx"}, "ends in .onnx"),
        ({"out": files["pt2"]}, "exists"),
        ({"out": tmp_path / "m.pt2", "model": files["onnx"]}, "is exported already"),
        ({"out": tmp_path / "m.pt2", "window": 18}, r"--window 18.*\nUse --window 16"),
    ):
        with pytest.raises(UsageError, match=message):
            export.export(config.build(ExportConfig, {"model": fields, **change}))
    with pytest.raises(UsageError, match=r"windows of 16 x 16 pixels, not 32 x 32"):
        mapped(scene, files["onnx"], tmp_path / "map.tif", window=32)
    with pytest.raises(UsageError, match="runs as it is, in fp32"):
        mapped(scene, files["pt2"], tmp_path / "map.tif", precision="bf16")
    encoder = SkySense(ModelSpec(custom=SIZES), checkpoint.load_description(fields).modalities)
    with pytest.raises(SkysenseError, match=r"no weights to start from\n.*folder of fields"):
        checkpoint.load_encoder(encoder, files["onnx"])


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_damaged_file_is_refused(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    raw = files[suffix].read_bytes()
    damaged = tmp_path / f"model.{suffix}"
    for content in (raw[: len(raw) // 2], b"", b"no model" * 100):
        damaged.write_bytes(content)
        with pytest.raises(SkysenseError, match=r"truncated|does not describe itself"):
            checkpoint.load_model(damaged, CPU)


def rewritten(source: Path, out: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """A copy of an archive with changed and further records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        root = old.namelist()[0].split("/")[0]
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)
    return out


def program(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def edited(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        table = json.loads(content)
        change(table)
        return json.dumps(table).encode()

    return edited


def plant(table: dict[str, Any], key: str, value: Any) -> None:
    table["graph_module"]["graph"]["nodes"][0][key] = value


def test_code_in_a_file_does_not_run(files: dict[str, Path], tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (sprung,)

    trap = io.BytesIO()
    torch.save(Trap(), trap)

    def samples(name: str, content: bytes) -> bytes:
        return trap.getvalue() if name.endswith("sample_inputs/model.pt") else content

    def weights(name: str, content: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return trap.getvalue()
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle": true', 1) if "weights_config" in name else content
        )

    code = f"__import__('pathlib').Path({str(sprung)!r}).touch()"
    for change, message in (
        (samples, "pickled inputs"),
        (weights, "use_pickle"),
        (program(lambda table: plant(table, "target", "torch.os.system")), "the operation torch.os.system"),
        (program(lambda table: plant(table, "target", "torch.ops.aten.from_file.default")), "the operation"),
        (program(lambda table: plant(table, "inputs", [{"arg": {"as_sym_int": {"expr_str": code}}}])), "the size"),
        (program(lambda table: table.update(guards_code=[code])), "code of guards"),
    ):
        with pytest.raises(SkysenseError, match=f"{message}.*nothing in it was run"):
            checkpoint.load_model(rewritten(files["pt2"], tmp_path / "trap.pt2", change), CPU)
    added = rewritten(
        files["pt2"], tmp_path / "added.pt2", lambda _, content: content, **{"data/x.so": pickle.dumps(Trap())}
    )
    with pytest.raises(SkysenseError, match=r"the record .*x\.so"):
        checkpoint.load_model(added, CPU)
    assert not sprung.exists()


@pytest.mark.parametrize(("library", "action"), [("onnxruntime", "read"), ("onnx", "read"), ("onnxscript", "write")])
def test_a_missing_extra_is_named(
    fields: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    action: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: checkpoint.load_model(files["onnx"], CPU),
        "write": lambda: export.export(ExportConfig(model=fields, out=tmp_path / "m.onnx")),
    }
    with pytest.raises(UsageError, match=r"needs onnx.*\npip install 'skysense\[export\]'"):
        actions[action]()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_program_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(SkysenseError, match=r"does not describe itself"):
        checkpoint.load_model(tmp_path / "other.onnx", CPU)


@pytest.mark.slow
def test_the_packaged_model_on_real_chips(shared_data: Path, tmp_path: Path) -> None:
    tile = sorted((shared_data / "seg_buildings" / "fair_nairobi").rglob("*-20.png"))[0]
    with rasterio.open(tile) as dataset:
        pixels = dataset.read([1, 2, 3])
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 256, "width": 256, "crs": "EPSG:32737"}
    image = tmp_path / "tile.tif"
    with rasterio.open(image, "w", transform=Affine(0.2, 0, 250000, 0, -0.2, 9850000), **profile) as dataset:
        dataset.write(pixels)
    for suffix in ("pt2", "onnx"):
        given = ExportConfig(model=Path("buildings-hr"), out=tmp_path / f"b.{suffix}", scene=(str(image),))
        assert export.export(given).difference <= 1e-3
    ours, _ = mapped(image, Path("buildings-hr"), tmp_path / "ours.tif")
    for suffix in ("pt2", "onnx"):
        theirs, _ = mapped(image, tmp_path / f"b.{suffix}", tmp_path / f"{suffix}.tif")
        assert (ours != theirs).mean() < 1e-4
