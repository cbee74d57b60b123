"""When an image was taken: one learnable vector per day of the year, added to all of its tokens [P Eq. 2]."""

import math

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skysense_core.model.presets import DatesStart

DAYS = 365
FREQUENCIES = 6
"""Waves of one to so many periods a year: the fastest tells months apart."""
HEIGHT = 0.5
"""Of the waves [A]."""


class DateTable(nn.Module):
    """A 1 x 365 x D table. Day 366 shares the entry of day 365.

    It starts at zeros as in the paper, or at waves of the year [A]: what a short training on few dates does not reach
    then lies between its neighbours, and the order of the dates shows from the first step on.
    """

    def __init__(self, channels: int, start: DatesStart) -> None:
        super().__init__()
        self.start = start
        self.table = nn.Parameter(torch.empty(1, DAYS, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)
        if self.start == "seasons":
            with torch.no_grad():
                self.table[0] = HEIGHT * seasons(self.table.shape[2])

    def forward(self, day_of_year: Int[Tensor, "b t"], dated: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The vectors of days 1..366, and zeros for images without a date."""
        vectors = self.table[0, day_of_year.clamp(1, DAYS) - 1]
        return vectors * dated[..., None].to(vectors.dtype)


def seasons(channels: int) -> Float[Tensor, "365 d"]:
    """Sines and cosines of 1 to 6 periods a year, as many of each as there are channels for."""
    periods = 1 + torch.arange(channels) // 2 % FREQUENCIES
    quarter = math.pi / 2 * (torch.arange(channels) % 2)
    turns = repeat(2 * math.pi * torch.arange(DAYS) / DAYS, "day -> day d", d=channels)
    return (turns * periods + quarter).sin()
