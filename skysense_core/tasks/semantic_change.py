"""Semantic change: the land cover of every date, and from it what became what (METHOD 4, Dynamic EarthNet).

The dates are mapped one by one with the same weights; change is where the maps differ. A prediction of two dates has a
class for every pair of classes, whose probability is the product of the two.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from skysense_core.data.batch import Batch
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.windows import Lattice, Window
from skysense_core.merge.raster import RasterMerger
from skysense_core.metrics import ClassMapMetrics, class_scores
from skysense_core.model.skysense import SkySense
from skysense_core.tasks import RasterOutput, default_colours
from skysense_core.tasks.segmentation import DenseModel, Segmentation
from skysense_core.types import IGNORE, ClassMaps, Label, Split

COMPARED = 2
"""Dates of a prediction."""
MOST = 15
"""Classes whose pairs have codes in a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticChange(Segmentation):
    """The `[task]` table: that of segmentation."""

    @property
    def output(self) -> RasterOutput:
        """A class for each pair of classes, those that stay as they are among them."""
        pairs = tuple(
            before if before == after else f"{before} to {after}" for before in self.classes for after in self.classes
        )
        return RasterOutput(classes=pairs, colours=default_colours(pairs), epochs=COMPARED)

    def completed(self, train: Split) -> "SemanticChange":
        """As for segmentation. Raises UsageError where the data have no maps of several dates, or too many classes."""
        if not isinstance(train.label(0), ClassMaps):
            raise UsageError(
                "semantic_change learns from a map of classes for every date, and the data have none",
                fix="--task change learns from one map of what has changed.",
            )
        if len(train.classes) > MOST:
            raise UsageError(f"{len(train.classes)} classes: maps of their pairs have room for {MOST}")
        return super(SemanticChange, self).completed(train)  # type: ignore[return-value]

    def build_model(self, encoder: SkySense) -> "EachDate":
        """The model of segmentation, once for every date. Raises UsageError for an auxiliary head."""
        if self.auxiliary:
            raise UsageError("task.auxiliary is for maps of one date", fix="Leave it out: --set task.auxiliary=0")
        head, levels = self.build_head(encoder)
        return EachDate(encoder, head, fuse=self.fuses(encoder.modalities), levels=levels)

    def encode(self, label: Label, shape: tuple[int, int]) -> UInt8[np.ndarray, "e h w"]:
        """The codes of every date. Raises SkysenseError where they are no maps on (rows, columns) of the reference."""
        if not isinstance(label, ClassMaps) or label.codes.shape[1:] != shape:
            raise SkysenseError(f"the label is no map of {shape} pixels for every date")
        return label.codes

    def metrics(self) -> "SemanticChangeMetrics":  # type: ignore[override]
        return SemanticChangeMetrics(self.classes)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b n h w"]:
        """Probabilities: of all pairs of classes, before * k + after, where there are two dates; else of every date."""
        each = model(batch).float().softmax(dim=1)
        if len(batch.epochs) != COMPARED:
            return rearrange(each, "b k e h w -> b (e k) h w")
        before, after = each.unbind(dim=2)
        return rearrange(before[:, :, None] * after[:, None], "b k1 k2 h w -> b (k1 k2) h w")

    def merger(self, lattice: Lattice, strip: Window, device: torch.device) -> RasterMerger:
        """Blends the probabilities of overlapping windows."""
        return RasterMerger(lattice, strip, len(self.classes) ** 2, device)


class EachDate(DenseModel):
    """Every epoch by itself, with the same weights."""

    def forward(self, batch: Batch) -> Float[Tensor, "b k e h w"]:  # type: ignore[override]
        maps = (self.drawn(self.head, *self.maps(batch, images), batch) for images in batch.epochs)
        return torch.stack(list(maps), dim=2)


class SemanticChangeMetrics:
    """SCS, BC and SC (METHOD 4), SeK (Yang et al. 2021), and the scores of the maps of all dates."""

    best: ClassVar[str] = "scs"

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        k = len(classes)
        self._maps = ClassMapMetrics(classes)
        self._changed = torch.zeros(2, 2, dtype=torch.int64)
        self._became = torch.zeros(k, k, dtype=torch.int64)
        self._either = torch.zeros(k + 1, k + 1, dtype=torch.int64)

    def update(self, scores: Float[Tensor, "b n h w"], target: UInt8[Tensor, "b e h w"]) -> None:
        """Count a batch of scores as `SemanticChange.scores` gives them."""
        k, epochs = len(self.classes), target.shape[1]
        if epochs == COMPARED:
            pairs = scores.argmax(dim=1)
            codes = torch.stack([pairs // k, pairs % k], dim=1)
        else:
            codes = rearrange(scores, "b (e k) h w -> b e k h w", e=epochs).argmax(dim=2)
        self.update_codes(codes, target)

    def update_codes(self, codes: Int[Tensor, "b e h w"], target: UInt8[Tensor, "b e h w"]) -> None:
        """Count maps of every date; of two dates that follow each other, pixels that both have a label."""
        k, truth = len(self.classes), target.long()
        self._maps.update_codes(codes, target)
        known = (truth[:, 1:] != IGNORE) & (truth[:, :-1] != IGNORE)
        (a, b), (p, q) = ((maps[:, :-1][known], maps[:, 1:][known]) for maps in (truth, codes))
        changed, said = a != b, p != q
        self._changed += _counted(changed.long(), said.long(), 2)
        self._became += _counted(b[changed], q[changed], k)
        # A class for what stays the same, then those of the land cover where something changes, at either date.
        for true, predicted in ((a, p), (b, q)):
            self._either += _counted((true + 1) * changed, (predicted + 1) * said, k + 1)

    def compute(self) -> dict[str, Any]:
        """`bc`: IoU of the changed pixels of all consecutive pairs. `sc`: mean IoU of the classes of the later date,
        among pixels that truly changed. `scs`: their mean. `sek`: separated kappa. `became`: pixels that truly changed,
        true class by predicted class of the later date. What is 0/0 counts as 0.

        All else is of the maps of all dates, as for segmentation.
        """
        (_, wrong), (missed, hits) = self._changed.tolist()
        bc = hits / (hits + wrong + missed) if hits + wrong + missed else 0.0
        sc = class_scores(self._became, self.classes)["miou"] or 0.0
        change = {"scs": (bc + sc) / 2, "bc": bc, "sc": sc, "sek": self._separated_kappa()}
        return change | self._maps.compute() | {"became": self._became.tolist()}

    def _separated_kappa(self) -> float:
        """exp(IoU of change - 1) times the kappa of all but the pixels that stay the same in truth and prediction."""
        counts = self._either.double()
        counts[0, 0] = 0
        total = counts.sum()
        if not total:
            return 0.0
        agreed = counts.diagonal().sum() / total
        chance = (counts.sum(dim=0) @ counts.sum(dim=1)) / total**2
        if chance == 1:
            return 0.0
        iou = counts[1:, 1:].sum() / total
        return float(torch.exp(iou - 1) * (agreed - chance) / (1 - chance))


def _counted(truth: Int[Tensor, "n"], predicted: Int[Tensor, "n"], k: int) -> Int[Tensor, "k k"]:
    return torch.bincount(truth * k + predicted, minlength=k * k).reshape(k, k).cpu()
