"""Whether the epochs of a scene can be compared: same place, similar pixels, no displacement."""

import math

import numpy as np
from jaxtyping import Float

from skysense_core.data.scene import Scene, model_grid
from skysense_core.errors import UsageError
from skysense_core.geo.grid import crs_of, differ, ground_gsd
from skysense_core.geo.raster import Stack
from skysense_core.geo.shift import shift_between
from skysense_core.geo.windows import Window, window_over
from skysense_core.types import Raster

LOOKED_AT = 1024
"""Most pixels of a side of the middle part in which a shift is looked for."""
LEAST = 64
"""A smaller part shows no shift."""


def compare_epochs(scene: Scene) -> list[str]:
    """What the user should know of the later epochs against the first: other grids, shifts.

    Raises UsageError where an epoch lies elsewhere or has pixels that do not suit the model.
    """
    first, notes = scene.stacks[scene.reference], []
    for stacks in scene.later:
        stack = stacks[scene.reference]
        before, after = first.paths[0], stack.paths[0]
        common = window_over(scene.grid, stack.geobox)
        if common.empty:
            raise UsageError(
                f"{after} does not overlap {before}: there is nothing to compare", fix="Give two dates of one place."
            )
        model_grid(stack.geobox, scene.modalities[scene.reference])
        if differ(first.geobox, stack.geobox):
            crs, gsd = crs_of(stack.geobox), ground_gsd(stack.geobox)
            notes.append(f"{after} has another grid ({crs}, {gsd:.3g} m): it is read onto that of {before}")
        if common != Window.of(scene.grid):
            notes.append(f"{after} covers a part of {before} only: there is no data elsewhere")
        notes += _shift(scene, stack, common)
    return notes


def _shift(scene: Scene, stack: Stack, common: Window) -> list[str]:
    """A note where the two are displaced by a pixel or more."""
    height, width = (min(side, LOOKED_AT) for side in (common.height, common.width))
    if min(height, width) < LEAST:
        return []
    row, col = common.row + (common.height - height) // 2, common.col + (common.width - width) // 2
    grid = Window(row=row, col=col, height=height, width=width).geobox(scene.grid)
    found = shift_between(*(_grey(one.read(grid, dates=[0])) for one in (scene.stacks[scene.reference], stack)))
    if found in (None, (0, 0)):
        return []
    pixels = math.hypot(*found)
    down, right = found
    return [
        f"{stack.paths[0]} seems displaced by {pixels * ground_gsd(scene.grid):.3g} m "
        f"({abs(down)} px {'down' if down > 0 else 'up'}, {abs(right)} px {'right' if right > 0 else 'left'}): what "
        "looks like change at edges may be that. Register the images first."
    ]


def _grey(raster: Raster) -> Float[np.ndarray, "h w"]:
    """The mean of the bands, even where nothing is valid."""
    grey, valid = raster.pixels[0].mean(axis=0, dtype=np.float64), raster.valid[0]
    return np.where(valid, grey, grey[valid].mean() if valid.any() else 0.0)
