"""From satellite and aerial imagery to features and maps; `load` is the way in from Python."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skysense_core.api import Model


def load(path: str | Path, device: str = "auto") -> "Model":
    """A model folder, run folder or packaged model, ready for arrays; `device` is auto, cpu, cuda, cuda:1 or mps.

    Raises SkysenseError where it cannot be read.
    """
    from skysense_core.api import Model  # torch takes seconds to import

    return Model(Path(path), device)
