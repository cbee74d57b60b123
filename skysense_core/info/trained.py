"""What was trained: a model's folder or file, and a run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from skysense_core import config
from skysense_core.description import TOML, WEIGHTS, load_description
from skysense_core.errors import SkysenseError
from skysense_core.modalities import Modality
from skysense_core.runs import CONFIG, LOG

SMALL = 10_000_000
"""Parameters up to which a model's speed is measured without being asked for: it takes a second or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a model is on this machine, without reading and writing."""

    device: str
    threads: int
    """Of the CPU."""
    precision: str
    """bf16 or fp32."""
    window: int
    """Side in pixels of the finest modality."""
    dates: int
    """In each window, of the modalities that have several."""
    windows_per_s: float
    megapixels_per_s: float
    """Of the map: windows overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model folder or an exported model says of itself."""

    path: Path
    name: str
    task: str | None
    classes: tuple[str, ...]
    modalities: dict[str, Modality]
    spec: dict[str, Any]
    parameters: int | None
    """None for an exported model, which is not opened for it."""
    training: dict[str, Any]
    metrics: dict[str, Any]
    licence: str
    digest: str
    skysense: str
    bytes: int
    speed: Speed | None = None
    """None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run has reached."""

    path: Path
    verb: str
    """finetune or pretrain."""
    data: str
    steps: int
    """To be done in all."""
    step: int
    """The last one in the log."""
    metrics: dict[str, dict[str, Any]]
    """The last line of the log of each kind (train, val)."""
    models: tuple[ModelInfo, ...]


def look_at_model(folder: Path, speed: bool | None = None) -> ModelInfo:
    """What a model says of itself, and with `speed` how fast it is here; None: of small ones only.

    Raises SkysenseError where it cannot be read.
    """
    described = load_description(folder)
    file = folder if described.export else folder / WEIGHTS
    parameters = None if described.export else _parameters(file)
    if speed is None:
        speed = parameters is not None and parameters <= SMALL
    return ModelInfo(
        path=folder,
        name=described.name,
        task=described.task_name,
        classes=described.classes,
        modalities=described.modalities,
        spec=described.spec,
        parameters=parameters,
        training=described.training,
        metrics=described.metrics,
        licence=described.licence,
        digest=described.digest,
        skysense=described.version,
        bytes=file.stat().st_size,
        speed=_measured(folder) if speed else None,
    )


def _measured(folder: Path) -> Speed:
    from skysense_core.info.speed import measure  # torch takes seconds to import

    return measure(folder)


def _parameters(file: Path) -> int:
    try:
        with safe_open(file, framework="np") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SkysenseError(f"{file}: cannot be read: {error}", fix="Copy or train it again.") from None


def look_at_run(folder: Path) -> RunInfo:
    """How far a run is, also one that is going on or was killed. Raises SkysenseError where a model in it is broken."""
    settings = config.load_toml(folder / CONFIG)
    data = settings.get("data", {})
    log = folder / LOG
    metrics: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # a kill cut the last line short
            continue
        metrics[str(entry.pop("kind", ""))] = entry
    return RunInfo(
        path=folder,
        verb="finetune" if "task" in settings else "pretrain",
        data=f"{data.get('source', '?')} {data.get('path', '')}".strip(),
        steps=int(settings.get("train", {}).get("steps", 0)),
        step=max((int(entry.get("step", 0)) for entry in metrics.values()), default=0),
        metrics=metrics,
        models=tuple(
            look_at_model(folder / name, speed=False) for name in ("best", "last") if (folder / name / TOML).is_file()
        ),
    )
