"""Model folders: what goes in comes out, and what cannot be trusted is refused with what to do."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from skysense_core import checkpoint, config, description, modalities
from skysense_core.data.batch import Batch, Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.tasks.segmentation import DenseModel, Segmentation

CPU = torch.device("cpu")
TASK = Segmentation(classes=("water", "town"), colours=("#0000ff", "#ff0000"), class_weights=(0.5, 2.0))
METRICS = {"miou": 0.5, "oa": 0.75, "classes": {"water": {"iou": 0.5, "recall": None, "support": 3}}}


def built(task: Segmentation = TASK, seed: int = 0, **spec: Any) -> DenseModel:
    torch.manual_seed(seed)
    wanted = {"hr": modalities.load("hr", {"window": 128, "bands": ["red", "blue"]})}
    return task.build_model(SkySense(ModelSpec(preset="nano", **({"fusion": False} | spec)), wanted)).eval()


def save(folder: Path, model: DenseModel, **changes: Any) -> Path:
    arguments = {"name": "ponds", "training": {"source": "folder"}, "metrics": METRICS, "licence": "CC0-1.0"}
    checkpoint.save_model(folder, model, TASK, **(arguments | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "ponds", built())


def batch() -> Batch:
    series = Series(
        pixels=255 * torch.rand(1, 1, 2, 64, 64, generator=torch.Generator().manual_seed(1)),
        valid=torch.ones(1, 1, 64, 64, dtype=torch.bool),
        day_of_year=torch.ones(1, 1, dtype=torch.int64),
        dated=torch.zeros(1, 1, dtype=torch.bool),
    )
    return Batch(
        ids=("a",), epochs=({"hr": series},), lonlat=torch.zeros(1, 2), located=torch.zeros(1, dtype=torch.bool)
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    table = config.load_toml(folder / "model.toml")
    change(table)
    config.write_toml(folder / "model.toml", table)


def test_a_saved_model_comes_back_with_identical_weights(folder: Path) -> None:
    loaded = checkpoint.load_model(folder, CPU)
    ours = built().state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.model.state_dict().items())
    with torch.no_grad():  # some CPUs add numbers of mapped files, which begin anywhere, in another order
        torch.testing.assert_close(loaded.model(batch()), built()(batch()), atol=1e-5, rtol=0)
    assert loaded.task == TASK
    assert not loaded.model.training
    assert loaded.modalities == built().encoder.modalities
    assert (loaded.name, loaded.reference, loaded.classes) == ("ponds", "hr", ("water", "town"))
    assert (loaded.licence, loaded.training, loaded.folder) == ("CC0-1.0", {"source": "folder"}, folder)
    assert loaded.metrics == {"miou": 0.5, "oa": 0.75, "classes": {"water": {"iou": 0.5, "support": 3}}}


def test_every_file_is_as_readable_as_the_users_other_files(folder: Path) -> None:
    (folder.parent / "other").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder.parent / "other").stat().st_mode}


def test_the_description_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert checkpoint.load_description(folder).task_name == "segmentation"
    with pytest.raises(SkysenseError, match=r"model.safetensors is missing"):
        checkpoint.load_model(folder, CPU)


def test_the_card_says_what_an_analyst_asks(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for word in ("ponds", "red, blue", "0.3 m", "water, town", "0.75", "CC0-1.0", "## Limits", "skysense predict"):
        assert word in text


def test_a_model_is_replaced_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_tensors: object, path: Path, *, mapped: bool) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(SkysenseError, match="No space left"):
            save(folder, built(seed=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["ponds"]
    save(folder, built(seed=1))
    assert checkpoint.load_model(folder, CPU).digest != ""
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["ponds"]


def test_a_run_folder_means_its_best_model(tmp_path: Path) -> None:
    save(tmp_path / "last", built(), name="last")
    assert description.find_model(tmp_path) == tmp_path / "last"
    save(tmp_path / "best", built(), name="best")
    assert checkpoint.load_description(tmp_path).name == "best"


def test_packaged_models_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "ZOO", tmp_path)
    save(tmp_path / "ponds-hr", built())
    assert description.packaged_models() == {"ponds-hr": tmp_path / "ponds-hr"}
    assert description.find_model(Path("ponds-hr")) == tmp_path / "ponds-hr"
    with pytest.raises(SkysenseError, match=r"did you mean ponds-hr\? Packaged: ponds-hr"):
        description.find_model(Path("pond-hr"))


@pytest.mark.parametrize("name", ["model.pth", "m.pt", "m.ckpt", "m.PKL", "m.bin"])
def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SkysenseError, match=r"pickle is never read[^\n]*\n.*Convert"):
        checkpoint.load_model(tmp_path / name, CPU)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_under_the_name_of_the_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(SkysenseError, match="damaged or altered"):
        checkpoint.load_model(folder, CPU)
    edit(folder, lambda table: table.update(digest=checkpoint.digest_of(folder / "model.safetensors")))
    with pytest.raises(SkysenseError, match="not safetensors"):
        checkpoint.load_model(folder, CPU)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-7], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])])
def test_truncated_or_altered_weights_are_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(SkysenseError, match="damaged or altered"):
        checkpoint.load_model(folder, CPU)


def test_what_is_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SkysenseError, match="no such model folder"):
        checkpoint.load_model(tmp_path / "none", CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SkysenseError, match=r"has no model.toml"):
        checkpoint.load_model(tmp_path / "empty", CPU)
    with pytest.raises(SkysenseError, match="not its folder"):
        checkpoint.load_model(folder / "model.toml", CPU)
    (folder / "model.toml").write_text("format = [")
    with pytest.raises(UsageError, match="not valid TOML"):
        checkpoint.load_model(folder, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(format=99, skysense="9.0"), r"format 99 by skysense 9.0.*\nInstall a newer"),
        (lambda t: t.pop("digest"), "'digest' is missing"),
        (lambda t: t["task"].update(name="teleport"), "unknown task 'teleport'"),
        (lambda t: t["task"].update(hed="fcn"), "task.hed: unknown key"),
        (lambda t: t["model"].update(preset="gigantic"), "unknown preset 'gigantic'"),
        (lambda t: t["modalities"]["hr"].update(gsd="near"), "modalities.hr.gsd"),
        (lambda t: t["model"].update(preset="tiny"), r"head.*has shape \(.*, not \(|encoder.*has shape"),
        (lambda t: t["task"].update(classes=["a", "b", "c"]), r"classifier.weight has shape \(2.*not \(3"),
        (lambda t: t["modalities"]["hr"]["bands"].pop(), "has shape"),
        (lambda t: t["model"].update(fusion=True), "is missing"),
    ],
)
def test_a_description_that_contradicts_itself_or_the_weights_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(SkysenseError, match=message):
        checkpoint.load_model(folder, CPU)


def test_another_models_encoder_is_taken_over_and_counted(folder: Path) -> None:
    other = Segmentation(classes=("a", "b", "c"))
    model = built(other, seed=5)
    report = checkpoint.load_encoder(model.encoder, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, tensors[f"encoder.{name}"]), name
    encoder = [name for name in tensors if name.startswith("encoder.encoders.")]
    assert report == f"{len(encoder)} tensors of the encoder taken from ponds"


def test_parts_that_only_one_of_two_models_has_are_named(folder: Path) -> None:
    report = checkpoint.load_encoder(built(fusion=True).encoder, folder)
    assert "new: dates (1 tensors); new: fusion (" in report
    with_fusion = save(folder.parent / "fused", built(fusion=True))
    report = checkpoint.load_encoder(built().encoder, with_fusion)
    assert "not needed: fusion (" in report


def test_an_encoder_of_other_shape_is_refused(folder: Path) -> None:
    wanted = {"hr": modalities.load("hr")}  # three bands, the start has two
    encoder = SkySense(ModelSpec(preset="nano", fusion=False), wanted)
    with pytest.raises(SkysenseError, match=r"has shape \(16, 2, 4, 4\), not \(16, 3, 4, 4\)"):
        checkpoint.load_encoder(encoder, folder)


def test_a_start_without_any_common_part_is_refused(folder: Path) -> None:
    encoder = SkySense(ModelSpec(preset="nano", fusion=False), {"s1": modalities.load("s1")})
    with pytest.raises(SkysenseError, match="ponds has nothing for s1: it knows hr"):
        checkpoint.load_encoder(encoder, folder)


def test_statistics_stay_the_encoders_own(folder: Path) -> None:
    model = built()
    model.encoder.normalise["hr"].mean += 1
    before = model.encoder.normalise["hr"].mean.clone()
    checkpoint.load_encoder(model.encoder, folder)
    assert torch.equal(model.encoder.normalise["hr"].mean, before)


def test_weights_with_a_surplus_tensor_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), "extra": torch.zeros(1)}, weights)
    edit(folder, lambda table: table.update(digest=checkpoint.digest_of(weights)))
    with pytest.raises(SkysenseError, match="extra is not part of the model"):
        checkpoint.load_model(folder, CPU)


RELEASED = sorted((Path(__file__).parent / "fixtures").glob("format-*.safetensors"))
"""What the model of each released format gives for a picture; its folder lies beside it."""


@pytest.mark.parametrize("expected", RELEASED, ids=lambda path: path.stem)
def test_a_model_of_every_released_format_gives_what_it_gave(expected: Path) -> None:
    said = load_file(expected)
    pixels, valid = said["pixels"], said["valid"]
    days, dated = torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool)
    images = {"hr": Series(pixels=pixels, valid=valid, day_of_year=days, dated=dated)}
    picture = Batch(ids=(), epochs=(images,), lonlat=torch.zeros(1, 2), located=torch.zeros(1, dtype=torch.bool))
    loaded = checkpoint.load_model(expected.with_suffix(""), CPU)
    with torch.no_grad():
        assert (loaded.model(picture) - said["logits"]).abs().max() <= 1e-4


def test_there_is_a_fixture_of_every_released_format() -> None:
    numbers = {int(path.stem.removeprefix("format-")) for path in RELEASED}
    assert numbers == set(range(1, checkpoint.FORMAT + 1))
