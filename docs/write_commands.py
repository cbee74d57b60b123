"""Writes docs/commands.md: the help of every command, as the command line prints it. `make docs` runs it."""

import subprocess
import sys
from pathlib import Path

from skysense_cli.app import commands

PAGE = Path(__file__).with_name("commands.md")
HEADER = """# Commands

What `skysense COMMAND --help` prints. Written by `make docs`; a test compares it with the program.
"""


def help_of(*words: str) -> str:
    """The help text of a command, 100 columns wide."""
    command = [sys.executable, "-m", "skysense_cli", *words, "--help"]
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def page() -> str:
    """The whole page."""
    sections = [("skysense", help_of()), *((f"skysense {name}", help_of(name)) for name in commands())]
    return HEADER + "".join(f"\n## {title}\n```\n{text}\n```\n" for title, text in sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
