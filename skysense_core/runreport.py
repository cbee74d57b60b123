"""A page on a training run, or on several beside each other: curves, scores, chips, places, settings, in one file.

It is made from what lies in the run's folder alone: `metrics.jsonl`, `metrics.json`, `config.toml`, and `looks.json`,
which holds the chips and places that training has noted. So a run that was interrupted has one too.
"""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from skysense_core.errors import SkysenseError
from skysense_core.runs import CONFIG, LOG, LOOKS, METRICS, REPORT, best_of, read_json

POINTS = 400
"""Most points of a curve; a page of a long training stays small."""


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or of several, and return where it is: by default in the folder of a lone run.

    Raises SkysenseError for a folder that is no run and for a file that cannot be written.
    """
    runs = [_run(folder) for folder in folders]
    title = ", ".join(one["name"] for one in runs)
    path = out or folders[0] / REPORT
    # "</" would end the script.
    data = json.dumps({"runs": runs}).replace("</", "<\\/")
    text = files("skysense_core").joinpath("runreport.html").read_text(encoding="utf-8")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(Template(text).substitute(title=html.escape(title), data=data), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SkysenseError(f"{path}: cannot be written: {error.strerror}", fix="Choose another --out.") from error
    return path


def scores_of(folder: Path) -> dict[str, float]:
    """The single scores of a run's best model; empty where it has not validated yet."""
    return {key: value for key, value in read_json(folder / METRICS).items() if isinstance(value, float)}


def _run(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise SkysenseError(f"{folder}: no run: it has no {CONFIG}", fix="Give the --out folder of a training.")
    settings = (folder / CONFIG).read_text(encoding="utf-8")
    lines = _lines(folder / LOG)
    looks = read_json(folder / LOOKS)
    scores = read_json(folder / METRICS)
    steps = max((line["step"] for line in lines), default=0)
    return {
        "name": folder.resolve().name,
        "state": f"{folder.resolve().name}: {steps} steps" + (f", {best}" if (best := best_of(scores)) else ""),
        "curves": {kind: _curves(lines, kind) for kind in ("train", "val")},
        "scores": {key: value for key, value in scores.items() if isinstance(value, int | float)},
        "classes": scores.get("classes", {}),
        "confusion": scores.get("confusion"),
        "reliability": scores.get("reliability", []),
        "chips": looks.get("chips", []),
        "legend": looks.get("legend", []),
        "parts": looks.get("parts", {}),
        "settings": settings,
    }


def _curves(lines: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[tuple[int, float]]]:
    """Each number that was logged, by step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if line["kind"] == kind:
            for key, value in line.items():
                if key not in ("step", "kind") and isinstance(value, int | float):
                    found.setdefault(key, []).append((line["step"], float(f"{value:.5g}")))
    return {key: _thinned(points) for key, points in found.items()}


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = -(-len(points) // POINTS)
    # The last point is where the run stands.
    return points[:: max(stride, 1)] + ([points[-1]] if (len(points) - 1) % max(stride, 1) else [])


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; the last one may be half written."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
