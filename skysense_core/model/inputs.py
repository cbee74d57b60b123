"""Other bands than those that weights were made for: what a modality then reads, and its input layer (METHOD 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from skysense_core import config
from skysense_core.errors import UsageError
from skysense_core.modalities import Band, Modality

RGB = ("red", "green", "blue")
"""Inputs of encoders in timm's naming, in their order."""
NIR = ("nir", "nir08", "b08", "b8")
"""What a near-infrared band may be called; where weights know none, it starts as a copy of red."""


def with_bands(modality: Modality, bands: Sequence[str | Mapping[str, Any]]) -> Modality:
    """A modality that reads other bands: names, or tables with the mean and deviation too.

    Near infrared that the modality does not know has the statistics of red. Raises UsageError for another unknown name.
    """
    return replace(modality, bands=tuple(band_of(modality, band) for band in bands))


def band_of(modality: Modality, band: str | Mapping[str, Any]) -> Band:
    if not isinstance(band, str):
        return config.build(Band, band, f"modalities.{modality.name}.bands")
    index = place(modality, (band,))
    if index is None:
        known = ", ".join(modality.band_names)
        described = f"'modalities.{modality.name}.bands=[{{name=\"{band}\", mean=0.0, std=1.0}}, ...]'"
        raise UsageError(
            f"the weights of {modality.name} read {known}: nothing is known of {band}",
            fix=f"Leave it out, or describe all bands: --set {described}",
        )
    found = modality.bands[index]
    if band.lower() in map(str.lower, found.names):
        return found
    return Band(name=band, mean=found.mean, std=found.std)


def place(modality: Modality, names: Sequence[str]) -> int | None:
    """Where a modality has a band of one of these names; for near infrared that it lacks, where it has red."""
    lower = [[name.lower() for name in band.names] for band in modality.bands]
    for wanted in ([name.lower() for name in names], ["red"] if {name.lower() for name in names} & set(NIR) else []):
        for index, known in enumerate(lower):
            if set(known) & set(wanted):
                return index
    return None


def adapt_input(
    weight: Float[Tensor, "d c p q"], known: Modality, wanted: Modality
) -> tuple[Float[Tensor, "d c2 p q"], str]:
    """The patch weight of a modality for other bands, and what was done; weights of the wanted bands stay as they are.

    Raises UsageError for a band that the weights know nothing of.
    """
    if wanted.band_names == known.band_names or weight.shape[1] != len(known.bands):
        return weight, ""
    places = []
    for band in wanted.bands:
        index = place(known, band.names)
        if index is None:
            raise UsageError(
                f"the weights of {known.name} read {', '.join(known.band_names)}: none are there for {band.name}",
                fix="Leave the band out, or call it nir where it is near infrared.",
            )
        places.append(index)
    taken = ", ".join(
        f"{band.name} from {known.bands[index].name}" if known.bands[index].name not in band.names else band.name
        for band, index in zip(wanted.bands, places, strict=True)
    )
    scale = len(known.bands) / len(places)
    note = f"{known.name}: input weights of {taken}" + (f", times {scale:g}" if scale > 1 else "")
    return select_bands(weight, places), note


def spread_rgb(weight: Float[Tensor, "d 3 p q"], bands: Sequence[Band]) -> tuple[Float[Tensor, "d c p q"], str]:
    """A patch weight for RGB as one for other bands.

    Red, green and blue keep their weights, every other band gets the mean of the three, all scaled so that equal
    bands give the same response.
    """
    places = [next((RGB.index(name) for name in band.names if name in RGB), None) for band in bands]
    mean = reduce(weight, "d c p q -> d p q", "mean")
    columns = [mean if place is None else weight[:, place] for place in places]
    weight = torch.stack(columns, dim=1) * (len(RGB) / len(bands))
    own = [band.name for band, place in zip(bands, places, strict=True) if place is not None]
    taken = f"those of {', '.join(own)} their own, " if own else ""
    return weight, f"input weights: {taken}all others the mean of red, green and blue; all times 3/{len(bands)}"


def select_bands(weight: Float[Tensor, "d c p q"], bands: Sequence[int]) -> Float[Tensor, "d c2 p q"]:
    """A patch weight for some of its bands, in any order (METHOD 5).

    Fewer bands are scaled to the same sum of inputs: B02 B03 B04 B08 are 0, 1, 2, 6 times 10/4. More bands, copies
    among them, are taken as they are: red, green, blue, near infrared are 0, 1, 2, 0.
    """
    return weight[:, list(bands)] * max(weight.shape[1] / len(bands), 1.0)
