"""`skysense evaluate`: how good a model is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.evaluate import EvaluateResult

NAMES = {"majority": "majority class", "random_forest": "pixel random forest"}


def evaluate(
    model: Annotated[
        Path,
        typer.Option("--model", "-m", metavar="RUN", help="A run or model folder.", rich_help_panel=options.MODEL),
    ],
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    unlabelled: options.Unlabelled = None,
    classes: options.Classes = None,
    source: options.SourceName = None,
    split_by: options.SplitBy = None,
    fold: options.Fold = None,
    keep_going: options.KeepGoing = False,
    split: Annotated[
        str | None,
        typer.Option(metavar="PART", help="test, val or train.  [default: test]", rich_help_panel=options.DATA),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also fit a random forest to the pixels of the training part and measure it on the same pixels.",
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Takes metrics.json and confusion.png; else evaluation/PART in the run.",
            rich_help_panel=options.OUTPUT,
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
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    precision: options.Precision = None,
    workers: options.Workers = None,
    settings: options.Set = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure a model on a part of the data that it has not seen.

    Without --data, it is measured on the data that it was trained with. The majority class is always shown beside it.

    \b
    Examples:
      skysense evaluate --model runs/mine --split test --baselines
      skysense evaluate --model runs/crop-pastis --data elsewhere/pastis/ --json > scores.json
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.evaluate import EvaluateConfig
    from skysense_core.evaluate import evaluate as run

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
    given = {
        "model": model,
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
        "split": split,
        "baselines": baselines,
        "out": out,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "workers": workers,
        "keep_going": keep_going,
        "overwrite": overwrite,
    }
    result = run(config.build(EvaluateConfig, config.merge(config.parse_assignments(settings or ()), given)))
    if json:
        console.print_json(config.to_table(result))
    else:
        _print(result)
    console.refuse_left_out(result.left_out, result.folder)


def _print(result: "EvaluateResult") -> None:
    console.print_classes("Classes", result.scores["model"])
    titles = tuple(console.totals(result.scores["model"]))
    rows = [
        (NAMES.get(name, name), *(console.totals(scores).get(title, "-") for title in titles))
        for name, scores in result.scores.items()
    ]
    console.print_table("All together", ("", *titles), rows)
    matrix = result.folder / "confusion.png"
    facts = {"scores": str(result.folder / "metrics.json"), **({"matrix": str(matrix)} if matrix.exists() else {})}
    console.print_facts(facts)
