"""How good detections are: average precision of boxes of any direction, as VOC and DOTA define it, and COCO's.

A detection takes the true box of its image and class that it overlaps most. Above the threshold it is a hit, unless a
better one has had that box; a difficult box makes it count neither way [DOTA development kit; VOC 2007 and 2010].
"""

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skysense_core.geo import boxes

OVERLAP = 0.5
MOST = (1, 100, 1000)
"""Detections per image in COCO's scores. Its own limit of 100 is for photographs: one aerial image has more cars."""


class ObjectMetrics:
    """Average precision over batches of detections, in all and per class; with `coco` also COCO's, of upright boxes.

    `map50`: area under the precision that never rises with recall (VOC 2010, DOTA). `map50_11`: the mean at 11 recalls
    (VOC 2007). `coco_map` and `coco_map50`: COCO's means over 101 recalls, at overlaps of 0.5 to 0.95 and of 0.5.
    """

    best: ClassVar[str] = "map50"

    def __init__(self, classes: tuple[str, ...], *, coco: bool) -> None:
        self.classes = classes
        self._coco = coco_metric() if coco else None
        self._found: list[tuple[int, float, bool, bool]] = []  # class, score, hit, neither
        self._true = np.zeros(len(classes), dtype=np.int64)

    def update(self, scores: Float[Tensor, "b n 10"], target: Float[Tensor, "b m 10"]) -> None:
        """Count a batch. Rows are 8 corner numbers and a class code; then the score, or 1 for a difficult box; NaN
        rows fill up."""
        for found, truth in zip(scores, target, strict=True):
            found, truth = found[~found[:, 8].isnan()].double(), truth[~truth[:, 8].isnan()].double()
            self._match(found.numpy(), truth.numpy())
            if self._coco is not None:
                known = {
                    "boxes": _bounds(truth).float(),
                    "labels": truth[:, 8].long(),
                    "iscrowd": truth[:, 9].long(),
                }
                said = {"boxes": _bounds(found).float(), "labels": found[:, 8].long(), "scores": found[:, 9].float()}
                self._coco.update([said], [known])

    def _match(self, found: Float[np.ndarray, "n 10"], truth: Float[np.ndarray, "m 10"]) -> None:
        for code in range(len(self.classes)):
            mine, true = found[found[:, 8] == code], truth[truth[:, 8] == code]
            difficult = true[:, 9] > 0
            self._true[code] += (~difficult).sum()
            mine = mine[np.argsort(-mine[:, 9], kind="stable")]
            overlap = boxes.ious(mine[:, :8].reshape(-1, 4, 2), true[:, :8].reshape(-1, 4, 2))
            taken: Bool[np.ndarray, "m"] = np.zeros(len(true), dtype=bool)
            for row, score in zip(overlap, mine[:, 9].tolist(), strict=True):
                nearest = int(row.argmax()) if len(row) else -1
                over = nearest >= 0 and bool(row[nearest] > OVERLAP)
                hit = over and not difficult[nearest] and not taken[nearest]
                self._found.append((code, score, hit, over and bool(difficult[nearest])))
                if hit:
                    taken[nearest] = True

    def compute(self) -> dict[str, Any]:
        """All scores of what was counted so far. None stands for a class without a true box, which enters no mean."""
        rows = np.array(self._found, dtype=np.float64).reshape(-1, 4)
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        per_class: dict[str, dict[str, Any]] = {}
        for code, name in enumerate(self.classes):
            own = rows[(rows[:, 0] == code) & (rows[:, 3] == 0), 2]
            per_class[name] = {**_scores(own, int(self._true[code])), "support": int(self._true[code])}
        means = {
            key.replace("ap", "map", 1): _mean([one[key] for one in per_class.values()]) for key in ("ap50", "ap50_11")
        }
        coco = {} if self._coco is None else self._coco.compute()
        return {
            **means,
            **{f"coco_{key}": max(float(coco[name]), 0.0) for key, name in _COCO.items() if coco},
            "detections": len(rows),
            "support": int(self._true.sum()),
            "classes": per_class,
        }


_COCO = {"map": "map", "map50": "map_50", "map75": "map_75"}


def coco_metric() -> Any:
    """Torchmetrics' COCO evaluation. Raises SkysenseError where the extra is not installed."""
    from torchmetrics.detection import MeanAveragePrecision  # slow, and only measuring needs it

    from skysense_core.errors import SkysenseError

    try:
        return MeanAveragePrecision(
            backend="faster_coco_eval", max_detection_thresholds=list(MOST), sync_on_compute=False
        )
    except ModuleNotFoundError as error:
        raise SkysenseError(
            f"measuring detections needs {error.name or 'faster-coco-eval'}", fix="pip install 'skysense[detect]'"
        ) from None


def average_precision(
    recall: Float[np.ndarray, "n"], precision: Float[np.ndarray, "n"], *, points: bool = False
) -> float:
    """Area under a curve of ascending recall whose precision is the best at that recall or more; with `points` the
    mean of that precision at recalls 0, 0.1, ... 1."""
    if not len(recall):
        return 0.0
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points:
        steps = np.searchsorted(recall, np.arange(11) / 10 - 1e-12)
        return float(np.append(envelope, 0.0)[np.minimum(steps, len(envelope))].mean())
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _scores(hits: Float[np.ndarray, "n"], true: int) -> dict[str, float | None]:
    if not true:
        return {"ap50": None, "ap50_11": None, "recall": None, "f1": None}
    found = np.cumsum(hits)
    recall, precision = found / true, found / np.arange(1, len(hits) + 1)
    f1 = 2 * found / (true + np.arange(1, len(hits) + 1))
    return {
        "ap50": average_precision(recall, precision),
        "ap50_11": average_precision(recall, precision, points=True),
        "recall": float(recall[-1]) if len(recall) else 0.0,
        "f1": float(f1.max(initial=0.0)),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _bounds(rows: Float[Tensor, "n 10"]) -> Float[Tensor, "n 4"]:
    corners = rows[:, :8].reshape(-1, 4, 2)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
