"""`skysense predict`: from a scene to a georeferenced map."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.predict import PredictResult

log = logging.getLogger(__name__)


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE...",
            help="A raster, a glob or a folder; MODALITY=PATH where the model reads several.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The map, a COG.", rich_help_panel=options.OUTPUT)
    ],
    model: options.Model = None,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = None,
    aoi: options.Aoi = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A raster whose grid the map takes.", rich_help_panel=options.AREA),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Side of a window in pixels of the reference modality; else the model's.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pixels that neighbouring windows share; else 5/16 of the window.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write OUT_probabilities.tif, one band per class.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also write OUT_confidence.tif, the highest probability.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Also draw image, map and legend.", rich_help_panel=options.OUTPUT),
    ] = None,
    creation_options: Annotated[
        list[str] | None,
        typer.Option(
            "--co",
            metavar="KEY=VALUE",
            help="Creation option of GDAL's COG driver, e.g. --co COMPRESS=ZSTD.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    rescale: options.Rescale = None,
    s2_offset: options.S2Offset = None,
    s1_unit: options.S1Unit = None,
    date: options.Date = None,
    date_pattern: options.DatePattern = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    precision: options.Precision = None,
    jobs: options.Jobs = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Map a scene of any size with a trained model.

    The map is a cloud-optimised GeoTIFF on the scene's own grid, with colours, class names and nodata 255. Without
    --model, the packaged model that reads the scene's bands is taken.

    \b
    Examples:
      skysense predict scene.tif --out mask.tif
      skysense predict scene/ --model runs/mine --out map.tif --preview map.png
      skysense predict hr=ortho.tif s2=series/ --model runs/mine --out map.tif
      skysense predict scene.tif --out part.tif --bbox 13.1,52.4,13.2,52.5 --bbox-crs EPSG:4326
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.geo.options import ReadOptions
    from skysense_core.predict import PredictConfig
    from skysense_core.predict import predict as run

    reading = tables.read(
        bands=bands,
        nodata=nodata,
        rescale=rescale,
        s2_offset=s2_offset,
        s1_unit=s1_unit,
        date=date,
        date_pattern=date_pattern,
    )
    given = {
        "inputs": tuple(inputs),
        "out": out,
        "model": model,
        "bbox": tables.numbers("--bbox", bbox, 4),
        "bbox_crs": bbox_crs,
        "aoi": aoi,
        "like": like,
        "window": window,
        "overlap": overlap,
        "probabilities": probabilities,
        "confidence": confidence,
        "preview": preview,
        "creation_options": tables.pairs("--co", creation_options),
        "read": {name: config.build(ReadOptions, table, "read") for name, table in reading.items()},
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "jobs": jobs,
        "overwrite": overwrite,
    }
    result = run(PredictConfig(**config.merge(given)))
    for note in result.notes:
        log.info("note: %s", note)
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        _print(result)


def _print(result: "PredictResult") -> None:
    rows = [
        (one.name, f"{one.square_metres / 1e4:,.1f}", console.percent(one.share))
        for one in sorted(result.classes, key=lambda one: -one.square_metres)
    ]
    console.print_table("Map", ("class", "hectares", "share"), rows)
    skipped = f", {result.skipped} empty ones skipped" if result.skipped else ""
    console.print_facts(
        {
            "model": f"{result.model} ({result.digest[:12]})",
            "windows": f"{result.windows}{skipped}",
            "speed": f"{result.megapixels:.2f} Mpx in {result.seconds:.1f} s, {result.waited:.1f} s waiting for data",
            **{f"file {number}": str(path) for number, path in enumerate(result.paths, start=1)},
        }
    )
