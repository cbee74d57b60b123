"""What a model says of itself, read without its weights and without torch, which takes seconds to import.

The layout of a model folder is that of `checkpoint`, which writes and loads it.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skysense_core import config, modalities
from skysense_core.errors import SkysenseError, did_you_mean
from skysense_core.modalities import Modality

FORMAT = 1
"""Version of the layout; a newer one is refused, an older one is read."""
WEIGHTS, TOML, CARD, ITEM = "model.safetensors", "model.toml", "README.md", "stac-item.json"
EXPORTS = {".pt2": "torch-export", ".onnx": "onnx"}
"""Formats of exported models by the suffix of their files."""
PICKLES = {".pth", ".pt", ".ckpt", ".pkl", ".bin", ".pickle"}
ZOO = Path(__file__).parent / "zoo"
LAYOUT_FIX = f"A model is a folder with {WEIGHTS} and {TOML}, as skysense writes it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What `model.toml` says."""

    folder: Path
    name: str
    version: str
    """Version of skysense that wrote it."""
    digest: str
    """SHA-256 of the weights file."""
    licence: str
    task_name: str | None
    """None for an encoder without a task, converted or pre-trained."""
    settings: dict[str, Any]
    """The fields of the task."""
    classes: tuple[str, ...]
    spec: dict[str, Any]
    """The fields of the model's spec."""
    modalities: dict[str, Modality]
    training: dict[str, Any]
    """Data, steps and starting point, for people."""
    metrics: dict[str, Any]
    """Scores on the validation part that chose these weights."""
    export: dict[str, Any] = field(default_factory=dict)
    """Of an exported file, which `folder` then is: format, inputs, sides of its windows and what it was made from."""

    @property
    def reference(self) -> str:
        """The modality whose grid labels and outputs lie on."""
        return modalities.finest(self.modalities)


def packaged_models() -> dict[str, Path]:
    """Names and folders of the models that ship with the package."""
    return {path.parent.name: path.parent for path in sorted(ZOO.glob(f"*/{TOML}"))}


def find_model(path: Path) -> Path:
    """The model that `path` means: a folder, an exported file, the best or else last model of a run, a packaged name.

    Raises SkysenseError for anything else, a pickle first of all.
    """
    if path.suffix.lower() in PICKLES:
        raise SkysenseError(
            f"{path}: a pickle is never read, because reading it can run any code in it",
            fix=f"Convert it first: skysense convert {path} --out {path.with_suffix('')}. {LAYOUT_FIX}",
        )
    if path.suffix.lower() in EXPORTS and path.is_file():
        return path
    for folder in (path, path / "best", path / "last"):
        if (folder / TOML).is_file():
            return folder
    packaged = packaged_models()
    if str(path) in packaged:
        return packaged[str(path)]
    if path.is_file() and path.name in (WEIGHTS, TOML, ITEM):
        raise SkysenseError(f"{path}: a file of a model, not its folder", fix=f"Give {path.parent}.")
    if path.exists():
        raise SkysenseError(f"{path}: not a model: it has no {TOML}", fix=LAYOUT_FIX)
    hint = did_you_mean(str(path), packaged)
    raise SkysenseError(f"{path}: no such model folder", fix=f"{hint}Packaged: {', '.join(packaged) or 'none'}.")


def load_description(path: Path) -> Description:
    """What a model folder, run folder, packaged model or exported file says of itself, without its weights.

    Raises SkysenseError for what `find_model` refuses and for a `model.toml` that is broken or newer than this version.
    """
    folder = find_model(path)
    if folder.is_file():
        from skysense_core.model.exported import read_description  # torch is in these files, and in their readers
        from skysense_core.model.files import digest_of

        table: dict[str, Any] = tomllib.loads(read_description(folder)) | {"digest": digest_of(folder)}
    else:
        table = config.load_toml(folder / TOML)
    if table.get("format", 0) > FORMAT:
        raise SkysenseError(
            f"{folder}: written in format {table['format']} by skysense {table.get('skysense', '?')}; "
            f"this is skysense {version('skysense')} and reads formats up to {FORMAT}",
            fix="Install a newer skysense.",
        )
    try:
        return _description(folder, table)
    except KeyError as error:
        raise SkysenseError(f"{folder / TOML}: {error} is missing", fix="Train or copy the model again.") from None


def _description(folder: Path, table: Mapping[str, Any]) -> Description:
    task = dict(table.get("task", {"name": None, "classes": ()}))
    return Description(
        folder=folder,
        name=table["name"],
        version=table["skysense"],
        digest=table["digest"],
        licence=table["licence"],
        task_name=task.pop("name"),
        settings=task,
        classes=tuple(task.get("classes", ())),
        spec=table["model"],
        modalities={name: modalities.from_table(one) for name, one in table["modalities"].items()},
        training=dict(table["training"]),
        metrics=dict(table["metrics"]),
        export=dict(table.get("export", {})),
    )
