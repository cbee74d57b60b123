"""What was given, opened: a stack per modality, and what could not be opened."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skysense_core import config, modalities
from skysense_core.data.store import Facts
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.options import NONE, ReadOptions
from skysense_core.geo.paths import expand, is_product
from skysense_core.geo.raster import Stack, assemble, open_product
from skysense_core.geo.safe import SafeProduct
from skysense_core.geo.series import Product
from skysense_core.geo.stac import StacItem
from skysense_core.modalities import Modality

LEVELS = ("L1C", "L2A")
"""Product levels that files may state."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A line of `failures.jsonl`: something that could not be read; all else is in the store."""

    item: str
    """Path of the file or product, or the name of a sample."""
    modality: str
    where: str
    """The shard that lacks it; empty: all of them."""
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one modality was found to be, for people."""

    modality: str
    inputs: int
    images: int
    """Dates."""
    first: str
    last: str
    """Of the dates; empty where none is known."""
    crs: str
    gsd: float
    level: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """The imagery of every modality."""

    stacks: Mapping[str, Stack]
    modalities: Mapping[str, Modality]
    facts: Mapping[str, Facts]
    paths: tuple[str, ...]
    """All that were given, also those that failed."""
    found: tuple[Found, ...]
    failures: tuple[Failure, ...]


def open_inputs(
    given: Mapping[str, str | tuple[str, ...]],
    overrides: Mapping[str, Mapping[str, Any]],
    read: Mapping[str, Mapping[str, Any]],
) -> Inputs:
    """Open everything; an input that is damaged is noted and left out.

    Raises UsageError for what does not fit together, and SkysenseError where nothing of a modality can be read.
    """
    options = {name: config.build(ReadOptions, table, f"read.{name}") for name, table in read.items()}
    shared = options.get("", ReadOptions())
    failures: list[Failure] = []
    every: tuple[str, ...] = ()
    known: dict[str, tuple[str, ...]] = {}
    for name, some in given.items():
        assigned = {name: _listed(some)} if name else _assigned(_listed(some), overrides, shared)
        known |= {one: (*known.get(one, ()), *paths) for one, paths in assigned.items()}
    stacks, kinds, facts, found = {}, {}, {}, []
    for name, some in known.items():
        modality = modalities.load(name, overrides.get(name))
        own, every = options.get(name, shared), (*every, *expand(some))
        products, stack, failed = _open(_once(expand(some)), modality, own)
        failures += [Failure(item=path, modality=name, where="", error=str(error)) for path, error in failed]
        if stack.level is not None:
            modality = replace(modality, level=stack.level)
        stacks[name], kinds[name] = stack, modality
        unsaid = stack.level is None and modality.level in LEVELS
        notes = (*stack.notes, *([f"the files do not say their product level: taken as {modality.level}"] * unsaid))
        facts[name] = Facts(level=stack.level, offsets=_offsets(products, own), notes=notes)
        found.append(_described(name, stack, len(products), notes))
    masks = tuple(one.cloud_mask for one in options.values() if one.cloud_mask not in (None, NONE))
    return Inputs(
        stacks=stacks,
        modalities=kinds,
        facts=facts,
        paths=(*every, *(path for mask in masks for path in expand(str(mask)))),
        found=tuple(found),
        failures=tuple(failures),
    )


def _open(
    paths: Sequence[str], modality: Modality, options: ReadOptions
) -> tuple[list[Product], Stack, list[tuple[str, SkysenseError]]]:
    """The products, the stack that they make, and those that are damaged, with why.

    Raises UsageError for what the user is to decide, and the first damage where nothing is left.
    """
    bands = [band.names for band in modality.bands]
    products: list[Product] = []
    failed: list[tuple[str, SkysenseError]] = []
    for path in paths:
        try:
            products.append(open_product(path, options, bands, modality.unit))
        except UsageError:
            raise
        except SkysenseError as error:
            failed.append((path, error))
    if not products:
        raise failed[0][1]
    try:
        return products, assemble(products, bands, modality.unit, options), failed
    except UsageError:
        raise
    except SkysenseError as error:
        # A product opens the files of its bands here: which of them is it?
        damaged = {one.path: own for one in products if (own := _damage(one, bands, modality, options)) is not None}
        sound = [one for one in products if one.path not in damaged]
        if not damaged or not sound:
            raise error from None
        return sound, assemble(sound, bands, modality.unit, options), [*failed, *damaged.items()]


def _damage(
    product: Product, bands: Sequence[tuple[str, ...]], modality: Modality, options: ReadOptions
) -> SkysenseError | None:
    try:
        assemble([product], bands, modality.unit, options)
    except UsageError:  # a band alone is no whole date
        return None
    except SkysenseError as error:
        return error
    return None


def _listed(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _once(paths: Sequence[str]) -> list[str]:
    """Without products that are there a second time, as a folder and as its archive."""
    seen: dict[str, str] = {}
    for path in paths:
        key = Path(path).name.upper().removesuffix(".ZIP").removesuffix(".SAFE") if is_product(path) else path
        if key in seen:
            log.info("note: %s is %s again: left out", path, seen[key])
        seen.setdefault(key, path)
    return list(seen.values())


def _assigned(
    bare: tuple[str, ...], overrides: Mapping[str, Mapping[str, Any]], options: ReadOptions
) -> dict[str, tuple[str, ...]]:
    """Paths without a modality under the one that each is by its bands; what is none alone may be one together."""
    found: dict[str, tuple[str, ...]] = {}
    rest: tuple[str, ...] = ()
    for path in bare:
        fitting, _ = _fitting((path,), overrides, options)
        if fitting:
            name = max(fitting, key=lambda one: fitting[one])
            found[name] = (*found.get(name, ()), path)
        else:
            rest = (*rest, path)
    if rest:
        fitting, reasons = _fitting(rest, overrides, options)
        if not fitting:
            raise UsageError(
                "\n".join([f"{', '.join(rest)}: of which modality?", *reasons]), fix="Write MODALITY=PATH."
            )
        found[max(fitting, key=lambda one: fitting[one])] = rest
    return found


def _fitting(
    paths: tuple[str, ...], overrides: Mapping[str, Mapping[str, Any]], options: ReadOptions
) -> tuple[dict[str, int], list[str]]:
    """The modalities whose bands are all there, with their number, and why others are not."""
    fitting: dict[str, int] = {}
    reasons = []
    for name in dict.fromkeys((*modalities.packaged(), *overrides)):
        modality = modalities.load(name, overrides.get(name))
        try:
            _open(_once(expand(paths)), modality, options)
            fitting[name] = len(modality.bands)
        except UsageError as error:
            reasons.append(f"  {name}: {error.message}")
    return fitting, reasons


def _offsets(products: Sequence[Product], options: ReadOptions) -> tuple[float, ...]:
    own = {value for one in products if isinstance(one, SafeProduct | StacItem) for value in one.offsets.values()}
    return tuple(sorted({*own, options.offset or 0.0} - {0.0}))


def _described(name: str, stack: Stack, inputs: int, notes: tuple[str, ...]) -> Found:
    days = [str(day) for day in stack.days[stack.dated].astype("datetime64[D]")]
    return Found(
        modality=name,
        inputs=inputs,
        images=len(stack.days),
        first=days[0] if days else "",
        last=days[-1] if days else "",
        crs=str(stack.geobox.crs),
        gsd=float(np.round(ground_gsd(stack.geobox), 3)),
        level=stack.level or "",
        notes=notes,
    )
