"""`skysense export`: a trained model as one file for torch.export or ONNX."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skysense_cli import console, options, tables

if TYPE_CHECKING:
    from skysense_core.export import ExportResult


def export(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="A run or model folder, or a packaged model's name.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The file, .pt2 or .onnx.", rich_help_panel=options.OUTPUT),
    ],
    format: Annotated[
        str | None,
        typer.Option(metavar="torch-export|onnx", help="Else by the suffix of --out.", rich_help_panel=options.OUTPUT),
    ] = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCENE",
            help="Imagery to compare on, MODALITY=PATH where the model reads several; else noise.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Fix height and width in pixels of the reference modality; else the model's window.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a model as one file that runs without skysense: torch.export (.pt2) or ONNX.

    The file appears once it has given the model's scores within 1e-3. Batch size and number of dates are free. Height
    and width are those of the model's windows; the .pt2 of a model of one modality takes squares of any multiple of its
    coarsest cell, unless --window fixes them. It holds bands, statistics, classes and licence. ONNX is for models of
    one modality. skysense predict takes it as a model too.

    \b
    Examples:
      skysense export runs/mine --out mine.onnx --scene scene.tif
      skysense export runs/crops --format torch-export --out crops.pt2
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.export import FORMATS, ExportConfig
    from skysense_core.export import export as run

    given = {
        "model": model,
        "out": out,
        "format": tables.choice("--format", format, FORMATS),
        "scene": tuple(scene) if scene else None,
        "window": window,
        "overwrite": overwrite,
    }
    result = run(ExportConfig(**config.merge(given)))
    if json:
        console.print_json(config.to_table(result))
    elif not quiet:
        _print(result)


def _print(result: "ExportResult") -> None:
    sides = ", ".join(f"{name} {side} x {side}" for name, side in result.sides.items())
    free = f"; or squares of any multiple of {result.step}" if result.step else ""
    console.print_facts(
        {
            "model": result.model,
            "format": result.format,
            "inputs": ", ".join(result.inputs),
            "windows": f"{sides} pixels, any number of them" + free,
            "compared": f"{result.chips} chips of {result.compared_on}",
            "difference": f"{result.difference:.1g} at most, of a logit",
            "licence": result.licence,
            "file": f"{result.path}, {result.bytes / 1e6:.1f} MB",
        }
    )
