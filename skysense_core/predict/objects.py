"""The other kind of prediction: objects, as a vector file. They stay in shards as rows and are joined at the end."""

from pathlib import Path

import numpy as np
import torch
from geopandas import GeoDataFrame, points_from_xy

from skysense_core.errors import UsageError
from skysense_core.geo.cog import Product
from skysense_core.geo.objects import SUFFIXES, join_objects, object_table, write_objects
from skysense_core.geo.windows import Window
from skysense_core.predict.products import Arrays, Encode
from skysense_core.predict.settings import PredictConfig
from skysense_core.predict.shards import Shards, grid_of
from skysense_core.tasks import ObjectOutput, Task

NAME = "objects"
"""Of the product."""


def wanted(given: PredictConfig) -> bool:
    """Whether `out` is the name of a vector file. Raises UsageError where options ask for what only maps have."""
    if given.out.suffix.lower() not in SUFFIXES:
        return False
    options = {
        "--confidence": given.confidence is not None,
        "--probabilities": given.probabilities,
        "--observations": given.observations,
        "--polygons": given.polygons is not None,
        "--preview": given.preview is not None,
        "--report": given.report is not None,
        "--min-area": bool(given.min_area),
        "--like": given.like is not None,
    }
    if asked := [name for name, is_asked in options.items() if is_asked]:
        raise UsageError(
            f"{', '.join(asked)}: objects have none", fix=f"Leave it out, or give --out a .tif, not {given.out}."
        )
    return True


def check_kind(out: Path, output: object) -> None:
    """Raises UsageError where a model of objects is to write a raster, or one of maps a vector file."""
    vector = out.suffix.lower() in SUFFIXES
    if isinstance(output, ObjectOutput) and not vector:
        raise UsageError(f"--out {out}: this model finds objects", fix="For example --out objects.gpkg")
    if vector and not isinstance(output, ObjectOutput):
        raise UsageError(
            f"--out {out}: this model makes a map", fix="For example --out map.tif; --polygons writes its areas."
        )


def product(output: ObjectOutput, tags: dict[str, str]) -> Product:
    """What the rows of a shard are."""
    said = {"OVERLAP": str(output.overlap), "ORIENTED": str(output.oriented), **tags}
    return Product(kind="objects", bands=(), dtype="float64", classes=output.classes, colours=output.colours, tags=said)


def encoder(task: Task, region: Window, area: GeoDataFrame | None) -> Encode:
    """Finished rows of a strip as rows of objects in pixels of the region; those whose centre lies off `area`, which is
    in pixels of the scene, are left out."""

    def encode(part: object) -> Arrays:
        rows = task.decode(part.scores, torch.empty(0))  # type: ignore[attr-defined]  # a part of this task's merger
        if area is not None and len(rows):
            centres = rows[:, :8].reshape(-1, 4, 2).mean(axis=1)
            inside = GeoDataFrame(geometry=points_from_xy(*centres.T)).sindex.query(
                area.geometry.to_numpy(), predicate="intersects"
            )
            rows = rows[np.unique(inside[1])]
        rows = rows.copy()
        rows[:, :8] -= np.tile([region.col, region.row], 4)
        return {NAME: rows}

    return encode


def in_pixels(area: GeoDataFrame | None, grid: object) -> GeoDataFrame | None:
    """Polygons in the CRS of a grid as polygons in its pixels."""
    if area is None:
        return None
    back = ~grid.affine  # type: ignore[attr-defined]
    moved = area.geometry.affine_transform([back.a, back.b, back.d, back.e, back.c, back.f])
    return GeoDataFrame(geometry=moved.set_crs(None, allow_override=True))


def join(store: Shards, out: Path) -> dict[str, int]:
    """Write the objects of all shards, each once; returns how many there are of each class.

    Raises SkysenseError where a shard is missing or the file cannot be written.
    """
    store.refuse_missing()
    made, grid = store.plan.product(NAME), grid_of(store.plan.grid)
    parts = [store.folder / shard.name / f"{NAME}.npy" for shard in store.shards]
    rows = join_objects(parts, float(made.tags["OVERLAP"]))
    table = object_table(rows, grid, names=made.classes, oriented=made.tags["ORIENTED"] == "True")
    write_objects(table, out)
    return {name: int((table["class"] == code).sum()) for code, name in enumerate(made.classes)}
