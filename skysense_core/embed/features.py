"""The maps that a model's features come in, put through the engine as a task's scores are.

fused        the fused map; with prototypes, geo-context is appended to it
fused_mm     the fused map without geo-context
aligned.s2   the map of a modality where the modalities meet
s2.1 s2.2 .. the levels of a modality's encoder, finest first
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, UInt8, UInt16
from torch import Tensor, nn

from skysense_core.data.batch import Batch
from skysense_core.errors import UsageError, unknown
from skysense_core.modalities import CELL, Modality, align_of, finest, pixels_beside
from skysense_core.model.decoders import resize
from skysense_core.model.prototypes import Prototypes
from skysense_core.model.pyramid import over_dates
from skysense_core.model.skysense import FeatureMap, Features, SkySense
from skysense_core.tasks import RasterOutput, default_colours
from skysense_core.tasks.segmentation import Segmentation

FUSED, FUSED_MM, ALIGNED = "fused", "fused_mm", "aligned"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLevel:
    """One map that a model offers of some modalities."""

    name: str
    channels: int
    stride: float
    """Pixels of the finest of the modalities along a cell, as the model has it."""
    cell: int
    """The same as a power of two, which is what results have: windows are whole cells."""


def offered(encoder: SkySense, given: Mapping[str, Modality]) -> dict[str, FeatureLevel]:
    """The maps that a model offers of these modalities, by name."""
    reference, sizes = given[finest(given)], encoder.spec.sizes
    most = align_of(given)
    found = {}

    def offer(name: str, channels: int, stride: float) -> None:
        cell = min(2 ** round(math.log2(max(stride, 1))), most)
        found[name] = FeatureLevel(name=name, channels=channels, stride=stride, cell=cell)

    if encoder.fusion is not None:
        vits = {name: one for name, one in given.items() if one.encoder == "vit"}
        meeting = given[finest(vits)] if vits else reference
        stride = CELL[meeting.encoder] * _beside(reference, meeting)
        width = sizes.fusion.width
        offer(FUSED, width * (1 if encoder.prototypes is None else 2), stride)
        offer(FUSED_MM, width, stride)
        for name in given:
            offer(f"{ALIGNED}.{name}", sizes.channels, stride)
    for name, modality in given.items():
        # The maps of a Swin encoder that is not the finest may reach beyond the window.
        if modality.encoder == "vit" or modality is reference:
            levels = encoder.encoder(name).strides
            vit = sizes.own.get(name, sizes.vit).width
            widths = sizes.swin.widths if modality.encoder == "swin" else (vit,) * len(levels)
            for number, (own, channels) in enumerate(zip(levels, widths, strict=True), start=1):
                offer(f"{name}.{number}", channels, own * _beside(reference, modality))
    return found


def _beside(reference: Modality, modality: Modality) -> float:
    return 1.0 if modality is reference else pixels_beside(reference, modality)


def choose(encoder: SkySense, given: Mapping[str, Modality], name: str | None) -> FeatureLevel:
    """The map of this name; without one, the fused map, or the deepest level of a lone encoder.

    Raises UsageError where the model does not offer it, and where it is not clear which is meant.
    """
    known = offered(encoder, given)
    if name is None:
        alone = [f"{only}.{len(encoder.encoder(only).strides)}" for only in given] if len(given) == 1 else []
        name = FUSED if FUSED in known else next(iter(alone), None)
    if name is None:
        raise UsageError(
            "the model does not fuse its modalities: the features of which one?",
            fix=f"--features {', '.join(known)}",
        )
    if name not in known:
        raise unknown("features", name, known)
    return known[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Principal components of features: (x - mean) along each of them."""

    mean: Float[np.ndarray, "d"]
    components: Float[np.ndarray, "k d"]
    shares: Float[np.ndarray, "k"]
    """Of the variance of the sample that they were fitted to."""

    @staticmethod
    def fit(sample: Float[np.ndarray, "n d"], k: int) -> "Projection":
        """The first k components of a sample. The largest entry of each is positive, so that signs are no chance."""
        mean = sample.mean(axis=0, dtype=np.float64)
        centred = sample - mean
        variances, vectors = np.linalg.eigh(centred.T @ centred)
        components = rearrange(vectors[:, ::-1][:, :k], "d k -> k d")
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
        shares = variances[::-1][:k] / max(variances.sum(), np.finfo(float).tiny)
        return Projection(mean=mean, components=components * np.sign(largest), shares=shares)

    def __call__(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        mean, components = (torch.from_numpy(values).to(x) for values in (self.mean, self.components))
        return einsum(x - mean[:, None, None], components, "b d h w, k d -> b k h w")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureValues(Segmentation):
    """Features as scores; `classes` are the names of the channels. The model is the encoder alone."""

    level: FeatureLevel
    projection: Projection | None = None

    @property
    def output(self) -> RasterOutput:
        return RasterOutput(classes=self.classes, colours=(), cell=self.level.cell)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        """The map on the cells of the windows, float32; each image that shows nothing is left out of its mean."""
        images, name = batch.epochs[0], self.level.name
        modality = name.rpartition(".")[0]
        fused = modality in ("", ALIGNED)
        some = images if fused else {modality: images[modality]}
        features: Features = model(some, batch.lonlat, batch.located, fuse=fused)
        x = _map(features, name, batch).float()
        x = _on_cells(x, model, batch, self.level.cell)
        return x if self.projection is None else self.projection(x)


def _on_cells(x: Float[Tensor, "b d _ _"], model: nn.Module, batch: Batch, cell: int) -> Float[Tensor, "b d h w"]:
    assert isinstance(model, SkySense)
    images = batch.epochs[0]
    reference = images[finest({name: model.modalities[name] for name in images})]
    return resize(x, [side // cell for side in reference.pixels.shape[-2:]])


def _map(features: Features, name: str, batch: Batch) -> Float[Tensor, "b d h w"]:
    if name in (FUSED, FUSED_MM):
        fused: FeatureMap | None = getattr(features, name)
        assert fused is not None
        return fused.tensor[:, 0]
    first, _, last = name.partition(".")
    if first == ALIGNED:
        seen = rearrange(features.present[last], "b t h w -> b t 1 h w").to(features.aligned[last].tensor)
        total = reduce(features.aligned[last].tensor * seen, "b t d h w -> b d h w", "sum")
        return total / reduce(seen, "b t d h w -> b d h w", "sum").clamp(min=1)
    shown = reduce(batch.epochs[0][first].valid, "b t h w -> b t", "max")
    return over_dates(features.levels[first][int(last) - 1], shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeMap(Segmentation):
    """The nearest geo-context prototype of every cell of the fused map [P Fig. 5], by cosine similarity [P Eq. 11].

    `classes` are the prototypes of the regions that the scene lies in, one region after the other.
    """

    level: FeatureLevel
    regions: tuple[int, ...]
    """Those that pre-training has visited."""

    @staticmethod
    def of(level: FeatureLevel, regions: tuple[int, ...], count: int) -> "PrototypeMap":
        """The map of some regions that have `count` prototypes each."""
        names = tuple(f"region {region}, prototype {number}" for region in regions for number in range(count))
        return PrototypeMap(level=level, regions=regions, classes=names)

    @property
    def output(self) -> RasterOutput:
        return RasterOutput(classes=self.classes, colours=default_colours(self.classes), cell=self.level.cell)

    @property
    def nodata(self) -> int:
        """The largest value of the type that holds the codes."""
        return int(np.iinfo(np.uint8 if len(self.classes) < 256 else np.uint16).max)

    def scores(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b k h w"]:
        """(1 + cosine) / 2 of each cell with each prototype of the window's region; 0 with those of other regions."""
        features: Features = model(batch.epochs[0], batch.lonlat, batch.located)
        prototypes = model.prototypes
        assert isinstance(prototypes, Prototypes)
        assert features.fused_mm is not None
        x = _on_cells(features.fused_mm.tensor[:, 0].float(), model, batch, self.level.cell)
        x = F.normalize(x, dim=1)
        found = prototypes.regions(batch.lonlat)
        own = F.normalize(prototypes.prototypes[found].float(), dim=-1)
        near = (1 + einsum(x, own, "b d h w, b p d -> b p h w")) / 2
        slots = torch.tensor(self.regions, device=x.device) == found[:, None]
        spread = einsum(slots.to(near), near, "b r, b p h w -> b r p h w")
        return rearrange(spread, "b r p h w -> b (r p) h w")

    def decode(
        self, scores: Float[Tensor, "k h w"], valid: Bool[Tensor, "h w"]
    ) -> UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]:
        """Codes of the nearest prototypes; nodata where nothing is seen or no region was visited."""
        best, codes = scores.max(dim=0)
        known = codes.masked_fill(~valid | (best == 0), self.nodata)
        return known.cpu().numpy().astype(np.min_scalar_type(self.nodata))


def prototypes_of(encoder: SkySense) -> Prototypes:
    """The prototypes of a model. Raises UsageError where it has none."""
    if encoder.prototypes is None:
        raise UsageError("the model has no geo-context prototypes", fix="skysense pretrain learns them.")
    return encoder.prototypes


def regions_of(prototypes: Prototypes, places: Float[Tensor, "b 2"]) -> tuple[int, ...]:
    """The regions of some places (degrees), ascending, of which pre-training has seen something.

    Raises UsageError where it has seen none of them.
    """
    regions = prototypes.regions(places.to(prototypes.visited.device)).unique()
    visited = regions[prototypes.visited[regions]].tolist()
    if not visited:
        raise UsageError(
            f"pre-training has never visited the region of this scene ({', '.join(map(str, regions.tolist()))}): its "
            "prototypes mean nothing",
            fix=f"The model knows {int(prototypes.visited.sum())} regions: take a scene there, or pre-train here.",
        )
    return tuple(visited)
