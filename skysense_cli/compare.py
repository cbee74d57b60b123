"""`skysense compare`: where two class maps differ."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.compare import CompareResult

SHOWN = 15
"""Kinds of change in the printed table."""


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A class map of predict.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same classes and grid.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the difference map, a COG: a class for each kind of change.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    creation_options: options.CreationOptions = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare two class maps of one grid: agreement, confusion, areas of change.

    Two dates of one place, or two models. Pixels without data on either are left out. A difference between two maps
    is no measured change: both have errors. For an area of change with a confidence interval, sample and interpret.

    \b
    Examples:
      skysense compare 2023.tif 2024.tif
      skysense compare small.tif large.tif --out difference.tif
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.compare import CompareConfig
    from skysense_core.compare import compare as run

    pairs = tables.pairs("--co", creation_options)
    result = run(CompareConfig(first=first, second=second, out=out, creation_options=pairs, overwrite=overwrite))
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        _print(result)


def _print(result: "CompareResult") -> None:
    areas = [
        (name, f"{before:,.1f}", f"{after:,.1f}", f"{after - before:+,.1f}")
        for name, (before, after) in result.hectares.items()
    ]
    console.print_table("Areas in hectares, where both show a class", ("class", "A", "B", "B - A"), areas)
    changes = [
        (f"{one.before} -> {one.after}", f"{one.hectares:,.1f}", console.percent(one.share))
        for one in result.changes[:SHOWN]
    ]
    if changes:
        console.print_table("Changes", ("from -> to", "hectares", "share"), changes)
    facts = {"agreement": f"{console.percent(result.agreement)} of {result.pixels:,} pixels"}
    facts |= {"kappa": console.score(result.kappa)}
    more = len(result.changes) - SHOWN
    facts |= {"more": f"{more} rarer kinds of change, see --json"} if more > 0 else {}
    console.print_facts(facts | ({} if result.path is None else {"file": str(result.path)}))
