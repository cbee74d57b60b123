"""Two cards beside the weights: `README.md` for people (what went in, what comes out, how good it is, how to use it)
and `stac-item.json` for catalogues.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from skysense_core.modalities import Modality

log = logging.getLogger(__name__)

LIMITS = (
    "The scores hold for places, seasons and sensors like those of the training data. Check a map of another place "
    "against reference points before you rely on it."
)
STATISTICS = (
    "The weights expect pixels in the units above, normalised with the statistics in `model.toml`. How good they are "
    "for a task shows after training only."
)
STAC, MLM = "1.1.0", "https://stac-extensions.github.io/mlm/v{}/schema.json"
MLM_VERSIONS = ("1.4.0", "1.5.0")
"""Of the Machine Learning Model extension: an item without the data variables of 1.5 is both, and pystac reads 1.4."""
OTHERS = (
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
SHA256 = "1220"
"""What a multihash of 32 bytes of SHA-256 begins with."""
NOT_SPDX = "other"


def card(
    *,
    name: str,
    task: str | None,
    version: str,
    output: str,
    modalities: Mapping[str, Modality],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    licence: str,
) -> str:
    """The card as Markdown. `output` says what comes out; `metrics` may have a table per class under `classes`.

    Without a task it is the card of an encoder, converted or pre-trained.
    """
    inputs = [
        (key, ", ".join(one.band_names), one.level, one.unit, f"{one.gsd:g} m") for key, one in modalities.items()
    ]
    scores = [(key, f"{value:.4g}") for key, value in metrics.items() if isinstance(value, float)]
    named = metrics.get("classes", {})
    columns = [key for key in next(iter(named.values()), {}) if key != "support"]
    per_class = [(key, *(_score(one[column]) for column in columns)) for key, one in named.items()]
    facts = [f"- {key.replace('_', ' ')}: {value}" for key, value in training.items()]
    read = f"## Input\n\n{_table(('modality', 'bands', 'level', 'unit', 'pixel'), inputs)}"
    licensed = f"## Licence\n\nOf the weights: {licence}."
    if task is None:
        sections = [
            f"# {name}\n\nAn encoder to start training from, made by skysense {version}. It has no task yet.",
            read,
            "## Origin\n\n" + "\n".join(facts),
            *([f"## Scores\n\n{_table(('score', 'value'), scores)}"] if scores else []),
            f"## Limits\n\n{STATISTICS}",
            f"{licensed} It holds for what is trained from them too.",
            f"## Use\n\n```\nskysense finetune --init {name} --task TASK --data DATA\n```",
        ]
        return "\n\n".join(sections) + "\n"
    sections = [
        f"# {name}\n\nA model for the task `{task}`, made by skysense {version}.",
        read,
        f"## Output\n\n{output}",
        "## Training\n\n" + "\n".join(facts),
        f"## Scores\n\nOn the validation part of the training data.\n\n{_table(('score', 'value'), scores)}",
        *([_table(("class", *columns), per_class)] if per_class else []),
        f"## Limits\n\n{LIMITS}",
        licensed,
        f"## Use\n\n```\nskysense predict SCENE.tif --model {name} --out MAP.tif\n```",
    ]
    return "\n\n".join(sections) + "\n"


def stac_item(
    *,
    name: str,
    task: str | None,
    kind: str | None,
    version: str,
    classes: Sequence[str],
    colours: Sequence[str],
    modalities: Mapping[str, Modality],
    training: Mapping[str, Any],
    licence: str,
    digest: str,
    size: int,
    parameters: int,
    written: datetime,
) -> dict[str, Any]:
    """The STAC item of a model, with the Machine Learning Model extension: inputs with their bands in order, scaling
    and dimensions, outputs with classes and colours. It is valid for MLM 1.4 and 1.5. `kind`: its word for the task.

    Where and when the training data were taken is not recorded, so the item has no geometry, as STAC wants it for what
    has no place, and its time is that at which the weights were `written`.
    """
    tasks = [] if kind is None else [kind]
    start = training.get("start", training.get("converted_from"))
    scratch = start == "from scratch"
    bands = [
        {"name": band.name, "description": f"{one.title}, {one.level}, {one.unit}", "gsd": one.gsd}
        for one in modalities.values()
        for band in one.bands
    ]
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": [*(MLM.format(one) for one in MLM_VERSIONS), *OTHERS],
        "id": name,
        "geometry": None,
        "properties": {
            "datetime": written.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "description": f"A model for the task {task}." if task else "An encoder to start training from.",
            "license": NOT_SPDX,
            "bands": bands,
            "mlm:name": f"skysense {_plain(name)}".strip(),
            "mlm:architecture": "SkySense",
            "mlm:tasks": tasks,
            "mlm:framework": "PyTorch",
            "mlm:total_parameters": parameters,
            "mlm:pretrained": not scratch,
            **({"mlm:pretrained_source": None if scratch else str(start)} if start else {}),
            "mlm:accelerator": None,
            "mlm:input": [_input(key, one) for key, one in modalities.items()],
            "mlm:output": [_output(tasks, classes, colours)] if task else [],
            "skysense:version": version,
            "skysense:licence": licence,
        },
        "links": [],
        "assets": {
            "model": {
                "href": "./model.safetensors",
                "type": "application/octet-stream; application=safetensors",
                "title": "Weights",
                "roles": ["mlm:model", "mlm:weights", "data"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "bands": bands,  # STAC allows them above only where an asset has them too
                "file:size": size,
                "file:checksum": SHA256 + digest,
            },
            "description": {"href": "./model.toml", "type": "application/toml", "roles": ["metadata"]},
            "card": {"href": "./README.md", "type": "text/markdown", "roles": ["metadata", "overview"]},
        },
    }


def check_item(path: Path, digest: str) -> None:
    """Warn where a STAC item is that of other weights: the model is fine, but a catalogue would offer it as another."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["assets"]["model"]["file:checksum"]
    except FileNotFoundError:  # older models have none
        return
    except (ValueError, KeyError, TypeError):
        said = None
    if said != SHA256 + digest:
        log.warning("%s describes another model, not the weights beside it: copy the folder whole, or delete it", path)


def _input(name: str, modality: Modality) -> dict[str, Any]:
    side = modality.window
    return {
        "name": name,
        "description": f"{modality.title}: {modality.level}, {modality.unit}, {modality.gsd:g} m per pixel",
        "bands": list(modality.band_names),
        "input": {
            "shape": [-1, -1 if modality.dates > 1 else 1, len(modality.bands), side, side],
            "dim_order": ["batch", "time", "channel", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "z-score", "mean": band.mean, "stddev": band.std} for band in modality.bands],
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(tasks: Sequence[str], classes: Sequence[str], colours: Sequence[str]) -> dict[str, Any]:
    dense = tasks == ["semantic-segmentation"]
    softmax = "On the grid of the finest input. softmax over channel gives probabilities, argmax the class."
    return {
        "name": "logits" if dense else "output",
        "description": softmax if dense else "What the model puts out, before anything is made of it.",
        "tasks": list(tasks),
        "result": {
            "shape": [-1, len(classes) or 1, -1, -1],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [
            {
                "value": value,
                "name": _plain(title).replace(" ", "-").replace(".", "-") or f"class-{value}",
                "description": title,
                "color_hint": colour.removeprefix("#").upper(),
            }
            for value, (title, colour) in enumerate(zip(classes, colours, strict=True))
        ],
        "post_processing_function": (
            {"format": "python", "expression": "torch.softmax(logits, dim=1)"} if dense else None
        ),
    }


def _plain(text: str) -> str:
    """Letters, digits and a few signs: all that names may have in STAC."""
    return re.sub(r"[^0-9A-Za-z_. -]+", "-", text).strip("-_. ")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
