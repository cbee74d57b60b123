"""Tables of points in time, long (a row per point and date) or wide (a row per point), as arrays per modality."""

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from jaxtyping import Bool, Float32, Float64, Int

from skysense_core.errors import SkysenseError, UsageError, did_you_mean
from skysense_core.geo import bands
from skysense_core.geo.bands import Found
from skysense_core.geo.labels import text_of
from skysense_core.modalities import Modality

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".txt", ".txt.gz", ".tsv", ".tsv.gz")
FILE = "file"
"""Column that says which file of a folder a row is from."""
DATED = r"(?P<band>.+?)[-_. ](?P<date>\d{4}-?\d{2}-?\d{2})"
"""Columns of a wide table unless the user says otherwise: `B02_2019-05-01`, `B02_20190501`."""
STEPS = re.compile(r"(\d+) (day|month)s?")
SUSPECTS = (65535.0, -9999.0, -32768.0)
"""Values that mean no data nearly always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Where in the table what stands."""

    id: str
    """Column of the point, whose rows are its dates; a wide table may do without."""
    date: str
    """Column of the date in a long table."""
    columns: str | None = None
    """Regular expression with the groups band, and date or step, of the columns of a wide table."""
    start: str | None = None
    """Column of the date of the first step."""
    every: str = "1 month"
    """What lies between two steps: days or months."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """How the values of a modality become its unit: offset + scale x, or offset + log10 factor x log10(x)."""

    scale: float = 1.0
    offset: float = 0.0
    log10: float | None = None
    """10 for linear power, 20 for amplitude."""

    def __call__(self, values: Float32[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
        """Converted values; NaN stays NaN, and where there is no logarithm it becomes so."""
        if self.log10 is not None:
            positive = np.where(values > 0, values, np.nan)
            return (self.offset + self.log10 * np.log10(positive)).astype(np.float32)
        return (self.offset + self.scale * values).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observations:
    """What one modality saw of all points; those of point i are the rows starts[i] to starts[i + 1]."""

    values: Float32[np.ndarray, "n c"]
    """As the table holds them; NaN where it has none."""
    days: Int[np.ndarray, "n"]
    dated: Bool[np.ndarray, "n"]
    starts: Int[np.ndarray, "p"]


def files_of(path: Path) -> list[Path]:
    """The table, or the tables of a folder. Raises SkysenseError where there is none."""
    files = [path] if path.is_file() else sorted(item for item in path.glob("*") if item.name.endswith(SUFFIXES))
    if not files:
        raise SkysenseError(f"{path}: no table here", fix=f"Looked for {' '.join(SUFFIXES)}.")
    return files


def columns_of(path: Path) -> list[str]:
    """Names of the columns, without reading rows. Raises SkysenseError where the tables of a folder differ."""
    files = files_of(path)
    first, *others = (_header(file) for file in files)
    for file, names in zip(files[1:], others, strict=True):
        if names != first:
            raise SkysenseError(f"{file} has other columns than {files[0].name}", fix="Give tables of one kind.")
    return first if path.is_file() else [*first, FILE]


def read_columns(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Some columns of the table or of all tables of a folder. Raises SkysenseError where one cannot be read."""
    frames = []
    for file in files_of(path):
        own = [name for name in names if name != FILE or path.is_file()]
        try:
            if file.suffix == ".parquet":
                frame = pd.read_parquet(file, columns=own)
            else:
                header = _header(file)
                frame = pd.read_csv(file, sep=_separator(file), names=header, skiprows=1, usecols=own)
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise SkysenseError(f"{file}: not a readable table: {error}") from None
        frames.append(frame if path.is_file() else frame.assign(**{FILE: file.name.split(".")[0]}))
    return pd.concat(frames, ignore_index=True)


def read_texts(path: Path, key: str, column: str) -> dict[str, str]:
    """{text of one column: text of another}. Raises UsageError where one of them is missing."""
    columns = columns_of(path)
    for name in (key, column):
        require(columns, name, "data.split_table", path)
    table = read_columns(path, [key, column])
    return dict(zip(texts_of(table, key), texts_of(table, column), strict=True))


def texts_of(table: pd.DataFrame, column: str) -> tuple[str, ...]:
    """A column as text; numbers of rows where there is none."""
    return tuple(text_of(value) for value in table.get(column, table.index).tolist())


def numbers_of(table: pd.DataFrame, column: str, path: Path) -> Float64[np.ndarray, "p"]:
    """A column as numbers, NaN where it is empty. Raises UsageError where it holds anything else."""
    try:
        return pd.to_numeric(table[column]).to_numpy(dtype=np.float64, na_value=np.nan)
    except ValueError as error:
        raise UsageError(f"{path}: {column} is no column of numbers: {error}") from None


def matches(columns: Sequence[str], modality: Modality, form: Form, where: Path) -> dict[int, dict[str, str]]:
    """{band of the modality: {step or date, "" in a long table: column}} for the bands that the table has."""
    found: dict[str, dict[str, str]] = {}
    for column, band, step in _named(columns, form):
        steps = found.setdefault(band, {})
        if step in steps:
            raise UsageError(f"{where}: the columns {steps[step]} and {column} are both {band}", fix="Rename one.")
        steps[step] = column
    names = list(found)
    known = [bands.by_description(name) or Found() for name in names]
    wanted = [band.names for band in modality.bands]
    return {number: found[names[at]] for number, at in bands.match(wanted, known, str(where)).items()}


def is_long(columns: Sequence[str], form: Form) -> bool:
    """Whether a row is one date of a point."""
    return form.columns is None and form.date in columns


def read_long(frame: pd.DataFrame, columns: Sequence[str], form: Form, where: Path) -> Observations:
    """Of a table sorted by point and date. Raises SkysenseError for a date that is none."""
    moments = pd.to_datetime(frame[form.date], errors="coerce", format=_format(frame[form.date]))
    if moments.isna().any():
        raise SkysenseError(
            f"{where}: {form.date} holds {frame[form.date][moments.isna()].iloc[0]!r}, which is no date"
        )
    first = ~frame[form.id].duplicated().to_numpy()
    return Observations(
        values=frame[list(columns)].to_numpy("float32"),
        days=moments.to_numpy().astype("datetime64[D]").astype(np.int64),
        dated=np.ones(len(frame), dtype=bool),
        starts=np.append(np.flatnonzero(first), len(frame)),
    )


def read_wide(frame: pd.DataFrame, found: Mapping[int, Mapping[str, str]], form: Form, where: Path) -> Observations:
    """Of a table with a row per point; a step at which a band has no column is NaN there.

    Raises SkysenseError where the first date is none.
    """
    steps = sorted({step for columns in found.values() for step in columns}, key=lambda step: (len(step), step))
    values = np.full((len(frame), len(steps), len(found)), np.nan, dtype=np.float32)
    for band, columns in found.items():
        for place, step in enumerate(steps):
            if step in columns:
                values[:, place, band] = frame[columns[step]].to_numpy("float32")
    days = np.zeros((len(frame), len(steps)), dtype=np.int64)
    named = pd.Series(steps if "(?P<date>" in (form.columns or DATED) else [None])
    dates = pd.to_datetime(named, errors="coerce", format=_format(named))
    dated = not dates.isna().any()
    if dated:
        days[:] = dates.to_numpy().astype("datetime64[D]").astype(np.int64)
    elif form.start is not None:
        days, dated = _days_of_steps(frame, [int(step) for step in steps], form, where), True
    return Observations(
        values=values.reshape(-1, len(found)),
        days=days.ravel(),
        dated=np.full(days.size, dated),
        starts=np.arange(len(frame) + 1) * len(steps),
    )


def converted(own: Observations, values: Values, modality: Modality, nodata: float | None, where: Path) -> Observations:
    """In the modality's unit. Raises UsageError where the values cannot be in it, or hold what is hardly a value."""
    for suspect in SUSPECTS if nodata is None else ():
        if count := int((own.values == suspect).sum()):
            raise UsageError(
                f"{where}: {modality.name} holds {suspect:g} {count} times", fix=f"--set data.nodata={suspect:g}"
            )
    stored = np.where(own.values == np.float32(np.nan if nodata is None else nodata), np.float32(np.nan), own.values)
    found = values(stored)
    if np.isfinite(found).any():
        _check(found[np.isfinite(found)], modality, where)
    return replace(own, values=found)


def _days_of_steps(frame: pd.DataFrame, steps: list[int], form: Form, where: Path) -> Int[np.ndarray, "p t"]:
    match = STEPS.fullmatch(form.every)
    if match is None:
        raise UsageError(f"data.every = {form.every}: expected days or months", fix='For example data.every="10 days"')
    first = pd.to_datetime(frame[form.start], errors="coerce")
    if first.isna().any():
        raise SkysenseError(
            f"{where}: {form.start} holds {frame[form.start][first.isna()].iloc[0]!r}, which is no date"
        )
    number, unit = int(match[1]), f"{match[2]}s"
    moments = [first + pd.DateOffset(**{unit: number * (step - steps[0])}) for step in steps]
    return np.stack([one.to_numpy().astype("datetime64[D]").astype(np.int64) for one in moments], axis=1)


def _named(columns: Sequence[str], form: Form) -> Iterator[tuple[str, str, str]]:
    """(column, its band, its step or date)"""
    if is_long(columns, form):
        yield from ((column, column, "") for column in columns)
        return
    try:
        pattern = re.compile(form.columns or DATED)
    except re.error as error:
        raise UsageError(f"data.columns = {form.columns}: not a regular expression: {error}") from None
    if "band" not in pattern.groupindex or not {"date", "step"} & set(pattern.groupindex):
        raise UsageError(
            f"data.columns = {form.columns}: has no group band, or none named date or step",
            fix=r"For example data.columns='(?P<band>\w+)_(?P<date>\d{8})'",
        )
    key = "date" if "date" in pattern.groupindex else "step"
    for column in columns:
        if match := pattern.fullmatch(column):
            yield column, match["band"], match[key]


def _check(values: Float32[np.ndarray, "n"], modality: Modality, where: Path) -> None:
    low, middle, high = (float(f"{value:.4g}") for value in np.percentile(values, (2, 50, 98)))
    if modality.unit == "dB" and middle > 0:
        raise UsageError(
            f"{where}: {modality.name} holds values of {low:g} to {high:g}: not decibels",
            fix=f"--set data.values.{modality.name}.log10=10 for linear power; for digital numbers of amplitude the "
            f"product's formula, often 20 log10(x) - 83: --set data.values.{modality.name}.log10=20 "
            f"--set data.values.{modality.name}.offset=-83",
        )
    if modality.unit == "reflectance x 10000" and high < 10:
        raise UsageError(
            f"{where}: {modality.name} holds values of {low:g} to {high:g}: not {modality.unit}",
            fix=f"--set data.values.{modality.name}.scale=10000",
        )


def require(columns: Sequence[str], name: str, option: str, where: Path) -> None:
    """Raise UsageError where the table has no such column."""
    if name not in columns:
        shown = ", ".join(columns[:24]) + ", ..." * (len(columns) > 24)
        raise UsageError(
            f"{where} has no column {name!r}: {shown}", fix=f"{did_you_mean(name, columns)}--set {option}=NAME"
        )


def _header(file: Path) -> list[str]:
    try:
        if file.suffix == ".parquet":
            return [str(name) for name in pyarrow.parquet.read_schema(file).names]
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as text:
            line = text.readline().removeprefix("#").strip()
        separator = _separator(file)
        return [name.strip().strip('"') for name in re.split(separator, line)]
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise SkysenseError(f"{file}: not a readable table: {error}") from None


def _separator(file: Path) -> str:
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    return {"csv": ",", "tsv": "\t"}.get(kind, r"\s+")


def _format(values: "pd.Series[object]") -> str | None:
    """Of dates written 20190501, which pandas would take for nanoseconds."""
    return "%Y%m%d" if len(values) and re.fullmatch(r"\d{8}", str(values.iloc[0])) else None
