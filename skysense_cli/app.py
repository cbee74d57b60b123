"""The command line: `skysense COMMAND ...`. Every module of this package with a function of its own name is a command.

A command imports the core inside its function, so `--help` answers at once and needs neither torch nor GDAL. For the
same reason help is plain text (importing Typer's Rich help takes longer than everything else together), and the root
has a `--help` of its own (Typer's would validate the absent flag, and import pydantic for it).
"""

import importlib
import os
import pkgutil
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import skysense_cli
from skysense_cli import console
from skysense_core.errors import SkysenseError

COMPLETION = {"--install-completion", "--show-completion"}
"""Options of the root that set up completion in a shell."""

app = typer.Typer(
    # Typer validates these options on every call, and imports pydantic for it.
    add_completion="_SKYSENSE_COMPLETE" in os.environ or bool(COMPLETION & set(sys.argv)),
    add_help_option=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Command(TyperCommand):
    """A command whose help lists the options under the headings that they name (`rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                arguments = "Arguments" if param.param_type_name == "argument" else "Other"
                heading = getattr(param, "rich_help_panel", None) or arguments
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"skysense {version('skysense')}")
        raise typer.Exit


def _print_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(context.get_help())
        raise typer.Exit


@app.callback()
def skysense(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")
    ] = False,
    show_help: Annotated[
        bool, typer.Option("--help", "-h", callback=_print_help, is_eager=True, help="Show this message and exit.")
    ] = False,
) -> None:
    """From imagery to georeferenced maps.

    Train a model on labelled imagery with finetune, judge it with evaluate, and map whole scenes with predict.
    """


def commands() -> list[str]:
    """Names of all commands, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(skysense_cli.__path__))
    return [name for name in names if name not in ("__main__", "app", "console", "options", "tables")]


for _name in commands():
    app.command(cls=Command)(getattr(importlib.import_module(f"skysense_cli.{_name}"), _name))


def main() -> None:
    """Run a command; an error that the user can act on becomes a message and its exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="skysense")
    except SkysenseError as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        console.print_error(error)
        sys.exit(error.exit_code)
