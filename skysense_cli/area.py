"""`skysense area`: areas and accuracies from reference points."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options

if TYPE_CHECKING:
    from skysense_core.area import AreaResult

log = logging.getLogger(__name__)


def area(
    map: options.ClassMap,
    reference: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Points with the true class, drawn by skysense sample from this map."),
    ],
    column: Annotated[str, typer.Option(metavar="NAME", help="Their column with the true class.")] = "reference",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Estimate the area of each class with 95 % confidence intervals, and the accuracy of the map.

    Counting the pixels of a map repeats its errors. This takes the stratified estimator of Olofsson et al. (2014):
    error-adjusted areas; user's, producer's and overall accuracy with standard errors. It holds for points that were
    drawn at random within each class of this map, and for a simple random sample.

    \b
    Examples:
      skysense area map.tif --reference points.gpkg
      skysense area map.tif --reference interpreted.geojson --column class --json
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.area import AreaConfig
    from skysense_core.area import area as run

    result = run(AreaConfig(map=map, reference=reference, column=column))
    for note in result.notes:
        log.warning("note: %s", note)
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        _print(result)


def _print(result: "AreaResult") -> None:
    names = [one.name for one in result.classes]
    counts = [(name, *map(str, row), str(sum(row))) for name, row in zip(names, result.counts, strict=True)]
    console.print_table("Points: map class by true class", ("map", *names, "all"), counts)
    rows = [
        (
            one.name,
            f"{one.mapped_ha:,.1f}",
            f"{one.area_ha:,.1f}",
            f"{one.area_ci95_ha:,.1f}",
            f"{console.score(one.user)} ({console.score(one.user_se)})",
            f"{console.score(one.producer)} ({console.score(one.producer_se)})",
        )
        for one in result.classes
    ]
    columns = ("class", "mapped ha", "estimated ha", "95 % +-", "user's (SE)", "producer's (SE)")
    console.print_table("Area and accuracy", columns, rows)
    overall = f"{result.overall:.3f} (standard error {result.overall_se:.3f}) from {result.points} points"
    console.print_facts({"overall accuracy": overall})
