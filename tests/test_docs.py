"""What the pages, examples and the Makefile say about the command line is true, and nothing of it is unsaid."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from skysense_cli.app import app, commands

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

COMMAND = get_command(app)
OPTIONS = {
    name: {
        word
        for param in COMMAND.commands[name].params
        for word in (*param.opts, *param.secondary_opts)
        if word.startswith("-")
    }
    | {"--help", "-h", "--debug"}
    for name in commands()
}
ALONE = ("--help", "-h", "--version", "--install-completion")


def shell_texts() -> Iterator[tuple[str, str]]:
    """Every piece of shell in the repository that may call skysense, with the file it stands in."""
    for page in PAGES:
        if page.name == "CONTRIBUTING.md":  # names things that are still to be added; has a test of its own
            continue
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in ("bash", "sh", "console"):
                yield page.name, text
        yield from ((page.name, inline) for inline in re.findall(r"`(skysense [^`\n]+)`", page.read_text()))
    makefiles = [ROOT / "Makefile", *(ROOT / "examples").glob("*.mk")]
    yield from ((script.name, script.read_text()) for script in [*SCRIPTS, *makefiles])


def calls(text: str) -> Iterator[list[str]]:
    """The words of every call of skysense in a piece of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        match = re.search(r"(?:^|[\s;&|])(skysense\s.*)", line.split(" #")[0])
        if match and not line.startswith("#"):
            words = shlex.split(re.split(r"\s[|;&>]", match[1])[0], posix=True)
            if len(words) > 1 and not words[1].isupper():
                yield words


def test_every_command_and_option_that_is_mentioned_exists() -> None:
    seen, wrong = 0, []
    for where, text in shell_texts():
        for words in calls(text):
            seen += 1
            if words[1].startswith("-"):
                wrong += [f"{where}: {words[1]}"] if words[1] not in ALONE else []
            elif words[1] not in OPTIONS:
                wrong.append(f"{where}: skysense {words[1]}")
            else:
                given = [word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)]
                wrong += [f"{where}: skysense {words[1]} {word}" for word in given if word not in OPTIONS[words[1]]]
    assert wrong == []
    assert seen > 10


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## skysense (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert name in sections, "run `make docs`"
    words = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", sections[name]))
    assert OPTIONS[name] - words - {"--debug"} == set(), "not in docs/commands.md: run `make docs`"
    assert words - OPTIONS[name] == set(), "in docs/commands.md only: run `make docs`"


def test_the_readme_lists_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in commands() if f"| `skysense {name}` |" not in readme] == []


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_a_script_is_executable_and_parses(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_shell_blocks_parse_and_local_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if language in ("bash", "sh"):
            subprocess.run(["bash", "-n", "-c", block], check=True)
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_no_page_names_a_path_of_one_machine() -> None:
    named = [page.name for page in [*PAGES, *SCRIPTS] if re.search(r"/(?:work|home|root)/", page.read_text())]
    assert named == []
