"""`skysense finetune`: a model for a task, from labelled imagery and (if any) a trained encoder."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from skysense_core import config, parallel, registry, runtime, sources
from skysense_core.calibration import Calibration
from skysense_core.checkpoint import load_encoder, save_model
from skysense_core.data.batch import Batch
from skysense_core.data.chips import Augment, TrainingChips, window_of
from skysense_core.data.loader import Part, evaluation_loader, label_fraction, training_loader
from skysense_core.data.sound import going_on, sound
from skysense_core.data.statistics import measure_bands, says_anything
from skysense_core.description import Description, load_description
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.gallery import Gallery, keep, noted, places
from skysense_core.metrics import headline
from skysense_core.modalities import Modality, finest
from skysense_core.model.presets import ModelSpec, preset
from skysense_core.model.skysense import SkySense
from skysense_core.optim import OptimConfig
from skysense_core.runreport import write_report
from skysense_core.runs import METRICS, check_folder, write_failures, write_json
from skysense_core.tasks import RasterOutput, Task, evaluation_chips, measure
from skysense_core.trainer import Objective, TrainConfig, Trainer
from skysense_core.types import Split

log = logging.getLogger(__name__)

HOW = ("out", "device", "workers", "resume", "overwrite")
"""Settings that say where and how to train, not what; they may change when a run is resumed."""
UNSTATED = "not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Everything a fine-tuning depends on; its resolved copy is the run's `config.toml`."""

    data: dict[str, Any]
    """`source` (found by itself from `path`) and the fields of that source."""
    task: dict[str, Any]
    """`name` and the fields of that task."""
    out: Path
    """The run folder."""
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Modalities to use, each with the fields that differ from its file; none named means all that the data have."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's spec (`preset`, `prototypes`, `drop_path` ...)."""
    init: Path | None = None
    """A model folder whose encoder is the start."""
    freeze: bool = False
    """Train the head only."""
    statistics: Literal["auto", "data", "modality"] = "auto"
    """Mean and deviation of the bands: from the training part, or from the modality's file (with `init`, the start
    model's copy). auto: the latter with `init`, otherwise the former."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training samples that is used."""
    augment: Augment = field(default_factory=Augment)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    licence: str = UNSTATED
    """Of the weights, for the model card; with `init`, the start model's unless given."""
    keep_going: bool = False
    """Leave out samples that cannot be read; all are read once to find them. Otherwise the first one ends it."""
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that prepare samples; not given: none on a CPU, otherwise what the machine has."""
    resume: bool = False
    overwrite: bool = False

    def settings(self) -> dict[str, Any]:
        """What must not change when the run is resumed."""
        table = config.to_table(self) | {"skysense": version("skysense")}
        return {key: value for key, value in table.items() if key not in HOW}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a training leaves."""

    folder: Path
    model: Path
    """The folder of the best model."""
    steps: int
    metrics: dict[str, Any]
    """Scores of the best model on the validation part; the keys are those of the task's metrics."""
    left_out: tuple[str, ...] = ()
    """What could not be read, with `keep_going`."""


class Supervised(Objective):
    """A task's losses of a model."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.task.losses(self.model, batch)

    def blocks(self) -> list[nn.Module]:
        encoder: SkySense = self.model.encoder  # type: ignore[assignment]
        return encoder.blocks()

    def depth(self, parameter: str) -> int:
        """The layer of a parameter, the head above all layers of the encoder."""
        encoder: SkySense = self.model.encoder  # type: ignore[assignment]
        part, _, rest = parameter.removeprefix("model.").partition(".")
        return encoder.layer_of(rest) if part == "encoder" else encoder.n_layers


def finetune(given: FinetuneConfig) -> RunResult:
    """Train, validate, keep the best model. Logs what it found and does at INFO.

    Raises UsageError for settings that do not fit together or an existing run, SkysenseError for data that cannot be
    learnt from, and Interrupted after a signal, when the run can be resumed.
    """
    device = runtime.choose_device(given.device)
    if given.train.shard_model:
        raise UsageError("train.shard_model is for pretrain: here each process holds the model", fix="Leave it out.")
    with parallel.joined(device):
        return _trained(given, device)


def _trained(given: FinetuneConfig, device: torch.device) -> RunResult:
    check_folder(given.out, resume=given.resume, overwrite=given.overwrite)
    given.train.own_part()  # refused before the data are read
    start = None if given.init is None else load_description(given.init)
    if start is not None and "custom" in start.spec and "preset" in given.model:
        raise UsageError(
            f"--preset {given.model['preset']}: {given.init} has sizes of its own, which are no preset's",
            fix="Leave out --preset.",
        )
    if "preset" in given.model:
        preset(given.model["preset"])  # refused before the data are read
    source_name, source = sources.from_table(given.data)
    meet = given.model.get("align", "input") == "input"
    wanted = sources.choose_modalities(
        source, given.modalities, known=None if start is None else start.modalities, meet=meet
    )
    with going_on(given.keep_going) as failures:
        known = sources.labelled(source.open("train", wanted), source_name)
        train = label_fraction(known, given.label_fraction, seed=given.train.seed)
        val = source.open("val", wanted)
        if given.keep_going:
            train, val = Part(train, sound(train, "train")), Part(val, sound(val, "val"))
    for note in dict.fromkeys((*train.notes, *val.notes)):
        log.info("note: %s", note)
    if not says_anything(val):
        raise SkysenseError("no label of the validation part says anything", fix="Check labels, classes and split.")
    task = _task(given, train)
    if task.whole:
        reference = finest(wanted)
        wanted[reference] = replace(wanted[reference], window=window_of(wanted, train, whole=True))
    if given.statistics == "data" or (given.statistics == "auto" and start is None):
        wanted = _as_measured(wanted, train, given)
    base = {} if start is None else start.spec
    spec = config.build(ModelSpec, config.merge(base, {"fusion": task.fuses(wanted)}, given.model), "model")
    steps = given.train.steps_for(len(train))
    resolved = replace(
        given,
        data={"source": source_name, **config.to_table(source)},
        task={"name": given.task["name"], **config.to_table(task)},
        modalities={name: config.to_table(modality) for name, modality in wanted.items()},
        model=config.to_table(spec),
        optim=_optim(given.optim, start),
        train=replace(given.train, steps=steps, epochs=None),
        licence=start.licence if start is not None and given.licence == UNSTATED else given.licence,
    )

    runtime.seed_step(given.train.seed)
    encoder = SkySense(spec, wanted)
    if given.init is not None:
        log.info("%s; new: head", load_encoder(encoder, given.init))
    model = task.build_model(encoder)
    if given.freeze:
        encoder.freeze()
    parts = {"train": train, "val": val, **_test(source, wanted)}
    run = _Run(resolved, task, model, parts, device=device)
    log.info(
        "%s on %s: %d training and %d validation samples, %d steps of %d on %s, %.1f M parameters",
        *(given.task["name"], source_name, len(train), len(val), steps, resolved.train.batch_size, device),
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
    )
    objective = Supervised(task, model)
    Trainer(
        objective,
        batches=run.batches,
        depth=objective.depth,
        top=encoder.n_layers,
        folder=given.out,
        steps=steps,
        config=resolved.train,
        optim_config=resolved.optim,
        device=device,
        settings=resolved.settings(),
        written=config.to_table(replace(resolved, resume=False, overwrite=False)),
        validate=run.validate,
        best=task.metrics().best,
        export=run.export,
    ).run(resume=given.resume)
    metrics = json.loads((given.out / METRICS).read_text(encoding="utf-8"))
    if runtime.rank() == 0:
        write_failures(given.out, failures)
    best = given.out / "best"
    return RunResult(folder=given.out, model=best, steps=steps, metrics=metrics, left_out=tuple(failures))


class _Run:
    """What the trainer asks for: batches, validation, models on disk."""

    def __init__(
        self,
        settings: FinetuneConfig,
        task: Task,
        model: nn.Module,
        parts: Mapping[str, Split],
        *,
        device: torch.device,
    ) -> None:
        encoder: SkySense = model.encoder  # type: ignore[assignment]
        self.settings = settings
        self.task = task
        self.model = model
        self.parts = parts
        self.device = device
        self.workers = runtime.choose_workers(settings.workers, device)
        self.train_chips = TrainingChips(
            parts["train"],
            encoder.modalities,
            task.encode,
            augment=settings.augment,
            seed=settings.train.seed,
            whole=task.whole,
        )
        self.val_chips = evaluation_chips(task, parts["val"], encoder.modalities)
        self.scores: dict[str, Any] = {}
        self.gallery = Gallery(modality=encoder.modalities[encoder.reference])

    def batches(self, start: int) -> Iterator[Batch]:
        size, rank, world = self.settings.train.own_part(), runtime.rank(), runtime.world()
        return training_loader(
            self.train_chips, batch_size=size, start=start, workers=self.workers, rank=rank, world=world
        )

    def validate(self) -> dict[str, float]:
        size = self.settings.train.own_part()
        loader = evaluation_loader(self.val_chips, batch_size=size, workers=self.workers)
        self.gallery, calibration = Gallery(modality=self.gallery.modality), Calibration()
        precision, chips = self.settings.train.precision, self.val_chips

        def watch(batch: Batch, scores: Any) -> None:
            assert batch.target is not None
            self.gallery.see(batch, scores)
            calibration.update(scores, batch.target)

        self.scores = measure(self.task, self.model, loader, self.device, precision, watch, chips=chips)
        self.scores |= calibration.compute(fit=True)
        if not self.scores["support"]:
            raise SkysenseError("the validation part has no label where there is imagery")
        return headline(self.scores)

    def export(self, name: str, scores: Mapping[str, float]) -> None:
        settings, task = self.settings, self.task
        if "temperature" in self.scores:
            task = replace(task, temperature=self.scores["temperature"])  # type: ignore[type-var]
        save_model(
            settings.out / name,
            self.model,
            task,
            name=settings.out.name,
            training={
                "source": settings.data["source"],
                "data": Path(settings.data.get("path", settings.data["source"])).name,
                "training_samples": len(self.train_chips.split),
                "validation_samples": len(self.val_chips.split),
                "steps": settings.train.steps,
                "samples_per_step": settings.train.batch_size,
                "start": "from scratch" if settings.init is None else settings.init.name,
                "seed": settings.train.seed,
            },
            metrics={**scores, "classes": self.scores.get("classes", {})},
            licence=settings.licence,
        )
        if name == "best" and runtime.rank() == 0:
            write_json(settings.out / METRICS, self.scores)
            output = self.task.output
            legend = list(zip(output.classes, output.colours, strict=True)) if isinstance(output, RasterOutput) else []
            keep(settings.out, chips=self.gallery.chips(tuple(colour for _, colour in legend)), legend=legend)
        if name == "last" and runtime.rank() == 0:
            if not noted(settings.out, "parts"):
                keep(settings.out, parts=places(self.parts))
            write_report([settings.out])


def _test(source: sources.Source, wanted: Mapping[str, Modality]) -> dict[str, Split]:
    """The part that will test, where there is one: the report shows where it lies."""
    try:
        return {"test": source.open("test", wanted)}
    except SkysenseError as error:
        log.info("no test part: %s", error.message)
        return {}


def _as_measured(wanted: Mapping[str, Modality], train: Split, given: FinetuneConfig) -> dict[str, Modality]:
    """With the statistics of the training part; a modality that never has a second date there is a static one."""
    measured, found = measure_bands(train), {}
    for name, one in wanted.items():
        if name not in measured:
            raise SkysenseError(f"no training sample has {name}", fix="Leave it out: --modalities")
        static = measured[name].dates == 1 and "dates" not in given.modalities.get(name, {})
        one = replace(one, dates=1) if static else one
        found[name] = one.with_statistics(measured[name].mean, measured[name].std)
    return found


def _task(given: FinetuneConfig, train: Split) -> Task:
    fields = dict(given.task)
    name = fields.pop("name", None)
    if name is None:
        raise UsageError("no task given", fix="For example --task landcover")
    task: Task = config.build(registry.load("tasks", name), fields, "task")
    return task.completed(train)


def _optim(given: OptimConfig, start: Description | None) -> OptimConfig:
    """With layer-wise decay where it makes sense: lower layers that are trained already should change less."""
    if given.layer_decay is not None:
        return given
    return replace(given, layer_decay=1.0 if start is None else 0.9)
