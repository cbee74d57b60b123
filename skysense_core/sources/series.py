"""A table of point time series: analysts' crop samples, as Parquet or CSV, long or wide.

A point is one patch of the ViT (4 x 4 pixels), all of them alike, so that it goes through the encoders as any image
does; its class, or its value, is the label of all of them. Points are near each other, so they are split by a column,
never by row.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
import pandas as pd
from affine import Affine
from einops import repeat
from jaxtyping import Bool, Float64, Int, UInt8
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pydantic import Field

from skysense_core import modalities as modality_files
from skysense_core.data import points
from skysense_core.data.parts import deal
from skysense_core.data.points import Form, Observations, Values
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import transform
from skysense_core.geo.labels import UNKNOWN, Classes, Legend, text_of
from skysense_core.geo.outline import LONLAT, footprint_lonlat
from skysense_core.modalities import CELL, CELLS, Modality, finest
from skysense_core.sources import About
from skysense_core.types import IGNORE, ClassMap, PartName, Raster, Sample, ValueMap

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]

SPLIT = "split"
"""Column of the part in a table of its own."""
PARTS: dict[str, PartName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The `[data]` table of a table of points."""

    looked_for: ClassVar[str] = "a table of points in time: .parquet, .csv, .txt, also as .gz; a folder of them alone"
    about: ClassVar[About] = About(
        tasks=("crop", "classification", "regression", "segmentation"),
        modalities=("s2", "s1"),
        classes="yours",
        split="a column, a table of its own, or places of a column",
        licence="yours",
        where="your own table of points",
    )

    path: Path
    """A table, or a folder of tables with equal columns, whose names are the column `file`."""
    id_column: str = "id"
    date_column: str = "date"
    """Of a long table, with a row per point and date and a column per band."""
    columns: str | None = None
    r"""Of a wide table, with a row per point: a regular expression of its columns with the groups band, and date or
    step: `OPTICAL-(?P<band>\w+)-ts(?P<step>\d+)-.*`. Not given: columns such as B02_2019-05-01."""
    start_column: str | None = None
    """Column with the date of the first step; not given: the steps have no dates."""
    every: str = "1 month"
    """What lies between two steps: "10 days", "1 month"."""
    lon_column: str = "lon"
    lat_column: str = "lat"
    """In degrees (EPSG:4326); points may lack both."""
    nodata: float | None = None
    """Value that means no data, beside empty cells."""
    values: dict[str, Values] = field(default_factory=dict)
    """By modality, where the table holds another unit: s1 = {log10 = 20, offset = -83}, s2 = {scale = 10000}."""
    label_column: str | None = None
    classes: Classes | None = None
    """Values of the label column that are classes, others are left out, or {value = class name}; not given: all."""
    value_column: str | None = None
    """Column of a number to be learnt (regression), in place of a class."""
    split_by: str | None = None
    """Column of places (a grid cell, a region), each of which belongs to one part as a whole."""
    split_column: str | None = None
    """Column that says train, val or test; where no row validates, places of `split_by` among those that train do."""
    split_table: Path | None = None
    """A table of its own with `id_column` and `split_column` (else `split`); points it does not list are left out."""
    val_share: Share = 0.2
    test_share: Share = 0.2
    """Of the places."""
    seed: int = 0

    @staticmethod
    def detect(path: Path) -> bool:
        files = [path] if path.is_file() else sorted(path.iterdir())
        return bool(files) and all(file.is_file() and file.name.endswith(points.SUFFIXES) for file in files)

    def form(self) -> Form:
        return Form(
            id=self.id_column,
            date=self.date_column,
            columns=self.columns,
            start=self.start_column,
            every=self.every,
        )

    def available(self) -> tuple[str, ...]:
        return tuple(self.described())

    def described(self) -> dict[str, Modality]:
        """The modalities of ViTs of which the table has a band, with those bands. Raises UsageError where none is."""
        columns, form = points.columns_of(self.path), self.form()
        known = [modality_files.load(name) for name in modality_files.packaged()]
        known = [one for one in known if one.encoder == "vit"]
        bands = {one.name: sorted(points.matches(columns, one, form, self.path)) for one in known}
        found = [one.with_bands(tuple(one.band_names[n] for n in bands[one.name])) for one in known if bands[one.name]]
        if not found:
            points.require(columns, self.date_column, "data.date_column", self.path)
            raise UsageError(
                f"{self.path}: no column is called as a band of {', '.join(one.name for one in known)}",
                fix="Rename the columns to B02, B03 ..., VV, VH, or say with data.columns how a wide table names them.",
            )
        return {one.name: one for one in sorted(found, key=lambda one: -len(one.bands))}

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "SeriesSplit":
        """The points of one part. Raises UsageError where columns are lacking or values are not in the unit."""
        if self.label_column is not None and self.value_column is not None:
            raise UsageError("data.label_column and data.value_column: learn a class or a number", fix="Leave one out.")
        columns, form = points.columns_of(self.path), self.form()
        found = {name: self._bands(columns, modality) for name, modality in modalities.items()}
        long = points.is_long(columns, form)
        given = {
            "start": self.start_column,
            "label": self.label_column,
            "value": self.value_column,
            "by": self.split_by,
            "parts": self.split_column if self.split_table is None else None,
        }
        if long:
            given |= {"id": self.id_column, "date": self.date_column}
        for what, column in given.items():
            if column is not None:
                field_name = {"by": "split_by", "parts": "split_column"}.get(what, f"{what}_column")
                points.require(columns, column, f"data.{field_name}", self.path)
        wanted = [column for one in found.values() for steps in one.values() for column in steps.values()]
        wanted += [column for column in given.values() if column is not None]
        wanted += [name for name in (self.id_column, self.lon_column, self.lat_column) if name in columns]
        frame = points.read_columns(self.path, list(dict.fromkeys(wanted)))
        if long:
            frame = frame.sort_values([self.id_column, self.date_column], kind="stable", ignore_index=True)
        series = {}
        for name, steps in found.items():
            if long:
                own = points.read_long(frame, [steps[band][""] for band in range(len(steps))], form, self.path)
            else:
                own = points.read_wide(frame, steps, form, self.path)
            values = self.values.get(name, Values())
            series[name] = points.converted(own, values, modalities[name], self.nodata, self.path)
        table = self._points(frame) if long else frame
        legend, codes, notes = self._labels(table)
        numbers = None if self.value_column is None else points.numbers_of(table, self.value_column, self.path)
        known = table[codes != IGNORE] if self.label_column else table
        known = known if numbers is None else known[np.isfinite(numbers)]
        listed, notes_of_list = self._listed(known)
        notes += notes_of_list
        parts = self._parts(listed)
        counts = Counter(parts.values())
        notes += ["points: " + ", ".join(f"{counts[part]} {part}" for part in ("train", "val", "test"))]
        if self.split_by is None and self.split_column is None and self.split_table is None:
            notes.append("no column says how points are split: all of them train")
        notes += [f"{name}: its steps have no dates" for name, own in series.items() if not own.dated.any()]
        return SeriesSplit(
            ids=points.texts_of(table, self.id_column),
            lonlat=_places(table, self.lon_column, self.lat_column),
            codes=codes,
            numbers=numbers,
            series=series,
            rows=np.array([row for row, part in sorted(parts.items()) if part == split], dtype=np.int64),
            modalities=dict(modalities),
            classes=legend.classes,
            notes=tuple(notes),
        )

    def _bands(self, columns: list[str], modality: Modality) -> dict[int, dict[str, str]]:
        if modality.encoder != "vit":
            raise UsageError(f"{modality.name}: a point is one patch of a ViT", fix="Use s2 and s1.")
        found = points.matches(columns, modality, self.form(), self.path)
        lacking = [band.name for number, band in enumerate(modality.bands) if number not in found]
        if lacking:
            there = ", ".join(f'"{modality.bands[number].name}"' for number in sorted(found))
            raise UsageError(
                f"{self.path}: no column is {', '.join(lacking)} of {modality.name}",
                fix=f"A model without: --set 'modalities.{modality.name}.bands=[{there}]'",
            )
        return found

    def _points(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A row per point. Raises SkysenseError where its rows disagree about the label or the part."""
        for column in (self.label_column, self.value_column, self.split_by, self.split_column):
            if column in frame:
                counts = frame.groupby(self.id_column)[column].nunique(dropna=False)
                if (counts > 1).any():
                    raise SkysenseError(f"{self.path}: point {counts.idxmax()} has several values of {column}")
        return frame.drop_duplicates(self.id_column, ignore_index=True)

    def _labels(self, table: pd.DataFrame) -> tuple[Legend, UInt8[np.ndarray, "p"], list[str]]:
        if self.label_column is None:
            return Legend(classes=(), codes={}), np.full(len(table), IGNORE, dtype=np.uint8), []
        texts = ["" if pd.isna(value) else text_of(value) for value in table[self.label_column].tolist()]
        legend = Legend.of_values((text for text in texts if text), self.classes, UNKNOWN)
        codes = np.array([legend.codes.get(text, IGNORE) for text in texts], dtype=np.uint8)
        if (codes == IGNORE).all():
            common = ", ".join(f"{text} ({count})" for text, count in Counter(texts).most_common(12))
            raise UsageError(
                f"{self.path}: no point is of the classes {', '.join(legend.codes)}",
                fix=f"{self.label_column}: {common}",
            )
        others = Counter(text for text, code in zip(texts, codes, strict=True) if code == IGNORE)
        named = ", ".join(f"{text or 'empty'} ({count})" for text, count in others.most_common(6))
        note = f"{others.total()} points of no listed class are left out: {named}" + ", ..." * (len(others) > 6)
        return legend, codes, [note] if others else []

    def _listed(self, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The points that `split_table` lists, with their parts; all of them where there is none."""
        if self.split_table is None:
            return table, []
        column = self.split_column or SPLIT
        parts = points.read_texts(self.split_table, self.id_column, column)
        own = [parts.get(id) for id in points.texts_of(table, self.id_column)]
        found = table.assign(**{column: own}).dropna(subset=[column])
        if found.empty:
            raise UsageError(f"{self.split_table}: no {self.id_column} of {self.path} is in it")
        left = len(table) - len(found)
        return found, [f"{left} points that {self.split_table.name} does not list are left out"] * (left > 0)

    def _parts(self, table: pd.DataFrame) -> dict[int, PartName]:
        """{row of the point: its part}"""
        rows = [int(row) for row in table.index]
        column = self.split_column or (None if self.split_table is None else SPLIT)
        if column is not None:
            values = points.texts_of(table, column)
            strange = sorted(set(values) - set(PARTS))
            if strange:
                where = self.split_table or self.path
                raise UsageError(
                    f"{where}: {column} holds {', '.join(strange[:8])}; expected train, val and test",
                    fix=f"--split-by {column} deals its values to the parts.",
                )
            parts = {row: PARTS[value] for row, value in zip(rows, values, strict=True)}
            if "val" not in parts.values() and self.split_by is not None:
                places = dict(zip(rows, points.texts_of(table, self.split_by), strict=True))
                learnt = [places[row] for row, part in parts.items() if part == "train"]
                dealt = deal(learnt, val_share=self.val_share, test_share=0.0, seed=self.seed)
                parts |= {row: dealt[places[row]] for row, part in parts.items() if part == "train"}
            return parts
        if self.split_by is not None:
            places = dict(zip(rows, points.texts_of(table, self.split_by), strict=True))
            dealt = deal(places.values(), val_share=self.val_share, test_share=self.test_share, seed=self.seed)
            return {row: dealt[place] for row, place in places.items()}
        if self.label_column is not None or self.value_column is not None:
            raise UsageError(
                f"{self.path}: which column says where a point lies? Split by row, neighbours would test each other",
                fix="--split-by COLUMN (a grid cell, a region), or --set data.split_column=COLUMN of train, val, test.",
            )
        return dict.fromkeys(rows, "train")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesSplit:
    """The points of one part."""

    ids: tuple[str, ...]
    """Of all points of the table, as everything here but `rows`."""
    lonlat: Float64[np.ndarray, "p 2"] | None
    codes: UInt8[np.ndarray, "p"]
    numbers: Float64[np.ndarray, "p"] | None
    """The values to be learnt, NaN where unknown."""
    series: Mapping[str, Observations]
    rows: Int[np.ndarray, "n"]
    """The points of this part."""
    modalities: Mapping[str, Modality]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        point = int(self.rows[index])
        grids = {name: self._grid(point, modality) for name, modality in self.modalities.items()}
        footprint, lonlat = None, None
        if (grid := grids[finest(self.modalities)]) is not None:
            footprint, lonlat = footprint_lonlat(grid)
        return Sample(
            id=self.ids[point],
            epochs=({name: self._raster(point, name, grids[name]) for name in self.modalities},),
            footprint=footprint,
            lonlat=lonlat,
            label=self.label(index) if self.classes or self.numbers is not None else None,
        )

    def size(self, index: int) -> tuple[int, int]:
        side = _side(self.modalities[finest(self.modalities)])
        return side, side

    def label(self, index: int) -> ClassMap | ValueMap:
        """The class, or the value, of the point at each of its pixels. Raises UsageError where no column says it."""
        if self.numbers is not None:
            return ValueMap(values=np.full(self.size(index), self.numbers[self.rows[index]], dtype=np.float32))
        if not self.classes:
            raise UsageError("the points have no classes", fix="--label-column COLUMN")
        return ClassMap(codes=np.full(self.size(index), self.codes[self.rows[index]], dtype=np.uint8))

    def _raster(self, point: int, name: str, grid: GeoBox | None) -> Raster:
        own, side = self.series[name], _side(self.modalities[name])
        rows = slice(int(own.starts[point]), int(own.starts[point + 1]))
        known: Bool[np.ndarray, "t"] = np.isfinite(own.values[rows]).all(axis=1)
        values = np.where(known[:, None], own.values[rows], np.float32(0))
        return Raster(
            pixels=repeat(values, "t c -> t c h w", h=side, w=side),
            valid=repeat(known, "t -> t h w", h=side, w=side),
            days=own.days[rows],
            dated=own.dated[rows],
            geobox=grid,
        )

    def _grid(self, point: int, modality: Modality) -> GeoBox | None:
        """The patch around the point in its UTM zone."""
        if self.lonlat is None or not np.isfinite(self.lonlat[point]).all():
            return None
        lon, lat = self.lonlat[point]
        zone = (32601 if lat >= 0 else 32701) + int((lon + 180) % 360 // 6)  # asking PROJ takes a tenth of a second
        crs, side, gsd = CRS(f"EPSG:{zone}"), _side(modality), modality.gsd
        (x,), (y,) = transform(LONLAT, crs, np.array([lon]), np.array([lat]))
        affine = Affine(gsd, 0, float(x) - gsd * side / 2, 0, -gsd, float(y) + gsd * side / 2)
        return GeoBox((side, side), affine, crs)


def _side(modality: Modality) -> int:
    """Pixels along a point: one patch."""
    return CELL[modality.encoder] * CELLS


def _places(table: pd.DataFrame, lon: str, lat: str) -> Float64[np.ndarray, "p 2"] | None:
    return table[[lon, lat]].to_numpy("float64") if {lon, lat} <= set(table.columns) else None
