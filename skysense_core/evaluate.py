"""`skysense evaluate`: how good a model is on one part of a data set, beside what is reached without it."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from skysense_core import baselines, checkpoint, config, runtime, sources
from skysense_core.calibration import Calibration
from skysense_core.checkpoint import LoadedModel
from skysense_core.data.batch import Batch
from skysense_core.data.chips import EvaluationChips
from skysense_core.data.loader import Part, evaluation_loader, label_fraction
from skysense_core.data.sound import going_on, sound
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.metrics import ClassMapMetrics, plot_confusion
from skysense_core.progress import Bar
from skysense_core.runs import CONFIG, METRICS, write_failures, write_json
from skysense_core.sources import Source
from skysense_core.tasks import evaluation_chips, measure
from skysense_core.types import PartName, Split

log = logging.getLogger(__name__)

FOREST_SAMPLES = 1024
"""Most training samples of which a random forest sees pixels."""
WHERE = ("path", "rasters", "labels")
"""Fields of a source that say where its files are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """What to measure on what."""

    model: Path
    """A model folder, a run folder or the name of a packaged model."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the source that differ from those that the run was trained with; all of them where the model is not in
    a run folder."""
    split: PartName = "test"
    baselines: bool = False
    """Also fit a pixel random forest to the training part and measure it on the same pixels."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None
    out: Path | None = None
    """Folder of `metrics.json` and `confusion.png`; not given: `evaluation/SPLIT` in the model's run folder."""
    keep_going: bool = False
    """Leave out samples that cannot be read; all are read once to find them. Otherwise the first one ends it."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """Scores by name: `model`, `majority` (the best constant answer, where classes exclude each other) and, if asked
    for, `random_forest`."""

    scores: dict[str, dict[str, Any]]
    folder: Path
    left_out: tuple[str, ...] = ()
    """What could not be read, with `keep_going`."""


def evaluate(given: EvaluateConfig) -> EvaluateResult:
    """Measure a model and write the scores and the confusion matrix.

    Raises UsageError where it is not known what to measure on, where the data have other classes than the model, or
    where results are there already.
    """
    device = runtime.choose_device(given.device)
    workers = runtime.choose_workers(given.workers, device)
    loaded = checkpoint.load_model(given.model, device)
    run = run_of(loaded)
    out = given.out or (run or loaded.folder) / "evaluation" / given.split
    if (out / METRICS).exists() and not given.overwrite:
        raise UsageError(f"{out / METRICS} exists", fix="Use --overwrite, or another --out.")
    source_name, source = sources.from_table(_data(given, loaded, run))
    log.info("%s on the %s part of %s", loaded.name, given.split, source_name)

    def batches(chips: EvaluationChips, task: str) -> Iterator[Batch]:
        loader = evaluation_loader(chips, batch_size=given.batch_size, workers=workers)
        yield from Bar(loader, task, math.ceil(len(chips) / given.batch_size), unit="batch")

    with going_on(given.keep_going) as failures:
        split = _open(source, given.split, loaded, given.keep_going)
    calibration, chips = Calibration(), evaluation_chips(loaded.task, split, loaded.modalities)

    def watch(batch: Batch, found: Any) -> None:
        assert batch.target is not None
        calibration.update(found, batch.target)

    model = measure(loaded.task, loaded.model, batches(chips, "model"), device, given.precision, watch, chips=chips)
    model |= calibration.compute(fit=False)
    scores, mapped = {"model": model}, isinstance(loaded.task.metrics(), ClassMapMetrics)
    if "confusion" in model:
        scores["majority"] = baselines.majority(model)
    if given.baselines and not mapped:
        raise UsageError(
            "--baselines: a forest tells classes apart that exclude each other; this model does something else",
            fix="Leave it out.",
        )
    if given.baselines:
        with going_on(given.keep_going) as of_train:
            train = _open(source, "train", loaded, given.keep_going)
        failures += of_train
        some = label_fraction(train, min(FOREST_SAMPLES / len(train), 1.0), seed=0)
        scores["random_forest"] = baselines.random_forest(
            batches(evaluation_chips(loaded.task, some, loaded.modalities), "training pixels"),
            batches(chips, "random forest"),
            loaded.classes,
        )
    out.mkdir(parents=True, exist_ok=True)
    if "confusion" in model:
        plot_confusion(out / "confusion.png", model)
    table = {"model": loaded.name, "digest": loaded.digest, "split": given.split, "scores": scores}
    write_json(out / METRICS, table)
    write_failures(out, failures)
    return EvaluateResult(scores=scores, folder=out, left_out=tuple(failures))


def run_of(model: LoadedModel) -> Path | None:
    """The run folder that a model lies in, if it does."""
    parent = model.folder.parent
    return parent if (parent / CONFIG).is_file() else None


def _data(given: EvaluateConfig, loaded: LoadedModel, run: Path | None) -> dict[str, Any]:
    """The `[data]` table: what is given over what the run was trained with.

    The run's fold, class mapping and so on hold for another copy of the data too, but not for another kind of source.
    """
    recorded = config.load_toml(run / CONFIG)["data"] if run else {}
    if {"path", "rasters"} & given.data.keys():
        source, known = sources.name_of(given.data), recorded.get("source")
        # What a run read as objects looks like scenes with labelled areas, unless another source is named.
        same = source == known or ("source" not in given.data and known and sources.stands_for(known, source))
        recorded = {key: value for key, value in recorded.items() if same and key not in WHERE}
    data = config.merge(recorded, given.data)
    if not data:
        raise UsageError(f"{loaded.folder} is not in a run folder: what shall it be measured on?", fix="Give --data.")
    return data


def _open(source: Source, part: PartName, loaded: LoadedModel, keep_going: bool) -> Split:
    split = source.open(part, loaded.modalities)
    if split.classes != loaded.classes:
        raise UsageError(
            f"the data have the classes {', '.join(split.classes)}; the model has {', '.join(loaded.classes)}",
            fix="Map the data's classes to the model's with --classes FILE.",
        )
    if not len(split):
        raise SkysenseError(f"the {part} part of the data is empty", fix="Choose another --split.")
    return Part(split, sound(split, part)) if keep_going else split
