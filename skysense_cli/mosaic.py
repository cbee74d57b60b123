"""`skysense mosaic`: many maps of one grid become one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from skysense_cli import console, options, tables
from skysense_core.errors import UsageError

log = logging.getLogger(__name__)


def mosaic(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="MAP...", help="Results of predict: files, globs, folders; - reads a list from stdin."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The joined map, a COG.", rich_help_panel=options.OUTPUT),
    ] = None,
    finish: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Join the finished shards of skysense predict --out OUT, where no process has.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    creation_options: options.CreationOptions = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Join results of predict into one cloud-optimised GeoTIFF.

    They are of one kind (class maps, confidences or probabilities), have the same classes and lie on one pixel
    grid: the parts of a scene, or scenes of one grid. Colours, class names, scale and provenance are kept. Where maps
    overlap, the first one on the line that has a valid pixel wins. Gaps become nodata.

    \b
    Examples:
      skysense mosaic west.tif east.tif --out all.tif
      skysense mosaic 'maps/r*_c??.tif' --out all.tif --overwrite
      ls maps/*_confidence.tif | skysense mosaic - --out confidence.tif
      skysense mosaic --finish map.tif
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    pairs = tables.pairs("--co", creation_options)
    if finish is not None:
        if inputs or out is not None:
            raise UsageError("--finish takes no maps and no --out", fix="It joins the shards beside its own file.")
        _finish(finish, pairs, json=json, quiet=quiet)
        return
    if not inputs or out is None:
        raise UsageError("which maps, and where to?", fix="For example skysense mosaic maps/*.tif --out all.tif")
    from skysense_core import config
    from skysense_core.mosaic import MosaicConfig
    from skysense_core.mosaic import mosaic as run

    result = run(
        MosaicConfig(
            inputs=tuple(inputs),
            out=out,
            creation_options=pairs,
            overwrite=overwrite,
        )
    )
    for note in result.notes:
        log.info("note: %s", note)
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        size = f"{result.width:,} x {result.height:,} pixels from {result.parts} parts in {result.seconds:.1f} s"
        console.print_facts({"mosaic": size, "file": str(result.path)})


def _finish(out: Path, creation_options: Mapping[str, str], *, json: bool, quiet: bool) -> None:
    from skysense_core.predict import finish

    paths = finish(out, creation_options)
    if json:
        console.print_json({"paths": [str(path) for path in paths]})
    elif not quiet:
        console.print_facts({f"file {number}": str(path) for number, path in enumerate(paths, start=1)})
