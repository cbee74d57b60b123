"""The style file that QGIS takes for a raster of its name: a class map opens with names and colours in the legend."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path


def write_style(path: Path, entries: Mapping[int, tuple[str, str]]) -> None:
    """Write a `.qml` for a raster whose codes have these names and colours (`#rrggbb`)."""
    root, renderer = _renderer("paletted")
    palette = ET.SubElement(renderer, "colorPalette")
    for code, (name, colour) in entries.items():
        ET.SubElement(palette, "paletteEntry", {"value": str(code), "color": colour, "label": name, "alpha": "255"})
    _write(path, root)


def write_ramp(path: Path, stops: Mapping[float, str]) -> None:
    """Write a `.qml` for a raster of values whose first band is drawn from colour to colour between these values."""
    low, high = min(stops), max(stops)
    root, renderer = _renderer("singlebandpseudocolor", classificationMin=f"{low:g}", classificationMax=f"{high:g}")
    ramp = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    limits = {"minimumValue": f"{low:g}", "maximumValue": f"{high:g}"}
    shader = ET.SubElement(ET.SubElement(renderer, "rastershader"), "colorrampshader", ramp | limits)
    for value, colour in stops.items():
        ET.SubElement(shader, "item", {"value": f"{value:g}", "label": f"{value:g}", "color": colour, "alpha": "255"})
    _write(path, root)


def _renderer(kind: str, **attributes: str) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("qgis", {"styleCategories": "Symbology", "version": "3.22"})
    given = {"type": kind, "band": "1", "opacity": "1", "alphaBand": "-1", **attributes}
    return root, ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", given)


def _write(path: Path, root: ET.Element) -> None:
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    path.write_text(f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n", encoding="utf-8")
