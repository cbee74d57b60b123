"""Progress bars: on a terminal alone, and on none where the log is told to be quiet."""

import logging
from typing import Any

import tqdm as bars


class Bar(bars.tqdm):  # type: ignore[type-arg]  # its stubs are generic, the class is not
    """tqdm's bar; `shown` False hides it everywhere."""

    def __init__(self, *items: Any, shown: bool = True, **look: Any) -> None:
        # A program that sets no level is not quiet: the root's default would be.
        quiet = logging.getLogger("skysense_core").level > logging.INFO
        super().__init__(*items, disable=True if quiet or not shown else None, **look)  # type: ignore[call-overload]
