"""The name is the module: `tasks/crop.py` is `--task crop`, and its class is `Crop`. Nothing to register."""

import importlib.util
import pkgutil
from typing import Any

from skysense_core.errors import unknown

KINDS = {"tasks": "task", "sources": "source"}


def names(kind: str) -> tuple[str, ...]:
    """Every name of a kind ("tasks" or "sources"), sorted, without importing any of them."""
    package = importlib.util.find_spec(f"skysense_core.{kind}")
    folders = (package and package.submodule_search_locations) or []
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")))


def load(kind: str, name: str) -> type[Any]:
    """The class of a name: `load("tasks", "semantic_change")` is `tasks.semantic_change.SemanticChange`.

    Raises UsageError with the closest known name where there is none.
    """
    if name not in names(kind):
        raise unknown(KINDS[kind], name, names(kind))
    module = importlib.import_module(f"skysense_core.{kind}.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))
