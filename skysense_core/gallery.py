"""What a training shows of itself: the validation chips that come out worst and best, and where the parts lie."""

import base64
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from shapely import Polygon
from torch import Tensor

from skysense_core.data.batch import Batch
from skysense_core.data.sound import going_on, readable
from skysense_core.data.statistics import spread
from skysense_core.modalities import Modality
from skysense_core.preview import natural_colour, painted
from skysense_core.runs import LOOKS, read_json, write_json
from skysense_core.types import IGNORE, Split

SHOWN = 4
"""Chips of each kind."""
SIDE = 160
"""Most pixels of a chip's picture."""
OUTLINES = 48
"""Most places of a part that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A chip and what was said of it."""

    id: str
    right: float
    """Share of the labelled pixels."""
    pixels: Float[np.ndarray, "c h w"]
    valid: np.ndarray
    label: UInt8[np.ndarray, "h w"]
    codes: UInt8[np.ndarray, "h w"]
    sure: Float[np.ndarray, "h w"]
    """Highest probability."""


@dataclass(kw_only=True)
class Gallery:
    """Looks at the batches of one validation and keeps the worst and the best chips of a class map."""

    modality: Modality
    """The reference."""
    worst: list[Seen] = field(default_factory=list)
    best: list[Seen] = field(default_factory=list)

    def see(self, batch: Batch, scores: object) -> None:
        """A batch with its target and scores; those of other tasks than class maps are passed over."""
        target = batch.target
        if not isinstance(scores, Tensor) or target is None or scores.ndim != 4 or target.dtype != torch.uint8:
            return
        if target.ndim != 3 or target.shape[-2:] != scores.shape[-2:] or target.shape[-1] == 1:
            return
        sure, codes = scores.float().max(dim=1)
        known = target.to(codes.device) != IGNORE
        right = ((codes == target.to(codes.device)) & known).sum(dim=(1, 2)) / known.sum(dim=(1, 2))
        for index, share in enumerate(right.tolist()):
            if share != share:  # nothing is labelled
                continue
            low = len(self.worst) < SHOWN or share < self.worst[-1].right
            high = len(self.best) < SHOWN or share > self.best[-1].right
            if not (low or high):
                continue
            image = batch.epochs[0][self.modality.name]
            date = int(image.valid[index].sum(dim=(1, 2)).argmax())
            seen = Seen(
                id=batch.ids[index],
                right=share,
                pixels=image.pixels[index, date].float().cpu().numpy(),
                valid=image.valid[index, date].cpu().numpy(),
                label=target[index].cpu().numpy(),
                codes=codes[index].to(torch.uint8).cpu().numpy(),
                sure=sure[index].cpu().numpy(),
            )
            if low:
                self.worst = sorted([*self.worst, seen], key=lambda one: one.right)[:SHOWN]
            if high:
                self.best = sorted([*self.best, seen], key=lambda one: -one.right)[:SHOWN]

    def chips(self, colours: tuple[str, ...]) -> list[dict[str, Any]]:
        """Pictures of the chips that were kept, as the page wants them; none is both worst and best."""
        bad = {one.id for one in self.worst}
        kinds = {"worst": self.worst, "best": [one for one in self.best if one.id not in bad]}
        return [_drawn(one, kind, self.modality, colours) for kind, seen in kinds.items() for one in seen]


def _drawn(one: Seen, kind: str, modality: Modality, colours: tuple[str, ...]) -> dict[str, Any]:
    image = np.rint(255 * natural_colour(one.pixels, one.valid, modality)).astype(np.uint8)
    grey = np.rint(255 * np.clip(one.sure, 0, 1)).astype(np.uint8)
    pictures = {
        "image": image,
        "label": painted(one.label, colours),
        "prediction": painted(np.where(one.valid, one.codes, IGNORE).astype(np.uint8), colours),
        "confidence": np.repeat(grey[..., None], 3, axis=2),
    }
    return {"kind": kind, "id": one.id, "right": one.right, **{name: _png(pixels) for name, pixels in pictures.items()}}


def _png(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    from PIL import Image  # only drawing needs it

    step = -(-max(pixels.shape[:2]) // SIDE)
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])).save(held, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def _outline(split: Split, index: int) -> Polygon | None:
    return split[index].footprint


def places(parts: Mapping[str, Split]) -> dict[str, dict[str, Any]]:
    """How many samples each part has, and the outlines of some of them in degrees."""
    found: dict[str, dict[str, Any]] = {}
    for name, split in parts.items():
        with going_on(True):  # a picture of the test part that cannot be read is no reason to lose a training
            known = readable(spread(len(split), OUTLINES), functools.partial(_outline, split))
        rings = [list(one.exterior.coords) for _, one in known if one is not None]
        outlines = [[(round(x, 6), round(y, 6)) for x, y, *_ in ring] for ring in rings]
        found[name] = {"samples": len(split), "outlines": outlines}
    return found


def noted(folder: Path, key: str) -> bool:
    """Whether something is kept already."""
    return key in read_json(folder / LOOKS)


def keep(folder: Path, **looks: Any) -> None:
    """Keep what is to be shown in a run's folder, beside what was kept before."""
    write_json(folder / LOOKS, read_json(folder / LOOKS) | looks)
