"""Frozen features of labelled chips, asked by nearest neighbours and a linear layer; scikit-learn is the oracle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from tiny_data import CLASSES, write_chips

from skysense_core import modalities
from skysense_core.data.batch import Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.probe import Cells, Probe, ProbeConfig, commonest, fitted, nearest, pixel_statistics, scored
from skysense_core.types import IGNORE

S2 = {"s2": modalities.load("s2", {"window": 16})}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chips(tmp_path_factory.mktemp("data") / "chips")


@pytest.fixture(scope="module")
def model() -> SkySense:
    torch.manual_seed(0)
    return SkySense(ModelSpec(preset="nano"), S2)


def clouds(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds, the last one rare."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, n, p=[0.5, 0.4, 0.1])
    return torch.from_numpy(rng.normal(0, 1, (n, 4)) + 1.5 * np.eye(4)[codes]), torch.from_numpy(codes)


# The classifiers


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_the_linear_probe_is_balanced_logistic_regression(penalty: float) -> None:
    (x, codes), (other, _) = clouds(300, 0), clouds(100, 1)
    share = torch.bincount(codes).double() / len(codes)
    layer = fitted(x, codes, 1 / share, penalty)
    # Its loss is a sum; ours is the weighted mean.
    oracle = LogisticRegression(C=1 / (penalty * len(x)), class_weight="balanced", tol=1e-8, max_iter=1000)
    oracle.fit(x.numpy(), codes.numpy())
    assert np.allclose(torch.softmax(layer(other), 1).numpy(), oracle.predict_proba(other.numpy()), atol=2e-3)


def test_neighbours_vote_by_similarity_and_rarity() -> None:
    (x, codes), (rows, _) = clouds(200, 0), clouds(50, 1)
    share = torch.bincount(codes).double() / len(codes)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance**2 / 2) / 0.07)  # of unit vectors, from their distance to the cosine

    unit, asked = (torch.nn.functional.normalize(one, dim=1).numpy() for one in (x, rows))
    oracle = KNeighborsClassifier(7, weights=weights, algorithm="brute").fit(unit, codes.numpy())
    expected = (oracle.predict_proba(asked) / share.numpy()).argmax(1)
    assert np.array_equal(nearest(x, codes, rows, share, 7).numpy(), expected)


def test_scores_are_mean_recalls_and_features_are_standardised() -> None:
    parts = []
    for seed in range(3):
        x, codes = clouds(300, seed)
        parts.append(Cells(features={"a": x, "b": x * torch.tensor([1.0, 1e3, 1e-3, 5.0]) + 100}, codes=codes))
    a, b = (scored(name, *parts, classes=3, neighbours=5) for name in ("a", "b"))
    assert a == pytest.approx(b, abs=0.01)
    x, codes = (parts[0].features["a"].numpy(), parts[0].codes.numpy())
    oracle = LogisticRegression(class_weight="balanced", C=1.0).fit(x, codes)
    truth = parts[2].codes.numpy()
    expected = balanced_accuracy_score(truth, oracle.predict(parts[2].features["a"].numpy()))
    assert a["linear"] == pytest.approx(expected, abs=0.05)
    noise = [replace(part, features={"a": torch.randn(300, 4)}) for part in parts]
    assert scored("a", *noise, classes=3, neighbours=5)["linear"] < 0.45


# Cells


def test_a_cell_has_the_commonest_class_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([0, 1, 2, IGNORE], dtype=np.uint8), (2, 12, 16), p=[0.4, 0.2, 0.1, 0.3])
    found = commonest(torch.from_numpy(codes), (3, 4), 3)
    for b, row, col in np.ndindex(2, 3, 4):
        pixels = codes[b, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
        counts = np.bincount(pixels[pixels != IGNORE], minlength=3)
        assert int(found[b, row, col]) == (counts.argmax() if 2 * counts.sum() >= 16 else IGNORE)


def test_pixel_statistics_are_those_of_valid_pixels_of_all_dates() -> None:
    torch.manual_seed(0)
    series = Series(
        pixels=3000 + 100 * torch.randn(2, 3, 2, 8, 8),
        valid=torch.rand(2, 3, 8, 8) > 0.4,
        day_of_year=torch.ones(2, 3, dtype=torch.long),
        dated=torch.ones(2, 3, dtype=torch.bool),
    )
    series.pixels[~series.valid[:, :, None].expand_as(series.pixels)] = float("nan")
    found = pixel_statistics({"s2": series}, (2, 2))
    pixels, valid = series.pixels[1, :, 0, :4, 4:].numpy(), series.valid[1, :, :4, 4:].numpy()
    assert float(found[1, 0, 0, 1]) == pytest.approx(pixels[valid].astype(float).mean(), rel=1e-6)
    assert float(found[1, 2, 0, 1]) == pytest.approx(pixels[valid].astype(float).std(), rel=1e-4)


# The whole


def test_what_pixels_tell_is_found_and_the_same_model_gives_the_same_numbers(chips: Path, model: SkySense) -> None:
    probe = Probe(ProbeConfig(data={"path": str(chips), "modality": "s2"}, cells=600), S2)
    assert probe.classes == CLASSES
    first = probe.measure(model, torch.device("cpu"))
    expected = {f"probe.{name}.{how}" for name in ("s2", "fused", "pixels") for how in ("knn", "linear")}
    assert set(first) == expected
    assert first["probe.pixels.knn"] > 0.95  # every class has a spectrum of its own
    assert first["probe.pixels.linear"] > 0.95
    assert all(0.3 < value <= 1 for value in first.values())
    assert probe.measure(model, torch.device("cpu")) == first


def test_a_model_whose_features_say_nothing_is_at_chance(chips: Path, model: SkySense) -> None:
    probe = Probe(ProbeConfig(data={"path": str(chips), "modality": "s2"}, cells=200), S2)
    with torch.no_grad():
        for parameter in model.fusion.parameters() if model.fusion is not None else ():
            parameter.zero_()
    scores = probe.measure(model, torch.device("cpu"))
    assert scores["probe.fused.linear"] == pytest.approx(1 / 3)  # three classes are there


def test_a_model_that_has_learnt_nothing_still_shows_what_pixels_tell(tmp_path: Path) -> None:
    """Random weights mix the bands but lose little of them: a linear layer finds spectra that pixels tell apart."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 180)
    bands = [f"B{number:02d}" for number in (2, 3, 4, 8)]
    spectra = 1000 + 400 * np.eye(3, 4)[kinds] + rng.normal(0, 60, (len(kinds), 4))
    table = pd.DataFrame(spectra, columns=bands)
    table = table.assign(id=range(180), date="2020-06-01", kind=kinds, split=np.repeat(["train", "val", "test"], 60))
    table.to_csv(tmp_path / "points.csv", index=False)
    s2 = modalities.load("s2").with_bands(tuple(bands)).with_statistics(np.full(4, 1100.0), np.full(4, 200.0))
    data = {"path": tmp_path / "points.csv", "label_column": "kind", "split_column": "split"}
    torch.manual_seed(0)
    model = SkySense(ModelSpec(preset="nano"), {"s2": s2})
    scores = Probe(ProbeConfig(data=data, cells=60), {"s2": s2}).measure(model, torch.device("cpu"))
    assert scores["probe.pixels.linear"] > 0.95
    assert scores["probe.s2.linear"] > 0.95


def test_what_cannot_be_probed_is_refused(chips: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has s2, not hr"):
        Probe(ProbeConfig(data={"path": str(chips), "modality": "s2"}), {"hr": modalities.load("hr")})
    with pytest.raises(SkysenseError, match="no val part"):
        Probe(ProbeConfig(data={"source": "images", "path": str(chips / "train" / "images"), "modality": "s2"}), S2)
