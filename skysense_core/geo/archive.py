"""A file on the web as one of which only the parts that are asked for are fetched: the directory of a zip archive."""

import http.client
import io
import time
import urllib.error
import urllib.request

from skysense_core.errors import SkysenseError
from skysense_core.geo import layer

PIECE = 2**16
"""Bytes fetched at once at least."""
TIMEOUT = 60
"""Seconds without a byte after which a server counts as one that dropped the connection."""


class WebFile(io.RawIOBase):
    """A file at an http(s) address, opened for reading. Raises SkysenseError where the server refuses or gives up."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.at = 0
        self.size = self._fetch(0, 1)[1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        stop = min(self.at + len(buffer), self.size)
        content = self._fetch(self.at, stop)[0] if stop > self.at else b""
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)

    def _fetch(self, start: int, stop: int) -> tuple[bytes, int]:
        """A part of the file, and the size of the whole."""
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={start}-{stop - 1}"})
        for attempt in range(1, layer.ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
                    if answer.status != http.HTTPStatus.PARTIAL_CONTENT or not size.isdigit():
                        raise SkysenseError(f"{self.url}: the server gives no parts of files", fix="Download it first.")
                    return answer.read(), int(size)
            except urllib.error.HTTPError as error:
                if str(error.code) in layer.REFUSALS:
                    said, fix = layer.REFUSALS[str(error.code)]
                    raise SkysenseError(f"{self.url}: the server {said} (HTTP {error.code})", fix=fix) from None
                reason = str(error)
            except (OSError, http.client.HTTPException) as error:
                reason = str(error)
            if attempt < layer.ATTEMPTS:
                time.sleep(attempt)
        raise SkysenseError(f"{self.url}: cannot be read: {reason}", fix="Check the connection and run it again.")


def open_web(url: str) -> io.BufferedReader:
    """The file at an address, buffered, so that few requests suffice."""
    return io.BufferedReader(WebFile(url), PIECE)
