"""TOML in, validated frozen dataclasses out: a config value is checked once, at the door.

Precedence is flags over `--set` over the config file over the dataclass defaults; `merge` applies it.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from skysense_core.errors import SkysenseError, UsageError, did_you_mean

T = TypeVar("T")
Table = dict[str, Any]


def load_toml(path: Path) -> Table:
    """Read a TOML file. Raises SkysenseError where it is missing and UsageError where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkysenseError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def parse_assignments(items: Iterable[str]) -> Table:
    """`["optim.lr=3e-4", "task.head=fcn"]` as a nested table; values are TOML, or text where they are not."""
    table: Table = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item}: expected key=value", fix="For example --set optim.lr=3e-4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for part in reversed(key.split(".")):
            value = {part: value}
        table = merge(table, value)
    return table


def merge(*tables: Mapping[str, Any]) -> Table:
    """Deep merge; later tables win, and a None is "not given"."""
    merged: Table = {}
    for table in tables:
        for key, value in table.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            elif isinstance(value, Mapping):
                merged[key] = merge(value)
            elif value is not None:
                merged[key] = value
    return merged


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` from a table, every value checked against its type.

    `where` is the table's own dotted name, for messages. Raises UsageError with the dotted key of the first fault.
    """
    _refuse_unknown_keys(cls, table, where)
    try:
        return TypeAdapter(cls).validate_python(dict(table))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
        given = "" if first["type"] == "missing" else f", not {first['input']!r}"
        raise UsageError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}{given}") from None


def _refuse_unknown_keys(cls: type, table: Mapping[str, Any], where: str) -> None:
    hints = get_type_hints(cls)
    known = {field.name for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else key
        if key not in known:
            hint = did_you_mean(key, known)
            parent = f"{where}." if where else ""
            fix = hint.replace("did you mean ", f"did you mean {parent}") or f"Known: {', '.join(sorted(known))}."
            raise UsageError(f"{dotted}: unknown key", fix=fix.strip())
        nested = [hint for hint in (hints[key], *get_args(hints[key])) if isinstance(hint, type) and is_dataclass(hint)]
        if nested and isinstance(value, Mapping):
            tables = (
                {f"{dotted}.{k}": v for k, v in value.items()} if get_origin(hints[key]) is dict else {dotted: value}
            )
            for name, item in tables.items():
                if isinstance(item, Mapping):
                    _refuse_unknown_keys(nested[0], item, name)


def to_table(config: Any) -> Table:
    """A dataclass instance as plain TOML values (None is left out, tuples become arrays, paths become text)."""
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table as TOML, atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(tomli_w.dumps(_plain(table)), encoding="utf-8")
    temporary.replace(path)
