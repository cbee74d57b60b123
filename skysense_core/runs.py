"""What a training run keeps in its folder, by name, and what may be removed of it; `runstate` writes the rest."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skysense_core.errors import SkysenseError, UsageError

CONFIG, METRICS, LOG, LOOKS, REPORT = "config.toml", "metrics.json", "metrics.jsonl", "looks.json", "report.html"
FAILURES = "failures.jsonl"
WRITTEN = (
    CONFIG,
    METRICS,
    LOG,
    LOOKS,
    REPORT,
    FAILURES,
    "tensorboard",
    "state",
    "best",
    "last",
    "exports",
    "evaluation",
)
"""What a run consists of, and all that `--overwrite` removes."""


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise UsageError where a run may not go into a folder: it holds something, and neither is wanted."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other", fix="Give one of them.")
    if resume or not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{folder} is not empty", fix="Use --resume to go on or --overwrite to start again.")
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder} is not a run, so nothing in it is removed", fix="Choose another --out.")


def clear_folder(folder: Path) -> None:
    """Remove what an older run left, and nothing else."""
    for name in WRITTEN:
        remove(folder / name)


def write_failures(folder: Path, failures: list[str]) -> None:
    """Note what was left out, a line for each; without failures nothing stays there from an earlier time."""
    remove(folder / FAILURES)
    if failures:
        lines = "".join(json.dumps({"error": one}) + "\n" for one in failures)
        (folder / FAILURES).write_text(lines, encoding="utf-8")


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table whole or not at all: a kill meanwhile leaves the one before it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A table that may not be there yet, and is empty then. Raises SkysenseError where it was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SkysenseError(f"{path}: cut short or altered: {error}", fix="Delete it; the rest is shown.") from None


def best_of(scores: Mapping[str, Any]) -> str:
    """The first score of a `metrics.json` in words; empty where there is none."""
    return next((f"{key} {value:.4g}" for key, value in scores.items() if isinstance(value, float)), "")


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
