"""`skysense sample`: places at which a map is to be judged."""

from pathlib import Path
from typing import Annotated

import typer

from skysense_cli import console, options, tables


def sample(
    map: options.ClassMap,
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Points in all.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The points: .gpkg, .parquet, .geojson or .fgb.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    allocation: Annotated[
        str,
        typer.Option(
            metavar="proportional|equal", help="Points of a class: by its area, once each has its least; or as many."
        ),
    ] = "proportional",
    min_per_class: Annotated[
        int, typer.Option(metavar="N", help="Least points of a class; rare ones need 50 to 100 for narrow intervals.")
    ] = 25,
    seed: Annotated[int, typer.Option(metavar="N", help="Another number draws other points.")] = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw a random sample of pixels, stratified by the classes of a map.

    Open the points in QGIS over imagery better than what the map was made from, and write the true class of each (its
    name or its code) into the column "reference". The class on the map is not in the file, so that it does not
    lead you. Then: skysense area.

    \b
    Examples:
      skysense sample map.tif --n 300 --out points.gpkg
      skysense sample map.tif --n 640 --min-per-class 75 --out points.gpkg
      skysense sample map.tif --n 200 --allocation equal --seed 1 --out points.geojson
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.sample import SampleConfig
    from skysense_core.sample import sample as run
    from skysense_core.stratified import ALLOCATIONS

    tables.choice("--allocation", allocation, ALLOCATIONS)
    given = {
        "map": map,
        "out": out,
        "n": n,
        "allocation": allocation,
        "min_per_class": min_per_class,
        "seed": seed,
        "overwrite": overwrite,
    }
    result = run(config.build(SampleConfig, given))
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        rows = [(name, f"{result.pixels[name]:,}", str(count)) for name, count in result.classes.items()]
        console.print_table("Sample", ("class on the map", "pixels", "points"), rows)
        console.print_facts(
            {"file": str(result.path), "next": f"skysense area {map} --reference {result.path}, once it is filled in"}
        )
