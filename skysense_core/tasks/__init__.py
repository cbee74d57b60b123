"""A task is a codec plus a model part: label on a map -> target -> scores -> map. One file per task, found by name.

The fields of a task's dataclass are its `[task]` table, completed with the classes of the data it was trained on.
"""

import colorsys
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from skysense_core import runtime
from skysense_core.data.batch import Batch
from skysense_core.data.chips import EvaluationChips, OverlappingChips
from skysense_core.geo.windows import Lattice, Window
from skysense_core.merge import Merger
from skysense_core.merge.pictures import PictureMerger
from skysense_core.metrics import Metrics
from skysense_core.modalities import Modality
from skysense_core.model.skysense import SkySense
from skysense_core.types import Label, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterOutput:
    """The result is a map of class codes, in the reference modality's grid."""

    classes: tuple[str, ...]
    colours: tuple[str, ...]
    """`#rrggbb` per class."""
    cell: int | None = None
    """Pixels of the reference modality, at the model's own pixel size, that a pixel of the map is wide; None: the map
    has the scene's own pixels."""
    epochs: int = 1
    """Epochs of imagery that are compared: 2 are before and after."""

    kind: ClassVar[str] = "semantic-segmentation"
    """The word of STAC's Machine Learning Model extension."""

    @property
    def channels(self) -> int:
        """Scores of a pixel."""
        return len(self.classes)

    @property
    def said(self) -> str:
        """What comes out, for people."""
        return f"A map of {len(self.classes)} classes: {', '.join(self.classes)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutput(RasterOutput):
    """The result is a score of every class: they do not exclude each other."""

    kind: ClassVar[str] = "classification"

    @property
    def said(self) -> str:
        """What comes out, for people."""
        return f"A probability of each of {len(self.classes)} classes: {', '.join(self.classes)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueOutput:
    """The result is a map of one value, in a unit."""

    name: str
    unit: str
    cell: int | None = None
    """As in `RasterOutput`."""
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    epochs: ClassVar[int] = 1
    channels: ClassVar[int] = 1
    kind: ClassVar[str] = "regression"

    @property
    def said(self) -> str:
        """What comes out, for people."""
        return f"A map of {self.name} in {self.unit}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOutput:
    """The result is a table of objects with their outlines."""

    classes: tuple[str, ...]
    colours: tuple[str, ...]
    overlap: float
    """Of two objects of one class that overlap more than this, the better one stays."""
    oriented: bool
    """Whether outlines have a direction."""
    cell: ClassVar[None] = None
    epochs: ClassVar[int] = 1
    channels: ClassVar[int] = 1
    kind: ClassVar[str] = "object-detection"

    @property
    def said(self) -> str:
        """What comes out, for people."""
        return f"Outlines of objects of {len(self.classes)} classes: {', '.join(self.classes)}."


Output: TypeAlias = RasterOutput | ValueOutput | ObjectOutput


@runtime_checkable
class Task(Protocol):
    """What the trainer, the engine and the command line know of a task; they have no branch per task."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def output(self) -> Output: ...

    @property
    def whole(self) -> bool:
        """Whether a sample has one answer: it is then seen as a whole, never cropped."""

    def completed(self, train: Split) -> "Task":
        """The task with what the training part says: classes, colours, how often each occurs.

        Raises UsageError where the settings contradict the data and SkysenseError where the labels teach nothing.
        """

    def fuses(self, modalities: Mapping[str, Modality]) -> bool:
        """Whether the head needs the fused map; without the need the model is built without fusion."""

    def build_model(self, encoder: SkySense) -> nn.Module:
        """A module with attributes `encoder` and `head` that maps a Batch to raw scores."""

    def encode(self, label: Label, shape: tuple[int, int]) -> np.ndarray:
        """The target of one sample, whose reference raster has so many (rows, columns)."""

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named losses, already weighted: their sum is minimised."""

    def metrics(self) -> Metrics: ...

    def scores(self, model: nn.Module, batch: Batch) -> Any:
        """What can still be merged across windows, for each sample: for maps a Tensor (b, k, h, w)."""

    def merger(self, lattice: Lattice, strip: Window, device: torch.device) -> Merger:
        """What collects the scores of overlapping windows."""

    def decode(self, scores: Any, valid: Tensor) -> np.ndarray:
        """Merged scores as the final prediction."""


def evaluation_chips(task: Task, split: Split, modalities: Mapping[str, Modality]) -> EvaluationChips:
    """The windows that a task is measured on: overlapping ones where their borders would cut objects."""
    kind = OverlappingChips if isinstance(task.output, ObjectOutput) else EvaluationChips
    return kind(split, modalities, task.encode, whole=task.whole)


def measure(
    task: Task,
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    watch: Callable[[Batch, Any], None] | None = None,
    *,
    chips: EvaluationChips | None = None,
) -> dict[str, Any]:
    """The task's metrics of a model over labelled batches; `watch` sees each batch with its scores.

    `chips`, of which these are all, in order: what is found in windows that overlap is joined first.
    """
    metrics, output = task.metrics(), task.output
    joined = None
    if isinstance(chips, OverlappingChips) and isinstance(output, ObjectOutput):
        joined = PictureMerger(chips.places, output.overlap)
    model.eval()
    for batch in batches:
        with torch.inference_mode(), runtime.autocast(device, precision):
            scores = task.scores(model, batch.to(device))
        scores = scores.cpu() if isinstance(scores, Tensor) else scores
        if joined is not None and isinstance(chips, OverlappingChips):
            seen = batch.epochs[0][chips.reference].valid.any(dim=1).to(torch.uint8)
            for index, found in joined.add(scores, seen):
                metrics.update(found[None], torch.from_numpy(chips.truth(index))[None])
        else:
            assert batch.target is not None
            metrics.update(scores, batch.target)
        if watch is not None:
            watch(batch, scores)
    return metrics.compute()


_NATURAL = {
    "water": "#2b83ba",
    "river": "#2b83ba",
    "lake": "#2b83ba",
    "sea": "#2b83ba",
    "flood": "#41b6e6",
    "wetland": "#5ab4ac",
    "snow": "#dff3fb",
    "ice": "#dff3fb",
    "cloud": "#f2f2f2",
    "forest": "#1b7837",
    "tree": "#1b7837",
    "wood": "#1b7837",
    "shrub": "#8c9a3c",
    "scrub": "#8c9a3c",
    "grass": "#a6d96a",
    "meadow": "#d4e68a",
    "orchard": "#b8860b",
    "vineyard": "#8e4585",
    "crop": "#f6c141",
    "farm": "#f6c141",
    "agricult": "#f6c141",
    "bare": "#c2a878",
    "soil": "#c2a878",
    "sand": "#e8d8a0",
    "rock": "#a09080",
    "building": "#d7301f",
    "roof": "#d7301f",
    "residential": "#e5735c",
    "urban": "#c44e52",
    "built": "#c44e52",
    "industrial": "#9e4fa5",
    "commercial": "#e377c2",
    "road": "#555555",
    "street": "#555555",
    "car": "#ffdd00",
    "background": "#d9d9d9",
    "other": "#bdbdbd",
}
"""Colours that a reader expects, by a word of the class name; a long word may go on (farm: farmland)."""


def default_colours(classes: Sequence[str]) -> tuple[str, ...]:
    """A colour per class: the expected one where the name says it, else hues that are far apart; never one twice."""
    colours: list[str] = []
    for index, name in enumerate(classes):
        natural = _natural(name)
        colours.append(natural if natural and natural not in colours else _hue(index))
    return tuple(colours)


def _natural(name: str) -> str | None:
    for word in re.findall("[a-z]+", name.lower()):
        for key, colour in _NATURAL.items():
            if word in (key, f"{key}s") or (len(key) >= 4 and word.startswith(key)):
                return colour
    return None


def _hue(index: int) -> str:
    # Steps of the golden angle never meet again; lightness alternates so that neighbours in hue differ too.
    rgb = colorsys.hls_to_rgb((0.61803398875 * index + 0.08) % 1.0, (0.38, 0.55, 0.7)[index % 3], 0.65)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)
