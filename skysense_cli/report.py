"""`skysense report`: a page on training runs."""

from pathlib import Path
from typing import Annotated

import typer

from skysense_cli import console, options


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page; else report.html in the folder of a lone run, or comparison.html here.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a page on a training run, or on several beside each other.

    Curves of every loss and score, confusion, classes, the worst and best chips, places, settings: one file that needs
    no network. Training rewrites the page of its own run; this makes it again, also of a run that was interrupted.

    \b
    Examples:
      skysense report runs/mine
      skysense report runs/nano runs/small --out comparison.html
    """
    console.start_logging(quiet=quiet, verbose=verbose)
    from skysense_core.runreport import scores_of, write_report

    path = write_report(runs, out or (Path("comparison.html") if len(runs) > 1 else None))
    scores = {str(run): scores_of(run) for run in runs}
    if json:
        console.print_json({"path": str(path), "scores": scores})
        return
    if quiet:
        return
    names = list(dict.fromkeys(name for one in scores.values() for name in one))
    if names and len(runs) > 1:
        rows = [(name, *(console.score(one.get(name)) for one in scores.values())) for name in names]
        console.print_table("Best models on their validation parts", ("", *scores), rows)
    console.print_facts({"page": str(path)})
