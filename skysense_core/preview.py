"""A picture of a map beside the image that it was made from, with a legend: to look at, not to measure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Num, UInt8
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError
from skysense_core.geo.grid import scaled
from skysense_core.geo.raster import Stack, open_stack
from skysense_core.geo.units import DISPLAY
from skysense_core.modalities import Modality
from skysense_core.types import IGNORE, Raster

SIDE = 1200
"""Pixels of the longer side of image and map in the picture."""


def write_preview(
    path: Path,
    *,
    image: Stack,
    modality: Modality,
    codes: Path,
    classes: Sequence[str],
    colours: Sequence[str],
) -> None:
    """Draw the image, the map and the share of each class as a PNG.

    `image` is a stack of the bands of `modality`, read on the ground of the class map `codes`; of a series, the date
    that shows the most. Colours are `#rrggbb`, one per class. Raises SkysenseError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only drawing needs it
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    labels = open_stack([codes], bands=None)
    height, width = labels.geobox.shape
    factor = max(height, width, SIDE) / SIDE
    grid = scaled(labels.geobox, (max(round(height / factor), 1), max(round(width / factor), 1)))
    stored = labels.read(grid, resampling="nearest")
    shown = np.where(stored.valid[0], stored.pixels[0, 0], IGNORE).astype(np.uint8)
    _, raster = fullest_date(image, grid)
    picture = natural_colour(raster.pixels[0], raster.valid[0], modality)

    panel_width = 7.0
    panel_height = panel_width * grid.shape[0] / grid.shape[1]
    figure = Figure(figsize=(2 * panel_width, min(panel_height, 14.0) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(picture, interpolation="nearest")
    right.imshow(painted(shown, colours), interpolation="nearest")
    for axes, title in ((left, modality.title), (right, "map")):
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    counts = np.bincount(shown.ravel(), minlength=IGNORE + 1)[: len(classes)]
    shares = counts / max(counts.sum(), 1)
    handles = [
        Patch(facecolor=colour, edgecolor="0.4", linewidth=0.5, label=f"{name}  {100 * share:.1f} %")
        for name, colour, share in zip(classes, colours, shares, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False, fontsize=10)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=110)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SkysenseError(f"{path}: cannot be written: {error.strerror}", fix="Choose another --preview.") from error


def fullest_date(image: Stack, grid: GeoBox) -> tuple[int, Raster]:
    """The date with the most valid pixels, and these; the first that is as good as full ends the search."""
    found, best = 0, image.read(grid, dates=[0])
    for date in range(1, len(image.days)):
        if best.valid.mean() > 0.99:
            break
        raster = image.read(grid, dates=[date])
        if raster.valid.sum() > best.valid.sum():
            found, best = date, raster
    return found, best


def natural_colour(
    pixels: Num[np.ndarray, "c h w"],
    valid: Bool[np.ndarray, "h w"],
    modality: Modality,
    *,
    like: Raster | None = None,
) -> Float[np.ndarray, "h w 3"]:
    """Red, green and blue in 0..1, white where invalid; the first three bands, or the first one, where there is no red.

    Display values (0-255) are shown as they are, others between the 2nd and the 98th percentile of each band, or of
    those of `like`, of which the pixels are a part.
    """
    names = [band.names for band in modality.bands]
    rgb = [next((i for i, known in enumerate(names) if colour in known), None) for colour in ("red", "green", "blue")]
    fallback = [0, 1, 2] if len(names) >= 3 else [0, 0, 0]
    bands = fallback if None in rgb else [i for i in rgb if i is not None]
    chosen = rearrange(pixels[bands], "c h w -> h w c").astype(np.float64)
    known = chosen[valid] if like is None else like.pixels[0][bands][:, like.valid[0]].T.astype(np.float64)
    if modality.unit == DISPLAY:
        stretched = chosen / 255
    elif len(known):
        low, high = np.percentile(known, (2, 98), axis=0)
        stretched = (chosen - low) / np.maximum(high - low, 1e-9)
    else:
        stretched = np.ones_like(chosen)
    return np.where(valid[..., None], np.clip(np.nan_to_num(stretched), 0.0, 1.0), 1.0)


def painted(codes: UInt8[np.ndarray, "h w"], colours: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
    """A class map in its colours; white where it says nothing."""
    table = np.full((IGNORE + 1, 3), 255, dtype=np.uint8)
    for code, colour in enumerate(colours):
        table[code] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[codes]
