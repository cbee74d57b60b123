"""STAC items: assets become bands by the names, scales, offsets and nodata values that the item states.

An item is read like a Sentinel-2 product: each band from its finest asset, clouds and shadows of L2A left out by its
scene classification, an offset removed where the item states it. Assets are opened by GDAL, wherever they lie.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date
from pathlib import Path
from typing import TYPE_CHECKING

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import assets, clouds, dates, masks, units
from skysense_core.geo.assets import AssetBand
from skysense_core.geo.bands import Found
from skysense_core.geo.catalog import load_item
from skysense_core.geo.files import RasterFile, open_file
from skysense_core.geo.group import Group
from skysense_core.geo.layer import FileLayer
from skysense_core.geo.metadata import OWN_BASELINE
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.paths import is_plain
from skysense_core.geo.series import SHIFTED_BASELINE
from skysense_core.geo.warp import Layer

if TYPE_CHECKING:
    import pystac

CORRECTED = "earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"
"""Properties by which Element 84's catalogues say that the offset is already removed, whatever `raster:bands` state."""
BASELINE = "s2:processing_baseline", "sentinel:processing_baseline", "processing:version"
REFLECTANCE = frozenset({"", "1", "none", "dn", "reflectance", "dimensionless", "unitless"})
"""Units of measure that reflectance may be stated in."""
_LEVEL = re.compile(r"(?<![A-Za-z0-9])(?:(?:S2)?MSIL?|Level-?|L)(1C|2A)(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StacItem:
    """The facts about one item; the counterpart of `files.RasterFile`."""

    path: str
    sources: tuple[AssetBand, ...]
    found: tuple[Found, ...]
    """One per source."""
    days: tuple[date | None, ...]
    level: str | None
    baseline: float | None
    """None where the item says what its offset is, so that nothing is left to be decided."""
    unit: str | None
    notes: tuple[str, ...]
    keeps: bool
    """The stated offsets are not applied: they are removed already, or the user says what to do."""
    classes: str | None
    """Address of the scene classification, if it is to be applied."""
    nodata: float | None
    """The user's `--nodata`."""
    written: date | None = None

    @property
    def offsets(self) -> Mapping[str, float]:
        """{asset: what is added to its stored values}, as the item states."""
        return {
            one.key: round(one.offset / (one.scale or 1.0), 6) for one in self.sources if one.offset and not self.keeps
        }

    def layers(
        self, matches: Mapping[int, int], moment: int, unit: str | None, offset: float, positive: bool
    ) -> tuple[Layer, ...]:
        """The layers of {stack band: band of this item}: one for each grid. Opens the assets that are needed.

        Raises SkysenseError, naming item and asset, where one is missing, damaged or not what the item states.
        """
        wanted: defaultdict[str, dict[int, AssetBand]] = defaultdict(dict)
        for position, number in matches.items():
            source = self.sources[number]
            if unit is not None and unit.startswith("reflectance") and source.unit.lower() not in REFLECTANCE:
                raise SkysenseError(
                    f"{self.path}: asset {source.key} is in {source.unit}, and {unit} is expected",
                    fix="Choose a collection of reflectance, or convert the files and give these.",
                )
            wanted[source.href][position] = source
        same: defaultdict[tuple[object, ...], list[tuple[FileLayer, list[tuple[float, float]]]]] = defaultdict(list)
        for some in wanted.values():
            file = self._file(next(iter(some.values())))
            numbers = {position: source.number for position, source in some.items()}
            layer = file.layers(numbers, 0, None, 0.0, positive=positive)[0]
            factors = [
                units.factors(*self._scale(some[band], file.scales[some[band].number]), unit, offset)
                for band in layer.bands
            ]
            same[tuple(layer.geobox.shape), layer.geobox.affine, layer.overviews].append((layer, factors))
        layers: list[Layer] = [
            Group(
                path=self.path,
                files=tuple(layer for layer, _ in group),
                gain=tuple(gain for _, factors in group for gain, _ in factors),
                bias=tuple(bias for _, factors in group for _, bias in factors),
            )
            for group in same.values()
        ]
        if self.classes is None:
            return tuple(layers)
        mask = clouds.codes(_open(self.path, "scene classification", self.classes, None))
        return tuple(clouds.Masked(layer=layer, mask=mask, hidden=tuple(clouds.SCL)) for layer in layers)

    def _file(self, source: AssetBand) -> RasterFile:
        """An asset, with the nodata value that the item states where the file declares none."""
        file = _open(self.path, source.key, source.href, self.nodata)
        if source.count not in (None, len(file.found)):
            raise SkysenseError(
                f"{self.path}: states {source.count} bands for asset {source.key}, and {source.href} has "
                f"{len(file.found)}",
                fix="The item is wrong: give the file instead.",
            )
        stated = {one.number: one.nodata for one in self.sources if one.href == source.href}
        return replace(
            file,
            nodata=tuple(
                masks.possible(stated.get(number), file.dtype) if declared is None else declared
                for number, declared in enumerate(file.nodata)
            ),
        )

    def _scale(self, source: AssetBand, own: tuple[float, float]) -> tuple[float, float]:
        """Scale and offset of a band: as the item states them, else as the file does."""
        stated = (source.scale or 1.0, source.offset or 0.0)
        if source.scale is None and source.offset is None:
            stated = own
        elif own not in ((1.0, 0.0), stated):
            raise SkysenseError(
                f"{self.path}: states scale {stated[0]:g} and offset {stated[1]:g} for asset {source.key}, and its "
                f"file {own[0]:g} and {own[1]:g}",
                fix="Find out which is right, and give the file instead of the item.",
            )
        return stated if not self.keeps else (stated[0], 0.0)


def open_item(path: str, options: ReadOptions, *, display: bool) -> StacItem:
    """Probe one item; with `display` (0-255 is wanted) an asset for looking at is preferred to one of measurements.

    Raises SkysenseError where there is none, it is broken, or states what cannot be read.
    """
    item = load_item(path)
    named = [one for key in item.assets for one in assets.named(path, item, key)]
    if options.bands is not None and named:
        raise UsageError(
            f"--bands: {path} names its bands itself ({', '.join(str(found.label) for _, found in named)})",
            fix="Leave it out, or say of which modality's files it speaks: --bands MODALITY=NAMES",
        )
    pairs = assets.finest(item, named, display=display) or _by_files(path, item, options)
    if not pairs:
        raise SkysenseError(
            f"{path}: no asset of this item is a raster ({', '.join(item.assets) or 'it has none'})",
            fix="A cube (NetCDF, Zarr) of an item is read by its own address.",
        )
    level = _level(item)
    day, note = _day(path, item)
    decided = options.offset is not None
    corrected = any(item.properties.get(name) is True for name in CORRECTED)
    measured = [source for source, _ in pairs if not assets.is_visual(item, source.key)]
    baseline = _baseline(item) if level else None
    said = decided or corrected
    if baseline and baseline < SHIFTED_BASELINE and any(source.offset for source in measured) and not said:
        raise UsageError(
            f"{path}: states an offset of the values, and processing baseline {baseline:05.2f}, which has none",
            fix="--s2-offset 0 reads the values as they are; --s2-offset -1000 removes an offset.",
        )
    unsaid = not corrected and any(source.offset is None for source in measured)
    classes = assets.classification(path, item) if level == "L2A" else None
    notes = [*note, *_scale_notes(measured, corrected=corrected, decided=decided)]
    if level == "L2A" and options.cloud_mask is None:
        notes.append(clouds.LEFT_OUT if classes else clouds.UNKNOWN)
    if options.date_pattern is not None:
        notes.append("--date-pattern does not concern items: they state it")
    return StacItem(
        path=path,
        sources=tuple(source for source, _ in pairs),
        found=tuple(found for _, found in pairs),
        days=(day,),
        level=level,
        baseline=baseline if unsaid or decided else None,
        unit=units.stated([one.unit for one in measured], [str(one.label) for _, one in pairs], pairs[0][0].href),
        notes=tuple(notes),
        keeps=said,
        classes=classes if options.cloud_mask is None else None,
        nodata=options.nodata,
    )


def _by_files(path: str, item: "pystac.Item", options: ReadOptions) -> list[tuple[AssetBand, Found]]:
    """The bands of an item that names none, as the files of its assets do."""
    pairs = []
    for key in filter(functools.partial(assets.is_raster, item), item.assets):
        file = _open(path, key, assets.address(path, item, key), options.nodata, options.bands)
        rows = assets.rows(path, item, key)
        count = len(rows) if len(rows) > 1 else None
        for number, found in enumerate(file.found):
            row = rows[number] if number < len(rows) else rows[0]
            pairs.append((assets.source(path, item, key, number, count, row), found))
    return pairs


def _open(path: str, key: str, href: str, nodata: float | None, names: tuple[str, ...] | None = None) -> RasterFile:
    """The file of an asset; what is wrong with it is said with the item's name."""
    if is_plain(href) and not Path(href).exists():
        raise SkysenseError(
            f"{path}: asset {key}: {href}: no such file",
            fix="Addresses within an item count from where it lies: keep it beside its files, or give its own address.",
        )
    try:
        return open_file(href, ReadOptions(nodata=nodata, bands=names), colours=False)
    except SkysenseError as error:
        raise type(error)(f"{path}: asset {key}: {error.message}", fix=error.fix) from None


def _level(item: "pystac.Item") -> str | None:
    properties = item.properties
    stated = [properties.get(name) for name in ("processing:level", "s2:product_type", "product:type")]
    for text in (*stated, item.collection_id, item.id):
        if match := _LEVEL.search(str(text)):
            return f"L{match[1].upper()}"
    return None


def _day(path: str, item: "pystac.Item") -> tuple[date | None, list[str]]:
    """The date of an item, in UTC; that of a period is its middle, and it is said."""
    if item.datetime is not None:
        return (item.datetime.astimezone(UTC) if item.datetime.tzinfo else item.datetime).date(), []
    bounds = [dates.parse_date(str(item.properties.get(name))) for name in ("start_datetime", "end_datetime")]
    first, last = bounds
    if first is None or last is None:
        return None, []
    if first == last:
        return first, []
    return first + (last - first) // 2, [f"{path} is of {first} to {last}: dated by its middle"]


def _baseline(item: "pystac.Item") -> float | None:
    """The processing baseline of Sentinel-2; products that users made (99.99) state none."""
    for name in BASELINE:
        try:
            baseline = float(item.properties.get(name, "nan"))
        except (TypeError, ValueError):
            continue
        if 0 < baseline < OWN_BASELINE:
            return baseline
    return dates.baseline_of(str(item.properties.get("s2:product_uri", item.id)), {})


def _scale_notes(sources: Sequence[AssetBand], *, corrected: bool, decided: bool) -> list[str]:
    """The same words for all items alike: the stack says each thing once."""
    notes = []
    if sources and all(source.scale is None and source.offset is None for source in sources):
        notes.append("items state no scale: values are read as they are stored, or as the files state")
    for scale, offset in dict.fromkeys((source.scale or 1.0, source.offset or 0.0) for source in sources):
        if (scale, offset) == (1.0, 0.0):
            continue
        words = f"items state scale {scale:g} and offset {offset:g}"
        if offset and corrected:
            words += ", and that the offset is removed already: it is not removed again"
        elif offset and decided:
            words += ": --s2-offset stands in for that offset"
        elif offset:
            words += f": {offset / scale:+g} on the stored values"
        notes.append(words)
    return notes
