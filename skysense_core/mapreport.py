"""A page to look at a map with: the scene and the map over each other, legend, areas, confidence, in one file.

What it shows is a pyramid of quick-look tiles, at most `SIDE` pixels on the longer side: the page stays small and
memory bounded, whatever the size of the scene. The COG holds every pixel.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import Float, UInt8
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError
from skysense_core.geo.cache import block_cache
from skysense_core.geo.grid import scaled
from skysense_core.geo.raster import Stack, open_stack
from skysense_core.modalities import Modality
from skysense_core.preview import fullest_date, natural_colour, painted
from skysense_core.types import IGNORE

SIDE = 4096
"""Pixels of the longer side of the finest level."""
TILE = 512
COARSE = 512
"""Pixels of the longer side of what date and contrast are chosen from."""
RAMP = ("#440154", "#31688e", "#35b779", "#fde725")
"""Confidence from 0 to 1."""


def write_map_report(
    path: Path,
    *,
    title: str,
    image: Stack,
    modality: Modality,
    codes: Path,
    confidence: Path,
    classes: Sequence[str],
    colours: Sequence[str],
    areas: Sequence[float],
    facts: str,
) -> None:
    """Write the page; `image` is a stack of the bands of `modality`, `codes` the class map, `confidence` beside it.

    Colours are `#rrggbb`, one per class, `areas` square metres. Of a series the date that shows the most is drawn.
    Raises SkysenseError where the file cannot be written.
    """
    with block_cache((), 0, 0):
        picture, shown, steps = _quick_look(image, modality, codes, confidence)
    page = Template(files("skysense_core").joinpath("mapreport.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        ramp=", ".join(RAMP),
        confidence_head="<th>mean confidence</th>",
        rows="".join(_rows(classes, colours, areas, _means(shown, steps, len(classes)))),
        facts=html.escape(facts),
        data=json.dumps(
            {"tile": TILE, "over": ["map", "confidence"], "levels": _levels(picture, shown, steps, colours)}
        ),
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SkysenseError(f"{path}: cannot be written: {error.strerror}", fix="Choose another --report.") from error


def _quick_look(
    image: Stack, modality: Modality, codes: Path, confidence: Path
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """Picture, class codes and steps of confidence of the finest level."""
    labels, sure = open_stack([codes], bands=None), open_stack([confidence], bands=None)
    finest = _within(labels.geobox, SIDE)
    date, coarse = fullest_date(image, _within(labels.geobox, COARSE))
    shape = tuple(finest.shape)
    picture = np.full((*shape, 3), 255, dtype=np.uint8)
    shown, steps = np.full(shape, IGNORE, dtype=np.uint8), np.full(shape, IGNORE, dtype=np.uint8)
    for row in range(0, shape[0], TILE):
        for col in range(0, shape[1], TILE):
            place = slice(row, min(row + TILE, shape[0])), slice(col, min(col + TILE, shape[1]))
            raster = image.read(finest[place], dates=[date])
            colour = natural_colour(raster.pixels[0], raster.valid[0], modality, like=coarse)
            picture[place] = np.rint(255 * colour)
            read = labels.read(finest[place], resampling="nearest")
            shown[place] = np.where(read.valid[0], read.pixels[0, 0], IGNORE)
            read = sure.read(finest[place], resampling="nearest")
            steps[place] = np.where(read.valid[0], read.pixels[0, 0], IGNORE)
    return picture, shown, steps


def _within(grid: GeoBox, side: int) -> GeoBox:
    """The same ground in at most `side` pixels."""
    factor = max(*grid.shape, side) / side
    return scaled(grid, (max(round(grid.shape[0] / factor), 1), max(round(grid.shape[1] / factor), 1)))


def _means(shown: UInt8[np.ndarray, "h w"], steps: UInt8[np.ndarray, "h w"], classes: int) -> Float[np.ndarray, "k"]:
    """Mean confidence of each class on the quick look; NaN without a pixel. Stored numbers are steps of 1 / 254."""
    known = (shown != IGNORE) & (steps != IGNORE)
    sums = np.bincount(shown[known], weights=steps[known] / 254.0, minlength=IGNORE + 1)[:classes]
    counts = np.bincount(shown[known], minlength=IGNORE + 1)[:classes]
    return np.divide(sums, counts, out=np.full(classes, np.nan), where=counts > 0)


def _rows(
    classes: Sequence[str], colours: Sequence[str], areas: Sequence[float], means: Float[np.ndarray, "k"]
) -> list[str]:
    total = max(sum(areas), 1e-9)
    return [
        f'<tr><td><i style="background:{colour}"></i>{html.escape(name)}</td><td>{area / 1e4:,.1f}</td>'
        f"<td>{100 * area / total:.1f} %</td><td>{'-' if np.isnan(mean) else f'{mean:.2f}'}</td></tr>"
        for name, colour, area, mean in zip(classes, colours, areas, means.tolist(), strict=True)
    ]


def _levels(
    picture: UInt8[np.ndarray, "h w 3"],
    shown: UInt8[np.ndarray, "h w"],
    steps: UInt8[np.ndarray, "h w"],
    colours: Sequence[str],
) -> list[dict[str, object]]:
    """The tiles of each level, finest first, each level half of the one before; picked pixels keep classes classes."""
    ramp = _ramp()
    levels: list[dict[str, object]] = []
    while True:
        height, width = shown.shape
        cuts = [
            (slice(row, row + TILE), slice(col, col + TILE))
            for row in range(0, height, TILE)
            for col in range(0, width, TILE)
        ]
        levels.append(
            {
                "width": width,
                "height": height,
                "scene": [_encoded(picture[cut], "JPEG") for cut in cuts],
                "map": [_encoded(_clear(painted(shown[cut], colours), shown[cut]), "PNG") for cut in cuts],
                "confidence": [_encoded(_clear(ramp[steps[cut]], steps[cut]), "PNG") for cut in cuts],
            }
        )
        if max(height, width) <= TILE:
            return levels
        picture, shown, steps = _halved(picture), shown[::2, ::2], steps[::2, ::2]


def _halved(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Means of four pixels; the last row and column stand for themselves where the number is odd."""
    padded = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
    rows = padded[::2].astype(np.uint16) + padded[1::2]
    return ((rows[:, ::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)


def _ramp() -> UInt8[np.ndarray, "256 3"]:
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP])
    at = np.linspace(0, 254, len(stops))
    return np.stack([np.interp(np.arange(256), at, stops[:, band]) for band in range(3)], axis=1).astype(np.uint8)


def _clear(colour: UInt8[np.ndarray, "h w 3"], codes: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 4"]:
    """With an opacity of 0 where nothing is known."""
    return np.dstack([colour, np.where(codes == IGNORE, 0, 255).astype(np.uint8)])


def _encoded(pixels: UInt8[np.ndarray, "h w _"], kind: str) -> str:
    from PIL import Image  # only drawing needs it

    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(held, kind, **({"quality": 82} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"
