"""`skysense models`: the models that are at hand, packaged and in folders, and what each reads and tells apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skysense_core.description import TOML, load_description, packaged_models
from skysense_core.errors import SkysenseError

DEPTH = 3
"""Most folders between the one that is searched and a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A line of the list."""

    name: str
    """What `--model` takes: a packaged model's name, or a folder."""
    packaged: bool
    task: str
    """`encoder` where it has none."""
    modalities: dict[str, str]
    """By name: pixel size and bands."""
    classes: tuple[str, ...]
    licence: str
    fault: str | None = None
    """Why it cannot be used, where it cannot."""


def models(folders: Sequence[Path] = ()) -> tuple[KnownModel, ...]:
    """The packaged models, then those in the folders, by path. Raises SkysenseError for a folder that is not there."""
    found = [_known(name, folder, packaged=True) for name, folder in packaged_models().items()]
    for root in folders:
        if not root.is_dir():
            raise SkysenseError(f"{root}: no such folder")
        patterns = ("/".join(["*"] * depth + [TOML]) for depth in range(DEPTH + 1))
        paths = sorted({path.parent for pattern in patterns for path in root.glob(pattern)})
        found += [_known(str(path), path, packaged=False) for path in paths]
    return tuple(found)


def _known(name: str, folder: Path, *, packaged: bool) -> KnownModel:
    try:
        one = load_description(folder)
    except SkysenseError as error:
        return KnownModel(
            name=name, packaged=packaged, task="", modalities={}, classes=(), licence="", fault=error.message
        )
    reads = {key: f"{item.gsd:g} m, {', '.join(item.band_names)}" for key, item in one.modalities.items()}
    return KnownModel(
        name=name,
        packaged=packaged,
        task=one.task_name or "encoder",
        modalities=reads,
        classes=one.classes,
        licence=one.licence,
    )
