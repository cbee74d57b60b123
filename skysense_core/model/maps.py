"""The maps of a model that are contrasted and probed: those of each modality and the fused one, where all meet."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skysense_core.data.batch import Series, joined
from skysense_core.losses.grains import Seen
from skysense_core.model.skysense import SkySense

FUSED = "fused"
"""Name of the fused map beside those of the modalities."""


def maps_of(
    model: SkySense, images: Mapping[str, Series], lonlat: Float[Tensor, "b 2"], located: Bool[Tensor, "b"]
) -> dict[str, Seen]:
    """Each modality's map and the fused one, all on the grid where modalities meet.

    Without fusion, the last map of each modality's encoder, and no fused one.
    """
    if model.fusion is None:
        levels = {name: model.encode(name, series) for name, series in images.items()}
        grid = model.fusion_grid(images, levels)
        met = {name: model.align(name, levels[name][-1], series, grid) for name, series in images.items()}
        return {name: Seen(tensor=map.tensor, seen=present) for name, (map, present) in met.items()}
    features = model(images, lonlat, located)
    assert features.fused is not None
    maps = {name: Seen(tensor=map.tensor, seen=features.present[name]) for name, map in features.aligned.items()}
    anything = torch.stack([present.any(1) for present in features.present.values()]).any(0)[:, None]
    return maps | {FUSED: Seen(tensor=features.fused.tensor, seen=anything)}


def maps_of_views(
    model: SkySense, views: Sequence[Mapping[str, Series]], lonlat: Float[Tensor, "b 2"], located: Bool[Tensor, "b"]
) -> list[dict[str, Seen]]:
    """The maps of each view of the same samples. Views of one size go through the model as one batch."""
    alike: dict[tuple[tuple[str, torch.Size], ...], list[int]] = {}
    for number, images in enumerate(views):
        shapes = tuple((name, series.pixels.shape) for name, series in sorted(images.items()))
        alike.setdefault(shapes, []).append(number)
    found: dict[int, dict[str, Seen]] = {}
    for numbers in alike.values():
        together = {name: joined([views[number][name] for number in numbers]) for name in views[numbers[0]]}
        maps = maps_of(model, together, lonlat.repeat(len(numbers), 1), located.repeat(len(numbers)))
        for number, part in zip(numbers, range(0, len(numbers) * len(lonlat), len(lonlat)), strict=True):
            rows = slice(part, part + len(lonlat))
            found[number] = {name: Seen(tensor=one.tensor[rows], seen=one.seen[rows]) for name, one in maps.items()}
    return [found[number] for number in range(len(views))]
