"""Data sets by layout: one file each, the module's name is its `--source` name.

A source is a frozen dataclass whose fields are the `[data]` table; `open` gives one part of it as a `types.Split`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from skysense_core import config, modalities, registry
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import is_remote
from skysense_core.modalities import Modality
from skysense_core.types import PartName, Split, ValueMap

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What to know of a data set before it is there, for `skysense info sources`."""

    tasks: tuple[str, ...]
    """Names of tasks; `pretrain` where there are no labels."""
    modalities: tuple[str, ...]
    classes: str
    """How many, or whose."""
    split: str
    """What says which samples train, validate and test."""
    licence: str
    """Of the data, as far as it is known here; their own page says what holds."""
    where: str
    """Where to get it."""


@runtime_checkable
class Source(Protocol):
    """What every class in this folder offers."""

    about: ClassVar[About]
    looked_for: ClassVar[str]
    """One line: the layout that `detect` recognises."""

    @staticmethod
    def detect(path: Path) -> bool:
        """Whether a path has this layout; cheap, reads no pixels."""

    def available(self) -> tuple[str, ...]:
        """Names of the modalities that the data set has."""

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> Split:
        """The samples of one part, each with these modalities. Raises SkysenseError where the data do not allow it."""


@runtime_checkable
class Describing(Protocol):
    """A source that says itself what its modalities are: their level, pixel size and statistics."""

    def described(self) -> dict[str, Modality]:
        """The modalities by their names."""


def abouts() -> dict[str, About]:
    """What to know of each source, by its name."""
    return {name: registry.load("sources", name).about for name in registry.names("sources")}


def described(source: Source) -> dict[str, Modality]:
    """The modalities that a data set describes itself; of the others the packaged files hold."""
    return source.described() if isinstance(source, Describing) else {}


def detect(path: Path) -> str:
    """The name of the source whose layout `path` has.

    Raises SkysenseError where there is nothing, and UsageError with what was looked for where none or several fit.
    """
    if not path.exists():
        raise SkysenseError(f"{path}: no such file or folder")
    known = {name: registry.load("sources", name) for name in registry.names("sources")}
    found = {name: source for name, source in known.items() if source.detect(path)}
    # A specialisation knows more of the data than its base.
    special = {base for source in found.values() for base in source.__mro__[1:]}
    fitting = [name for name, source in found.items() if source not in special]
    # Many layouts have folders of pictures: a generic one is meant where no other fits.
    fitting = [name for name in fitting if not getattr(found[name], "generic", False)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    lines = "\n".join(f"  {name}: {known[name].looked_for}" for name in fitting or known)
    if fitting:
        raise UsageError(f"{path} has the layout of several sources:\n{lines}", fix=f"Choose: --source {fitting[0]}")
    raise UsageError(f"{path} has no layout that I know. Looked for:\n{lines}", fix="Or name it with --source.")


def from_table(table: Mapping[str, Any]) -> tuple[str, Source]:
    """The source that a `[data]` table describes, and its name: `source`, or what the layout of `path` shows.

    Raises UsageError for an unknown source, layout or field.
    """
    name = name_of(table)
    fields = {key: value for key, value in table.items() if key != "source"}
    return name, config.build(registry.load("sources", name), fields, "data")


def name_of(table: Mapping[str, Any]) -> str:
    """The name of the source that a `[data]` table describes. Raises as `from_table` does."""
    if table.get("source") is not None:
        return str(table["source"])
    if "path" not in table and not table.get("rasters"):
        raise UsageError("no data given", fix="For example --data FOLDER or --data s2=FOLDER --labels FILE")
    path = table.get("path")
    remote = path is not None and is_remote(str(path))  # of all layouts, only a store is read over a network
    return "scenes" if path is None else "store" if remote else detect(Path(path))


def stands_for(name: str, found: str) -> bool:
    """Whether a source that only the user can name reads the layout that was found, as `vector_boxes` that of
    `scenes`."""
    source = registry.load("sources", name)
    return getattr(source, "only_named", False) and issubclass(source, registry.load("sources", found))


def labelled(split: Split, name: str) -> Split:
    """The split of a source, if it has labels; raises UsageError otherwise."""
    if not split.classes and not _has_values(split):
        raise UsageError(
            f"{name}: there are no labels, which only skysense pretrain can learn from",
            fix="Give labels (--labels FILE beside rasters, masks/ beside images/, --label-column of a table), or use "
            "skysense pretrain.",
        )
    return split


def _has_values(split: Split) -> bool:
    try:
        return len(split) > 0 and isinstance(split.label(0), ValueMap)
    except SkysenseError:  # how sources without labels answer
        return False


def choose_modalities(
    source: Source,
    named: Mapping[str, Mapping[str, Any]],
    *,
    known: Mapping[str, Modality] | None = None,
    meet: bool,
) -> dict[str, Modality]:
    """The modalities to train: those named, each with the fields that differ, else all that the data have.

    `known`: those of the model that the training starts from; what it does not know is not used unless it is named.
    With `meet`, pixel sizes that are not named are such that the encoders' grids meet. Says at INFO what is used and
    what is not. Raises UsageError where nothing is left, or for what `modalities.load` refuses.
    """
    offered, own, known = source.available(), described(source), known or {}
    names = tuple(named) or tuple(name for name in offered if name in known or not known)
    if not names:
        raise UsageError(
            f"the data have {', '.join(offered)}, the model to start from knows {', '.join(known)}",
            fix="Name what to train with --modalities.",
        )
    wanted = {}
    for name in names:
        fields = named.get(name, {})
        if name in known:
            wanted[name] = modalities.from_table(config.merge(config.to_table(known[name]), fields))
        else:
            wanted[name] = modalities.load(name, fields, own.get(name))
    for name, gsd in modalities.meeting(wanted).items() if meet else ():
        if "gsd" not in named.get(name, {}):
            wanted[name] = replace(wanted[name], gsd=gsd)
    for name, one in wanted.items():
        log.info("%s: %s at %g m, bands %s", name, one.title, one.gsd, ", ".join(one.band_names))
    if unused := [name for name in offered if name not in wanted]:
        log.info("not used, because others are named or the start does not know them: %s", ", ".join(unused))
    return wanted
