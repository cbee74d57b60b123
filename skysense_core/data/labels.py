"""How each kind of label follows its image: moved with it, hidden where nothing was seen, counted."""

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch
from typing import Any, TypeAlias

import numpy as np
from affine import Affine
from jaxtyping import Bool, Int, Shaped
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError
from skysense_core.types import IGNORE, ClassMap, ClassMaps, Label, Objects, Tags, ValueMap

Change: TypeAlias = Callable[[Shaped[np.ndarray, "*n h w"], Any], Shaped[np.ndarray, "*n h2 w2"]]
"""What was done to the image: a map and what stands for unknown become the changed map."""
OTHER_TASK = "Use a task, or a data set, of the other kind."
KINDS = {ClassMaps: "a map for each epoch", ValueMap: "maps of values", Tags: "tags of images", Objects: "objects"}


@singledispatch
def moved(label: Label, change: Change, move: Affine, shape: tuple[int, int]) -> Label:
    """The label of a changed image. `move` takes its pixels to those of the old one, `shape` is its rows and columns.

    Of objects, those whose centre still lies in the image are left, whole even where they reach beyond it. The tags of
    a sample hold for any part of it.
    """
    raise TypeError(type(label).__name__)


@moved.register(ClassMap)
@moved.register(ClassMaps)
def _(label: ClassMap | ClassMaps, change: Change, move: Affine, shape: tuple[int, int]) -> Label:
    return replace(label, codes=change(label.codes, IGNORE), geobox=_grid(label.geobox, move, shape))


@moved.register
def _(label: ValueMap, change: Change, move: Affine, shape: tuple[int, int]) -> Label:
    return replace(label, values=change(label.values, np.nan), geobox=_grid(label.geobox, move, shape))


@moved.register
def _(label: Tags, change: Change, move: Affine, shape: tuple[int, int]) -> Label:
    return label


@moved.register
def _(label: Objects, change: Change, move: Affine, shape: tuple[int, int]) -> Label:
    back = ~move
    corners = label.corners @ np.array([[back.a, back.d], [back.b, back.e]]) + np.array([back.c, back.f])
    if back.determinant < 0:  # a mirror image runs the other way round
        corners = corners[:, ::-1]
    height, width = shape
    x, y = corners.mean(axis=1).T
    return _chosen(replace(label, corners=corners), (x >= 0) & (x < width) & (y >= 0) & (y < height))


@singledispatch
def hidden(label: Label, unseen: Bool[np.ndarray, "e h w"]) -> Label:
    """The label without what no image of an epoch shows: nobody can learn from what was not seen."""
    raise TypeError(type(label).__name__)


@hidden.register
def _(label: ClassMap, unseen: Bool[np.ndarray, "e h w"]) -> Label:
    return replace(label, codes=np.where(unseen.any(axis=0), np.uint8(IGNORE), label.codes))


@hidden.register
def _(label: ClassMaps, unseen: Bool[np.ndarray, "e h w"]) -> Label:
    return replace(label, codes=np.where(unseen, np.uint8(IGNORE), label.codes))


@hidden.register
def _(label: ValueMap, unseen: Bool[np.ndarray, "e h w"]) -> Label:
    return replace(label, values=np.where(unseen.any(axis=0), np.nan, label.values).astype(label.values.dtype))


@hidden.register
def _(label: Tags, unseen: Bool[np.ndarray, "e h w"]) -> Label:
    return label


@hidden.register
def _(label: Objects, unseen: Bool[np.ndarray, "e h w"]) -> Label:
    x, y = np.floor(label.corners.mean(axis=1)).astype(int).T
    return _chosen(label, ~np.logical_or.reduce(unseen)[y, x])


@singledispatch
def known(label: Label) -> int:
    """How much a label says: pixels, tags. An image without objects says as much as one with a single one."""
    raise TypeError(type(label).__name__)


@known.register(ClassMap)
@known.register(ClassMaps)
def _(label: ClassMap | ClassMaps) -> int:
    return int((label.codes != IGNORE).sum())


@known.register
def _(label: ValueMap) -> int:
    return int(np.isfinite(label.values).sum())


@known.register
def _(label: Tags) -> int:
    return 1


@known.register
def _(label: Objects) -> int:
    return max(int((~label.difficult).sum()), 1)


def counts(label: Label, classes: int) -> Int[np.ndarray, "k"]:
    """Pixels, samples or objects of each class. Raises SkysenseError for values, which have no classes."""
    if isinstance(label, ValueMap):
        raise SkysenseError("the labels are values, not classes", fix=OTHER_TASK)
    codes = label.codes[~label.difficult] if isinstance(label, Objects) else np.asarray(label.codes, dtype=np.int64)
    return np.bincount(codes.ravel(), minlength=IGNORE + 1)[:classes]


def class_map(label: Label) -> ClassMap:
    """The label, if it is a map of classes. Raises SkysenseError where it is another one."""
    if not isinstance(label, ClassMap):
        raise SkysenseError(f"expected maps of classes as labels, found {KINDS[type(label)]}", fix=OTHER_TASK)
    return label


def _chosen(label: Objects, kept: Bool[np.ndarray, "n"]) -> Objects:
    return replace(label, corners=label.corners[kept], codes=label.codes[kept], difficult=label.difficult[kept])


def _grid(geobox: GeoBox | None, move: Affine, shape: tuple[int, int]) -> GeoBox | None:
    return None if geobox is None else GeoBox(shape, geobox.affine * move, geobox.crs)
