"""Questions to a STAC API: the items of a place and a time become files, which are read like any other item."""

import json
import math
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from urllib.parse import quote

from skysense_core import config
from skysense_core.errors import SkysenseError, UsageError, did_you_mean
from skysense_core.geo.catalog import Document, absolute, libraries, patient, refused
from skysense_core.geo.paths import CUBES, RASTERS, is_document, is_web

Box = tuple[float, float, float, float]
CLOUD = "eo:cloud_cover"
RECORD = "search.toml"
"""What was asked, and the files that are the answer."""


def is_api(path: str) -> bool:
    """Whether it is an address that may be a STAC API's: one on the web that names no file."""
    suffix = Path(re.split(r"[?#]", path)[0]).suffix.lower()
    return is_web(path) and not is_document(path) and suffix not in RASTERS | CUBES | {".zip"}


def search(
    url: str,
    *,
    folder: Path,
    collections: Sequence[str] = (),
    bbox: Box | None = None,
    datetime: str | None = None,
    max_cloud: float | None = None,
) -> tuple[Path, ...]:
    """Ask a STAC API and write each item that it finds into `folder`, a file of its own; the files, by date.

    `bbox` is west, south, east, north in degrees (west > east crosses the antimeridian), `datetime` a day, month, year
    or two of them (`2020-06/2020-08`, `..` is open); `max_cloud` in percent leaves out items that state more or
    nothing. The files are complete: addresses of assets are absolute. The same question is not asked again where the
    folder holds its answer, so that a run that goes on sees the items that it began with.
    Raises UsageError where nothing is found or the question makes no sense, SkysenseError where the API fails.
    """
    asked = _question(collections, bbox, datetime, max_cloud)
    record = folder / RECORD
    if record.exists():
        earlier = config.load_toml(record)
        paths = tuple(folder / name for name in earlier["items"])
        if earlier["question"] == f"{url} {asked}" and all(path.exists() for path in paths):
            return paths
    pystac, client = libraries()
    try:
        with client.warnings.ignore():
            api = client.Client.open(url, stac_io=patient())
            if not api.conforms_to("ITEM_SEARCH"):
                raise UsageError(f"{url}: a catalogue that cannot be searched", fix="Give it without search options.")
            helped = max_cloud is not None and api.conforms_to("QUERY")
            methods = {link.extra_fields.get("method") for link in api.get_links("search")}
            found = api.search(
                method="POST" if "POST" in methods else "GET",  # of which every API has the second
                collections=list(collections) or None,
                bbox=bbox,
                datetime=datetime,
                query={CLOUD: {"lte": max_cloud}} if helped else None,
            )
            items = [item for item in found.items_as_dicts() if max_cloud is None or _cloud(item) <= max_cloud]
            if not items:
                known = [one.id for one in api.get_collections()] if collections else []
                raise _nothing(url, asked, [name for name in collections if name not in known], known)
    except client.exceptions.APIError as error:
        raise refused(url, error) from None
    except (
        pystac.STACError,
        pystac.STACTypeError,
        client.errors.ClientTypeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise SkysenseError(f"{url}: no STAC API: {error}", fix="Give the address of the API's first page.") from None
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(dict.fromkeys(_write(item, url, folder) for item in sorted(items, key=_order)))
    config.write_toml(record, {"question": f"{url} {asked}", "items": [path.name for path in paths]})
    return paths


def _question(collections: Sequence[str], bbox: Box | None, datetime: str | None, max_cloud: float | None) -> str:
    """The search in words. Raises UsageError where it makes no sense."""
    if bbox is not None and not (-90 <= bbox[1] < bbox[3] <= 90 and all(-180 <= x <= 180 for x in bbox[::2])):
        raise UsageError(
            f"--bbox {','.join(f'{value:g}' for value in bbox)}: not west, south, east, north in degrees",
            fix="For example --bbox 33.0,-17.0,33.5,-16.5",
        )
    parts = [part for part in (datetime or "").split("/") if part not in ("", "..")]
    try:
        for part in parts:
            date.fromisoformat((part + "-01-01"[len(part) - 4 :])[:10] if len(part) < 10 else part[:10])
    except ValueError:
        parts = []
    if datetime is not None and (not parts or datetime.count("/") > 1):
        raise UsageError(
            f"--datetime {datetime}: neither a date nor a range of two",
            fix="For example --datetime 2020-06 or --datetime 2020-06-15/2020-08-31",
        )
    if max_cloud is not None and not 0 <= max_cloud <= 100:
        raise UsageError(f"--max-cloud {max_cloud:g}: percent, from 0 to 100", fix="For example --max-cloud 20")
    words = {
        "collections": ",".join(collections),
        "bbox": bbox and ",".join(f"{value:.12g}" for value in bbox),
        "datetime": datetime,
        "max-cloud": max_cloud is not None and f"{max_cloud:g}",
    }
    return " ".join(f"--{name} {value}" for name, value in words.items() if value) or "any"


def _nothing(url: str, asked: str, unknown: Sequence[str], known: Sequence[str]) -> UsageError:
    fix = "Ask for a larger area or a longer time."
    if unknown:
        fix = f"There is no collection {unknown[0]}: " + (
            did_you_mean(unknown[0], known) or f"there are {', '.join(known[:20]) or 'none'}."
        )
    return UsageError(f"{url}: no item for {asked}", fix=fix.strip())


def _cloud(item: Document) -> float:
    stated = item.get("properties", {}).get(CLOUD)
    return float(stated) if isinstance(stated, int | float) else math.inf


def _order(item: Document) -> tuple[str, str, str]:
    properties = item.get("properties", {})
    when = properties.get("datetime") or properties.get("start_datetime") or ""
    return str(when), str(item.get("collection")), str(item["id"])


def _write(item: Document, url: str, folder: Path) -> Path:
    """Write one item, whole or not at all."""
    collection, name = item.get("collection") or "item", item["id"]
    own = [link["href"] for link in item.get("links", []) if link.get("rel") == "self"]
    place = absolute(own[0], url) if own else f"{url.rstrip('/')}/collections/{collection}/items/{name}"
    assets = {key: {**asset, "href": absolute(asset["href"], place)} for key, asset in item.get("assets", {}).items()}
    path = folder / f"{quote(f'{collection}_{name}', safe='')}.json"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps({**item, "assets": assets}, indent=1), encoding="utf-8")
    temporary.replace(path)
    return path
