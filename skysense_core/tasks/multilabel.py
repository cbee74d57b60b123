"""Multi-label classification: any number of classes for a whole sample, each with a probability of its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from skysense_core.data.batch import Batch
from skysense_core.errors import SkysenseError
from skysense_core.losses import collectives
from skysense_core.metrics import TagMetrics
from skysense_core.tasks import ScoreOutput, default_colours
from skysense_core.tasks.classification import Classification
from skysense_core.types import Label, Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Multilabel(Classification):
    """The `[task]` table: that of classification."""

    @property
    def output(self) -> ScoreOutput:
        """A score of each class for every window."""
        return ScoreOutput(classes=self.classes, colours=self.colours or default_colours(self.classes))

    def encode(self, label: Label, shape: tuple[int, int]) -> UInt8[np.ndarray, "k"]:
        """1 for each class of the sample, 0 for the others. Raises SkysenseError for labels that are no tags."""
        if not isinstance(label, Tags):
            raise SkysenseError("multilabel needs samples with tags", fix="For maps of classes: --task segmentation")
        target = np.zeros(len(self.classes), dtype=np.uint8)
        target[list(label.codes)] = 1
        return target

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy, the mean over samples and classes; this process's part, see `collectives.mean`."""
        assert batch.target is not None
        logits = model(batch).float()
        each = F.binary_cross_entropy_with_logits(logits, batch.target.float(), reduction="none").mean(dim=1)
        return {"binary_cross_entropy": collectives.mean(each, torch.ones_like(each))}

    def metrics(self) -> Any:
        return TagMetrics(self.classes)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k 1 1"]:
        """Probabilities, float32; they do not sum to one."""
        return rearrange(model(batch).float().sigmoid(), "b k -> b k 1 1")

    def decode(self, scores: Float[Tensor, "k h w"], valid: Bool[Tensor, "h w"]) -> Float[np.ndarray, "k h w"]:
        """The scores, NaN where the reference modality has no data."""
        return torch.where(valid, scores, torch.nan).cpu().numpy()
