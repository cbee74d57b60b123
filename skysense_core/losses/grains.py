"""What two views are compared by: pixels, objects and whole images [P Eq. 5-7].

Two maps come in, the student's of one view and the teacher's of another, and pairs of features that should agree go
out, in float32 whatever the maps are. `partner` says which cells of the two show the same place: for each of the
student's n = h w cells, row by row, the number of the teacher's cell, -1 for none. Date t of one view is date t of the
other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skysense_core.losses.precision import in_float32
from skysense_core.losses.sinkhorn import sinkhorn


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A feature map and which of its cells were seen."""

    tensor: Float[Tensor, "b t d h w"]
    seen: Bool[Tensor, "b t h w"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Features of student and teacher that show the same thing; those of weight 0 have no meaning."""

    student: Float[Tensor, "n d"]
    teacher: Float[Tensor, "n d"]
    weight: Float[Tensor, "n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """Cells of the same places in both views."""

    student: Float[Tensor, "b t n d"]
    teacher: Float[Tensor, "b t n d"]
    seen: Bool[Tensor, "b t n"]
    """Whether both views have seen the place."""


def stacked(maps: Sequence[Seen]) -> Seen:
    """Maps of one size as one batch, one after the other."""
    return Seen(tensor=torch.cat([map.tensor for map in maps]), seen=torch.cat([map.seen for map in maps]))


def partners(here: Int[Tensor, "b h w"], there: Int[Tensor, "b h2 w2"]) -> Int[Tensor, "b n"]:
    """For each cell of one view, row by row, the number of the cell of another that shows the same place, or -1.

    A cell says which place it shows by a number of its own sample's; -1 is no place.
    """
    own, other = here.flatten(1) + 1, there.flatten(1) + 1
    most = int(max(own.max(), other.max())) + 1
    table = torch.full((len(own), most), -1, device=own.device)
    table.scatter_(1, other, torch.arange(other.shape[1], device=own.device).expand_as(other))
    table[:, 0] = -1  # beyond the sample there are no places
    return table.gather(1, own)


def pixel_pairs(student: Seen, teacher: Seen, partner: Int[Tensor, "b n"], *, most: int | None = None) -> Pairs:
    """Every cell with its partner, on every date; at most `most` places per sample, drawn by torch's generator.

    Eq. 5 is the mean over positions and dates, here over all pairs of a batch that both views have seen [A].
    """
    at = torch.arange(partner.shape[1], device=partner.device).expand_as(partner)
    if most is not None and most < partner.shape[1]:
        # A random order in which places without a partner come last.
        at = (torch.rand(partner.shape, device=partner.device) + (partner < 0)).argsort(dim=1)[:, :most]
    cells = _match(student, teacher, at, partner.gather(1, at))
    return Pairs(
        student=rearrange(cells.student, "b t n d -> (b t n) d"),
        teacher=rearrange(cells.teacher, "b t n d -> (b t n) d"),
        weight=rearrange(cells.seen, "b t n -> (b t n)").to(torch.float32),
    )


@in_float32
def object_pairs(
    student: Seen,
    teacher: Seen,
    partner: Int[Tensor, "b n"],
    *,
    clusters: int,
    rounds: int = 3,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Pairs:
    """The centres of clusters of like cells within each image [P Eq. 6]; centre i of one view is centre i of the other.

    The teacher's cells that have a partner are clustered: seeds spread evenly over them, then `rounds` times Sinkhorn
    on the cosine similarity to the centres, and new centres. Both views average by the last assignment, which is what
    makes their centres comparable [A]. Products in bfloat16 would be too coarse for an epsilon of 0.05.
    """
    at = torch.arange(partner.shape[1], device=partner.device).expand_as(partner)
    cells = _match(student, teacher, at, partner)
    b = len(partner)
    seen = rearrange(cells.seen, "b t n -> (b t) n")
    shares = _assign(
        rearrange(cells.teacher, "b t n d -> (b t) n d").detach(),
        seen,
        clusters=clusters,
        rounds=rounds,
        epsilon=epsilon,
        iterations=iterations,
    )
    shares = rearrange(shares, "(b t) n k -> b t k n", b=b)
    return Pairs(
        student=rearrange(shares @ cells.student, "b t k d -> (b t k) d"),
        teacher=rearrange(shares @ cells.teacher, "b t k d -> (b t k) d"),
        weight=seen.any(1).repeat_interleave(clusters).to(torch.float32),
    )


def image_pairs(student: Seen, teacher: Seen) -> Pairs:
    """The mean feature of each image, over all that each view has seen of it [P Eq. 7]."""
    (first, first_seen), (second, second_seen) = pooled(student), pooled(teacher)
    return Pairs(
        student=rearrange(first, "b t d -> (b t) d"),
        teacher=rearrange(second, "b t d -> (b t) d"),
        weight=rearrange(first_seen & second_seen, "b t -> (b t)").to(torch.float32),
    )


def pooled(map: Seen) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
    """The mean over the seen cells of each image, zero where there are none, and whether there are any."""
    total = torch.where(map.seen[:, :, None], map.tensor, 0.0).sum((-1, -2), dtype=torch.float32)
    count = map.seen.sum((-1, -2))
    return total / count.clamp(min=1)[..., None], count > 0


def _match(student: Seen, teacher: Seen, at: Int[Tensor, "b n"], partner: Int[Tensor, "b n"]) -> _Cells:
    """The student's cells number `at` and the teacher's number `partner`."""
    first, first_seen = _cells_at(student, at)
    second, second_seen = _cells_at(teacher, partner.clamp(min=0))
    return _Cells(student=first, teacher=second, seen=first_seen & second_seen & (partner >= 0)[:, None])


def _cells_at(map: Seen, at: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b t n d"], Bool[Tensor, "b t n"]]:
    t, d = map.tensor.shape[1:3]
    cells = rearrange(map.tensor, "b t d h w -> b t (h w) d")
    seen = rearrange(map.seen, "b t h w -> b t (h w)")
    at = at[:, None].expand(-1, t, -1)
    return cells.gather(2, at[..., None].expand(-1, -1, -1, d)).float(), seen.gather(2, at)


@torch.no_grad()
def _assign(
    x: Float[Tensor, "g n d"], seen: Bool[Tensor, "g n"], *, clusters: int, rounds: int, epsilon: float, iterations: int
) -> Float[Tensor, "g n k"]:
    """What each cell adds to the mean of each cluster: the columns of seen cells sum to one."""
    group, cell = seen.nonzero().unbind(1)
    count = seen.sum(1, keepdim=True)
    step = torch.arange(clusters, device=x.device) * count // clusters
    # The step-th seen cell of each image; where none is seen any cell will do, for its weight is zero.
    seeds = torch.argsort(~seen, dim=1, stable=True).gather(1, step)
    centres = x.gather(1, seeds[..., None].expand(-1, -1, x.shape[2]))
    directions = F.normalize(x, dim=-1)
    for _ in range(rounds):
        scores = directions @ F.normalize(centres, dim=-1).mT
        shares = torch.zeros_like(scores)
        shares[group, cell] = sinkhorn(scores[group, cell], group, len(x), epsilon=epsilon, iterations=iterations)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        centres = shares.mT @ x
    return shares
