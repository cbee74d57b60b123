"""Whether a model is as sure as it is right: expected calibration error, and the temperature that mends it.

Guo et al. 2017: logits are divided by one number, fitted on data that the model has not learnt from. The most probable
class stays; a confidence of 0.8 is right four times in five then. Softmax takes the logarithm of probabilities for
logits, so that neither the model nor the task is asked for anything but its scores.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skysense_core.types import IGNORE

BINS = 15
PER_BATCH = 4096
"""Most pixels of a batch that are looked at."""
MOST = 200_000
"""Most of all batches."""
RANGE = (-2.5, 2.5)
"""Logarithm of the temperatures that are tried."""


class Calibration:
    """Collects probabilities and labels of class maps, or of one class per sample; passes over all else."""

    def __init__(self) -> None:
        self._scores: list[Float[Tensor, "n k"]] = []
        self._truth: list[Int[Tensor, "n"]] = []
        self._count = 0

    def update(self, scores: object, target: Tensor) -> None:
        """Probabilities (b, k, h, w) with codes (b, h, w), or (b, k, 1, 1) with (b,); `IGNORE` is left out."""
        if not isinstance(scores, Tensor) or scores.ndim != 4 or target.dtype != torch.uint8 or self._count >= MOST:
            return
        if target.ndim == 1:
            target = target[:, None, None]
        if target.ndim != 3 or target.shape[-2:] != scores.shape[-2:]:
            return
        flat, truth = scores.detach().float().cpu().movedim(1, -1).flatten(0, 2), target.cpu().flatten().long()
        known = (truth != IGNORE).nonzero()[:, 0]
        chosen = known[:: max(len(known) // PER_BATCH, 1)]
        self._scores.append(flat[chosen])
        self._truth.append(truth[chosen])
        self._count += len(chosen)

    def compute(self, *, fit: bool) -> dict[str, Any]:
        """`ece` as the scores are, and `reliability`: mean confidence and share that is right in each bin, `before`
        and `after`. With `fit` also `temperature` and `ece_calibrated`. Empty where nothing was collected."""
        if not self._count:
            return {}
        scores, truth = torch.cat(self._scores), torch.cat(self._truth)
        before, bins_before = _binned(scores, truth)
        found: dict[str, Any] = {"ece": before}
        bins_after: list[list[float] | None] = [None] * BINS
        if fit:
            temperature = fit_temperature(scores, truth)
            after, bins_after = _binned(tempered(scores, temperature), truth)
            found |= {"temperature": temperature, "ece_calibrated": after}
        pairs = zip(bins_before, bins_after, strict=True)
        return found | {"reliability": [{"before": one, "after": other} for one, other in pairs]}


def tempered(scores: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
    """Probabilities whose logits are divided by a temperature."""
    return (scores.clamp(min=1e-12).log() / temperature).softmax(dim=1)


def fit_temperature(scores: Float[Tensor, "n k"], truth: Int[Tensor, "n"]) -> float:
    """The temperature under which the labels are most probable."""
    from scipy.optimize import minimize_scalar

    logits = scores.clamp(min=1e-12).log().double()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / torch.tensor(log_temperature).exp(), truth))

    return float(torch.tensor(minimize_scalar(loss, bounds=RANGE, method="bounded").x).exp())


def _binned(scores: Float[Tensor, "n k"], truth: Int[Tensor, "n"]) -> tuple[float, list[list[float] | None]]:
    """The expected calibration error, and of each bin of confidence its mean and the share that is right."""
    sure, codes = scores.max(dim=1)
    which = (sure * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(which, minlength=BINS).double()
    sums = torch.bincount(which, weights=sure.double(), minlength=BINS)
    right = torch.bincount(which, weights=(codes == truth).double(), minlength=BINS)
    error = float((sums - right).abs().sum() / counts.sum())
    means = zip(counts.tolist(), sums.tolist(), right.tolist(), strict=True)
    return error, [[one / count, good / count] if count else None for count, one, good in means]
