"""What tells one state of an input from another without reading it: results of the old state must not be reused."""

import re
import urllib.error
import urllib.request
from pathlib import Path

from skysense_core.errors import SkysenseError
from skysense_core.geo.paths import is_document, is_plain

TIMEOUT = 30
"""Seconds to wait for a server's headers."""


def fingerprint(path: str) -> str:
    """Size and time of change of a file (of all files of a Zarr store, of the archive of a path within one), or the
    ETag or the date of change that a web server states.

    A STAC item is known with its files of this machine. Other stores (s3:// and the like) are known by their address
    alone: an empty text. Raises SkysenseError where an input has gone.
    """
    web = re.search(r"https?://.*", path)
    if web:
        return _headers(web[0])
    if not is_plain(path):
        held = next((parent for parent in _parents(path) if parent.exists()), None)
        return "" if held is None else fingerprint(str(held))
    try:
        files = _files(path)
        states = [item.stat() for item in files]
    except OSError as error:
        raise SkysenseError(f"{path}: {error.strerror}") from None
    return f"{sum(state.st_size for state in states)} bytes, changed {max(state.st_mtime_ns for state in states)}"


def _files(path: str) -> list[Path]:
    if is_document(path):
        from skysense_core.geo.catalog import absolute, load_item

        location = path.partition("#")[0]
        addresses = [absolute(asset.href, location) for asset in load_item(path).assets.values()]
        return [Path(location), *(Path(one) for one in addresses if is_plain(one) and Path(one).is_file())]
    return sorted(item for item in Path(path).rglob("*") if item.is_file()) if Path(path).is_dir() else [Path(path)]


def _parents(path: str) -> list[Path]:
    """What lies behind `/vsizip/`, `NETCDF:"..."` and the like, longest first."""
    inner = Path(re.sub(r'^(/vsi[a-z0-9_]+/)+|^[A-Za-z0-9_]{2,}:|"', "", path).split('"')[0])
    return [inner, *(parent for parent in inner.parents if str(parent) not in (".", "/"))]


def _headers(url: str) -> str:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            found = answer.headers
            return f"{found.get('Content-Length')} bytes, {found.get('ETag') or found.get('Last-Modified')}"
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise SkysenseError(f"{url}: not found (404)") from None
        return ""  # a server that does not answer HEAD: known by its address alone
    except urllib.error.URLError as error:
        raise SkysenseError(f"{url}: {error.reason}") from None
