"""What a prediction writes: each product is one raster, made from the merged scores of finished rows."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from geopandas import GeoDataFrame
from jaxtyping import Float, Num, UInt8
from odc.geo.geobox import GeoBox
from torch import Tensor

from skysense_core.errors import UsageError
from skysense_core.geo import vector
from skysense_core.geo.cog import Product
from skysense_core.merge.raster import Part
from skysense_core.predict.settings import Measure, PredictConfig
from skysense_core.tasks import ScoreOutput, Task, ValueOutput
from skysense_core.types import IGNORE, UNSURE

LEVELS = 254
"""Steps in which a probability is stored in a byte: probability = number / 254; 255 is nodata."""

Arrays: TypeAlias = dict[str, Num[np.ndarray, "..."]]
"""By product: its bands of some rows, or the objects in them."""
Encode: TypeAlias = Callable[[Any], Arrays]
"""What turns finished rows into the stored numbers of every product."""

CONFIDENCE: dict[Measure, str] = {
    "max": "the highest probability",
    "margin": "the highest probability less the second highest",
    "entropy": "1 less the entropy of the probabilities, over its greatest value",
}


def products_of(
    task: Task,
    *,
    confidence: Measure | None,
    unsure: bool,
    probabilities: bool,
    observations: bool,
    tags: Mapping[str, str],
) -> dict[str, Product]:
    """The rasters that are wanted, by name, the map first.

    Raises UsageError where something is wanted of a map of values that only classes have.
    """
    output = task.output
    values = Product(kind="continuous", bands=(), tags=tags)
    if isinstance(output, ValueOutput):
        if confidence is not None or probabilities:
            raise UsageError("a map of values has no probabilities", fix="Leave out --confidence and --probabilities.")
        unit = {**tags, "UNIT": output.unit}
        found = {"values": replace(values, bands=(output.name,), dtype="float32", nodata=math.nan, tags=unit)}
        return found | _seen(values, observations)
    if isinstance(output, ScoreOutput):
        if confidence is not None or probabilities:
            raise UsageError("the map holds the scores already", fix="Leave out --confidence and --probabilities.")
        names = tuple(f"probability of {name}" for name in output.classes)
        return {"scores": replace(values, bands=names, scale=1 / LEVELS)} | _seen(values, observations)
    found = {
        "classes": Product(
            kind="classes",
            bands=("class",),
            nodata=float(IGNORE),
            classes=output.classes,
            colours=output.colours,
            tags=tags,
            unsure=unsure,
        )
    }
    if confidence is not None:
        said = {**tags, "CONFIDENCE": CONFIDENCE[confidence]}
        found["confidence"] = replace(values, bands=("confidence",), scale=1 / LEVELS, tags=said)
    if probabilities:
        names = tuple(f"probability of {name}" for name in output.classes)
        found["probabilities"] = replace(values, bands=names, scale=1 / LEVELS)
    return found | _seen(values, observations)


def refuse_without_classes(given: PredictConfig, products: Collection[str], said: str) -> None:
    """Raises UsageError where something is wanted that only a map of classes has; `said`: what there is instead."""
    wanted = {
        "--unsure": given.unsure,
        "--polygons": given.polygons,
        "--preview": given.preview,
        "--min-area": given.min_area,
    }
    asked = [option for option, value in wanted.items() if value]
    if asked and "classes" not in products:
        raise UsageError(f"{', '.join(asked)} needs a map of classes; this model makes another result: {said}")


def _seen(values: Product, observations: bool) -> dict[str, Product]:
    return {"observations": replace(values, bands=("valid observations",))} if observations else {}


def encoder(task: Task, names: Collection[str], confidence: Measure | None, unsure: float | None = None) -> Encode:
    """The map and what else is wanted of it; `unsure` is the probability below which a pixel gets no class."""
    main = next(iter(names))

    def encode(part: Part) -> Arrays:
        valid = part.valid
        drawn = _bytes(part.scores, valid) if main == "scores" else task.decode(part.scores, valid)[None]
        if unsure is not None:
            weak = (part.scores.amax(dim=0) < unsure) & valid
            drawn = np.where(weak.cpu().numpy(), np.uint8(UNSURE), drawn)
        made = {main: drawn}
        if confidence is not None:
            made["confidence"] = _bytes(measure_confidence(part.scores, confidence)[None], valid)
        if "probabilities" in names:
            made["probabilities"] = _bytes(part.scores, valid)
        if "observations" in names:
            made["observations"] = part.seen.masked_fill(~valid, IGNORE).cpu().numpy()[None]
        return made

    return encode


def within(encode: Encode, products: Mapping[str, Product], grid: GeoBox, area: GeoDataFrame | None) -> Encode:
    """`encode` with nodata outside `area`, where there is one; `grid` is the one on which parts are counted.

    Objects have no nodata: what makes their rows leaves out what lies outside.
    """
    if area is None or any(product.kind == "objects" for product in products.values()):
        return encode

    def inside(part: Part) -> Arrays:
        made = encode(part)
        outside = vector.rasterize(area, np.zeros(len(area), int), part.window.geobox(grid), fill=1) == 1
        for name, rows in made.items():
            rows[:, outside] = products[name].nodata
        return made

    return inside


def measure_confidence(scores: Float[Tensor, "k n w"], measure: Measure) -> Float[Tensor, "n w"]:
    """How sure probabilities are, from 0 to 1; see `CONFIDENCE`."""
    if measure == "max":
        return scores.amax(dim=0)
    if measure == "margin":
        first, second = scores.topk(2, dim=0).values
        return first - second
    entropy = -torch.special.xlogy(scores, scores).sum(dim=0)
    return 1 - entropy / torch.log(torch.tensor(float(len(scores)), device=scores.device))


def _bytes(scores: Float[Tensor, "c n w"], valid: Tensor) -> UInt8[np.ndarray, "c n w"]:
    steps = (scores * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)
    return steps.masked_fill(~valid, IGNORE).cpu().numpy()
