"""STAC documents, read and upgraded by pystac: the items that a file, an address or a catalogue holds.

An item is known by where it lies: `item.json`, an address, or `items.json#ID` for one of several in a file.
"""

import functools
import json
import logging
import re
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import layer
from skysense_core.geo.layer import Stamp, stamp_of
from skysense_core.geo.paths import is_plain

if TYPE_CHECKING:
    import pystac
    from pystac_client.stac_api_io import StacApiIO

logger = logging.getLogger(__name__)
Document = dict[str, Any]
AGAIN = "Download or copy it again."
EXPECTED = "A STAC item, item collection or catalogue is expected."
LATER = frozenset({429, 500, 502, 503, 504})
"""A server's answers that may be others in a moment."""
TIMEOUT = 60.0
"""Seconds without a byte after which a server counts as one that dropped the connection."""


def members(path: str) -> tuple[str, ...]:
    """The items of a document: an item itself, those of an item collection, or those that a catalogue links to.

    One that cannot be read stands for itself: `load_item` says why, so that other inputs may go on. Raises
    SkysenseError where it is no STAC or holds none, and where a part of a catalogue cannot be read.
    """
    try:
        _document(path.partition("#")[0])
    except UsageError:
        raise
    except SkysenseError:
        return (path,)
    found = tuple(dict.fromkeys(_members(path, set())))
    if not found:
        raise SkysenseError(
            f"{path}: no items in this STAC document",
            fix="Of an API give the address of the API itself, with --collections, --bbox and --datetime, to ingest.",
        )
    return found


def _members(path: str, seen: set[str]) -> list[str]:
    location, _, chosen = path.partition("#")
    place = str(Path(location).resolve()) if is_plain(location) else location
    if place in seen:  # catalogues link to each other in circles
        return []
    seen.add(place)
    document = _document(location)
    if chosen or (document.get("type") == "Feature" and "stac_version" in document):
        return [path]
    if document.get("type") == "FeatureCollection":
        features = [feature for feature in _tables(document.get("features")) if "stac_version" in feature]
        return [f"{location}#{feature.get('id')}" for feature in features]
    if "stac_version" not in document or "links" not in document:
        raise SkysenseError(f"{path}: no STAC document", fix=EXPECTED)
    found = []
    for link in _tables(document["links"]):
        target = absolute(str(link.get("href")), location)
        if link.get("rel") == "item":
            found.append(target)
        elif link.get("rel") == "child":
            found += _members(target, seen)
    return found


def load_item(path: str) -> "pystac.Item":
    """One item, upgraded to the present version of STAC. Raises SkysenseError where there is none or it is broken."""
    pystac = libraries()[0]
    location, _, chosen = path.partition("#")
    document = _document(location)
    if chosen:
        same = [feature for feature in _tables(document.get("features")) if str(feature.get("id")) == chosen]
        if len(same) != 1:
            raise SkysenseError(f"{location}: holds {len(same) or 'no'} items {chosen}")
        document = same[0]
    try:
        return pystac.Item.from_dict(document, href=location)
    except (pystac.STACError, pystac.STACTypeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SkysenseError(f"{path}: no STAC item that pystac can read: {error!r}", fix=AGAIN) from None


def _tables(listed: object) -> list[Document]:
    """The objects of a JSON array, whatever else a broken document holds there."""
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def absolute(href: str, location: str) -> str:
    """An address in a document that lies at `location`, as GDAL takes it."""
    if is_plain(location) and is_plain(href):
        return str(Path(location).parent / href)
    from pystac.utils import make_absolute_href

    return make_absolute_href(href, location).removeprefix("file://")


def _document(location: str) -> Document:
    if is_plain(location) and not Path(location).is_file():
        raise SkysenseError(f"{location}: no such file")
    return _load(location, stamp_of(location))


@functools.lru_cache(maxsize=64)
def _load(location: str, stamp: Stamp) -> Document:
    """The JSON of a document; a file that changed, which its stamp tells, is read anew."""
    errors = libraries()[1].exceptions
    try:
        text = Path(location).read_text(encoding="utf-8") if is_plain(location) else patient().read_text(location)
        document = json.loads(text)
    except OSError as error:
        raise SkysenseError(f"{location}: cannot be read: {error.strerror}") from None
    except errors.APIError as error:
        raise refused(location, error) from None
    except ValueError as error:
        raise SkysenseError(f"{location}: not JSON, or cut off: {error}", fix=AGAIN) from None
    if not isinstance(document, dict):
        raise SkysenseError(f"{location}: no STAC document", fix=EXPECTED)
    return document


def libraries() -> tuple[ModuleType, ModuleType]:
    """pystac and pystac-client. Raises UsageError where they are not installed."""
    try:
        import pystac
        import pystac_client
        import pystac_client.warnings
    except ImportError:
        raise UsageError("STAC needs pystac and pystac-client", fix="pip install 'skysense[stac]'") from None
    return pystac, pystac_client


def patient() -> "StacApiIO":
    """The client's own connection, which asks again where an answer breaks off or the server is overloaded."""
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    class Patient(StacApiIO):
        def request(self, href: str, *args: Any, **options: Any) -> str:
            for attempt in range(1, layer.ATTEMPTS):
                try:
                    return super().request(href, *args, **options)
                except APIError as error:
                    status = getattr(error, "status_code", None)
                    if status is not None and status not in LATER:
                        raise
                    logger.warning("%s: %s; trying again", href, status or _reason(error))
                    time.sleep(attempt)
            return super().request(href, *args, **options)

    return Patient(max_retries=None, timeout=TIMEOUT)


def refused(url: str, error: Exception) -> SkysenseError:
    """What to say of a request that failed for good (an APIError)."""
    status = str(getattr(error, "status_code", "") or "")
    if status in layer.REFUSALS:
        answer, fix = layer.REFUSALS[status]
        return SkysenseError(f"{url}: the server {answer} (HTTP {status})", fix=fix)
    said = _reason(error)
    return SkysenseError(
        f"{url}: the server {'answers HTTP ' + status if status else 'gives no whole answer'}: {said}",
        fix="Check the address and the connection, and run it again.",
    )


def _reason(error: Exception) -> str:
    """What the connection itself says: clients wrap it in the names of their classes and the address once more."""
    said = " ".join(str(error).split())
    inner = said.rpartition("(Caused by ")[2].rpartition(": ")[2]
    return re.sub(r"[\"']\)+$", "", inner)[:300] or said[:300]
