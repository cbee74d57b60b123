"""`skysense models`: the models that are at hand."""

from pathlib import Path
from typing import Annotated

import typer

from skysense_cli import console, options


def models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Where to look for models of yours; else runs/, if it is there."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """List the packaged models and those in folders: what each reads, which classes it has, its licence.

    \b
    Examples:
      skysense models
      skysense models runs/ /data/models --json
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core import config
    from skysense_core.models import models as listed

    runs = Path("runs")
    found = listed(folders if folders is not None else [runs] if runs.is_dir() else [])
    if json:
        console.print_json({"models": [config.to_table(one) for one in found]})
        return
    rows = [
        (
            one.name,
            one.task or "-",
            "; ".join(f"{name} {reads}" for name, reads in one.modalities.items()),
            ", ".join(one.classes[:4]) + (f" and {len(one.classes) - 4} more" if len(one.classes) > 4 else ""),
            one.licence if one.fault is None else f"cannot be used: {one.fault}",
        )
        for one in found
    ]
    console.print_table("Models", ("--model", "task", "reads", "classes", "licence"), rows)
