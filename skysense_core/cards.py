"""The model card, a `README.md` beside the weights: what went in, what comes out, how good it is, how to use it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skysense_core.modalities import Modality

LIMITS = (
    "The scores hold for places, seasons and sensors like those of the training data. Check a map of another place "
    "against reference points before you rely on it."
)
STATISTICS = (
    "The weights expect pixels in the units above, normalised with the statistics in `model.toml`. How good they are "
    "for a task shows after training only."
)
PER_CLASS = ("iou", "f1", "precision", "recall")


def card(
    *,
    name: str,
    task: str | None,
    version: str,
    classes: Sequence[str],
    modalities: Mapping[str, Modality],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    licence: str,
) -> str:
    """The card as Markdown; `metrics` may have a table of scores per class under `classes`.

    Without a task it is the card of an encoder, converted or pre-trained.
    """
    inputs = [
        (key, ", ".join(one.band_names), one.level, one.unit, f"{one.gsd:g} m") for key, one in modalities.items()
    ]
    scores = [(key, f"{value:.4g}") for key, value in metrics.items() if isinstance(value, float)]
    per_class = [
        (key, *(_score(one.get(column)) for column in PER_CLASS)) for key, one in metrics.get("classes", {}).items()
    ]
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
        f"## Output\n\nA map of {len(classes)} classes: {', '.join(classes)}.",
        "## Training\n\n" + "\n".join(facts),
        f"## Scores\n\nOn the validation part of the training data.\n\n{_table(('score', 'value'), scores)}",
        *([_table(("class", *PER_CLASS), per_class)] if per_class else []),
        f"## Limits\n\n{LIMITS}",
        licensed,
        f"## Use\n\n```\nskysense predict SCENE.tif --model {name} --out MAP.tif\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
