"""`skysense info`: what a store, a model, a run, a data set or a raster holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables
from skysense_cli.info import dataset, printed

if TYPE_CHECKING:
    from skysense_core.info import Info


def info(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            help="A store, a model or run folder, a data set, a raster, product or cube; sources: all known data sets.",
        ),
    ] = None,
    model: options.Model = None,
    source: options.SourceName = None,
    classes: options.Classes = None,
    settings: options.Set = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Read every sample of a data set, not up to 200 of each part.",
            rich_help_panel=options.DATA,
        ),
    ] = False,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed",
            help="Measure how fast a model is here, also a large one; up to 10 M parameters it is done anyway.",
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    machine: Annotated[
        bool,
        typer.Option(
            "--machine",
            help="Of this machine instead: devices, memory, bf16, GDAL, extras.",
            rich_help_panel=options.MACHINE,
        ),
    ] = False,
    map_to: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE",
            help="Draw where the samples of a store lie: .html (opens without a network) or .png.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Print what lies at a path.

    Of a store: samples, area, dates, validity, labels, parts and disk. Of a model: task, classes, inputs, scores,
    licence and speed here. Of a run: how far it is. Of a data set: layout, parts, labels by class, and what would
    spoil it: ground or images that two parts share, odd sizes, pixels that are not square, unreadable samples. Of a
    raster: grid, bands, dates, level, how it is stored, its values, a guess of sensor and unit with the evidence, and
    which packaged models (and --model) read it, with how far its values lie from theirs; a sample of the pixels is
    looked at. The word sources prints every data set that finetune, evaluate and pretrain read: tasks, classes, split,
    licence, where to get it. The last line is what to run next.

    \b
    Examples:
      skysense info store/ --map store.html
      skysense info runs/mine
      skysense info S2A_MSIL2A_20240601.SAFE
      skysense info scene.tif --model runs/mine
      skysense info pastis/ --all
      skysense info tiles/ --classes background,building
      skysense info sources
      skysense info --machine
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config as settings_of
    from skysense_core.errors import UsageError
    from skysense_core.info import as_table, next_command
    from skysense_core.info import info as look
    from skysense_core.info.machine import look_around

    if map_to is not None and map_to.exists() and not overwrite:
        raise UsageError(f"{map_to} exists", fix="Use --overwrite, or another --map.")
    if machine == (path is not None):
        raise UsageError("give a PATH or --machine", fix="skysense info PATH, or skysense info --machine")
    said = {"data": {"source": source, "classes": tables.class_names(classes)}}
    table = settings_of.merge(settings_of.parse_assignments(settings or ()), said)
    table = {key: fields for key, fields in table.items() if fields}
    if path is None:
        found: Info = look_around()
    else:
        found = look(path, map_to, model, settings=table, every=every, speed=speed or None)
    if json:
        console.print_json(as_table(found))
    elif not quiet:
        _print(found)
        if map_to is not None:
            console.print_facts({"map": str(map_to)})
        if following := next_command(found):
            console.print_facts({"next": following})


def _print(found: "Info") -> None:
    from skysense_core.info import DatasetInfo, MachineInfo, ModelInfo, RasterInfo, RunInfo, SourcesInfo

    if isinstance(found, MachineInfo):
        printed.print_machine(found)
    elif isinstance(found, SourcesInfo):
        printed.print_sources(found)
    elif isinstance(found, RasterInfo):
        printed.print_raster(found)
    elif isinstance(found, DatasetInfo):
        dataset.print_dataset(found)
    elif isinstance(found, ModelInfo):
        printed.print_model(found)
    elif isinstance(found, RunInfo):
        printed.print_run(found)
    else:
        printed.print_store(found)
