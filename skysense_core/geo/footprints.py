"""Outlines of samples on a map: a PNG, or an HTML page that needs nothing else."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import shapely
from geopandas import GeoDataFrame

from skysense_core.errors import SkysenseError, UsageError

FORMATS = (".png", ".html")
COLOURS = {"train": "#3b6fb6", "val": "#e0a030", "test": "#c0392b", "": "#777777"}
WIDTH = 1100
"""Pixels of the drawing in an HTML page."""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 1em }} svg {{ border: 1px solid #ccc; background: #fafafa; max-width: 100% }}
path {{ fill-opacity: .35; stroke-width: {stroke}; stroke-linejoin: round; vector-effect: non-scaling-stroke }}
.net {{ stroke: #ddd; stroke-width: 1; fill: none }} text {{ fill: #777; font-size: 11px }}
i {{ display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: -2px }}
</style>
<h1>{title}</h1><p>{legend}</p>
<p>The wheel zooms, dragging moves; the name of a sample shows where the pointer rests.</p>
<svg id="map" viewBox="0 0 {width} {height}" width="{width}" height="{height}">{net}{shapes}</svg>
<script>
const map = document.getElementById("map"), box = map.viewBox.baseVal; let held = null;
map.addEventListener("wheel", e => {{ e.preventDefault();
  const f = e.deltaY < 0 ? .8 : 1.25, r = map.getBoundingClientRect();
  const x = box.x + (e.clientX - r.left) / r.width * box.width, y = box.y + (e.clientY - r.top) / r.height * box.height;
  box.x = x - (x - box.x) * f; box.y = y - (y - box.y) * f; box.width *= f; box.height *= f; }}, {{ passive: false }});
map.addEventListener("pointerdown", e => held = [e.clientX, e.clientY, box.x, box.y]);
window.addEventListener("pointerup", () => held = null);
window.addEventListener("pointermove", e => {{ if (held) {{ const r = map.getBoundingClientRect();
  box.x = held[2] - (e.clientX - held[0]) / r.width * box.width;
  box.y = held[3] - (e.clientY - held[1]) / r.height * box.height; }} }});
</script></html>
"""


def check_map(path: Path) -> None:
    """Raise UsageError for a file of neither format."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--map {path}: a map is a .png or a .html file", fix=f"For example --map {path.stem}.html")


def write_map(path: Path, frame: GeoDataFrame, title: str) -> None:
    """Draw the footprints of `frame` (EPSG:4326; columns id and split), coloured by split.

    Degrees of longitude are as long as they are at the middle latitude. Raises SkysenseError where no sample has a
    footprint or the file cannot be written, and UsageError for a format that is neither.
    """
    check_map(path)
    placed = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if placed.empty:
        raise SkysenseError("no sample has a place on the ground, so there is no map of them")
    counts = {name: int((placed["split"] == name).sum()) for name in COLOURS}
    legend = {name: count for name, count in counts.items() if count}
    try:
        if path.suffix.lower() == ".png":
            _draw(path, placed, title, legend)
        else:
            path.write_text(_page(placed, title, legend), encoding="utf-8")
    except OSError as error:
        raise SkysenseError(f"{path}: cannot be written: {error}") from None


def _label(name: str, count: int) -> str:
    return f"{name or 'no part'}: {count:,}"


def _frame_of(frame: GeoDataFrame) -> tuple[float, float, float, float, float]:
    """xmin, ymin, xmax, ymax with a margin, and the length of a degree of longitude in degrees of latitude."""
    west, south, east, north = (float(value) for value in frame.total_bounds)
    margin = max(east - west, north - south, 0.01) * 0.06
    west, south, east, north = west - margin, south - margin, east + margin, north + margin
    return west, south, east, north, max(float(np.cos(np.radians((south + north) / 2))), 0.05)


def _stroke(frame: GeoDataFrame) -> float:
    """Width of outlines, so that samples which are mere points on the map can be seen."""
    west, south, east, north, _ = _frame_of(frame)
    bounds = frame.geometry.bounds
    side = float((bounds["maxx"] - bounds["minx"]).median())
    return 5.0 if side < 0.005 * max(east - west, north - south) else 1.2


def _draw(path: Path, frame: GeoDataFrame, title: str, legend: Mapping[str, int]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only drawing needs it
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    west, south, east, north, squeeze = _frame_of(frame)
    ratio = (north - south) / ((east - west) * squeeze)
    figure = Figure(figsize=(9, float(np.clip(9 * ratio, 3, 14)) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, colour in COLOURS.items():
        own = frame.geometry[frame["split"] == name]
        rings = [np.asarray(part.exterior.coords)[:, :2] for part in own.explode(ignore_index=True)]
        axes.add_collection(
            PolyCollection(rings, facecolors=f"{colour}59", edgecolors=colour, linewidths=_stroke(frame))
        )
    axes.set(xlim=(west, east), ylim=(south, north), xlabel="longitude", ylabel="latitude", title=title)
    axes.set_aspect(1 / squeeze)
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.3)
    handles = [Patch(color=COLOURS[name], label=_label(name, count)) for name, count in legend.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    figure.savefig(path, dpi=150)


def _page(frame: GeoDataFrame, title: str, legend: Mapping[str, int]) -> str:
    west, south, east, north, squeeze = _frame_of(frame)
    scale = WIDTH / ((east - west) * squeeze)
    height = max(round((north - south) * scale), 1)

    def points(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return np.column_stack([(lon - west) * squeeze * scale, (north - lat) * scale]).round(2)

    shapes = []
    for name, split, geometry in zip(frame["id"], frame["split"], frame.geometry, strict=True):
        rings = [np.asarray(part.exterior.coords) for part in shapely.get_parts(geometry)]
        text = "".join(
            "M" + "L".join(f"{x:g},{y:g}" for x, y in points(ring[:, 0], ring[:, 1])) + "Z" for ring in rings
        )
        colour = COLOURS.get(split, COLOURS[""])
        shapes.append(
            f'<path d="{text}" fill="{colour}" stroke="{colour}"><title>{html.escape(str(name))}</title></path>'
        )
    net = []
    for degrees, upright in ((_steps(west, east), True), (_steps(south, north), False)):
        for degree in degrees:
            x, y = points(np.array([degree if upright else west]), np.array([north if upright else degree]))[0]
            line = f"M{x:g},0V{height}" if upright else f"M0,{y:g}H{WIDTH}"
            at = f'x="{x + 3:g}" y="{height - 4}"' if upright else f'x="3" y="{y - 3:g}"'
            net.append(f'<path class="net" d="{line}"/><text {at}>{degree:g}\N{DEGREE SIGN}</text>')
    return PAGE.format(
        title=html.escape(title),
        legend="".join(f'<i style="background:{COLOURS[n]}"></i>{_label(n, count)}' for n, count in legend.items()),
        stroke=_stroke(frame),
        width=WIDTH,
        height=height,
        net="".join(net),
        shapes="".join(shapes),
    )


def _steps(low: float, high: float) -> list[float]:
    """Round degrees between two others, about five of them."""
    raw = (high - low) / 5
    step = min((base * 10.0 ** np.floor(np.log10(raw)) for base in (1, 2, 5, 10)), key=lambda one: abs(one - raw))
    return [round(float(value), 6) for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]
