"""Boxes of any direction, as four corners: rectangles about shapes, their sides, overlaps, and one box per object.

Corners are (x, y), clockwise as seen on the picture (y grows downwards). An axis-aligned box is four corners too.
"""

from typing import Any

import numpy as np
import shapely
from jaxtyping import Float, Int

FEWEST = 1e-6
"""Area in square pixels below which a box has none."""


def rectangles(corners: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n 4 2"]:
    """The smallest rectangle of any direction about each quadrangle, clockwise; a rectangle stays as it is."""
    found = np.empty_like(corners)
    for index, hull in enumerate(shapely.oriented_envelope(shapely.multipoints(corners))):
        points = shapely.get_coordinates(hull)
        # A line or a point is a rectangle without area.
        points = points[:4] if len(points) >= 4 else np.stack([points[0], points[-1], points[-1], points[0]])
        found[index] = clockwise(points[None])[0]
    return found


def upright(corners: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n 4 2"]:
    """The axis-aligned box about each quadrangle, from its upper left corner on."""
    (left, top), (right, bottom) = corners.min(axis=1).T, corners.max(axis=1).T
    return from_bounds(np.stack([left, top, right, bottom], axis=1))


def from_bounds(bounds: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4 2"]:
    """Axis-aligned boxes (left, top, right, bottom) as corners."""
    left, top, right, bottom = bounds.T
    return np.stack([left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 4, 2)


def clockwise(corners: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n 4 2"]:
    """The same corners in clockwise order as seen, from the same first one."""
    x, y = corners[..., 0], corners[..., 1]
    turned = (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1) < 0
    return np.where(turned[:, None, None], corners[:, [0, 3, 2, 1]], corners)


def areas(corners: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n"]:
    """Square pixels; those of a quadrangle that crosses itself are of the parts that it encloses."""
    return shapely.area(shapes(corners))


def shapes(corners: Float[np.ndarray, "n 4 2"]) -> np.ndarray:
    """Valid shapely polygons (an array of objects); a quadrangle that crosses itself becomes its parts."""
    return shapely.make_valid(shapely.polygons(corners))


def overlaps(one: Any, other: np.ndarray) -> Float[np.ndarray, "n"]:
    """Intersection over union of one shape, or of each of an array, with those of another; 0 where there is no area."""
    common = shapely.area(shapely.intersection(one, other))
    union = shapely.area(one) + shapely.area(other) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > FEWEST)


def ious(one: Float[np.ndarray, "n 4 2"], other: Float[np.ndarray, "m 4 2"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every box with every other, exact for any direction."""
    found = np.zeros((len(one), len(other)))
    left, right = shapes(one), shapes(other)
    i, j = shapely.STRtree(right).query(left)
    found[i, j] = overlaps(left[i], right[j])
    return found


def suppress(
    corners: Float[np.ndarray, "n 4 2"],
    scores: Float[np.ndarray, "n"],
    codes: Int[np.ndarray, "n"],
    threshold: float,
    groups: Int[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "m"]:
    """Which boxes stay, best first: none that overlaps a better one of its class by more than `threshold`.

    With `groups` only boxes of different groups compete: those of one were sorted out before. Of equal scores the
    first in (y, x) of the first corner is the better one, so the answer does not depend on the order of the boxes.
    """
    if not len(corners):
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((corners[:, 0, 0], corners[:, 0, 1], -scores))
    polygons, codes = shapes(corners[order]), codes[order]
    groups = None if groups is None else groups[order]
    tree, kept = shapely.STRtree(polygons), np.ones(len(order), dtype=bool)
    # Best first, against what is left: in a crowd, each box that stays takes many away that are never compared.
    for best in range(len(order)):
        if not kept[best]:
            continue
        rivals = tree.query(polygons[best])
        rivals = rivals[(rivals > best) & kept[rivals] & (codes[rivals] == codes[best])]
        if groups is not None:
            rivals = rivals[groups[rivals] != groups[best]]
        if len(rivals):
            kept[rivals[overlaps(polygons[best], polygons[rivals]) > threshold]] = False
    return order[kept]
