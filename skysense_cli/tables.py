"""From the words of the command line to the tables that the core's settings are built from."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skysense_core.errors import UsageError, unknown

Table = dict[str, Any]


def numbers(option: str, text: str | None, count: int) -> tuple[float, ...] | None:
    """The numbers of a value such as `1.5,2,3,4`. Raises UsageError where it is something else."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise UsageError(f"{option} {text}: expected {count} numbers with commas between them and no blanks")
    return values


def pairs(option: str, items: Sequence[str] | None) -> dict[str, str]:
    """`["COMPRESS=ZSTD"]` as a mapping. Raises UsageError where an item has no =."""
    split = [item.partition("=") for item in items or ()]
    for key, equals, value in split:
        if not (key and equals):
            raise UsageError(f"{option} {key or value}: expected KEY=VALUE")
    return {key: value for key, _, value in split}


def by_modality(items: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """`["s2=a", "s2=b", "c"]` as `{"s2": ("a", "b"), "": ("c",)}`; a path that exists is no assignment."""
    found: dict[str, tuple[str, ...]] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not (equals and name.isidentifier()) or Path(item).exists():
            name, value = "", item
        found[name] = (*found.get(name, ()), value)
    return found


def read(
    *,
    bands: Sequence[str] | None,
    nodata: float | None,
    rescale: str | None,
    s2_offset: float | None,
    s1_unit: str | None,
    cloud_mask: Sequence[str] | None,
    date: Sequence[str] | None,
    date_pattern: str | None,
) -> Table:
    """How each modality is read, as fields of the core's `ReadOptions`; "" stands for those that no option names."""
    shared = {
        "nodata": nodata,
        "rescale": numbers("--rescale", rescale, 2),
        "offset": s2_offset,
        "unit": s1_unit,
        "date_pattern": date_pattern,
    }
    tables: dict[str, Table] = {"": {key: value for key, value in shared.items() if value is not None}}
    for name, lists in by_modality(bands).items():
        tables[name] = {**tables.get(name, tables[""]), "bands": tuple(lists[-1].split(","))}
    for name, masks in by_modality(cloud_mask).items():
        tables[name] = {**tables.get(name, tables[""]), "cloud_mask": masks[-1]}
    for name, dates in by_modality(date).items():
        tables[name] = {**tables.get(name, tables[""]), "dates": dates}
    return {name: table for name, table in tables.items() if table}


def data(
    *,
    inputs: Sequence[str] | None,
    labels: Path | None = None,
    label_column: str | None = None,
    unlabelled: str | None = None,
    classes: str | None = None,
    source: str | None = None,
    split_by: str | None = None,
    fold: int | None = None,
    reading: Table | None = None,
    option: str = "--data",
) -> Table:
    """A `[data]` table: what was given, under the names of the sources' fields. Raises UsageError for bad values.

    `option` is what the inputs were given by.
    """
    found = by_modality(inputs)
    paths = found.pop("", ())
    if len(paths) > 1:
        raise UsageError(
            f"{option} was given {len(paths)} data sets: {', '.join(paths)}",
            fix=f"Give one, or rasters as MODALITY=PATH, e.g. {option} s2=scene/",
        )
    if paths and (found or (labels is not None and Path(paths[0]).suffix != ".toml")):
        raise UsageError(f"{option} {paths[0]}: of which modality is it?", fix=f"For example {option} s2={paths[0]}")
    table = {
        "source": source,
        "path": paths[0] if paths else None,
        "rasters": found or None,
        "labels": None if labels is None else str(labels),
        "label_column": label_column,
        "unlabelled": unlabelled,
        "classes": class_names(classes),
        "split_by": split_by,
        "fold": fold,
        "read": reading or None,
    }
    return {key: value for key, value in table.items() if value is not None}


def class_names(text: str | None) -> tuple[str, ...] | Table | None:
    """The names of `--classes`, or the mapping in its file. Raises UsageError where that has none."""
    if text is None:
        return None
    if not text.endswith(".toml"):
        return tuple(name.strip() for name in text.split(","))
    from skysense_core import config

    table = config.load_toml(Path(text))
    if not isinstance(table.get("classes"), dict):
        raise UsageError(f"{text}: no [classes] table", fix='It maps label values to classes, e.g. oak = "forest".')
    return table["classes"]


def size(option: str, text: str | None) -> int | None:
    """Bytes of 800M or 4G. Raises UsageError otherwise."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B?", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"{option} {text}: not a size", fix=f"For example {option} 4G")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))


def metres(option: str, text: str | None) -> float | None:
    """Metres of 500m or 10km. Raises UsageError otherwise."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(m|km)", text)
    if match is None:
        raise UsageError(f"{option} {text}: not a length", fix=f"For example {option} 500m or {option} 10km")
    return float(match[1]) * (1000 if match[2] == "km" else 1)


def part(option: str, text: str | None) -> tuple[int, int] | None:
    """(i, n) of I/N, from 1, or of Slurm's job array. Raises UsageError where there is none."""
    if text is None:
        return None
    if text == "slurm":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        task, first, count = (os.environ.get(name, "") for name in names)
        if not (task.isdigit() and first.isdigit() and count.isdigit()):
            raise UsageError(f"{option} slurm: this is no task of a Slurm job array", fix=f"Use {option} I/N.")
        number, parts = int(task) - int(first) + 1, int(count)
    else:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= parts:
        hint = " (the numbers of the array must follow each other)" if text == "slurm" else ""
        raise UsageError(f"{option} {text}: not a part of a whole{hint}", fix=f"From {option} 1/8 to {option} 8/8")
    return number, parts


def choice(option: str, text: str | None, known: Iterable[str]) -> str | None:
    """One of the known words. Raises UsageError for another one."""
    if text is not None and text not in known:
        raise unknown(f"value of {option}", text, known)
    return text


def training(file: Table, settings: Table, flags: Table) -> Table:
    """The table of a training: flags over settings over a file.

    A length or modalities that are given by flags take the place of those of a file instead of joining them.
    """
    from skysense_core.config import merge

    table = merge(file, settings)
    if any(flags["train"][key] is not None for key in ("steps", "epochs")):
        table["train"] = {key: value for key, value in table.get("train", {}).items() if key not in ("steps", "epochs")}
    if flags["modalities"]:
        table["modalities"] = {k: v for k, v in table.get("modalities", {}).items() if k in flags["modalities"]}
    return merge(table, flags)
