"""Inputs arranged by date and wanted band: mosaics, complementary bands and time series are one arrangement."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol, runtime_checkable

from skysense_core.errors import UsageError
from skysense_core.geo import bands
from skysense_core.geo.bands import Found
from skysense_core.geo.options import Unit
from skysense_core.geo.warp import Layer

Key = tuple[date | None, int]
"""A date, and a count for cubes that have several time steps on one day."""
SHIFTED_BASELINE = 4.0
"""From this Sentinel-2 processing baseline on (2022-01-25), digital numbers are 1000 higher."""


@runtime_checkable
class Product(Protocol):
    """What `files.open_file`, `safe.open_safe` and `cube.open_cube` know of one input."""

    @property
    def path(self) -> str: ...
    @property
    def found(self) -> tuple[Found, ...]: ...
    @property
    def days(self) -> tuple[date | None, ...]: ...
    @property
    def written(self) -> date | None: ...
    @property
    def level(self) -> str | None: ...
    @property
    def baseline(self) -> float | None: ...
    @property
    def unit(self) -> str | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def layers(
        self, matches: Mapping[int, int], moment: int, unit: str | None, offset: float, positive: bool
    ) -> Sequence[Layer]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One input at one of its time steps, with {wanted band: band of the input}."""

    product: Product
    moment: int
    matches: dict[int, int]


def all_bands(products: Sequence[Product]) -> list[tuple[str, ...]]:
    """Every band of the inputs, where none is asked for by name: each name once, unnamed ones numbered.

    Inputs of one number of unnamed bands share them: they are tiles or dates of the same thing.
    """
    names = [found.label or f"band_{number}" for p in products for number, found in enumerate(p.found, start=1)]
    return [(name,) for name in dict.fromkeys(names)]


def arrange(
    products: Sequence[Product], days: Sequence[tuple[date | None, ...]], wanted: Sequence[tuple[str, ...]]
) -> tuple[dict[Key, list[Entry]], tuple[str, ...]]:
    """{date: its inputs, each with the wanted bands it gives}, by date, and notes about dates that lack a band.

    Raises UsageError where no date has all wanted bands.
    """
    moments: dict[Key, list[Entry]] = defaultdict(list)
    for product, stated in zip(products, days, strict=True):
        matches = _matches(product, wanted)
        seen: dict[date | None, int] = defaultdict(int)
        for moment, day in enumerate(stated):
            moments[day, seen[day]].append(Entry(product=product, moment=moment, matches=matches))
            seen[day] += 1
    ordered = {key: _named_first(moments[key]) for key in sorted(moments, key=lambda k: (k[0] or date.min, k[1]))}
    lacking = {key: _absent(entries, wanted) for key, entries in ordered.items()}
    complete = {key: [e for e in ordered[key] if e.matches] for key in ordered if not lacking[key]}
    if not complete:
        absent = min(lacking.values(), key=len)
        raise bands.missing(wanted, absent, {product.path: product.found for product in products})
    notes = [
        f"{key[0] or 'undated files'}: no {', '.join(wanted[band][0] for band in absent)}; this date is left out"
        for key, absent in lacking.items()
        if absent and len(absent) < len(wanted)
    ]
    return complete, tuple(notes)


def _matches(product: Product, wanted: Sequence[tuple[str, ...]]) -> dict[int, int]:
    numbered = tuple(
        found if found.label else Found(names=(*found.names, f"band_{number}"), weak=found.weak)
        for number, found in enumerate(product.found, start=1)
    )
    return bands.match(wanted, numbered, product.path)


def _absent(entries: Sequence[Entry], wanted: Sequence[tuple[str, ...]]) -> list[int]:
    given = {band for entry in entries for band in entry.matches}
    return [band for band in range(len(wanted)) if band not in given]


def _named_first(entries: list[Entry]) -> list[Entry]:
    """Where a band is named in one file, other files that know it by display colour only do not give it."""

    def weak(entry: Entry, band: int) -> bool:
        return entry.product.found[entry.matches[band]].weak

    named = {band for entry in entries for band in entry.matches if not weak(entry, band)}
    return [
        Entry(
            product=entry.product,
            moment=entry.moment,
            matches={b: i for b, i in entry.matches.items() if b not in named or not weak(entry, b)},
        )
        for entry in entries
    ]


def refuse_same_place(layers: Sequence[Layer]) -> None:
    """Undated files of exactly one place are dates that are not known, and no mosaic. Raises UsageError."""
    places: dict[tuple[object, ...], str] = {}
    for layer in layers:
        for band in layer.bands:
            key = (band, layer.geobox.affine, tuple(layer.geobox.shape), str(layer.geobox.crs))
            if key in places:
                raise UsageError(
                    f"{places[key]} and {layer.path} show the same place, and neither says when",
                    fix="Date them: one --date YYYY-MM-DD per file in their order, or --date-pattern.",
                )
            places[key] = layer.path


def level_of(products: Sequence[Product]) -> str | None:
    """The product level that the inputs state. Raises UsageError where they state two."""
    levels = {product.level: product.path for product in products if product.level is not None}
    if len(levels) > 1:
        raise UsageError(
            "inputs of several product levels: " + ", ".join(f"{path} is {level}" for level, path in levels.items()),
            fix="Give files of one level.",
        )
    return next(iter(levels), None)


def unit_of(products: Sequence[Product], given: Unit | None) -> tuple[Unit | None, tuple[str, ...]]:
    """In what the backscatter is, "linear" or "dB": as the user says, else as all inputs state, else None; and notes.

    Raises UsageError where they state several units or one that is neither.
    """
    stated = {product.unit: product.path for product in products}
    if given is not None:
        return given, tuple(
            f"{path} states {unit}, read as {given}" for unit, path in stated.items() if unit != given and unit
        )
    if "amplitude" in stated:
        raise UsageError(
            f"{stated['amplitude']} states amplitude, and power or dB is expected",
            fix="Square it (gdal_calc.py --calc 'A.astype(float)**2') and give --s1-unit linear.",
        )
    if len(stated) > 1 and "linear" in stated:
        raise UsageError(
            "inputs of several units: " + ", ".join(f"{path} is {unit or 'not said'}" for unit, path in stated.items()),
            fix="Give files of one unit, or say with --s1-unit what all of them are.",
        )
    if len(stated) > 1 or None in stated:
        return None, ()
    if "linear" in stated:
        return "linear", (f"{stated['linear']} states linear power: converted to dB (10 log10)",)
    return "dB", ()


def offsets(
    products: Sequence[Product], unit: str | None, offset: float, *, stated: bool
) -> tuple[dict[str, float], tuple[str, ...]]:
    """{path: offset to add}, and notes. Inputs that state a processing baseline before 04.00 need none and get none.

    Raises UsageError where reflectance of baseline 04.00 or later is read and the user does not say what to do.
    """
    shifted = [p for p in products if p.baseline is not None and p.baseline >= SHIFTED_BASELINE]
    older = [p for p in products if p.baseline is not None and p.baseline < SHIFTED_BASELINE]
    if shifted and not stated and unit is not None and unit.startswith("reflectance"):
        raise UsageError(
            f"{shifted[0].path} states processing baseline {shifted[0].baseline:05.2f}: its values are 1000 higher",
            fix="--s2-offset -1000 removes that; --s2-offset 0 reads them as they are.",
        )
    notes = []
    if shifted and not offset:
        notes.append(f"{len(shifted)} inputs of processing baseline 04.00 or later keep their offset of +1000")
    if offset:
        notes.append(f"{offset:+g} added to the values of {len(products) - len(older)} inputs")
    if offset and older:
        notes.append(f"{len(older)} inputs of a processing baseline before 04.00 have no offset and get none")
    return {p.path: 0.0 if p in older else offset for p in products}, tuple(notes)
