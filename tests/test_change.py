"""Change between two dates: sources of pairs, what both dates share, what is learnt, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import write_levir
from PIL import Image

from skysense_core import config, modalities, sources
from skysense_core.data import transforms
from skysense_core.data.batch import collate
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.evaluate import EvaluateConfig, evaluate
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.metrics import ClassMapMetrics
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.sources.levir_cd import LevirCd
from skysense_core.sources.ombria import Ombria
from skysense_core.tasks.change import Change, ChangeMetrics
from skysense_core.types import Split

CLASSES = ("unchanged", "changed")


@pytest.fixture(scope="module")
def levir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_levir(tmp_path_factory.mktemp("levir"))


def opened(path: Path, part: str = "train") -> Split:
    source = LevirCd(path=path)
    return source.open(part, source.described())


@pytest.mark.parametrize("listed", [False, True])
def test_pairs_are_as_stored(tmp_path: Path, listed: bool) -> None:
    folder = write_levir(tmp_path, count=2, listed=listed)
    assert sources.detect(folder) == "levir_cd"
    split = opened(folder, "val")
    assert (split.classes, len(split)) == (CLASSES, 2)
    sample, root = split[1], folder if listed else folder / "val"
    for epoch, kind in zip(sample.epochs, ("A", "B"), strict=True):
        stored = np.asarray(Image.open(root / kind / "val_1.png"))
        np.testing.assert_array_equal(epoch["hr"].pixels[0], stored.transpose(2, 0, 1))
    changed = np.asarray(Image.open(root / "label" / "val_1.png")) == 255
    np.testing.assert_array_equal(sample.label.codes, changed)


def test_a_missing_date_and_another_size_are_named(tmp_path: Path) -> None:
    folder = write_levir(tmp_path, count=2)
    other = folder / "train" / "B" / "train_0.png"
    Image.open(other).resize((32, 64)).save(other)
    with pytest.raises(SkysenseError, match=r"differ in size.*A/train_0.png has 64 x 64, .*B/train_0.png has 64 x 32"):
        opened(folder)
    other.unlink()
    with pytest.raises(SkysenseError, match=r"train/B: no picture train_0.png"):
        opened(folder)


def test_ombria_as_published(shared_data: Path) -> None:
    path = shared_data / "change_flood" / "ombria"
    assert sources.detect(path) == "ombria"
    source = Ombria(path=path)
    assert source.available() == ("s2", "s1")
    wanted = source.described()
    parts = {part: source.open(part, wanted) for part in ("train", "val", "test")}
    assert {part: len(split) for part, split in parts.items()} == {"train": 45, "val": 11, "test": 24}
    assert not {place.id for place in parts["train"].places} & {place.id for place in parts["val"].places}
    sample = parts["test"][0]
    for number, kind in enumerate(("before", "after")):
        file = path / "OmbriaS2" / "test" / kind.upper() / f"S2_{kind}_{sample.id}.png"
        stored = np.asarray(Image.open(file)).transpose(2, 0, 1)
        np.testing.assert_array_equal(sample.epochs[number]["s2"].pixels[0], stored)
        assert sample.epochs[number]["s1"].pixels.shape == (1, 1, 256, 256)
    with pytest.raises(UsageError, match="has no hr"):
        source.open("train", {"hr": modalities.load("hr")})


def test_dates_are_cropped_and_turned_alike_and_swapped_with_their_maps(levir: Path) -> None:
    sample, rng = opened(levir)[0], np.random.default_rng(3)
    # The mask painted into both dates stays under the mask whatever happens.
    marked = tuple(
        {"hr": replace(epoch["hr"], pixels=np.repeat(sample.label.codes[None, None], 3, axis=1))}
        for epoch in sample.epochs
    )
    moved = transforms.random_turn(transforms.random_crop(replace(sample, epochs=marked), "hr", 32, rng), rng)
    for epoch in moved.epochs:
        np.testing.assert_array_equal(epoch["hr"].pixels[0, 0], moved.label.codes)
    swapped = transforms.swap(sample)
    np.testing.assert_array_equal(swapped.epochs[0]["hr"].pixels, sample.epochs[1]["hr"].pixels)
    np.testing.assert_array_equal(swapped.label.codes, sample.label.codes)


def test_the_model_sees_both_dates_with_one_encoder(levir: Path) -> None:
    split, task = opened(levir), Change(classes=CLASSES)
    torch.manual_seed(0)
    encoder = SkySense(ModelSpec(preset="nano", fusion=False), split.modalities)
    model = task.build_model(encoder).eval()
    batch = collate([split[0]])
    before, after = batch.epochs
    with torch.no_grad():
        scores = task.scores(model, batch)
        assert scores.shape == (1, 2, 64, 64)
        for epochs in ((before, before), (after, after)):
            assert not torch.equal(task.scores(model, replace(batch, epochs=epochs)), scores)
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in model.encoder.parameters())


@pytest.mark.parametrize("shift", [0, 1])
def test_scores_of_change_are_those_of_its_pixels(shift: int) -> None:
    rng = np.random.default_rng(shift)
    truth, codes = rng.integers(0, 2, (2, 3, 8, 8)).astype(np.uint8)
    metrics = ChangeMetrics(CLASSES)
    metrics.update_codes(torch.from_numpy(codes), torch.from_numpy(truth))
    hit, missed, wrong = (truth & codes).sum(), (truth & ~codes & 1).sum(), (~truth & 1 & codes).sum()
    found = metrics.compute()
    assert found["iou"] == pytest.approx(hit / (hit + missed + wrong))
    assert found["f1"] == pytest.approx(2 * hit / (2 * hit + missed + wrong))
    assert (found["precision"], found["recall"]) == pytest.approx((hit / (hit + wrong), hit / (hit + missed)))


def test_nothing_changed_and_nothing_found_is_no_error() -> None:
    metrics = ChangeMetrics(CLASSES)
    metrics.update_codes(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert metrics.compute()["f1"] == 0.0
    assert isinstance(metrics, ClassMapMetrics)


def test_data_without_two_dates_or_two_classes_are_refused(levir: Path, tmp_path: Path) -> None:
    class Single(type(opened(levir))):  # type: ignore[misc]
        def __getitem__(self, index: int) -> object:
            return replace(super().__getitem__(index), epochs=super().__getitem__(index).epochs[:1])

    whole = opened(levir)
    fields = {name: getattr(whole, name) for name in ("modalities", "legend", "places", "sizes")}
    with pytest.raises(UsageError, match="compares two dates, and the samples have 1"):
        Change().completed(Single(**fields))


@pytest.mark.parametrize(("task", "least"), [({}, 0.9), ({"fusion": "early", "auxiliary": 0.4}, 0.7)])
def test_change_is_learnt_and_measured(levir: Path, tmp_path: Path, task: dict, least: float) -> None:
    table = {
        "data": {"path": str(levir)},
        "task": {"name": "change", **task},
        "model": {"preset": "nano"},
        "out": str(tmp_path / "run"),
        "augment": {"swap": True},
        "optim": {"lr": 3e-3},
        "train": {"steps": 25, "batch_size": 4, "precision": "fp32"},
        "device": "cpu",
    }
    finetune(config.build(FinetuneConfig, table, ""))
    scores = evaluate(EvaluateConfig(model=tmp_path / "run", precision="fp32", device="cpu")).scores
    assert scores["model"]["f1"] > least
