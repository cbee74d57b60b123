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


class ImageMetrics(ClassMapMetrics):
    """Scores of one class per sample: those of class maps with samples for pixels, and how often the truth is among
    the five most probable."""

    best: ClassVar[str] = "oa"

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__(classes)
        self._among = self._count = 0

    def update(self, scores: Float[Tensor, "b k 1 1"], target: UInt8[Tensor, "b"]) -> None:
        """Count a batch; samples of target `IGNORE` are left out."""
        flat = scores[..., 0, 0]
        self.update_codes(flat.argmax(dim=1), target)
        known = target != IGNORE
        ranked = flat[known].topk(min(5, flat.shape[1]), dim=1).indices
        self._among += int((ranked == target[known].long()[:, None]).sum())
        self._count += int(known.sum())

    def compute(self) -> dict[str, Any]:
        """`class_scores`, and `top5` where there are more than five classes."""
        top = {"top5": self._among / self._count} if len(self.classes) > 5 and self._count else {}
        return top | super().compute()


class TagMetrics:
    """Average precision and F1 of any number of classes per sample, by torchmetrics."""

    best: ClassVar[str] = "map_micro"

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._scores: list[Float[Tensor, "b k"]] = []
        self._truth: list[UInt8[Tensor, "b k"]] = []

    def update(self, scores: Float[Tensor, "b k 1 1"], target: UInt8[Tensor, "b k"]) -> None:
        """Keep a batch: average precision needs all scores at once."""
        self._scores.append(scores[..., 0, 0])
        self._truth.append(target)

    def compute(self) -> dict[str, Any]:
        """`map_micro` over all decisions (as SeCo reports it), `map_macro` the mean over classes, `mf1` at 0.5.

        A class that no sample has enters no mean.
        """
        from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

        scores, truth = torch.cat(self._scores), torch.cat(self._truth).long()
        k = len(self.classes)
        counts = truth.sum(dim=0)
        each = multilabel_average_precision(scores, truth, num_labels=k, average="none")
        f1 = multilabel_f1_score(scores, truth, num_labels=k, average="none")
        there = counts > 0
        return {
            "map_micro": _number(multilabel_average_precision(scores, truth, num_labels=k, average="micro")),
            "map_macro": _number(each[there].mean()),
            "mf1": _number(f1[there].mean()),
            "support": len(truth),
            "classes": {
                name: {
                    "ap": _number(each[i]) if there[i] else None,
                    "f1": _number(f1[i]) if there[i] else None,
                    "support": int(counts[i]),
                }
                for i, name in enumerate(self.classes)
            },
        }


class ValueMetrics:
    """Errors of values: root mean square, mean absolute, and the share of the variance that is explained."""

    best: ClassVar[str] = "r2"

    def __init__(self) -> None:
        # count, sum and sum of squares of the truth, sums of squared and of absolute errors
        self._sums = torch.zeros(5, dtype=torch.float64)

    def update(self, scores: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"]) -> None:
        """Count a batch; pixels whose target is NaN are left out."""
        known = target.isfinite()
        truth, error = target[known].double(), (scores[:, 0] - target)[known].double()
        sums = (torch.ones_like(truth), truth, truth**2, error**2, error.abs())
        self._sums += torch.stack([one.sum() for one in sums]).cpu()

    def compute(self) -> dict[str, Any]:
        """`rmse`, `mae` and `r2` (1 - squared errors over squared deviations from the mean)."""
        count, total, squares, errors, absolute = self._sums
        return {
            "r2": _number(1 - errors / (squares - total**2 / count)),
            "rmse": _number((errors / count).sqrt()),
            "mae": _number(absolute / count),
            "support": int(count),
        }


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
