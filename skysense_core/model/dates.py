"""When an image was taken: one learnable vector per day of the year, added to all of its tokens [P Eq. 2]."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

DAYS = 365


class DateTable(nn.Module):
    """A 1 x 365 x D table that starts at zero. Day 366 shares the entry of day 365."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, DAYS, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, day_of_year: Int[Tensor, "b t"], dated: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The vectors of days 1..366, and zeros for images without a date."""
        vectors = self.table[0, day_of_year.clamp(1, DAYS) - 1]
        return vectors * dated[..., None].to(vectors.dtype)
