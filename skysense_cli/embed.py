"""`skysense embed`: from a scene to the features that a model sees in it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.embed import EmbedResult

log = logging.getLogger(__name__)


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE...",
            help="A raster, a glob or a folder; MODALITY=PATH where the model reads several, of which any may be left "
            "out.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The features, a COG; with --polygons or --grid a .parquet.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    model: options.Model = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="fused, fused_mm (without geo-context), aligned.s2, s2.1 to s2.4 (levels of its encoder); else the "
            "fused map, or the last level of a lone encoder.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    prototypes: Annotated[
        bool,
        typer.Option(
            "--prototypes",
            help="Instead, the nearest geo-context prototype of each pixel, with colours.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    pca: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="The first K principal components instead of all channels.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="int8|float16",
            help="How values are stored; int8 with a scale and an offset per band, the default.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    polygons: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead, the mean features of each of these polygons, as GeoParquet.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    grid: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="SIDE",
            help="Instead, the mean features of each square of SIDE pixels, as GeoParquet.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = None,
    aoi: options.Aoi = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    creation_options: options.CreationOptions = None,
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
    jobs: options.Jobs = None,
    max_memory: options.MaxMemory = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write the features of a scene of any size.

    The features are a cloud-optimised GeoTIFF whose pixels are those of the feature map: 32 pixels of hr, one of
    Sentinel-2 where modalities are fused, 4 of a lone ViT. The model may have a task or none.

    \b
    Examples:
      skysense embed scene.tif --out features.tif --model runs/mine
      skysense embed scene.tif --out rgb.tif --model runs/mine --features hr.2 --pca 3
      skysense embed s2=series/ --out fields.parquet --model skysense-huge --polygons fields.gpkg
      skysense embed scene.tif --out chips.parquet --model runs/mine --grid 512
      skysense embed s2=series/ --out prototypes.tif --model pretrained --prototypes

    A run that is stopped goes on where it was when the same command is given again.
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_cli.predict import print_estimate
    from skysense_core import config
    from skysense_core.embed import EmbedConfig, estimate
    from skysense_core.embed import embed as run
    from skysense_core.geo.options import ReadOptions

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
        "inputs": tuple(inputs),
        "out": out,
        "model": model,
        "features": features,
        "prototypes": prototypes,
        "pca": pca,
        "dtype": tables.choice("--dtype", dtype, ("int8", "float16")),
        "polygons": polygons,
        "grid": grid,
        "bbox": tables.numbers("--bbox", bbox, 4),
        "bbox_crs": bbox_crs,
        "aoi": aoi,
        "window": window,
        "overlap": overlap,
        "creation_options": tables.pairs("--co", creation_options),
        "read": {name: config.build(ReadOptions, table, "read") for name, table in reading.items()},
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "jobs": jobs,
        "max_memory": tables.size("--max-memory", max_memory),
        "overwrite": overwrite,
    }
    settings = EmbedConfig(**config.merge(given))
    if dry_run:
        print_estimate(estimate(settings), json=json)
        return
    result = run(settings)
    for note in result.notes:
        log.info("note: %s", note)
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        _print(result)


def _print(result: "EmbedResult") -> None:
    rows, columns = result.shape
    console.print_facts(
        {
            "model": f"{result.model} ({result.digest[:12]})",
            "features": f"{result.features}, {result.channels} channels, a pixel for {result.cell} x {result.cell}",
            "size": f"{rows:,} x {columns:,}",
            "windows": f"{result.windows}" + (f", {result.skipped} empty ones skipped" if result.skipped else ""),
            "shards": f"{result.shards}" + (f", {result.reused} reused" if result.reused else ""),
            "speed": f"{result.megapixels:.2f} Mpx in {result.seconds:.1f} s, {result.waited:.1f} s waiting for data",
            "file": str(result.path),
        }
    )
