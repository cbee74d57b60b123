"""`skysense ingest`: from sensor products, or a labelled data set, to a store of aligned samples."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables
from skysense_core.errors import PartialError, UsageError

if TYPE_CHECKING:
    from skysense_core.ingest import Estimate, IngestResult, Work

log = logging.getLogger(__name__)
STORE = "Store"
SEARCH = "STAC search"


def ingest(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODALITY=]PATH...",
            help="Files, globs, folders, Sentinel-2 products, STAC items or cubes; or the folder of a labelled data "
            "set. Where the modality is not said it is found by the bands.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The store.", rich_help_panel=options.OUTPUT),
    ] = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    unlabelled: options.Unlabelled = None,
    classes: options.Classes = None,
    source: options.SourceName = None,
    fold: options.Fold = None,
    collections: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODALITY=]NAME,...",
            help="What to search for where an input is the address of a STAC API, with --bbox or --aoi.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    datetime: Annotated[
        str | None,
        typer.Option(metavar="FROM/TO", help="Search for these dates: 2020-06/2020-08.", rich_help_panel=SEARCH),
    ] = None,
    max_cloud: Annotated[
        float | None,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="Search for optical imagery of at most.", rich_help_panel=SEARCH
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
    bbox: options.Bbox = None,
    bbox_crs: Annotated[
        str | None,
        typer.Option("--bbox-crs", metavar="CRS", help="CRS of --bbox; else EPSG:4326.", rich_help_panel=options.AREA),
    ] = None,
    aoi: options.Aoi = None,
    crs: Annotated[
        str | None,
        typer.Option(
            metavar="CRS", help="Of the samples; else the UTM zone that each lies in.", rich_help_panel=options.AREA
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=4, metavar="N", help="Side of a sample in pixels of 10 m; else 64.", rich_help_panel=options.AREA
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="From one sample to the next, in the same pixels; else side by side.",
            rich_help_panel=options.AREA,
        ),
    ] = None,
    min_valid: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Least share of a sample that some date of the finest modality shows; else 0.5.",
            rich_help_panel=STORE,
        ),
    ] = None,
    min_date_valid: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Dates that show less of a sample are left out of it; else 0.1.",
            rich_help_panel=STORE,
        ),
    ] = None,
    max_dates: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most dates of a sample, evenly spaced.", rich_help_panel=STORE),
    ] = None,
    split_block: Annotated[
        str | None,
        typer.Option(
            metavar="METRES",
            help="Side of the blocks of ground that train, validate or test: 500m; else 10km, less on little ground.",
            rich_help_panel=STORE,
        ),
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="SHARE", help="Blocks that validate; else 0.1.", rich_help_panel=STORE),
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="SHARE", help="Blocks that test; else 0.1.", rich_help_panel=STORE),
    ] = None,
    buffer: Annotated[
        str | None,
        typer.Option(
            metavar="METRES", help="Between samples of two parts: 0m, 2km; else one sample.", rich_help_panel=STORE
        ),
    ] = None,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak",
            help="Keep a data set's own split although train and test show the same ground.",
            rich_help_panel=STORE,
        ),
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples of a shard, about; else 1024.", rich_help_panel=STORE),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Processes; else 1.", rich_help_panel=options.MACHINE),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say how many samples, dates and bytes there are.", rich_help_panel=options.MACHINE
        ),
    ] = False,
    config: options.Config = None,
    settings: options.Set = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Turn imagery into a store of aligned samples, from which models train without reprojecting anything.

    Every modality is brought onto one lattice of squares: in the UTM zone of the place, each at its own pixel size,
    with all its dates. What is invalid or cloudy stays marked so. A run that is stopped goes on where it was when the
    same command is given again; inputs that are damaged are listed in failures.jsonl, and the rest is done.

    \b
    Examples:
      skysense ingest s2=S2A_*.SAFE s1=rtc/ hr=ortho.tif --out store/ -j 4
      skysense ingest s2=scenes/ --labels fields.gpkg --label-column crop --out store/
      skysense ingest s2=scenes/ --aoi county.gpkg --max-dates 20 --out store/ --dry-run
      skysense ingest s2=https://HOST/stac --collections sentinel-2-l2a --bbox 33,-17,33.2,-16.8
          --datetime 2020-06/2020-08 --max-cloud 20 --out store/
      skysense ingest pastis/ --out store/
      skysense ingest --config ingest.toml --out store/
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config as settings_of
    from skysense_core import ingest as core
    from skysense_core.data.store import FAILURES

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
    flags: tables.Table = {
        "inputs": tables.by_modality(inputs),
        "collections": {name: some[-1].split(",") for name, some in tables.by_modality(collections).items()},
        "datetime": datetime,
        "max_cloud": max_cloud,
        "data": {"source": source, "fold": fold},
        "read": reading or None,
        "out": out,
        "labels": None if labels is None else str(labels),
        "label_column": label_column,
        "unlabelled": unlabelled,
        "classes": tables.class_names(classes),
        "bbox": tables.numbers("--bbox", bbox, 4),
        "bbox_crs": bbox_crs,
        "aoi": aoi,
        "crs": crs,
        "size": size,
        "stride": stride,
        "min_valid": min_valid,
        "min_date_valid": min_date_valid,
        "max_dates": max_dates,
        "split_block": tables.metres("--split-block", split_block),
        "val_share": val_share,
        "test_share": test_share,
        "buffer": tables.metres("--buffer", buffer),
        "allow_leak": allow_leak or None,
        "shard_size": shard_size,
        "jobs": jobs,
        "overwrite": overwrite or None,
    }
    file = settings_of.load_toml(config) if config else {}
    table = settings_of.merge(file, settings_of.parse_assignments(settings or ()), flags)
    if "out" not in table:
        raise UsageError("no --out: where shall the store be?", fix="For example --out store/")
    work = core.plan(settings_of.build(core.IngestConfig, table))
    if not quiet and not json:
        _print_found(work)
    if dry_run:
        _print_estimate(core.estimate(work), json=json)
        return
    result = core.run(work)
    if json:
        console.print_json(settings_of.to_table(result))
    elif not quiet:
        _print(result)
    if result.failures:
        items = list(dict.fromkeys(failure.item for failure in result.failures))
        raise PartialError(
            f"{len(items)} inputs could not be read, the rest is done: {', '.join(items[:3])}",
            fix=f"See {result.store / FAILURES}; with sound files, ingest anew: --overwrite",
        )


def _print_found(work: "Work") -> None:
    rows = [
        (
            one.modality,
            f"{one.inputs:,}",
            f"{one.images:,}",
            f"{one.first} to {one.last}" if one.first != one.last else one.first or "not known",
            one.crs,
            f"{one.gsd:g} m",
            one.level or "not stated",
        )
        for one in work.found
    ]
    console.print_table("Found", ("modality", "inputs", "images", "dates", "grid", "pixels", "level"), rows)
    for one in work.found:
        for note in one.notes:
            log.info("note: %s: %s", one.modality, note)
    for note in work.notes:
        log.info("note: %s", note)
    for failure in work.failures:
        log.warning("left out: %s", failure.error.splitlines()[0])


def _print_estimate(one: "Estimate", *, json: bool) -> None:
    from skysense_core import config

    if json:
        console.print_json(config.to_table(one))
        return
    shards = f"{one.shards:,}, {one.reused:,} of them finished" if one.reused else f"{one.shards:,}"
    images = ", ".join(f"{count:,} {name}" for name, count in one.images.items())
    console.print_facts(
        {
            "samples": f"{one.samples:,} at most",
            "images": f"{images} at most",
            "size": f"{one.size / 2**30:.2f} GiB before compression",
            "shards": shards,
        }
    )


def _print(result: "IngestResult") -> None:
    from skysense_core.info.stored import training_from_store

    names = {"train": "train", "val": "val", "test": "test", "": "between parts"}
    splits = ", ".join(f"{result.splits[part]:,} {name}" for part, name in names.items() if part in result.splits)
    reused = f", {result.reused:,} reused" if result.reused else ""
    labelled = sum(result.classes.values())
    if labelled:
        rows = [(name, f"{count:,}", console.percent(count / labelled)) for name, count in result.classes.items()]
        console.print_table("Labels", ("class", "pixels", "share"), rows)
    console.print_facts(
        {
            "samples": f"{result.samples:,}: {splits}",
            "images": ", ".join(f"{count:,} {name}" for name, count in result.images.items()),
            "shards": f"{result.shards:,}{reused}, {result.size / 2**20:,.1f} MiB",
            "time": f"{result.seconds:.1f} s",
            "store": str(result.store),
            "next": training_from_store(result.store, labelled=labelled > 0),
        }
    )
