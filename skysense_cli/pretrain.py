"""`skysense pretrain`: train a model on imagery without labels."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from skysense_cli import console, options, tables

log = logging.getLogger(__name__)


def pretrain(
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    classes: options.Classes = None,
    source: options.SourceName = None,
    split_by: options.SplitBy = None,
    fold: options.Fold = None,
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
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Labelled data, named as by --data, on which frozen features are tried as training goes on.",
            rich_help_panel=options.TRAINING,
        ),
    ] = None,
    probe_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Steps between looks at features and probe; else ten looks.",
            rich_help_panel=options.TRAINING,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=options.TRAINING)
    ] = False,
    shard_model: Annotated[
        bool,
        typer.Option(
            "--shard-model",
            help="Spread the model over the processes (FSDP2).",
            rich_help_panel=options.TRAINING,
        ),
    ] = False,
    export_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep the model of every N-th step in exports/STEP.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
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
            help="The run folder; else runs/pretrain.",
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
    """Train a model on imagery without labels.

    A student learns to say of one view of a place what its teacher says of another: about pixels, objects and whole
    images, for each modality and for all together. The teacher, kept in the run folder, is a start for finetune. What
    labels a data set has are not looked at. A run that was stopped goes on with --resume, as if it had not been.

    \b
    Examples:
      skysense pretrain --data pastis/ --preset tiny --out runs/ssl
      skysense pretrain --data aerial/ --modalities hr --probe tiles/ --out runs/ssl
      skysense pretrain --data pastis/ --modalities s2 --set 'method.levels=["image"]' --out runs/dino
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config as settings_of
    from skysense_core.errors import UsageError
    from skysense_core.pretrain import PretrainConfig
    from skysense_core.pretrain import pretrain as run

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
        "data": tables.data(
            inputs=data,
            labels=labels,
            label_column=label_column,
            unlabelled=None,
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
        "optim": {"lr": lr},
        "train": {
            "epochs": epochs,
            "steps": steps,
            "batch_size": batch_size,
            "precision": precision,
            "seed": seed,
            "validate_every": probe_every,
            "shard_model": shard_model or None,
        },
        "export_every": export_every,
        "probe": {"data": tables.data(inputs=probe, option="--probe")} if probe else None,
        "device": device,
        "workers": workers,
        "resume": resume,
        "overwrite": overwrite,
    }
    file = settings_of.load_toml(config) if config else {}
    table = tables.training(file, settings_of.parse_assignments(settings or ()), flags)
    if "out" not in table:
        table["out"] = Path("runs") / "pretrain"
        log.info("run folder: %s", table["out"])
    result = run(settings_of.build(PretrainConfig, table))
    if not console.speaks():
        return
    if json:
        console.print_json(settings_of.to_table(result))
    elif not quiet:
        features = {name: f"{value:.3g}" for name, value in result.features.items()}
        following = f"skysense finetune --init {result.folder} --task ... --data ..."
        console.print_facts({**features, "model": str(result.model), "next": following})
