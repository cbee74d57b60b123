"""Land cover of several dates and its change: scores by a brute-force reading of their definition, pairs of classes."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from skysense_core import modalities
from skysense_core.checkpoint import save_model
from skysense_core.data import transforms
from skysense_core.data.batch import collate
from skysense_core.data.chips import Augment, EvaluationChips, TrainingChips
from skysense_core.errors import UsageError
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.tasks.semantic_change import SemanticChange, SemanticChangeMetrics
from skysense_core.types import IGNORE, ClassMap, ClassMaps, Raster, Sample

CLASSES = ("water", "forest", "town")
K = len(CLASSES)


def brute(codes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The definitions, pixel by pixel."""
    pairs = [
        (int(truth[s, e, r, c]), int(truth[s, e + 1, r, c]), int(codes[s, e, r, c]), int(codes[s, e + 1, r, c]))
        for s in range(len(truth))
        for e in range(truth.shape[1] - 1)
        for r in range(truth.shape[2])
        for c in range(truth.shape[3])
        if truth[s, e, r, c] != IGNORE and truth[s, e + 1, r, c] != IGNORE
    ]
    both = sum(a != b and p != q for a, b, p, q in pairs)
    any_ = sum(a != b or p != q for a, b, p, q in pairs)
    bc = both / any_ if any_ else 0.0
    changed = [(b, q) for a, b, _, q in pairs if a != b]
    ious = [
        sum(b == k == q for b, q in changed) / union
        for k in range(K)
        if (union := sum(k in (b, q) for b, q in changed))
    ]
    sc = sum(ious) / len(ious) if ious else 0.0
    seen = [
        (0 if a == b else 1 + true, 0 if p == q else 1 + said)
        for a, b, p, q in pairs
        for true, said in ((a, p), (b, q))
    ]
    counts = {pair: seen.count(pair) for pair in set(seen) if pair != (0, 0)}
    total, sek = sum(counts.values()), 0.0
    if total:
        agreed = sum(n for (t, s), n in counts.items() if t == s) / total
        rows = [sum(n for (t, _), n in counts.items() if t == k) for k in range(K + 1)]
        columns = [sum(n for (_, s), n in counts.items() if s == k) for k in range(K + 1)]
        chance = sum(r * c for r, c in zip(rows, columns, strict=True)) / total**2
        iou = sum(n for (t, s), n in counts.items() if t and s) / total
        sek = math.exp(iou - 1) * (agreed - chance) / (1 - chance) if chance < 1 else 0.0
    return {"bc": bc, "sc": sc, "scs": (bc + sc) / 2, "sek": sek}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0, 1))
def test_scores_are_what_their_definition_says(seed: int, epochs: int, wrong: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, (2, epochs, 3, 4)).astype(np.uint8)
    codes = np.where(rng.random(truth.shape) < wrong, rng.integers(0, K, truth.shape), truth)
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    metrics = SemanticChangeMetrics(CLASSES)
    for each in range(2):  # in two batches
        metrics.update_codes(torch.from_numpy(codes[each, None]).long() % K, torch.from_numpy(truth[each, None]))
    found = metrics.compute()
    assert {key: found[key] for key in ("bc", "sc", "scs", "sek")} == pytest.approx(brute(codes % K, truth))
    assert found["support"] == (truth != IGNORE).sum()


def test_a_perfect_map_has_perfect_scores_and_one_without_change_none() -> None:
    truth = torch.tensor([[[[0, 1, 2]], [[1, 1, 0]], [[1, 2, 0]]]], dtype=torch.uint8)
    metrics = SemanticChangeMetrics(CLASSES)
    metrics.update_codes(truth.long(), truth)
    found = metrics.compute()
    assert [found[key] for key in ("scs", "bc", "sc", "sek", "miou")] == pytest.approx([1, 1, 1, 1, 1])
    assert sum(map(sum, found["became"])) == 3
    still = SemanticChangeMetrics(CLASSES)
    still.update_codes(truth[:, :1].repeat(1, 3, 1, 1).long(), truth)
    assert (still.compute()["bc"], still.compute()["sek"]) == (0.0, pytest.approx(0.0, abs=0.05))


def raster(seed: int, side: int = 128) -> Raster:
    return Raster(
        pixels=np.random.default_rng(seed).integers(0, 255, (1, 3, side, side)).astype(np.uint8),
        valid=np.ones((1, side, side), dtype=bool),
        days=np.array([30 * seed]),
        dated=np.ones(1, dtype=bool),
    )


@dataclass(frozen=True)
class Months:
    """Three dates of two places, each with its map."""

    classes: tuple[str, ...] = CLASSES
    colours: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        epochs = tuple({"hr": raster(3 * index + month)} for month in range(3))
        return Sample(id=str(index), epochs=epochs, label=self.label(index))

    def size(self, index: int) -> tuple[int, int]:
        return 128, 128

    def label(self, index: int) -> ClassMaps | ClassMap:
        return ClassMaps(codes=np.random.default_rng(index).integers(0, K, (3, 128, 128)).astype(np.uint8))


def model_of(task: SemanticChange) -> torch.nn.Module:
    wanted = {"hr": modalities.load("hr", {"gsd": 1.0, "window": 128})}
    torch.manual_seed(0)
    return task.build_model(SkySense(ModelSpec(preset="nano", fusion=False), wanted)).eval()


def test_every_date_is_mapped_by_itself_and_learnt_from() -> None:
    task = SemanticChange().completed(Months())
    model, wanted = model_of(task), {"hr": modalities.load("hr", {"gsd": 1.0, "window": 128})}
    sample, target = TrainingChips(Months(), wanted, task.encode, augment=Augment(swap=True), seed=0)[0, 0]
    assert target.shape == (3, 128, 128)
    batch = collate([sample], [target])
    task.losses(model, batch)["cross_entropy"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    chips = EvaluationChips(Months(), wanted, task.encode)
    batch = collate([chips[0][0]], [chips[0][1]])
    metrics = task.metrics()
    with torch.no_grad():
        scores = task.scores(model, batch)
        metrics.update(scores, batch.target)
        alone = [model(collate([Sample(id="0", epochs=(epoch,))]))[0, :, 0].softmax(0) for epoch in chips[0][0].epochs]
    torch.testing.assert_close(scores[0], torch.cat(alone))
    codes = torch.stack([one.argmax(0) for one in alone])[None]
    expected = brute(codes.numpy(), batch.target.numpy())
    assert {key: metrics.compute()[key] for key in expected} == pytest.approx(expected)


def test_maps_change_places_with_their_dates() -> None:
    sample = Months()[0]
    swapped = transforms.swap(sample)
    np.testing.assert_array_equal(swapped.label.codes[0], sample.label.codes[2])
    assert swapped.epochs[0]["hr"].days == sample.epochs[2]["hr"].days


def test_data_without_maps_of_dates_are_refused() -> None:
    class One(Months):
        def label(self, index: int) -> ClassMap:
            return ClassMap(codes=np.zeros((128, 128), dtype=np.uint8))

    with pytest.raises(UsageError, match="a map of classes for every date"):
        SemanticChange().completed(One())


def test_a_map_from_class_to_class_and_its_areas(tmp_path: Path) -> None:
    grid = GeoBox((128, 128), Affine(1.0, 0, 500000, 0, -1.0, 5000000), "EPSG:32633")
    for name, seed in (("may", 1), ("june", 2)):
        profile = {"driver": "GTiff", "count": 3, "height": 128, "width": 128, "dtype": "uint8", "photometric": "RGB"}
        with rasterio.open(tmp_path / f"{name}.tif", "w", crs="EPSG:32633", transform=grid.affine, **profile) as file:
            file.write(raster(seed).pixels[0])
    task = SemanticChange(classes=CLASSES)
    model = model_of(task)
    save_model(tmp_path / "model", model, task, name="months", training={}, metrics={}, licence="none")
    inputs = tuple(str(tmp_path / f"{name}.tif") for name in ("may", "june"))
    out, polygons = tmp_path / "map.tif", tmp_path / "changes.gpkg"
    result = predict(
        PredictConfig(
            inputs=inputs, out=out, model=tmp_path / "model", device="cpu", precision="fp32", polygons=polygons
        )
    )
    names = [one.name for one in result.classes]
    assert names[:4] == ["water", "water to forest", "water to town", "forest to water"]
    assert len(names) == len(set(task.output.colours)) == K * K
    batch = collate([Sample(id="0", epochs=({"hr": raster(1)}, {"hr": raster(2)}))])
    with torch.no_grad():
        before, after = model(batch)[0].argmax(0)
    with rasterio.open(out) as file:
        codes = file.read(1)
    np.testing.assert_array_equal(codes, (before * K + after).numpy())
    shares = np.bincount(codes.ravel(), minlength=K * K) / codes.size
    assert [one.share for one in result.classes] == pytest.approx(shares.tolist(), abs=1e-6)
