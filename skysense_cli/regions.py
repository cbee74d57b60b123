"""`skysense regions`: an area in parts, one line each, for shells, clusters and other programs."""

from pathlib import Path
from typing import Annotated

import typer

from skysense_cli import console, options, tables


def regions(
    size: Annotated[
        str,
        typer.Option(
            metavar="PIXELS|METRES",
            help="Side of a region: 4096 pixels of the raster, or 500m, 5km.",
            rich_help_panel=options.AREA,
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RASTER...", help="A raster, a glob or a folder, as predict takes it."),
    ] = None,
    aoi: options.Aoi = None,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = None,
    crs: Annotated[
        str | None,
        typer.Option(
            metavar="CRS",
            help="CRS of the regions where there is no raster; else that of --aoi or --bbox.",
            rich_help_panel=options.AREA,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write polygons with a column id (.gpkg, .parquet, .geojson, .fgb) instead of printing lines.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut a raster, an area or a rectangle into square regions.

    Prints one line each: an id such as r00_c03, a tab, and xmin,ymin,xmax,ymax in the raster's CRS, as predict
    --bbox takes it. Edges are edges of pixels: predicted one by one and joined by mosaic, the regions give the same
    map as the whole. With --aoi, only regions that share ground with its polygons.

    \b
    Examples:
      skysense regions scene.tif --size 8192
      skysense regions scene.tif --aoi county.gpkg --size 2km --out grid.gpkg
      skysense regions --bbox 13.1,52.4,13.9,52.7 --bbox-crs EPSG:4326 --crs EPSG:32633 --size 10km --json
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.geo.regions import text_of
    from skysense_core.regions import RegionsConfig
    from skysense_core.regions import regions as run

    given = {
        "size": size,
        "inputs": tuple(inputs or ()),
        "bbox": tables.numbers("--bbox", bbox, 4),
        "bbox_crs": bbox_crs,
        "aoi": aoi,
        "crs": crs,
        "out": out,
        "overwrite": overwrite,
    }
    result = run(RegionsConfig(**config.merge(given)))
    if json:
        found = [{"id": region.id, "bbox": list(region.bounds)} for region in result.regions]
        console.print_json({"crs": result.crs, "path": result.path, "regions": found})
    elif result.path is None:
        console.print_lines((region.id, text_of(region.bounds)) for region in result.regions)
    elif not quiet:
        console.print_facts({"regions": f"{len(result.regions):,} in {result.crs}", "file": str(result.path)})
