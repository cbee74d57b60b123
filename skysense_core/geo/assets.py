"""What a STAC item states of its assets: which are rasters, what their bands are called, which copy is the finest.

Understood are `bands` of STAC 1.1, `eo:bands` and `raster:bands` of the versions before, and keys that name a band
(`B04`, `red`, `vv_10m`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from skysense_core.errors import SkysenseError
from skysense_core.geo import bands
from skysense_core.geo.bands import Found
from skysense_core.geo.catalog import absolute
from skysense_core.geo.paths import RASTERS

if TYPE_CHECKING:
    import pystac

SMALL = frozenset({"thumbnail", "overview", "metadata", "preview", "rendered_preview"})
"""Roles and keys of assets that are no data."""
WRONG = "The item is wrong: give the files instead."
_COPY = re.compile(r"[_-](?:(\d+)m|jp2)$", re.IGNORECASE)
"""What ends the keys of the same band at another pixel size or in another format."""
_VISUAL = re.compile(r"visual|tci|true[_-]?colou?r", re.IGNORECASE)
_RENAMED = {
    "scale": "raster:scale",
    "offset": "raster:offset",
    "spatial_resolution": "raster:spatial_resolution",
    "common_name": "eo:common_name",
}
"""Words of `eo:bands` and `raster:bands`, and what they are in STAC 1.1."""
_SHARED = (*_RENAMED.values(), "nodata", "unit", "gsd")
"""What an asset may state for all its bands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetBand:
    """One band of an asset, as the item states it."""

    key: str
    href: str
    number: int
    """Its place among the bands of the asset."""
    count: int | None
    """How many the asset has; None where the item does not say."""
    scale: float | None
    offset: float | None
    nodata: float | None
    unit: str


def named(path: str, item: "pystac.Item", key: str) -> Iterator[tuple[AssetBand, Found]]:
    """The bands of an asset whose names the item states, or its key is."""
    if not is_raster(item, key):
        return
    stated, plain = rows(path, item, key), _COPY.sub("", key)
    for number, row in enumerate(stated):
        names = [str(row[field]) for field in ("name", "eo:common_name") if row.get(field)]
        if len(stated) == 1 and (names or bands.is_band_word(plain)):
            names += [plain, key]
        if names:
            common = row.get("eo:common_name")
            found = Found(names=tuple(dict.fromkeys(names)), product=True, common=str(common) if common else None)
            yield source(path, item, key, number, len(stated), row), found


def finest(
    item: "pystac.Item", pairs: Sequence[tuple[AssetBand, Found]], *, display: bool
) -> list[tuple[AssetBand, Found]]:
    """Each band from its finest asset, and of several formats from the cloud-optimised one.

    Pictures of an item (true colour) are not its measurements: they come second, or first with `display`.
    """
    same: defaultdict[tuple[bool, str], list[tuple[AssetBand, Found]]] = defaultdict(list)
    for one in pairs:
        same[is_visual(item, one[0].key), bands.canonical(str(one[1].label))].append(one)
    best: list[tuple[AssetBand, Found]] = []
    for (visual, _), copies in same.items():
        ranks = [_rank(item, asset.key) for asset, _ in copies]
        chosen = [copy for copy, rank in zip(copies, ranks, strict=True) if rank == min(ranks)]
        best += [(asset, replace(found, weak=visual is not display)) for asset, found in chosen]
    return best


def classification(path: str, item: "pystac.Item") -> str | None:
    """Address of the finest scene classification (SCL)."""
    keys = [key for key in item.assets if bands.canonical(_COPY.sub("", key)) == "scl" and is_raster(item, key)]
    return address(path, item, min(keys, key=lambda key: _rank(item, key))) if keys else None


def source(
    path: str, item: "pystac.Item", key: str, number: int, count: int | None, row: Mapping[str, Any]
) -> AssetBand:
    """One band of an asset, from its row of `rows`. Raises SkysenseError where it states what is no number."""
    values = {}
    for field in ("raster:scale", "raster:offset", "nodata"):
        try:
            values[field] = None if row.get(field) is None else float(row[field])
        except (TypeError, ValueError):
            raise SkysenseError(f"{path}: asset {key} states {field} {row[field]!r}", fix=WRONG) from None
    scale, offset = values["raster:scale"], values["raster:offset"]
    if not (scale is None or 0 < scale < math.inf) or not math.isfinite(offset or 0.0):
        raise SkysenseError(f"{path}: asset {key} states scale {scale} and offset {offset}", fix=WRONG)
    return AssetBand(
        key=key,
        href=address(path, item, key),
        number=number,
        count=count,
        scale=scale,
        offset=offset,
        nodata=values["nodata"],
        unit=str(row.get("unit") or ""),
    )


def rows(path: str, item: "pystac.Item", key: str) -> list[dict[str, Any]]:
    """What the item states of each band of an asset, in the words of STAC 1.1; one row where it lists none.

    Raises SkysenseError where two lists disagree on the number of bands.
    """
    extra = item.assets[key].extra_fields
    lists = [extra[name] for name in ("bands", "eo:bands", "raster:bands") if isinstance(extra.get(name), list)]
    count = max((len(listed) for listed in lists), default=0) or 1
    if any(len(listed) not in (0, 1, count) for listed in lists):
        listing = " and ".join(str(len(listed)) for listed in lists)
        raise SkysenseError(f"{path}: asset {key} states {listing} bands", fix=WRONG)
    merged = [{name: extra[name] for name in _SHARED if name in extra} for _ in range(count)]
    for listed in filter(None, lists):
        for number, row in enumerate(merged):
            part = listed[number if len(listed) > 1 else 0]
            stated: dict[str, Any] = part if isinstance(part, dict) else {}
            row |= {_RENAMED.get(name, name): value for name, value in stated.items()}
    return merged


def is_raster(item: "pystac.Item", key: str) -> bool:
    """Whether an asset is an image that holds data."""
    asset = item.assets[key]
    if SMALL & {key.lower(), *(asset.roles or ())}:
        return False
    if asset.media_type:
        return asset.media_type.startswith("image/")
    return PurePosixPath(re.split(r"[?#]", asset.href)[0]).suffix.lower() in RASTERS


def is_visual(item: "pystac.Item", key: str) -> bool:
    """Whether an asset is a picture to look at rather than measurements."""
    return "visual" in (item.assets[key].roles or ()) or bool(_VISUAL.match(key))


def address(path: str, item: "pystac.Item", key: str) -> str:
    """Where an asset lies; a relative address counts from the item."""
    return absolute(item.assets[key].href, path.partition("#")[0])


def _rank(item: "pystac.Item", key: str) -> tuple[float, int]:
    """(pixel size, kind of file), the less the better."""
    asset = item.assets[key]
    row, transform, ending = rows(item.id, item, key)[0], asset.extra_fields.get("proj:transform"), _COPY.search(key)
    sizes = [
        row.get("raster:spatial_resolution"),
        transform and abs(transform[0]),
        row.get("gsd"),
        ending and ending[1],
    ]
    media = asset.media_type or ""
    return float(next(filter(None, sizes), math.inf)), 2 - ("tiff" in media) - ("cloud-optimized" in media)
