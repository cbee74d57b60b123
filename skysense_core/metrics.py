"""How good a class map is: every number comes from one confusion matrix, so that they cannot disagree."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from skysense_core.types import IGNORE

COLUMNS = ("iou", "f1", "precision", "recall", "support")
"""The numbers of each class, in the order of a printed table."""


@runtime_checkable
class Metrics(Protocol):
    """What a task measures; accumulates over batches."""

    best: ClassVar[str]
    """Key of `compute()` whose highest value picks the best model."""

    def update(self, scores: Any, target: Tensor) -> None: ...

    def compute(self) -> dict[str, Any]:
        """Scores by name, ready for JSON; `support` is how much was measured, `classes` has a table for each class."""


class ClassMapMetrics:
    """Overall accuracy, mean IoU, kappa and per-class scores of predicted class maps."""

    best: ClassVar[str] = "miou"

    def __init__(self, classes: tuple[str, ...]) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix  # five seconds, and only measuring needs it

        self.classes = classes
        self._matrix = MulticlassConfusionMatrix(
            max(len(classes), 2),  # with one class torchmetrics has no matrix to count in
            ignore_index=IGNORE,
            validate_args=False,
            sync_on_compute=False,  # where several processes train, one alone measures
        )

    def update(self, scores: Float[Tensor, "b k h w"], target: UInt8[Tensor, "b h w"]) -> None:
        """Count a batch; `scores` are probabilities or logits, pixels of target `IGNORE` are left out."""
        self.update_codes(scores.argmax(dim=1), target)

    def update_codes(self, codes: Int[Tensor, "..."] | UInt8[Tensor, "..."], target: UInt8[Tensor, "..."]) -> None:
        """Count predictions that are class codes already."""
        self._matrix = self._matrix.to(target.device)
        self._matrix.update(codes.long(), target.long())

    def compute(self) -> dict[str, Any]:
        """All scores of what was counted so far; see `class_scores`."""
        k = len(self.classes)
        return class_scores(self._matrix.compute()[:k, :k].cpu(), self.classes)


def class_scores(matrix: Int[Tensor, "k k"], classes: tuple[str, ...]) -> dict[str, Any]:
    """Scores of a confusion matrix (rows truth, columns prediction), ready for JSON.

    `oa` overall accuracy, `miou` and `mf1` means over classes, `kappa` Cohen's, `classes` with `COLUMNS` for each,
    `confusion`, and `support`, the number of pixels. None stands for 0/0: a class in neither truth nor prediction has
    no IoU or F1 and enters no mean, one never predicted has no precision, one absent from the truth no recall.
    """
    counts = matrix.double()
    hits, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    total = counts.sum()
    per_class = {
        "iou": hits / (truth + predicted - hits),
        "f1": 2 * hits / (truth + predicted),
        "precision": hits / predicted,
        "recall": hits / truth,
    }
    chance = (truth @ predicted) / total**2
    oa = hits.sum() / total
    return {
        "oa": _number(oa),
        "miou": _number(per_class["iou"].nanmean()),
        "mf1": _number(per_class["f1"].nanmean()),
        "kappa": _number((oa - chance) / (1 - chance)),
        "support": int(total),
        "classes": {
            name: {key: _number(values[i]) for key, values in per_class.items()} | {"support": int(truth[i])}
            for i, name in enumerate(classes)
        },
        "confusion": matrix.tolist(),
    }


def _number(value: Float[Tensor, ""]) -> float | None:
    return float(value) if torch.isfinite(value) else None


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """The single scores of `compute()` that are defined, for logs and for comparing models."""
    return {key: value for key, value in scores.items() if isinstance(value, float)}


def plot_confusion(path: Path, scores: Mapping[str, Any]) -> None:
    """Draw the confusion matrix of `class_scores` as a PNG: shade and number are the share of the true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only drawing needs it
    from matplotlib.figure import Figure

    counts = torch.tensor(scores["confusion"], dtype=torch.float64)
    shares = (counts / counts.sum(dim=1, keepdim=True)).nan_to_num(0.0)
    names = list(scores["classes"])
    side = 2.5 + 0.45 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in torch.nonzero(shares >= 0.005).tolist():
        share = float(shares[row, column])
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    figure.savefig(path, dpi=150)
