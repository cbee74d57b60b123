"""`skysense predict`: from a scene to a georeferenced map."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables
from skysense_core.errors import PartialError, UsageError

if TYPE_CHECKING:
    from skysense_core.predict import Estimate, PredictConfig, PredictResult

log = logging.getLogger(__name__)


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE...",
            help="A raster, a glob or a folder; MODALITY=PATH where the model reads several. For change: before, then "
            "after, of each modality.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The map, a COG; objects: .gpkg, .parquet, .fgb, .geojson.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    model: options.Model = None,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = None,
    aoi: options.Aoi = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="A map for each of these polygons, or for each line of stdin that skysense regions printed; --out "
            "'maps/{id}.tif'. Maps that exist are skipped.",
            rich_help_panel=options.AREA,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column that names the regions; else id.", rich_help_panel=options.AREA),
    ] = None,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help="Go on after a region, or a picture of a table, that fails: noted in failures.jsonl beside the files, "
            "exit code 3.",
            rich_help_panel=options.AREA,
        ),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A raster whose grid the map takes.", rich_help_panel=options.AREA),
    ] = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write OUT_probabilities.tif, one band per class.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    confidence: Annotated[
        str | None,
        typer.Option(
            metavar="max|margin|entropy",
            help="Also write OUT_confidence.tif: highest probability, margin over the second, or 1 - entropy.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    unsure: options.Unsure = None,
    observations: Annotated[
        bool,
        typer.Option(
            "--observations",
            help="Also write OUT_observations.tif: how many images showed each pixel.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    polygons: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write polygons with class, area and mean confidence: .gpkg, .parquet, .fgb, .geojson.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    min_area: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="M2",
            help="Patches of the map below so many square metres take the class around them.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Also draw image, map and legend.", rich_help_panel=options.OUTPUT),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Also write a page that needs no network: image and map over each other with slider and opacity, "
            "legend, areas, confidence.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
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
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model first: some minutes more to start, for long runs.",
            rich_help_panel=options.MACHINE,
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Compute the I-th of N parts; the last one joins them. In a job array: slurm, which knows both.",
            rich_help_panel=options.MACHINE,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Compute on the workers of a Dask scheduler, or of one that starts here.",
            rich_help_panel=options.MACHINE,
        ),
    ] = None,
    dry_run: options.DryRun = False,
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
      skysense predict scene/ --model runs/mine --out map.tif --preview map.png --report map.html
      skysense predict hr=ortho.tif s2=series/ --model runs/mine --out map.tif
      skysense predict before.tif after.tif --model runs/change --out change.tif --probabilities --polygons change.gpkg
      skysense predict s2=may/ s2=june/ s1=may.tif s1=june.tif --model runs/floods --out flood.tif
      skysense predict scene.tif --out part.tif --bbox 13.1,52.4,13.2,52.5 --bbox-crs EPSG:4326
      skysense predict scene.tif --out 'maps/{id}.tif' --regions counties.gpkg --id-column name
      skysense predict pictures/ --model runs/scenes --out table.csv

    A run that is stopped goes on where it was when the same command is given again.
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.geo.options import ReadOptions
    from skysense_core.predict import PredictConfig, estimate
    from skysense_core.predict import predict as run
    from skysense_core.predict.chips import are_chips
    from skysense_core.predict.products import CONFIDENCE

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
        "bbox": tables.numbers("--bbox", bbox, 4),
        "bbox_crs": bbox_crs,
        "aoi": aoi,
        "like": like,
        "window": window,
        "overlap": overlap,
        "probabilities": probabilities,
        "confidence": tables.choice("--confidence", confidence, CONFIDENCE),
        "unsure": unsure,
        "observations": observations,
        "polygons": polygons,
        "min_area": min_area,
        "preview": preview,
        "report": report,
        "creation_options": tables.pairs("--co", creation_options),
        "read": {name: config.build(ReadOptions, table, "read") for name, table in reading.items()},
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "jobs": jobs,
        "max_memory": tables.size("--max-memory", max_memory),
        "compile": compile,
        "cluster": cluster,
        "array": tables.part("--shard", shard),
        "overwrite": overwrite,
    }
    settings = PredictConfig(**config.merge(given))
    chips = regions is None and are_chips(settings)
    if regions is None and (id_column is not None or (keep_going and not chips)):
        raise UsageError("--id-column and --keep-going are for --regions, and --keep-going for tables of pictures")
    if chips:
        _of_chips(settings, keep_going=keep_going, json=json, quiet=quiet)
    elif regions is not None:
        _each_region(settings, regions, id_column, keep_going=keep_going, dry_run=dry_run, json=json, quiet=quiet)
    elif dry_run:
        print_estimate(estimate(settings), json=json)
    else:
        result = run(settings)
        for note in result.notes:
            log.info("note: %s", note)
        if json:
            console.print_json(config.to_table(result))
        elif not quiet:
            _print(result)


def _of_chips(settings: "PredictConfig", *, keep_going: bool, json: bool, quiet: bool) -> None:
    from skysense_core import config
    from skysense_core.predict.chips import FAILURES, predict_chips

    result = predict_chips(settings, keep_going=keep_going)
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        console.print_table("Pictures", ("class", "pictures"), [(name, f"{n:,}") for name, n in result.classes.items()])
        console.print_facts({"model": f"{result.model} ({result.digest[:12]})", "file": str(result.path)})
    if result.failed:
        raise PartialError(
            f"{len(result.failed)} of {result.pictures + len(result.failed)} pictures could not be read: "
            f"{', '.join(result.failed[:5])}",
            fix=f"See {settings.out.parent / FAILURES}.",
        )


def _each_region(
    settings: "PredictConfig",
    source: str,
    id_column: str | None,
    *,
    keep_going: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    from skysense_core import config
    from skysense_core.predict.regions import FAILURES, predict_regions

    outcomes = []
    for one in predict_regions(settings, source, id_column=id_column, keep_going=keep_going, dry_run=dry_run):
        outcomes.append(one)
        if json:
            console.print_json(config.to_table(one))
    failed = [one for one in outcomes if one.error is not None]
    if not (json or quiet):
        if dry_run:
            rows = [(one.id, *_numbers(one.estimate)) for one in outcomes if one.estimate is not None]
            console.print_table("Regions", ("region", *ESTIMATE), rows)
        else:
            rows = [
                (one.id, "there already" if one.result is None else f"{one.result.seconds:.1f} s", str(one.path))
                for one in outcomes
                if one.error is None
            ]
            console.print_table("Regions", ("region", "time", "file"), rows)
    if failed:
        raise PartialError(
            f"{len(failed)} of {len(outcomes)} regions failed: {', '.join(one.id for one in failed[:5])}",
            fix=f"See {settings.out.parent / FAILURES}; the same command computes what is missing.",
        )


ESTIMATE = ("windows", "megapixels", "memory", "disk", "time")


def _numbers(one: "Estimate") -> tuple[str, ...]:
    return (
        f"{one.windows:,}",
        f"{one.megapixels:.1f}",
        f"{one.memory / 2**30:.1f} GiB",
        f"{one.disk / 2**30:.2f} GiB",
        f"{one.seconds:,.0f} s",
    )


def print_estimate(one: "Estimate", *, json: bool) -> None:
    from skysense_core import config

    if json:
        console.print_json(config.to_table(one))
        return
    shards = f"{one.shards}, {one.reused} of them finished" if one.reused else str(one.shards)
    facts = dict(zip(ESTIMATE, _numbers(one), strict=True))
    console.print_facts({**facts, "shards": shards, "batch size": str(one.batch_size)})


def _print(result: "PredictResult") -> None:
    rows = [
        (one.name, f"{one.square_metres / 1e4:,.1f}", console.percent(one.share))
        for one in sorted(result.classes, key=lambda one: -one.square_metres)
    ]
    if rows:
        console.print_table("Map", ("class", "hectares", "share"), rows)
    skipped = f", {result.skipped} empty ones skipped" if result.skipped else ""
    reused = f", {result.reused} reused" if result.reused else ""
    console.print_facts(
        {
            "model": f"{result.model} ({result.digest[:12]})",
            "windows": f"{result.windows}{skipped}",
            "shards": f"{result.shards}{reused}",
            "speed": f"{result.megapixels:.2f} Mpx in {result.seconds:.1f} s, {result.waited:.1f} s waiting for data",
            **{f"file {number}": str(path) for number, path in enumerate(result.paths, start=1)},
        }
    )
