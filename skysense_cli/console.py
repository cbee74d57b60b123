"""What the commands print: logs and errors on stderr, the result on stdout as a table or as one JSON object.

Rich is imported where something is drawn, not with the module: `--help` must not pay for it.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skysense_core.errors import PartialError, SkysenseError

PACKAGES = ("skysense_core", "skysense_cli")
TITLES = {"oa": "accuracy", "miou": "mIoU", "mf1": "mean F1", "iou": "IoU", "f1": "F1", "rmse": "RMSE", "r2": "R2"}
"""What scores are called in tables, where it is not their key."""


def speaks() -> bool:
    """Whether this process prints for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def start_logging(*, quiet: bool, verbose: bool) -> None:
    """Send the project's own log lines to stderr: all with `verbose`, warnings only with `quiet`.

    Of several processes the first one speaks, and the others where something is wrong.
    """
    quiet, verbose = (quiet, verbose) if speaks() else (True, False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def print_error(error: SkysenseError) -> None:
    """`error: what and where`, and below it what to do, on stderr."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("error: ", "bold red"), error.message)
    if error.fix:
        text.append(f"\n{error.fix}", style="cyan")
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def refuse_left_out(left_out: Sequence[str], folder: Path) -> None:
    """Raises PartialError where something could not be read and was left out."""
    if left_out:
        from skysense_core.runs import FAILURES

        first = left_out[0].splitlines()[0]
        raise PartialError(f"{len(left_out)} left out, the first: {first}", fix=f"See {folder / FAILURES}.")


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(result, default=str) + "\n")


def print_lines(rows: Iterable[Sequence[str]]) -> None:
    """A line per row on stdout, with tabs between its words, for xargs and other programs."""
    sys.stdout.writelines("\t".join(row) + "\n" for row in rows)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; every column but the first is aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_bars(title: str, rows: Iterable[tuple[str, str, str, str]]) -> None:
    """A bar chart on stdout: name, number, share and bar of each row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    for number in range(4):
        table.add_column(justify="right" if number in (1, 2) else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_facts(facts: Mapping[str, str]) -> None:
    """Lines of `name  value` on stdout; a value is never cut, so that paths can be copied."""
    from rich.console import Console
    from rich.text import Text

    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        Console(soft_wrap=True).print(Text.assemble((f"{name:<{width}}  ", "bold"), value))


def print_classes(title: str, scores: Mapping[str, Any]) -> None:
    """The scores of each class, as the core's `metrics.class_scores` makes them."""
    if named := scores.get("classes"):
        columns = [key for key in next(iter(named.values())) if key != "support"]
        rows = [(name, *(score(one[key]) for key in columns), f"{one['support']:,}") for name, one in named.items()]
        print_table(title, ("class", *(TITLES.get(key, key) for key in columns), "support"), rows)


def totals(scores: Mapping[str, Any]) -> dict[str, str]:
    """The single scores by their titles."""
    return {
        TITLES.get(key, key): score(value) for key, value in scores.items() if value is None or type(value) is float
    }


def score(value: float | None) -> str:
    """A score as `0.931`, or a dash where it is undefined."""
    return "-" if value is None else f"{value:.3f}"


def percent(share: float) -> str:
    """A share as `93.1 %`."""
    return f"{100 * share:.1f} %"
