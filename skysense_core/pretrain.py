"""`skysense pretrain`: a model that has learnt from imagery without labels, as a start for fine-tuning (METHOD 3)."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from skysense_core import config, parallel, runtime, sources
from skysense_core.checkpoint import load_encoder, save_model
from skysense_core.data.batch import Batch
from skysense_core.data.loader import training_loader
from skysense_core.data.statistics import measure_bands
from skysense_core.data.views import ViewChips, ViewConfig, places_of
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import Modality
from skysense_core.model.presets import ModelSpec, preset
from skysense_core.model.selfsupervised import MethodConfig, SelfSupervised
from skysense_core.model.skysense import SkySense
from skysense_core.optim import OptimConfig
from skysense_core.probe import Probe, ProbeConfig
from skysense_core.runreport import write_report
from skysense_core.runs import check_folder
from skysense_core.trainer import Objective, TrainConfig, Trainer
from skysense_core.types import Split

log = logging.getLogger(__name__)

HOW = ("probe", "out", "device", "workers", "export_every", "resume", "overwrite")
"""Settings that say where and how to train, not what; they may change when a run is resumed."""
INSPECTED = 32
"""Samples whose features are looked at for collapse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainOptim(OptimConfig):
    """The `[optim]` table: DINO's values, which METHOD 3 gives where the paper gives none."""

    lr: Annotated[float, Field(gt=0)] | None = None  # type: ignore[assignment]  # it follows from the batch size
    """Highest learning rate; not given: 5e-4 for steps of 256 samples, and in proportion for others (DINO)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.04
    final_weight_decay: Annotated[float, Field(ge=0)] | None = 0.4
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    clip: Annotated[float, Field(ge=0)] = 3.0

    def completed(self, batch_size: int) -> "PretrainOptim":
        """With the learning rate of a run whose steps see so many samples."""
        return replace(self, lr=5e-4 * batch_size / 256) if self.lr is None else self


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Everything a pre-training depends on; its resolved copy is the run's `config.toml`."""

    data: dict[str, Any]
    """`source` (found by itself from `path`) and the fields of that source; of its samples the training part is used,
    without the labels."""
    out: Path
    """The run folder."""
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Modalities to use, each with the fields that differ from its file; none named means all that the data have."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's spec (`preset`, `prototypes`, `fusion` ...)."""
    init: Path | None = None
    """A model folder whose encoder is the start."""
    statistics: Literal["data", "modality"] = "data"
    """Mean and deviation of the bands: from the training part, or from the modality's file."""
    views: ViewConfig = field(default_factory=ViewConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: PretrainOptim = field(default_factory=PretrainOptim)
    train: TrainConfig = field(default_factory=TrainConfig)
    export_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between copies of the teacher that stay, as `exports/STEP`; not given: none."""
    probe: ProbeConfig | None = None
    """A labelled data set that the teacher's frozen features are tried on at every validation; not given: none."""
    licence: str = "not stated"
    """Of the weights, for the model card."""
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
class PretrainResult:
    """What a pre-training leaves."""

    folder: Path
    model: Path
    """The folder of the teacher, a model without a task."""
    steps: int
    features: dict[str, float]
    """What `SelfSupervised.inspect` finds in the teacher at the end, and the scores of the probe, if one was given."""


class Unlabelled(Objective):
    """The self-supervised losses of a batch whose epochs are views and whose target says which places they show."""

    def __init__(self, learning: SelfSupervised, views: ViewConfig) -> None:
        super().__init__()
        self.learning = learning
        self.views = views

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.target is not None
        places = places_of(batch.target, self.views)
        return self.learning(batch.epochs, places, batch.lonlat, batch.located, global_views=self.views.global_views)

    def blocks(self) -> list[nn.Module]:
        return [*self.learning.student.blocks(), *self.learning.teacher.blocks()]

    def parts(self) -> list[nn.Module]:
        one = self.learning
        return [*one.student.parts(), *one.teacher.parts(), *one.heads.values(), *one.teacher_heads.values()]

    def after_step(self, step: int) -> None:
        self.learning.after_step(step)


def pretrain(given: PretrainConfig) -> PretrainResult:
    """Train without labels and keep the teacher. Logs what it found and does at INFO.

    Raises UsageError for settings that do not fit together or an existing run, SkysenseError for data that cannot be
    learnt from, and Interrupted after a signal, when the run can be resumed.
    """
    device = runtime.choose_device(given.device)
    with parallel.joined(device, alone=given.train.shard_model):
        return _trained(given, device)


def _trained(given: PretrainConfig, device: torch.device) -> PretrainResult:
    check_folder(given.out, resume=given.resume, overwrite=given.overwrite)
    given.train.own_part()  # refused before the data are read
    spec = config.build(ModelSpec, config.merge({"prototypes": given.model.get("fusion", True)}, given.model), "model")
    preset(spec.preset)  # refused before the data are read
    source_name, source = sources.from_table(given.data)
    meet = given.model.get("align", "input") == "input"
    wanted = sources.choose_modalities(source, given.modalities, meet=meet)
    if not spec.fusion and any(one.encoder == "vit" for one in wanted.values()):
        raise UsageError(
            "without fusion only Swin modalities can be pre-trained: those of ViTs meet the others in it",
            fix="Leave out model.fusion = false, or --modalities hr",
        )
    train = source.open("train", wanted)
    for note in dict.fromkeys(train.notes):
        log.info("note: %s", note)
    if len(train) == 1:
        raise SkysenseError(
            "one sample only: there is no other place that it could be told from",
            fix="Give more data, or cut the scene into smaller samples.",
        )
    if len(train) < given.train.per_pass:
        raise SkysenseError(
            f"{len(train)} samples are fewer than one batch of {given.train.per_pass}: a place would be its own"
            " counterexample",
            fix=f"--batch-size {len(train)}, or more data",
        )
    if given.statistics == "data":
        wanted = _as_measured(wanted, train, given)
    steps = given.train.steps_for(len(train))
    resolved = replace(
        given,
        data={"source": source_name, **config.to_table(source)},
        modalities={name: config.to_table(modality) for name, modality in wanted.items()},
        model=config.to_table(spec),
        optim=given.optim.completed(given.train.batch_size),
        train=replace(given.train, steps=steps, epochs=None),
    )

    runtime.seed_step(given.train.seed)
    student = SkySense(spec, wanted)
    if given.init is not None:
        log.info("%s", load_encoder(student, given.init))
    learning = SelfSupervised(student, given.method, steps=steps)
    run = _Run(resolved, learning, train=train, device=device)
    log.info(
        "%s: %d samples, %d steps of %d on %s, %.1f M parameters and as many in the teacher",
        *(source_name, len(train), steps, resolved.train.batch_size, device),
        sum(parameter.numel() for parameter in student.parameters()) / 1e6,
    )
    if run.probe is not None and not given.resume and runtime.rank() == 0:
        scores = run.probe.measure(learning.teacher.to(device), device, precision=given.train.precision)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        log.info("before training: %s", shown)
    Trainer(
        Unlabelled(learning, given.views),
        batches=run.batches,
        depth=lambda _: 0,
        top=0,
        folder=given.out,
        steps=steps,
        config=resolved.train,
        optim_config=resolved.optim,
        device=device,
        settings=resolved.settings(),
        written=config.to_table(replace(resolved, resume=False, overwrite=False)),
        validate=run.inspect,
        best=None,
        export=run.export,
        export_every=given.export_every,
    ).run(resume=given.resume)
    return PretrainResult(
        folder=given.out, model=given.out / "last", steps=steps, features=run.features or run.inspect()
    )


class _Run:
    """What the trainer asks for: batches, a look at the features, the teacher on disk."""

    def __init__(
        self, settings: PretrainConfig, learning: SelfSupervised, *, train: Split, device: torch.device
    ) -> None:
        self.settings = settings
        self.learning = learning
        self.device = device
        self.workers = runtime.choose_workers(settings.workers, device)
        self.chips = ViewChips(train, learning.student.modalities, settings.views, seed=settings.train.seed)
        self.features: dict[str, float] = {}
        self.probe: Probe | None = None
        if settings.probe is not None:
            self.probe = Probe(settings.probe, self.chips.modalities, workers=self.workers)

    def batches(self, start: int) -> Iterator[Batch]:
        size, rank, world = self.settings.train.own_part(), runtime.rank(), runtime.world()
        return training_loader(self.chips, batch_size=size, start=start, workers=self.workers, rank=rank, world=world)

    def inspect(self) -> dict[str, float]:
        """The teacher's features of the first view of some samples, always the same ones, and the probe's scores.

        Collapse is warned about.
        """
        count = min(len(self.chips), INSPECTED)
        (batch,) = islice(training_loader(self.chips, batch_size=count, start=0, workers=0), 1)
        batch = batch.to(self.device)
        self.learning.eval()
        with runtime.autocast(self.device, self.settings.train.precision):
            self.features = self.learning.inspect(batch.epochs[0], batch.lonlat, batch.located)
        for name, value in self.features.items():
            if name.endswith(".rank") and value < 1.1 < count / 2:
                log.warning(
                    "%s = %.2f: the features of %d images differ in hardly more than one direction (collapse)",
                    *(name, value, count),
                )
            if name.endswith(".information") and value < 0.02:
                log.warning("%s = %.3f: what the teacher answers tells nothing of the image (collapse)", name, value)
        if self.probe is not None:
            self.features |= self.probe.measure(
                self.learning.teacher, self.device, precision=self.settings.train.precision
            )
        return self.features

    def export(self, name: str, scores: Mapping[str, float]) -> None:
        settings = self.settings
        save_model(
            settings.out / name,
            nn.ModuleDict({"encoder": self.learning.teacher}),
            None,
            name=settings.out.name,
            training={
                "source": settings.data["source"],
                "data": Path(settings.data.get("path", settings.data["source"])).name,
                "training_samples": len(self.chips.split),
                "steps": settings.train.steps,
                "samples_per_step": settings.train.batch_size,
                "start": "from scratch" if settings.init is None else settings.init.name,
                "seed": settings.train.seed,
                "labels": "none: self-supervised",
            },
            metrics=scores,
            licence=settings.licence,
        )
        if name == "last" and runtime.rank() == 0:
            write_report([settings.out])


def _as_measured(wanted: Mapping[str, Modality], train: Split, given: PretrainConfig) -> dict[str, Modality]:
    measured = measure_bands(train)
    for name in wanted:
        if name not in measured:
            raise SkysenseError(f"no training sample has {name}", fix="Leave it out: --modalities")
    return {name: one.with_statistics(measured[name].mean, measured[name].std) for name, one in wanted.items()}
