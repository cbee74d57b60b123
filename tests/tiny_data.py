"""Labelled data that a small model learns within seconds: every class has a spectrum of its own."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

from skysense_core import modalities
from skysense_core.types import ClassMap, Sample

CLASSES = ("water", "forest", "field", "cloud forest")
"""The last one is in no label."""
PARTS = {"train": 6, "val": 2, "test": 2}


def fields(side: int, rng: np.random.Generator) -> np.ndarray:
    """Class codes 0..2 in a side x side map of square fields."""
    return rng.integers(0, 3, (4, 4)).repeat(side // 4, axis=0).repeat(side // 4, axis=1)


def write_chips(folder: Path, side: int = 16) -> Path:
    """Chips of Sentinel-2 with masks, train/ val/ test/, in which a corner of every mask is unknown."""
    (folder / "train").mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    names = modalities.load("s2").band_names
    profile = {"driver": "GTiff", "height": side, "width": side, "crs": "EPSG:32632"}
    for part, count in PARTS.items():
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([len(part), number])
            codes = fields(side, rng)
            pixels = 1000 + 1500 * ((codes + np.arange(10)[:, None, None]) % 3) + rng.normal(0, 100, (10, side, side))
            corner = rasterio.transform.from_origin(500000 + 10 * side * number, 5000000, 10, 10)
            image = folder / part / "images" / f"{part}{number}.tif"
            with rasterio.open(image, "w", count=10, dtype="int16", transform=corner, **profile) as dataset:
                dataset.write(pixels.astype(np.int16))
                dataset.descriptions = names
            codes[:2, :2] = 255
            mask = folder / part / "masks" / f"{part}{number}.tif"
            with rasterio.open(mask, "w", count=1, dtype="uint8", transform=corner, **profile) as dataset:
                dataset.write(codes[None].astype(np.uint8))
    return folder


def write_pastis(folder: Path, patches: int = 5) -> Path:
    """Patches in the layout of PASTIS, two dates of S2 and two of S1, in fields of 32 pixels."""
    for name in ("DATA_S2", "DATA_S1A", "DATA_S1D", "ANNOTATIONS"):
        (folder / name).mkdir(parents=True)
    features = []
    for number in range(patches):
        codes = fields(128, np.random.default_rng(number))
        s2 = np.broadcast_to(1000 + 1500 * ((codes + np.arange(10)[:, None, None]) % 3), (2, 10, 128, 128))
        s1 = np.broadcast_to(-20 + 5 * codes + np.arange(3)[:, None, None], (1, 3, 128, 128))
        np.save(folder / "DATA_S2" / f"S2_{number}.npy", s2.astype(np.int16))
        for track in ("S1A", "S1D"):
            np.save(folder / f"DATA_{track}" / f"{track}_{number}.npy", s1.astype(np.float32))
        np.save(folder / "ANNOTATIONS" / f"TARGET_{number}.npy", codes[None].astype(np.uint8))
        x, y = 700000.0 + 1280 * number, 6600000.0
        ring = [[x, y], [x + 1280, y], [x + 1280, y - 1280], [x, y - 1280], [x, y]]
        dates = {"dates-S2": {"0": 20190104, "1": 20190703}, "dates-S1A": {"0": 20190110}, "dates-S1D": {"0": 20190120}}
        properties = {"ID_PATCH": number, "Fold": number % 5 + 1, **dates}
        outline = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": properties, "geometry": outline})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    table = {"type": "FeatureCollection", "crs": crs, "features": features}
    (folder / "metadata.geojson").write_text(json.dumps(table))
    return folder


@dataclass(frozen=True)
class Labels:
    """The labels of a training part, with so many pixels of each class."""

    pixels: tuple[int, ...]
    classes: tuple[str, ...] = CLASSES[:3]
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return 1

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)

    def size(self, index: int) -> tuple[int, int]:
        return 1, sum(self.pixels)

    def label(self, index: int) -> ClassMap:
        codes = np.repeat(np.arange(len(self.pixels), dtype=np.uint8), self.pixels)
        return ClassMap(codes=codes[None])
