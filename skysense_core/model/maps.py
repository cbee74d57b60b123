"""The maps of a model that are contrasted and probed: those of each modality and the fused one, where all meet."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skysense_core.data.batch import Series
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
