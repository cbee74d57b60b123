"""Geo-context prototypes: what places of a region typically look like, attended to by every position [P Eq. 3]."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skysense_core.losses import collectives
from skysense_core.losses.precision import in_float32
from skysense_core.losses.sinkhorn import sinkhorn
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

    @in_float32
    @torch.no_grad()
    def learn(
        self,
        x: Float[Tensor, "b d h w"],
        seen: Bool[Tensor, "b h w"],
        lonlat: Float[Tensor, "b 2"],
        located: Bool[Tensor, "b"],
        *,
        momentum: float,
        epsilon: float = 0.05,
        iterations: int = 3,
    ) -> None:
        """Move the prototypes of the regions in this batch towards its features [P Eq. 11-13], and mark them visited.

        The seen positions of a region, in all processes, share its prototypes by Sinkhorn on their cosine similarity;
        a prototype becomes momentum x itself + (1 - momentum) x the mean of the positions weighted by their shares in
        it [A: the columns of S sum to one, so that prototypes keep the scale of features]. Every process calls this
        and ends with the same prototypes.
        """
        used = seen & located[:, None, None]
        region = self.regions(torch.where(located[:, None], lonlat, 0.0))
        count = torch.zeros(len(self.visited), dtype=torch.long, device=x.device)
        count = collectives.summed(count.index_add(0, region, used.sum((1, 2))))
        chosen = count.nonzero()[:, 0]
        if not len(chosen):
            return
        # A sample of which nothing is used may lie in another region: it has no share wherever it is put.
        place = torch.searchsorted(chosen, region).clamp(max=len(chosen) - 1)

        features = rearrange(x, "b d h w -> b (h w) d").float()
        used = rearrange(used, "b h w -> b (h w)")
        own = self.prototypes[region].float()
        scores = F.normalize(features, dim=-1) @ F.normalize(own, dim=-1).mT
        sample, position = used.nonzero().unbind(1)
        shares = torch.zeros_like(scores)
        shares[sample, position] = sinkhorn(
            *(scores[sample, position], place[sample], len(chosen)),
            epsilon=epsilon,
            iterations=iterations,
            everywhere=True,
        )

        total = features.new_zeros(len(chosen), *own.shape[1:]).index_add(0, place, shares.mT @ features)
        mass = features.new_zeros(len(chosen), own.shape[1]).index_add(0, place, shares.sum(1))
        mean = collectives.summed(total) / collectives.summed(mass)[..., None]
        self.prototypes[chosen] = torch.lerp(mean.to(self.prototypes.dtype), self.prototypes[chosen], momentum)
        self.visited[chosen] = True

    @in_float32
    @torch.no_grad()
    def usage(
        self,
        x: Float[Tensor, "b d h w"],
        seen: Bool[Tensor, "b h w"],
        lonlat: Float[Tensor, "b 2"],
        located: Bool[Tensor, "b"],
    ) -> dict[int, float]:
        """For each visited region among these samples, which share of its prototypes is in use.

        That is the effective number (exp of the entropy) of prototypes that are nearest to a seen position, by cosine
        similarity, over their number: 1 / count where all positions share one prototype.
        """
        region = self.regions(torch.where(located[:, None], lonlat, 0.0))
        found = {}
        for number in region[located & self.visited[region]].unique().tolist():
            at = seen & (located & (region == number))[:, None, None]
            rows = rearrange(x, "b d h w -> b h w d")[at].float()
            if len(rows):
                prototypes = F.normalize(self.prototypes[number].float(), dim=-1)
                nearest = (F.normalize(rows, dim=-1) @ prototypes.mT).argmax(1)
                share = torch.bincount(nearest, minlength=len(prototypes)) / len(rows)
                found[number] = float(torch.special.entr(share).sum().exp()) / len(prototypes)
        return found
