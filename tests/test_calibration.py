"""Confidence is measured and mended: by hand, and against data whose right temperature is known."""

import pytest
import torch

from skysense_core.calibration import Calibration, fit_temperature, tempered
from skysense_core.types import IGNORE


def drawn(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities that are too sure by this temperature, and labels drawn from the right ones."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 4, generator=generator)
    truth = torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)[:, 0]
    return logits.softmax(dim=1), truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_labels_is_found(temperature: float) -> None:
    scores, truth = drawn(temperature)
    found = fit_temperature(scores, truth)
    assert found == pytest.approx(temperature, rel=0.05)
    right = torch.arange(len(truth)), truth
    assert tempered(scores, found)[right].log().mean() >= scores[right].log().mean() - 1e-6
    assert (tempered(scores, found).argmax(dim=1) == scores.argmax(dim=1)).all()
    calibration = Calibration()
    calibration.update(scores[:, :, None, None], truth.to(torch.uint8))
    measured = calibration.compute(fit=True)
    assert measured["ece_calibrated"] < 0.02
    assert measured["ece_calibrated"] <= measured["ece"] + 1e-3
    if temperature != 1:
        assert measured["ece"] > 0.05


def test_the_error_is_that_of_its_definition() -> None:
    """Four pixels of confidence 0.9, three of them right, and one without a label."""
    scores = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1).expand(1, 2, 1, 5)
    target = torch.tensor([[[0, 0, 0, 1, IGNORE]]], dtype=torch.uint8)
    calibration = Calibration()
    calibration.update(scores, target)
    found = calibration.compute(fit=False)
    assert found["ece"] == pytest.approx(0.9 - 0.75)
    (full,) = [one["before"] for one in found["reliability"] if one["before"]]
    assert full == pytest.approx([0.9, 0.75])


def test_other_tasks_are_passed_over() -> None:
    calibration = Calibration()
    calibration.update(torch.rand(2, 3, 1, 1), torch.zeros(2, 3, dtype=torch.uint8))  # tags
    calibration.update(torch.rand(2, 1, 4, 4), torch.rand(2, 4, 4))  # values
    calibration.update([{"boxes": torch.rand(1, 4)}], torch.zeros(2, 3, 6))
    assert calibration.compute(fit=True) == {}
