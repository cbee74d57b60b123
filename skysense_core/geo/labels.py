"""The truth over a scene: polygons or a raster of codes, as class codes on any grid."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import geopandas as gpd
import numpy as np
from jaxtyping import Bool, Num, UInt8
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from skysense_core.errors import SkysenseError, UsageError, did_you_mean
from skysense_core.geo import grid, vector
from skysense_core.geo.paths import RASTERS
from skysense_core.geo.raster import Stack, open_stack
from skysense_core.types import IGNORE

Classes: TypeAlias = tuple[str, ...] | dict[str, str]
"""Names of the classes, or {value in the label = name of its class}; the name "ignore" leaves a value out."""

UNKNOWN = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """Which class every value of a label means."""

    classes: tuple[str, ...]
    codes: dict[str, int]
    """Class code, or `IGNORE`, by the value's text."""
    fill: int = IGNORE
    """Code of what lies outside all polygons."""

    def __post_init__(self) -> None:
        if len(self.classes) >= IGNORE:
            raise UsageError(
                f"the labels have {len(self.classes)} classes, and maps hold at most {IGNORE - 1}",
                fix="Is --label-column the column of the classes? --classes chooses or groups values.",
            )

    @classmethod
    def of_codes(cls, classes: Classes) -> "Legend":
        """For labels that are numbers: names in the order of the codes 0..k-1 (255 is unknown), or a mapping."""
        if isinstance(classes, dict):
            return cls.of_mapping(classes)
        return cls(classes=classes, codes={**{str(code): code for code in range(len(classes))}, str(IGNORE): IGNORE})

    @classmethod
    def of_mapping(cls, mapping: Mapping[str, str], first: tuple[str, ...] = ()) -> "Legend":
        """Classes in the order in which the mapping names them, after `first`."""
        classes = tuple(dict.fromkeys((*first, *(name for name in mapping.values() if name != UNKNOWN))))
        codes = {value: IGNORE if name == UNKNOWN else classes.index(name) for value, name in mapping.items()}
        return cls(classes=classes, codes=codes)

    @classmethod
    def of_values(cls, values: Iterable[str], classes: Classes | None, unlabelled: str) -> "Legend":
        """For the values of a column: those listed or mapped, or all; others are left out.

        A class for what is `unlabelled` comes first where it is not among them.
        """
        if classes is None:
            classes = tuple(sorted(set(values), key=lambda text: (0, int(text), "") if _whole(text) else (1, 0, text)))
        mapping = classes if isinstance(classes, dict) else {name: name for name in classes}
        if unlabelled == UNKNOWN:
            return cls.of_mapping(mapping)
        legend = cls.of_mapping(mapping, () if unlabelled in mapping.values() else (unlabelled,))
        return cls(classes=legend.classes, codes=legend.codes, fill=legend.classes.index(unlabelled))

    def encode(
        self, values: Num[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], where: str
    ) -> UInt8[np.ndarray, "h w"]:
        """Class codes of a label raster, `IGNORE` where it is not valid.

        Raises SkysenseError naming the values that are no class.
        """
        found, places = np.unique(values, return_inverse=True)
        table = np.array([self.codes.get(text_of(value), -1) for value in found.tolist()], dtype=np.int16)
        codes = np.where(valid, table[places.reshape(values.shape)], IGNORE)
        if (codes < 0).any():
            strange = np.unique(values[codes < 0])
            shown = ", ".join(text_of(value) for value in strange[:8].tolist()) + ", ..." * (len(strange) > 8)
            known = ", ".join(f"{value} {self.classes[code]}" for value, code in self.codes.items() if code != IGNORE)
            raise SkysenseError(
                f"{where}: values beyond the classes: {shown} (known: {known})",
                fix='Name all classes, or map values with a TOML: --classes FILE with [classes] 255 = "building".',
            )
        return codes.astype(np.uint8)


def text_of(value: object) -> str:
    """The text by which a label value is known: a whole float as an integer, for columns with gaps hold floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


@runtime_checkable
class Labels(Protocol):
    """The truth over one scene."""

    def read(self, geobox: GeoBox) -> UInt8[np.ndarray, "h w"]:
        """Class codes on a grid; `IGNORE` where nothing is known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Polygons:
    """Labels drawn as polygons; where they overlap, the last one counts."""

    frame: gpd.GeoDataFrame
    codes: tuple[int, ...]
    fill: int

    def read(self, geobox: GeoBox) -> UInt8[np.ndarray, "h w"]:
        return vector.rasterize(self.frame, self.codes, geobox, fill=self.fill)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codes:
    """Labels painted as a raster of codes."""

    stack: Stack
    legend: Legend

    def read(self, geobox: GeoBox) -> UInt8[np.ndarray, "h w"]:
        raster = self.stack.read(geobox, resampling="nearest")
        return self.legend.encode(raster.pixels[0, 0], raster.valid[0], self.stack.paths[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """The labels over a scene, and where they count."""

    labels: Labels
    area: gpd.GeoDataFrame | None

    def read(self, grid: GeoBox) -> UInt8[np.ndarray, "h w"]:
        codes = self.labels.read(grid)
        if self.area is None:
            return codes
        return np.where(vector.rasterize(self.area, [1], grid, fill=0) == 1, codes, np.uint8(IGNORE))


def open_labels(
    labels: Sequence[tuple[str, GeoBox]],
    *,
    column: str | None,
    classes: Classes | None,
    unlabelled: str,
    parts: bool = False,
) -> tuple[Legend, list[Labels], tuple[str, ...]]:
    """The labels of several scenes, given as (file, grid of the scene), with one legend and notes for the user.

    `parts`: the grids are parts of one area, some of which may lie beside the labels.
    Raises SkysenseError for labels outside of their scene, UsageError for classes that they do not have.
    """
    painted = [Path(path).suffix.lower() in RASTERS for path, _ in labels]
    if all(painted):
        return _open_rasters(labels, classes, unlabelled, parts)
    if any(painted):
        raise UsageError("some labels are polygons and others rasters", fix="Train with one kind at a time.")
    return _open_polygons(labels, column, classes, unlabelled, parts)


def _open_rasters(
    labels: Sequence[tuple[str, GeoBox]], classes: Classes | None, unlabelled: str, parts: bool
) -> tuple[Legend, list[Labels], tuple[str, ...]]:
    if classes is None:
        raise UsageError(f"{labels[0][0]}: what do its codes mean?", fix="--classes background,building,...")
    if unlabelled != UNKNOWN:
        raise UsageError("--unlabelled is for polygons: a label raster has a code for everything")
    legend, notes, grids = Legend.of_codes(classes), [], [scene for _, scene in labels]
    opened: list[Labels] = []
    for path, scene in labels:
        stack = open_stack(path, bands=None)
        if len(stack.band_names) != 1 or len(stack.days) != 1:
            raise SkysenseError(f"{path}: expected one band of class codes, found {len(stack.band_names)}")
        if not any(_meet(other, stack.geobox) for other in (grids if parts else [scene])):
            raise _outside(path, tuple(stack.geobox.boundingbox), stack.geobox.crs, scene)
        if stack.geobox.crs != scene.crs:
            notes.append(f"{path}: reprojected from {stack.geobox.crs} to {scene.crs}")
        opened.append(Codes(stack=stack, legend=legend))
    return legend, opened, tuple(notes)


def _open_polygons(
    labels: Sequence[tuple[str, GeoBox]], column: str | None, classes: Classes | None, unlabelled: str, parts: bool
) -> tuple[Legend, list[Labels], tuple[str, ...]]:
    frames, notes = [], []
    for path, scene in labels:
        frame = vector.load_polygons(path, column=column, crs=None)
        own = CRS(frame.crs.to_string())
        if own != scene.crs:
            notes.append(f"{path}: reprojected from {own} to {scene.crs}")
        moved = frame.to_crs(grid.crs_of(scene).proj)
        inside = np.sort(moved.sindex.query(scene.extent.geom, predicate="intersects"))
        if not len(inside) and not parts:
            raise _outside(path, tuple(frame.total_bounds), own, scene)
        if len(inside) < len(moved) and not parts:
            notes.append(f"{path}: {len(moved) - len(inside)} of {len(moved)} polygons lie outside of the raster")
        frames.append(moved.iloc[inside].reset_index(drop=True))
    if not any(map(len, frames)):
        raise _outside(path, tuple(frame.total_bounds), own, scene)
    if column is None:
        name = _only_class(classes, unlabelled, labels[0][0], frames[0])
        values = [[name] * len(frame) for frame in frames]
    else:
        values = [[text_of(value) for value in frame[column].tolist()] for frame in frames]
    counts = Counter(value for some in values for value in some)
    legend = Legend.of_values(counts, classes, unlabelled)
    notes += _compare(counts, legend, column)
    opened: list[Labels] = []
    for frame, some in zip(frames, values, strict=True):
        used = [index for index, value in enumerate(some) if value in legend.codes]
        codes = tuple(legend.codes[some[index]] for index in used)
        geometry = frame.geometry.iloc[used].reset_index(drop=True)
        opened.append(Polygons(frame=gpd.GeoDataFrame(geometry=geometry), codes=codes, fill=legend.fill))
    return legend, opened, tuple(notes)


def _only_class(classes: Classes | None, unlabelled: str, path: str, frame: gpd.GeoDataFrame) -> str:
    names = [name for name in classes or () if name != unlabelled] if not isinstance(classes, dict) else []
    if len(names) == 1:
        return names[0]
    columns = [str(name) for name in frame.columns if name != frame.geometry.name]
    raise UsageError(
        f"{path}: which column holds the class? It has {', '.join(columns) or 'none'}",
        fix="--label-column NAME, or --classes building where all polygons are one class.",
    )


def _compare(counts: Mapping[str, int], legend: Legend, column: str | None) -> list[str]:
    """Notes on values that are no class and classes that have no polygon; UsageError where they share nothing."""
    listed = ", ".join(f"{value} ({count})" for value, count in sorted(counts.items(), key=lambda item: -item[1])[:12])
    if not counts.keys() & legend.codes.keys():
        raise UsageError(
            f"no polygon has one of the classes {', '.join(legend.codes)}", fix=f"{column} holds {listed}."
        )
    notes = []
    others = {value: count for value, count in counts.items() if value not in legend.codes}
    if others:
        named = ", ".join(sorted(others)[:8]) + ", ..." * (len(others) > 8)
        notes.append(f"{sum(others.values())} polygons of no listed class are ignored: {named}")
    for value in legend.codes:
        if value not in counts and legend.codes[value] != legend.fill:
            notes.append(f"no polygon is {value}; {did_you_mean(value, others)}".rstrip("; "))
    return notes


def _meet(scene: GeoBox, other: GeoBox) -> bool:
    left, top, right, bottom = grid.pixel_bounds(scene, other) or (0, 0, 0, 0)
    return right > 0 and bottom > 0 and left < scene.shape.x and top < scene.shape.y


def _outside(path: str, bounds: tuple[float, ...], crs: CRS | None, scene: GeoBox) -> SkysenseError:
    def text(edges: Iterable[float]) -> str:
        return ", ".join(f"{edge:.7g}" for edge in edges)

    return SkysenseError(
        f"{path}: the labels lie outside of the raster: {text(bounds)} in {crs}, the raster "
        f"{text(scene.boundingbox)} in {scene.crs}",
        fix="Do both files state their right CRS?",
    )
