"""`skysense finetune`: train a model on labelled imagery."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.finetune import RunResult

log = logging.getLogger(__name__)


def finetune(
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="segmentation, landcover or crop.", rich_help_panel=options.TRAINING),
    ] = None,
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    unlabelled: options.Unlabelled = None,
    classes: options.Classes = None,
    source: options.SourceName = None,
    split_by: options.SplitBy = None,
    fold: options.Fold = None,
    label_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Train on this share of the samples, e.g. 0.1.", rich_help_panel=options.DATA
        ),
    ] = None,
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    rescale: options.Rescale = None,
    s2_offset: options.S2Offset = None,
    s1_unit: options.S1Unit = None,
    cloud_mask: options.CloudMask = None,
    date: options.Date = None,
    date_pattern: options.DatePattern = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Size: nano, tiny, small, base, large or huge.", rich_help_panel=options.MODEL
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Start from the encoder of this model.", rich_help_panel=options.MODEL),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Use these only, e.g. s2,s1; else all there are.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Train the head only.", rich_help_panel=options.TRAINING)
    ] = False,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Length as passes over the samples.", rich_help_panel=options.TRAINING),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Length as optimiser steps.", rich_help_panel=options.TRAINING),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Highest learning rate.", rich_help_panel=options.TRAINING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of everything random.", rich_help_panel=options.TRAINING)
    ] = None,
    keep_going: options.KeepGoing = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=options.TRAINING)
    ] = False,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="The run folder; else runs/TASK-DATA.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    config: options.Config = None,
    settings: options.Set = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model on labelled imagery.

    The best model by validation score and the last one are kept in the run folder, with logs for TensorBoard and the
    resolved settings. A run that was stopped goes on with --resume, as if it had not been.

    \b
    Examples:
      skysense finetune --task crop --data pastis/
      skysense finetune --task landcover --data s2=scene/ --labels polygons.gpkg --label-column class
      skysense finetune --task segmentation --data tiles/ --classes roof --unlabelled background --init runs/other
      skysense finetune --config runs/mine/config.toml --out runs/again --set optim.lr=3e-4
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config as settings_of
    from skysense_core import registry
    from skysense_core.errors import UsageError
    from skysense_core.finetune import FinetuneConfig
    from skysense_core.finetune import finetune as run

    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps say the same thing", fix="Give one of them.")
    reading = tables.read(
        bands=bands,
        nodata=nodata,
        rescale=rescale,
        s2_offset=s2_offset,
        s1_unit=s1_unit,
        cloud_mask=cloud_mask,
        date=date,
        date_pattern=date_pattern,
    )
    flags: tables.Table = {
        "task": {"name": task},
        "data": tables.data(
            inputs=data,
            labels=labels,
            label_column=label_column,
            unlabelled=unlabelled,
            classes=classes,
            source=source,
            split_by=split_by,
            fold=fold,
            reading=reading,
        ),
        "out": out,
        "modalities": {name: {} for name in modalities.split(",")} if modalities else None,
        "model": {"preset": preset},
        "init": init,
        "freeze": freeze or None,
        "keep_going": keep_going or None,
        "label_fraction": label_fraction,
        "optim": {"lr": lr},
        "train": {
            "epochs": epochs,
            "steps": steps,
            "batch_size": batch_size,
            "precision": precision,
            "seed": seed,
        },
        "device": device,
        "workers": workers,
        "resume": resume,
        "overwrite": overwrite,
    }
    file = settings_of.load_toml(config) if config else {}
    table = tables.training(file, settings_of.parse_assignments(settings or ()), flags)
    if "name" not in table["task"]:
        raise UsageError("no task given", fix="For example --task landcover")
    registry.load("tasks", table["task"]["name"])  # an unknown name is refused before anything is read or written
    if "out" not in table:
        table["out"] = _run_folder(table["task"]["name"], data or ())
        log.info("run folder: %s", table["out"])
    result = run(settings_of.build(FinetuneConfig, table))
    if console.speaks():
        if json:
            console.print_json(settings_of.to_table(result))
        elif not quiet:
            _print(result)
    console.refuse_left_out(result.left_out, result.folder)


def _run_folder(task: str, data: Sequence[str]) -> Path:
    """`runs/crop-pastis` for `--task crop --data somewhere/pastis/`."""
    names = [Path(item.rpartition("=")[2].rstrip("/*")).stem for item in data]
    return Path("runs") / "-".join([task, *dict.fromkeys(name for name in names if name)])


def _print(result: "RunResult") -> None:
    console.print_classes("Best model on the validation part", result.metrics)
    baselines = " --baselines" if "confusion" in result.metrics else ""
    console.print_facts(
        {
            **console.totals(result.metrics),
            "model": str(result.model),
            "next": f"skysense evaluate --model {result.folder} --split test{baselines}",
        }
    )
