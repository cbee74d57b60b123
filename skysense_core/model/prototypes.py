"""Geo-context prototypes: what places of a region typically look like, attended to by every position [P Eq. 3]."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skysense_core.model.presets import PrototypeSpec


class Prototypes(nn.Module):
    """A set of prototypes per region of the globe: buffers, learned in pre-training without a gradient.

    Regions are the cells of a cylindrical equal-area grid of rows x columns [A]. `visited` marks those that
    pre-training has seen; the others hold random unit vectors and give no context.
    """

    prototypes: Tensor
    visited: Tensor

    def __init__(self, spec: PrototypeSpec, width: int) -> None:
        super().__init__()
        self.rows, self.columns = spec.rows, spec.columns
        regions = spec.rows * spec.columns
        self.register_buffer("prototypes", F.normalize(torch.randn(regions, spec.count, width), dim=-1))
        self.register_buffer("visited", torch.zeros(regions, dtype=torch.bool))

    def regions(self, lonlat: Float[Tensor, "b 2"]) -> Int[Tensor, "b"]:
        """The region of each place, in degrees: rows are of equal height in sin(latitude), from the south pole.

        Longitudes are cyclic: 180 and -180 are one place.
        """
        longitude, latitude = lonlat.double().unbind(-1)
        column = ((longitude + 180) / 360).remainder(1) * self.columns
        row = (torch.sin(torch.deg2rad(latitude)) + 1) / 2 * self.rows
        row, column = row.long().clamp(0, self.rows - 1), column.long().clamp(0, self.columns - 1)
        return row * self.columns + column

    def forward(
        self, x: Float[Tensor, "b d h w"], lonlat: Float[Tensor, "b 2"], located: Bool[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b d2 h w"], Bool[Tensor, "b"]]:
        """The features with their context appended (2d channels), and which samples have a context.

        The context of a sample without a place, or in a region that was never visited, is zero.
        """
        region = self.regions(torch.where(located[:, None], lonlat, 0.0))
        known = located & self.visited[region]
        prototypes = self.prototypes[region].to(x.dtype)
        queries = rearrange(x, "b d h w -> b (h w) d")
        weights = torch.softmax(queries @ prototypes.mT / math.sqrt(x.shape[1]), dim=-1)
        context = rearrange(weights @ prototypes, "b (h w) d -> b d h w", h=x.shape[2])
        context = torch.where(known[:, None, None, None], context, 0.0)
        return torch.cat((x, context), dim=1), known
