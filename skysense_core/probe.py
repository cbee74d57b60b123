"""Is what a model has learnt of use? Frozen features of a labelled data set, asked by two simple classifiers.

    labelled windows -> frozen features per cell -> standardised -> nearest neighbours, linear layer -> mean recall

A cell is what one token of an encoder shows (4 x 4 pixels of a Sentinel modality, 32 x 32 of hr alone); its class is
the commonest one among its pixels. Beside the features the mean and deviation of the cell's raw pixels are asked, which
is what learning has to beat. Classes count alike, however rare: scores are means of their recalls, and chance is 1 / k.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from skysense_core import runtime, sources
from skysense_core.data.batch import Batch, Series
from skysense_core.data.chips import EvaluationChips
from skysense_core.data.labels import class_map
from skysense_core.data.loader import Part, evaluation_loader
from skysense_core.data.statistics import spread
from skysense_core.errors import UsageError
from skysense_core.losses.grains import Seen
from skysense_core.modalities import CELLS, Modality
from skysense_core.model.maps import maps_of
from skysense_core.model.skysense import SkySense
from skysense_core.types import IGNORE, Label, PartName

Count: TypeAlias = Annotated[int, Field(ge=1)]
PARTS: tuple[PartName, ...] = ("train", "val", "test")
PIXELS = "pixels"
"""Under this name stand the scores of raw pixel statistics."""
PENALTIES = (1e-4, 1e-2, 1.0)
"""L2 penalties of the linear probe; that with the best mean recall on the validation part is used."""
SHARPNESS = 0.07
"""A neighbour votes with exp(cosine similarity / this), as in DINO's evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """The `[probe]` table."""

    data: dict[str, Any]
    """As a run's `[data]` table: `source` and its fields. Its training part teaches, its test part is asked."""
    samples: Count = 256
    """Most samples of each part, evenly spaced."""
    cells: Count = 10_000
    """Most cells of each part, about as many of each window."""
    neighbours: Count = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Labelled cells of one part."""

    features: dict[str, Float[Tensor, "n _"]]
    codes: Int[Tensor, "n"]


class Probe:
    """A labelled data set that any model of some of its modalities can be asked about."""

    def __init__(
        self, config: ProbeConfig, modalities: Mapping[str, Modality], *, batch_size: int = 8, workers: int = 0
    ) -> None:
        """Raises UsageError where the data have none of the modalities or no labels, SkysenseError where a part is
        empty."""
        name, source = sources.from_table(config.data)
        self.config = config
        self.modalities = {key: one for key, one in modalities.items() if key in source.available()}
        if not self.modalities:
            raise UsageError(f"--probe: {name} has {', '.join(source.available())}, not {', '.join(modalities)}")
        self.batch_size, self.workers = batch_size, workers
        splits = {part: source.open(part, self.modalities) for part in PARTS}
        self.classes = sources.labelled(splits["train"], name).classes
        self.chips = {
            part: EvaluationChips(Part(split, spread(len(split), config.samples)), self.modalities, _codes)
            for part, split in splits.items()
        }
        self._pixels: dict[str, float] = {}

    def measure(self, model: SkySense, device: torch.device, precision: str = "fp32") -> dict[str, float]:
        """Mean recalls of a frozen model: `probe.NAME.knn` and `probe.NAME.linear` for each of its maps and `pixels`.

        The model is left in evaluation mode. The same model gives the same numbers.
        """
        model.eval()
        with torch.no_grad(), runtime.autocast(device, precision):
            found = {part: self._cells(part, model, device) for part in PARTS}
        train, val, test = (found[part] for part in PARTS)
        scores = dict(self._pixels)
        for name in train.features:
            if name == PIXELS and self._pixels:
                continue
            own = scored(name, train, val, test, classes=len(self.classes), neighbours=self.config.neighbours)
            scores |= {f"probe.{name}.{how}": value for how, value in own.items()}
        self._pixels = {name: value for name, value in scores.items() if name.startswith(f"probe.{PIXELS}.")}
        return scores

    def _cells(self, part: PartName, model: SkySense, device: torch.device) -> Cells:
        chips = self.chips[part]
        most = math.ceil(self.config.cells / len(chips))
        parts: list[Cells] = []
        for number, batch in enumerate(evaluation_loader(chips, batch_size=self.batch_size, workers=self.workers)):
            rng = runtime.generator(number)
            parts += drawn(batch.to(device), model, most=most, classes=len(self.classes), rng=rng)
        return Cells(
            features={name: torch.cat([one.features[name] for one in parts]) for name in parts[0].features},
            codes=torch.cat([one.codes for one in parts]),
        )


def drawn(batch: Batch, model: SkySense, *, most: int, classes: int, rng: np.random.Generator) -> Iterator[Cells]:
    """At most `most` labelled cells of each sample with the features of all maps and the statistics of their pixels."""
    assert batch.target is not None
    images = batch.epochs[0]
    # Alignment draws the 4 x 4 pixels of a ViT's patch from one token, each by weights of its own: no layer reads them
    # alike.
    side = CELLS if model.rise else 1
    maps = {name: averaged(map, side) for name, map in maps_of(model, images, batch.lonlat, batch.located).items()}
    grid = next(iter(maps.values())).shape[-2:]
    maps[PIXELS] = pixel_statistics(images, (grid[0], grid[1]))
    rows = {name: rearrange(map, "b d h w -> b (h w) d").float().cpu() for name, map in maps.items()}
    codes = rearrange(commonest(batch.target, (grid[0], grid[1]), classes), "b h w -> b (h w)").cpu()
    for number, own in enumerate(codes):
        known = np.flatnonzero(own.numpy() != IGNORE)
        chosen = torch.from_numpy(np.sort(rng.permutation(known)[:most]))
        yield Cells(features={name: values[number, chosen] for name, values in rows.items()}, codes=own[chosen])


def averaged(map: Seen, side: int) -> Float[Tensor, "b d h w"]:
    """The mean over dates and squares of `side` cells of what was seen; zero where nothing was."""
    weight = map.seen[:, :, None].to(torch.float32)
    total, count = (F.avg_pool2d(x.sum(1), side) for x in (map.tensor.float() * weight, weight))
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


def pixel_statistics(images: Mapping[str, Series], grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
    """Mean and deviation of every band of every modality over the valid pixels and dates of each cell."""
    found = []
    for _, series in sorted(images.items()):
        weight = series.valid[:, :, None].double()
        pixels = torch.where(series.valid[:, :, None], series.pixels, 0.0).double()
        sums = (pixels * weight, pixels**2 * weight, weight)
        first, second, count = (F.adaptive_avg_pool2d(x.sum(1), grid) for x in sums)
        mean, square = (x / count.clamp(min=torch.finfo(torch.double).tiny) for x in (first, second))
        found += [mean, (square - mean**2).clamp(min=0).sqrt()]
    return torch.cat(found, dim=1)


def commonest(codes: UInt8[Tensor, "b h w"], grid: tuple[int, int], classes: int) -> Int[Tensor, "b h2 w2"]:
    """The commonest class in each cell; `IGNORE` where less than half of its pixels have one."""
    cells = rearrange(codes.long(), "b (h i) (w j) -> b h w (i j)", h=grid[0], w=grid[1])
    cells = torch.where(cells == IGNORE, classes, cells)
    counts = torch.zeros(*cells.shape[:3], classes + 1, dtype=torch.long, device=codes.device)
    counts.scatter_add_(3, cells, torch.ones_like(cells))
    known = counts[..., :classes]
    return torch.where(2 * known.sum(-1) >= cells.shape[-1], known.argmax(-1), IGNORE)


def scored(
    name: str, train: Cells, val: Cells, test: Cells, *, classes: int, neighbours: int
) -> dict[Literal["knn", "linear"], float]:
    """Mean recall on `test` of both classifiers; `val` chooses the linear one's penalty."""
    mean, std = train.features[name].mean(0), train.features[name].std(0, correction=0).clamp(min=1e-6)
    x, x_val, x_test = ((part.features[name] - mean) / std for part in (train, val, test))
    share = torch.bincount(train.codes, minlength=classes).double().clamp(min=1) / len(train.codes)
    layers = [fitted(x.double(), train.codes, 1 / share, penalty) for penalty in PENALTIES]
    layer = max(layers, key=lambda one: mean_recall(one(x_val.double()).argmax(1), val.codes))
    votes = [nearest(x, train.codes, rows, share, neighbours) for rows in x_test.split(1024)]
    return {
        "knn": mean_recall(torch.cat(votes), test.codes),
        "linear": mean_recall(layer(x_test.double()).argmax(1), test.codes),
    }


def nearest(
    x: Float[Tensor, "n d"], codes: Int[Tensor, "n"], rows: Float[Tensor, "m d"], share: Float[Tensor, "k"], count: int
) -> Int[Tensor, "m"]:
    """The class that most of the `count` nearest rows of x vote for, a vote counting the more the rarer its class."""
    similarity, index = (F.normalize(rows, dim=1) @ F.normalize(x, dim=1).mT).topk(min(count, len(x)), dim=1)
    votes = (similarity.double() / SHARPNESS).exp() / share[codes[index]]
    return torch.zeros(len(rows), len(share), dtype=votes.dtype).scatter_add_(1, codes[index], votes).argmax(1)


def fitted(
    x: Float[Tensor, "n d"], codes: Int[Tensor, "n"], weight: Float[Tensor, "k"], penalty: float
) -> torch.nn.Linear:
    """Multinomial logistic regression with a weight per class and an L2 penalty, to convergence."""
    layer = torch.nn.Linear(x.shape[1], len(weight), dtype=x.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(layer(x), codes, weight=weight) + penalty / 2 * layer.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return layer.requires_grad_(False)


def mean_recall(predicted: Int[Tensor, "n"], codes: Int[Tensor, "n"]) -> float:
    """The mean over the classes that are there of the share of their cells that were found."""
    hits = (predicted == codes).double()
    return float(torch.stack([hits[codes == code].mean() for code in codes.unique()]).mean())


def _codes(label: Label, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    return class_map(label).codes
