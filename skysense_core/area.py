"""How large each class really is, and how right the map: estimated from reference points, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from skysense_core.errors import SkysenseError, UsageError, did_you_mean
from skysense_core.geo import classmap
from skysense_core.geo.grid import crs_of
from skysense_core.geo.vector import load_points
from skysense_core.stratified import Z95, estimate
from skysense_core.types import IGNORE


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaConfig:
    """The settings of one estimate."""

    map: str
    reference: Path
    """Points with the true class, drawn at random within each class of the map (`sample` does so)."""
    column: str = "reference"
    """Names of classes, or their codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEstimate:
    """One class. Errors are standard errors; `ci95` is what to add on either side. None: undefined."""

    name: str
    points: int
    """Sampled on the map's class."""
    mapped_ha: float
    """What the map shows."""
    area_ha: float
    """Error-adjusted."""
    area_se_ha: float
    area_ci95_ha: float
    user: float | None
    user_se: float | None
    producer: float | None
    producer_se: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaResult:
    """What the reference says of a map."""

    points: int
    overall: float
    overall_se: float
    classes: tuple[ClassEstimate, ...]
    counts: tuple[tuple[int, ...], ...]
    """Points by map class (row) and reference class (column)."""
    shares: tuple[tuple[float, ...], ...]
    """The same as estimated shares of the area."""
    notes: tuple[str, ...]


def area(given: AreaConfig) -> AreaResult:
    """Error-adjusted areas with 95 % confidence intervals, and accuracies with standard errors (`stratified`).

    Points may be in any CRS. Raises UsageError where the column or a class in it is unknown or a class of the map has
    fewer than two points, and SkysenseError where no point lies on the map.
    """
    result = classmap.open_class_map(given.map)
    names = result.product.classes
    points = load_points(given.reference, crs_of(result.grid))
    truth, notes = _truth(points, given, names)
    known = truth != IGNORE
    x, y = points.geometry.x.to_numpy()[known], points.geometry.y.to_numpy()[known]
    mapped, truth = classmap.codes_at(result, x, y), truth[known]
    on = mapped < len(names)
    if not on.any():
        raise SkysenseError(
            f"{given.reference}: none of its {len(on)} points lies on the map {given.map}",
            fix="Is the CRS that the file states the right one, and is it the sample of this map?",
        )
    if not on.all():
        notes.append(f"{int((~on).sum())} points lie outside of the map or on no data and are left out")
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (mapped[on], truth[on]), 1)
    areas = classmap.areas(result) / 1e4
    _check_counts(counts, areas > 0, names)
    found = estimate(counts, areas)
    classes = tuple(
        ClassEstimate(
            name=name,
            points=int(counts[code].sum()),
            mapped_ha=float(areas[code]),
            area_ha=float(found.area[code]),
            area_se_ha=float(found.area_error[code]),
            area_ci95_ha=Z95 * float(found.area_error[code]),
            user=_number(found.user[code]),
            user_se=_number(found.user_error[code]),
            producer=_number(found.producer[code]),
            producer_se=_number(found.producer_error[code]),
        )
        for code, name in enumerate(names)
    )
    return AreaResult(
        points=int(counts.sum()),
        overall=found.overall,
        overall_se=found.overall_error,
        classes=classes,
        counts=tuple(map(tuple, counts.tolist())),
        shares=tuple(map(tuple, found.share.tolist())),
        notes=tuple(notes),
    )


def _truth(points: pd.DataFrame, given: AreaConfig, names: Sequence[str]) -> tuple[Int64[np.ndarray, "n"], list[str]]:
    """The code of each point's true class, `IGNORE` where none is stated, and what the user should know."""
    if given.column not in points.columns:
        known = [str(name) for name in points.columns if name != "geometry"]
        raise UsageError(
            f"{given.reference} has no column {given.column!r}",
            fix=f"{did_you_mean(given.column, known)}--column says which holds the true class; "
            f"it has: {', '.join(known) or 'none'}.",
        )
    values = points[given.column]
    empty = values.isna() | (values.astype("string").str.strip() == "")
    if empty.all():
        raise UsageError(f"{given.reference}: no point has a {given.column} yet", fix="Fill it in, e.g. in QGIS.")
    codes = {name: code for code, name in enumerate(names)} | {str(code): code for code in range(len(names))}
    texts = values[~empty].map(lambda value: str(int(value) if _whole(value) else value).strip())
    unknown = sorted(set(texts) - set(codes))
    if unknown:
        raise UsageError(
            f"{given.reference}: {given.column} {unknown[0]!r} is no class of the map",
            fix=f"{did_you_mean(unknown[0], names)}It has: {', '.join(names)}.",
        )
    truth = np.full(len(points), IGNORE, dtype=np.int64)
    truth[~empty.to_numpy()] = texts.map(codes).to_numpy()
    notes = [f"{int(empty.sum())} points have no {given.column} and are left out"] if empty.any() else []
    return truth, notes


def _whole(value: object) -> bool:
    """Numbers come as floats where a column has gaps."""
    return isinstance(value, float) and value.is_integer()


def _check_counts(counts: Int64[np.ndarray, "k k"], on: np.ndarray, names: Sequence[str]) -> None:
    few = [
        f"{names[code]} ({int(counts[code].sum())})" for code in np.flatnonzero(on & (counts.sum(axis=1) < 2)).tolist()
    ]
    if few:
        raise UsageError(
            f"classes of the map with fewer than two reference points: {', '.join(few)}",
            fix="Without them nothing is known of that part of the area: draw more with "
            "skysense sample --min-per-class and interpret them.",
        )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
