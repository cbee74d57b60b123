"""The style file that QGIS takes for a raster of its name: a class map opens with names and colours in the legend."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path


def write_style(path: Path, entries: Mapping[int, tuple[str, str]]) -> None:
    """Write a `.qml` for a raster whose codes have these names and colours (`#rrggbb`)."""
    root = ET.Element("qgis", {"styleCategories": "Symbology", "version": "3.22"})
    paletted = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1"}
    renderer = ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", paletted)
    palette = ET.SubElement(renderer, "colorPalette")
    for code, (name, colour) in entries.items():
        ET.SubElement(palette, "paletteEntry", {"value": str(code), "color": colour, "label": name, "alpha": "255"})
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    path.write_text(f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n", encoding="utf-8")
