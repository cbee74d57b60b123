"""Many small files in one: an uncompressed tar whose members are read where they lie, by offset and size.

Equal members give equal bytes: no times, no owners. A tar appears under its name when it is complete.
"""

import contextlib
import os
import tarfile
from pathlib import Path
from types import TracebackType

from skysense_core.errors import SkysenseError

BLOCK = 512
"""Members and their headers begin at multiples of it."""
FULL = "Free some space and run the same command again: finished shards are kept."


class ShardWriter:
    """Writes one tar; a context manager. What is not complete at its end is deleted.

    Raises SkysenseError where the disk is full or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._draft.open("wb")

    def add(self, name: str, content: bytes) -> tuple[int, int]:
        """Append a file; returns the offset of its first byte and its size."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        try:
            self._file.write(member.tobuf(tarfile.GNU_FORMAT))
            offset = self._file.tell()
            self._file.write(content)
            self._file.write(bytes(-len(content) % BLOCK))
        except OSError as error:
            raise SkysenseError(f"{self.path}: cannot be written: {error.strerror}", fix=FULL) from None
        return offset, len(content)

    def close(self) -> int:
        """Complete the tar and give it its name; returns its size."""
        try:
            self._file.write(bytes(2 * BLOCK))  # the end of a tar
            size = self._file.tell()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._draft.replace(self.path)
        except OSError as error:
            raise SkysenseError(f"{self.path}: cannot be written: {error.strerror}", fix=FULL) from None
        return size

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):  # the disk is full: what the file still holds is deleted here
                self._file.close()
        self._draft.unlink(missing_ok=True)
