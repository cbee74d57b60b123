"""From the scores of overlapping windows to one result, streaming: rasters are blended, objects have one owner."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from skysense_core.geo.windows import Window


@runtime_checkable
class Merger(Protocol):
    """Takes the scores of one window after another, row by row, and gives back what no later window can change."""

    def ready(self, before: Window) -> Iterator[Any]:
        """Parts that are final once the windows before this one have been added; call it before `add`."""

    def add(self, window: Window, scores: Any, seen: UInt8[Tensor, "h w"]) -> None:
        """Take the scores of a window; `seen` counts valid observations, 0 where the reference has no data."""

    def finish(self) -> Iterator[Any]:
        """Everything that is left, after the last window."""
