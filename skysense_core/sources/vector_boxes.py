"""Rasters and a vector file of polygons, each of which is one object: an analyst's own boxes, outlines or footprints.

Given as `--source vector_boxes --data hr=ortho.tif --labels buildings.gpkg`, or as the TOML file of `scenes`. The
object is the smallest rectangle of any direction about a polygon; detection takes the upright box about that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import shapely
from jaxtyping import Float64, Int
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import boxes
from skysense_core.geo.grid import place
from skysense_core.geo.labels import Polygons
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.sources.scenes import Scenes, ScenesSplit
from skysense_core.types import Objects, PartName, Sample

NOTHING = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorBoxes(Scenes):
    """The `[data]` table: that of `scenes`. All that the rasters show counts: where no polygon is, no object is."""

    looked_for: ClassVar[str] = "as scenes, with polygons that are objects: named with --source vector_boxes"
    about: ClassVar[About] = About(
        tasks=("oriented_detection", "detection"),
        modalities=("hr", "s2", "s1"),
        classes="yours",
        split="by place: blocks or halves",
        licence="yours",
        where="your own rasters and polygons",
    )

    only_named: ClassVar[bool] = True
    """The same files may be labels of areas: only the user knows."""

    unlabelled: str = NOTHING
    """Stays as it is: what is no object is background."""

    @staticmethod
    def detect(path: Path) -> bool:
        return False

    def open(  # type: ignore[override]  # the samples of both are windows, but their labels differ
        self, split: PartName, modalities: Mapping[str, Modality]
    ) -> "VectorBoxesSplit":
        """The windows of one part. Raises as `Scenes.open` does, and for labels that are no polygons."""
        if self.unlabelled != NOTHING:
            raise UsageError("what lies outside all polygons is no object", fix="Leave out --unlabelled.")
        opened = Scenes.open(self, split, modalities)
        known = {}
        for name, (scene, truth) in opened.scenes.items():
            if truth is None or not isinstance(truth.labels, Polygons):
                raise UsageError(f"{name}: objects are polygons", fix="--labels with a vector file of them")
            known[name] = _objects(truth.labels, scene.grid)
        crowd = {name: f"{len(codes)} objects of {name}" for name, (_, codes) in known.items()}
        return VectorBoxesSplit(inner=opened, known=known, notes=(*opened.notes, *crowd.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorBoxesSplit:
    """The windows of one part, with the objects whose centre lies in them."""

    inner: ScenesSplit
    known: Mapping[str, tuple[Float64[np.ndarray, "_ 4 2"], Int[np.ndarray, "_"]]]
    """Of each scene: corners in pixels of its grid, and class codes."""
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.inner.classes[1:]

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        sample = self.inner[index]
        return Sample(
            id=sample.id,
            epochs=sample.epochs,
            footprint=sample.footprint,
            lonlat=sample.lonlat,
            label=self.label(index),
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.inner.size(index)

    def label(self, index: int) -> Objects:
        """The objects; those that a window before has shown are `difficult`, so that each counts once."""
        name, window = self.inner.windows[index]
        corners, codes = self.known[name]
        height, width = self.size(index)
        corners = corners - np.array([window.col, window.row])
        x, y = corners.mean(axis=1).T
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        before = (x < window.seen_cols) | (y < window.seen_rows)
        return Objects(corners=corners[inside], codes=codes[inside], difficult=before[inside])


def _objects(labels: Polygons, grid: GeoBox) -> tuple[Float64[np.ndarray, "n 4 2"], Int[np.ndarray, "n"]]:
    """The smallest rectangle about each polygon, in pixels of the grid; codes begin after the background."""
    found, codes = [], []
    for shape, code in zip(labels.frame.geometry, labels.codes, strict=True):
        points = shapely.get_coordinates(shape)
        x, y = place(~grid.affine, points[:, 0], points[:, 1])
        hull = shapely.oriented_envelope(shapely.multipoints(np.stack([x, y], axis=1)))
        if hull.area > boxes.FEWEST:
            found.append(shapely.get_coordinates(hull)[:4])
            codes.append(code - 1)
    if not found:
        raise SkysenseError("no polygon of the labels has an area")
    return boxes.clockwise(np.array(found)), np.array(codes, dtype=np.int64)
