"""Samples that cannot be read, among good ones: the first ends a command, or all are left out (`--keep-going`).

Sources look at their files when they are opened, and pixels are read later: both happen within one `going_on`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from skysense_core.errors import SkysenseError
from skysense_core.progress import Bar
from skysense_core.types import PartName, Split

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
_failures: ContextVar[list[str] | None] = ContextVar("failures", default=None)


@contextmanager
def going_on(wanted: bool) -> Iterator[list[str]]:
    """Within, what cannot be read is left out, if that is `wanted`; the list says what and why, each once."""
    failures: list[str] = []
    token = _failures.set(failures if wanted else None)
    try:
        yield failures
    finally:
        _failures.reset(token)


def readable(items: Iterable[T], read: Callable[[T], R]) -> list[tuple[T, R]]:
    """Each item with what `read` says of it.

    Raises the first SkysenseError; within `going_on` only where every item raises one.
    """
    failures, first = _failures.get(), None
    found = []
    for item in items:
        try:
            found.append((item, read(item)))
        except SkysenseError as error:
            if failures is None:
                raise
            first = first or error
            if str(error) not in failures:
                log.warning("left out: %s", error.message)
                failures.append(str(error))
    if first is not None and not found:
        raise first
    return found


def sound(split: Split, part: PartName) -> list[int]:
    """Numbers of the samples that can be read, each of which is read once for that. Raises as `readable` does."""

    def look(index: int) -> None:
        split[index]

    bar = Bar(range(len(split)), desc=f"{part}: can all be read?", unit="sample")
    return [index for index, _ in readable(bar, look)]
