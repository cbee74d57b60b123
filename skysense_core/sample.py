"""Draw the places where a map is to be judged: a random sample of each class, to be interpreted in QGIS."""

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
from odc.geo.crs import CRS

from skysense_core.errors import UsageError
from skysense_core.geo import classmap
from skysense_core.geo.grid import crs_of
from skysense_core.geo.vector import write_vector
from skysense_core.stratified import Allocation, allocate

REFERENCE = "reference"
"""The column that the interpreter fills in and `area` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """The settings of one sample."""

    map: str
    out: Path
    n: int
    allocation: Allocation = "proportional"
    min_per_class: int = 25
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """What was drawn."""

    path: Path
    classes: dict[str, int]
    """Points of each class of the map."""
    pixels: dict[str, int]
    """Pixels of each class on the map."""


def sample(given: SampleConfig) -> SampleResult:
    """Write centres of random pixels, stratified by the classes of the map, in random order.

    Columns: id, and an empty `reference` for the true class. The class on the map is left out: whoever interprets a
    point shall not know it, and `area` reads it from the map. Raises UsageError where a class has fewer pixels than
    it is to give, and for a map that is none.
    """
    if given.out.exists() and not given.overwrite:
        raise UsageError(f"{given.out} exists", fix="Use --overwrite to replace it: interpretations in it are lost.")
    result = classmap.open_class_map(given.map)
    names = result.product.classes
    sizes = classmap.pixels(result)
    if not sizes.any():
        raise UsageError(f"{given.map}: no pixel with a class")
    wanted = allocate(given.n, sizes, rule=given.allocation, minimum=given.min_per_class, names=names)
    drawn = classmap.draw(result, wanted.tolist(), sizes.tolist(), given.seed)
    columns = {"id": np.arange(1, len(drawn.x) + 1), REFERENCE: np.full(len(drawn.x), None, dtype=object)}
    crs = CRS(crs_of(result.grid)).proj
    frame = gpd.GeoDataFrame(columns, geometry=gpd.points_from_xy(drawn.x, drawn.y), crs=crs)
    frame[REFERENCE] = frame[REFERENCE].astype("string")
    write_vector(frame, given.out)
    return SampleResult(
        path=given.out,
        classes=dict(zip(names, wanted.tolist(), strict=True)),
        pixels=dict(zip(names, sizes.tolist(), strict=True)),
    )
