"""Sentinel-2 products as ESA gives them (SAFE): L1C and L2A, as a folder or as the zip archive of one.

What the name of a bare file cannot say is read from the product's metadata (see `metadata`): level, date, the offset
that processing baseline 04.00 and later adds to the values (removed by itself) and the special values. Each band is
read from its finest file, and clouds and shadows of L2A are left out by its scene classification (see `clouds`).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import clouds, units
from skysense_core.geo.bands import Found
from skysense_core.geo.files import RasterFile, open_file
from skysense_core.geo.group import Group
from skysense_core.geo.layer import FileLayer
from skysense_core.geo.metadata import AGAIN, BANDS, Content, Metadata, open_content, read_metadata
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.warp import Layer

_BAND = re.compile(r"GRANULE/([^/]+)/IMG_DATA/(?:R\d0m/)?[^/]*_(B\d[\dA])(?:_(\d0)m)?\.jp2")
_CLASSES = re.compile(r"GRANULE/([^/]+)/IMG_DATA/(?:R\d0m/)?[^/]*_SCL_(?:[^/]*_)?(\d0)m\.jp2")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Granule:
    """The files of one tile, by GDAL's names."""

    bands: Mapping[str, str]
    classes: str | None
    """The scene classification."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SafeProduct:
    """The facts about one product; the counterpart of `files.RasterFile`."""

    path: str
    granules: tuple[Granule, ...]
    """One; products of 2015 and 2016 hold several."""
    metadata: Metadata
    offsets: Mapping[str, float]
    """{band: what is added to its values}."""
    found: tuple[Found, ...]
    days: tuple[date | None, ...]
    baseline: float | None
    """None where the product's own offsets are removed, so that nothing is left to be decided."""
    notes: tuple[str, ...]
    cleaned: bool
    written: date | None = None
    unit: str | None = None

    @property
    def level(self) -> str:
        return self.metadata.level

    def layers(
        self, matches: Mapping[int, int], moment: int, unit: str | None, offset: float, positive: bool
    ) -> tuple[Layer, ...]:
        """The layers of {stack band: band of this product}: one for each tile and pixel size.

        Raises SkysenseError where a file that is needed is damaged.
        """
        gain, bias = units.factors(1 / 10000, 0.0, unit, offset)
        layers: list[Layer] = []
        for granule in self.granules:
            same: defaultdict[tuple[object, ...], list[tuple[str, FileLayer]]] = defaultdict(list)
            for position, number in matches.items():
                name = str(self.found[number].label)
                if name in granule.bands:
                    stored = _open(granule.bands[name], self.metadata.nodata)
                    file = stored.layers({position: 0}, 0, None, 0.0, positive=False)[0]
                    same[tuple(file.geobox.shape), file.geobox.affine].append((name, file))
            for group in same.values():
                layer = Group(
                    path=self.path,
                    files=tuple(file for _, file in group),
                    gain=(gain,) * len(group),
                    bias=tuple(bias + gain * self.offsets[name] for name, _ in group),
                    saturated=self.metadata.saturated,
                )
                if self.cleaned and granule.classes is not None:
                    classes = clouds.codes(_open(granule.classes, None))
                    layers.append(clouds.Masked(layer=layer, mask=classes, hidden=tuple(clouds.SCL)))
                else:
                    layers.append(layer)
        return tuple(layers)


def open_safe(path: str, options: ReadOptions) -> SafeProduct:
    """Probe one product. Raises SkysenseError where it is none, is damaged, or states what cannot be read."""
    content = open_content(path)
    metadata = read_metadata(content)
    granules = _granules(content)
    names = [name for name in BANDS if any(name in granule.bands for granule in granules)]
    if options.bands is not None:
        raise UsageError(
            f"--bands: {path} names its bands itself ({', '.join(names)})",
            fix="Leave it out, or say of which modality's files it speaks: --bands MODALITY=NAMES",
        )
    own = metadata.offsets if options.offset is None else None
    return SafeProduct(
        path=path,
        granules=granules,
        metadata=metadata,
        offsets=own or dict.fromkeys(BANDS, 0.0),
        found=tuple(Found(names=(name, BANDS[name]), product=True) for name in names),
        days=(metadata.day,),
        baseline=metadata.baseline if own is None else None,
        notes=_notes(metadata, own or {}, options, classified=all(granule.classes for granule in granules)),
        cleaned=options.cloud_mask is None,
    )


def _granules(content: Content) -> tuple[Granule, ...]:
    bands: defaultdict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    classes: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in content.images:
        if (match := _BAND.fullmatch(name)) and match[2] in BANDS:
            size = int(match[3] or 0)
            held = bands[match[1]]
            held[match[2]] = min(held.get(match[2], (size, name)), (size, name))
        elif match := _CLASSES.fullmatch(name):
            classes[match[1]].append((int(match[2]), name))
    if not bands:
        raise SkysenseError(f"{content.path}: no image of a band in GRANULE/*/IMG_DATA", fix=AGAIN)
    return tuple(
        Granule(
            bands={band: content.root + name for band, (_, name) in held.items()},
            classes=content.root + min(classes[granule])[1] if granule in classes else None,
        )
        for granule, held in bands.items()
    )


def _notes(metadata: Metadata, own: Mapping[str, float], options: ReadOptions, *, classified: bool) -> tuple[str, ...]:
    """The same words for all products alike: the stack says each thing once."""
    notes = [
        f"offset {value:+g} of processing baseline {metadata.baseline:05.2f} applied, as the products' metadata state"
        for value in sorted({value for value in own.values() if value})
    ]
    if metadata.level == "L2A" and options.cloud_mask is None:
        notes.append(clouds.LEFT_OUT if classified else clouds.UNKNOWN)
    given = {"--nodata": options.nodata, "--date-pattern": options.date_pattern}
    notes += [f"{name} does not concern products: they state it" for name, value in given.items() if value is not None]
    return tuple(notes)


def _open(path: str, nodata: float | None) -> RasterFile:
    """One of the product's files; a damaged one is to be fetched again."""
    try:
        return open_file(path, ReadOptions(nodata=nodata), colours=False)
    except SkysenseError as error:
        raise SkysenseError(error.message, fix=error.fix or AGAIN) from None
