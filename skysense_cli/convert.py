"""`skysense convert`: published weights become a model folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.convert import ConvertResult


def convert(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Weights, .pth or .safetensors; MODALITY=FILE where neither name nor tensors say what they are for.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="The model folder.", rich_help_panel=options.OUTPUT),
    ],
    bands: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Read these bands instead: red,green,blue,nir or B02,B03,B04,B08; MODALITY=NAMES where there are "
            "several modalities.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Take these only, e.g. hr,s2; else all there are.", rich_help_panel=options.MODEL
        ),
    ] = None,
    allow_missing: Annotated[
        str | None,
        typer.Option(
            metavar="PARTS",
            help="Parts that need not fit: they start anew, or what has no place is left out, e.g. fusion,head_s2.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of the weights, for the model card.", rich_help_panel=options.OUTPUT),
    ] = None,
    settings: options.Set = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Turn published weights into a model folder to fine-tune from.

    Takes the files of the SkySense authors, split or in one, any of them, and Swin V2 or ViT weights in the naming of
    timm. Every tensor is accounted for; a gap is an error. No code in a file is run. You bring the weights: the
    authors' are for non-commercial research, which the model card says and models trained from them inherit.

    \b
    Examples:
      skysense convert skysense_model_backbone_hr.pth --out skysense-hr
      skysense convert skysense_model_*.pth --out skysense-huge
      skysense convert skysense_model_backbone_s2.pth --bands B02,B03,B04,B08 --out skysense-s2
      skysense convert swinv2_base_window8_256.safetensors --out imagenet-hr --licence Apache-2.0
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.convert import ConvertConfig
    from skysense_core.convert import convert as run

    given: dict[str, Any] = {
        "files": tables.by_modality(files),
        "out": out,
        "bands": {
            name: tuple(band.strip() for band in lists[-1].split(","))
            for name, lists in tables.by_modality(bands).items()
        },
        "only": tuple(modalities.split(",")) if modalities else None,
        "allow_missing": tuple(allow_missing.split(",")) if allow_missing else None,
        "licence": licence,
        "overwrite": overwrite,
    }
    result = run(config.build(ConvertConfig, config.merge(config.parse_assignments(settings or ()), given)))
    if json:
        console.print_json(_table(result))
    elif not quiet:
        _print(result)


def _table(result: "ConvertResult") -> dict[str, Any]:
    from skysense_core import config

    report = result.report
    totals = {"matched": report.matched, "renamed": report.renamed, "permuted": report.permuted}
    return {
        **config.to_table(result),
        "report": {
            **totals,
            "ignored": result.ignored,
            "fresh": report.fresh,
            "parts": {name: config.to_table(part) for name, part in report.parts.items()},
        },
    }


def _print(result: "ConvertResult") -> None:
    columns = ("part", "matched", "renamed", "permuted", "ignored", "fresh")
    report = result.report
    rows = [
        (name, part.matched, part.renamed, part.permuted, len(part.ignored), len(part.fresh))
        for name, part in report.parts.items()
    ]
    total = (report.matched, report.renamed, report.permuted, len(report.ignored), len(report.fresh))
    console.print_table(
        "Tensors", columns, [(str(row[0]), *(f"{one:,}" for one in row[1:])) for row in [*rows, ("all", *total)]]
    )
    ignored = ", ".join(f"{count:,} {name}" for name, count in result.ignored.items())
    console.print_facts(
        {
            "size": f"{result.preset}, {result.parameters:,} parameters",
            **{name: ", ".join(bands) for name, bands in result.modalities.items()},
            **({"ignored": ignored} if ignored else {}),
            **({"notes": "\n       ".join(result.notes)} if result.notes else {}),
            "licence": result.licence,
            "model": str(result.folder),
            "next": f"skysense finetune --init {result.folder} --task TASK --data DATA",
        }
    )
