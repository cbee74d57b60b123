"""The house rules, read from the source without running it: who may import whom, what stays outside, start-up time."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from skysense_cli.app import commands

ROOT = Path(__file__).resolve().parents[1]
CORE, CLI = "skysense_core", "skysense_cli"

ROWS = (
    {"types", "config", "registry", "errors", "progress", "runtime"},
    {
        "losses",
        "geo",
        "optim",
        "metrics",
        "calibration",
        "stratified",
        "modalities",
        "parallel",
        "flops",
        "runs",
        "data.batch",
    },
    {"model", "data", "merge", "average_precision", "cards", "runstate", "preview"},
    {"tasks", "sources", "description"},
    {"trainer", "checkpoint", "inference", "cluster", "baselines", "mapreport", "runreport", "gallery", "probe"},
)
"""A module imports lower rows only, and errors. Other modules of the core are verbs (row 5)."""

VERBS = len(ROWS)
ABOVE = ({"embed"}, {"api"}, {"", CLI})
"""Rows above the verbs: one that is built on predict, the verbs of a model as an object, and what users begin with."""
COMMANDS = VERBS + len(ABOVE)

BASES = {
    "tasks.segmentation",
    "tasks.classification",
    "tasks.detection",
    "sources.folder",
    "sources.class_folders",
    "sources.dior",
    "sources.scenes",
}
"""Modules that the specialisations beside them may import."""

PACKAGES = {"info", "predict", "embed", "ingest", "model", "data", "geo", "merge", "losses", "modalities"}
"""Packages whose modules may import each other."""

FENCES = {
    ("rasterio", "osgeo", "rioxarray"): {"geo", "sources"},
    ("typer", "rich"): {CLI},
    ("torch.distributed",): {"runtime", "parallel", "losses"},
}
"""Third parties and the only parts that may import them."""

TORCHLESS = {"types", "config", "registry", "errors", "modalities", "geo", "sources"}
"""Parts that run where torch is not installed, so nothing that they import may need it either."""

LONGEST = 350
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|misc)(_|$)")
FORBIDDEN_VERBS = re.compile(r"^_*(process|handle|get)_")
FORBIDDEN_TEXT = re.compile(r"\b(?:TODO|FIXME)\b|/(?:work|home|root)/|from __future__ import annotations")


def sources() -> dict[str, str]:
    """Text of every module of both packages by its dotted name."""
    found = {}
    for path in [*(ROOT / CORE).rglob("*.py"), *(ROOT / CLI).rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(name: str, text: str, known: Mapping[str, str]) -> Iterator[str]:
    """Dotted names of all modules that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known or full == "torch.distributed" else str(node.module)


def part(name: str) -> str:
    """The part of the house that a module belongs to: `skysense_core.geo.raster` is geo; data.batch is its own."""
    inner = name.removeprefix(f"{CORE}.")
    if inner == name:
        return CLI if name.split(".")[0] == CLI else ""
    return inner if inner == "data.batch" else inner.split(".")[0]


def row(name: str) -> int:
    rows = {number: parts for number, parts in enumerate((*ROWS, set(), *ABOVE)) if part(name) in parts}
    return next(iter(rows), VERBS)


def may_import(importer: str, imported: str) -> bool:
    if row(imported) < row(importer) or part(imported) == "errors":
        return True
    if part(importer) == part(imported) and part(importer) in {*PACKAGES, CLI}:
        return True
    # What tasks have in common, and sources, is in the __init__ of the package.
    common = {f"{CORE}.{name}" for name in (*BASES, part(importer))}
    return part(importer) == part(imported) and imported in common


def violations(modules: Mapping[str, str]) -> list[str]:
    """Every import that breaks the layer table or a fence."""
    graph = {name: set(imports(name, text, modules)) for name, text in modules.items()}
    found = []
    for name, targets in sorted(graph.items()):
        for target in sorted(targets):
            if target.split(".")[0] in (CORE, CLI):
                if target not in (CORE, CLI) and not may_import(name, target):
                    found.append(f"{name} (row {row(name)}) imports {target} (row {row(target)})")
                continue
            for fenced, allowed in FENCES.items():
                inside = any(target == third or target.startswith(f"{third}.") for third in fenced)
                if inside and part(name) not in allowed:
                    found.append(f"{name} imports {target}, which only {', '.join(sorted(allowed))} may")
        if part(name) in TORCHLESS:
            found += [f"{name} needs torch through {via}" for via in sorted(needs_torch(name, graph))]
    return found


def needs_torch(name: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Modules among everything that `name` imports, directly or not, that import torch.

    The package itself imports what `load` needs when it is called, which tests/test_load.py holds.
    """
    seen, waiting = {CORE}, [name]
    while waiting:
        module = waiting.pop()
        if module in graph and module not in seen:
            seen.add(module)
            waiting += graph[module]
            waiting += [module.rpartition(".")[0]]
    return {module for module in seen - {CORE} if any(target.split(".")[0] == "torch" for target in graph[module])}


def test_modules_import_only_lower_rows_and_stay_inside_their_fences() -> None:
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("geo.raster", "from skysense_core.data.batch import Batch"),
        ("geo.raster", "import torch"),
        ("geo.raster", "def f():\n    from skysense_core import finetune"),
        ("model.swin", "import rasterio"),
        ("tasks.crop", "from skysense_core.tasks.oriented_detection import OrientedDetection"),
        ("predict", "from skysense_core import finetune"),
        ("predict", "import rich.table"),
        ("trainer", "from skysense_core import inference"),
        ("model.swin", "import torch.distributed as dist"),
        ("model.swin", "from torch import distributed"),
        ("sources.folder", "from skysense_core.runtime import choose_device"),
        ("types", "import skysense_core.config"),
        ("model.swin", "import skysense_cli.console"),
    ],
)
def test_a_broken_rule_is_found(module: str, text: str) -> None:
    modules = {
        f"{CORE}.{name}": "" for name in ("finetune", "inference", "config", "data.batch", "tasks.oriented_detection")
    }
    modules |= {f"{CORE}.runtime": "import torch", f"{CLI}.console": "", f"{CORE}.{module}": text}
    assert len(violations(modules)) == 1


def test_what_the_rules_allow_is_allowed() -> None:
    modules = {
        f"{CORE}.geo.raster": "import rasterio\nfrom skysense_core.types import Raster",
        f"{CORE}.types": "",
        f"{CORE}.tasks": "",
        f"{CORE}.tasks.segmentation": "import torch\nfrom skysense_core.tasks import Task",
        f"{CORE}.tasks.crop": "from skysense_core.tasks.segmentation import Segmentation",
        f"{CORE}.predict": "from skysense_core import inference",
        f"{CORE}.inference": "from skysense_core.geo import raster",
        f"{CLI}.predict": "import rich\nfrom skysense_core import predict",
    }
    assert violations(modules) == []


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_module_is_short_and_keeps_to_the_words_of_the_project(name: str) -> None:
    text = sources()[name]
    lines = len(text.splitlines())
    assert lines <= LONGEST
    assert FORBIDDEN_TEXT.findall(text) == []
    assert FORBIDDEN_NAMES.findall(name.rpartition(".")[2]) == []
    functions = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [name for name in functions if FORBIDDEN_VERBS.match(name)] == []


HELPS = [(), *((name,) for name in commands())]


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments", HELPS, ids=lambda words: " ".join(words) or "skysense")
def test_help_answers_in_three_tenths_of_a_second(arguments: tuple[str, ...]) -> None:
    # Processor time, which is what start-up consists of, and the best of up to twenty, so that other work on the
    # machine, or on its host, does not fail the test.
    spent = []
    while len(spent) < 20 and min(spent, default=1.0) > 0.3:
        start = processor_seconds()
        subprocess.run([sys.executable, "-m", CLI, *arguments, "--help"], check=True, capture_output=True)
        spent.append(processor_seconds() - start)
    assert min(spent) <= 0.3


@pytest.mark.parametrize("arguments", HELPS, ids=lambda words: " ".join(words) or "skysense")
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = """
import atexit, sys
heavy = {"torch", "numpy", "rasterio", "pydantic", "rich", "geopandas", "xarray"}
atexit.register(lambda: print("HEAVY", sorted(heavy & sys.modules.keys())))
from skysense_cli.app import main
main()
"""
    run = subprocess.run([sys.executable, "-c", code, *arguments, "--help"], check=True, capture_output=True, text=True)
    assert run.stdout.endswith("HEAVY []\n")
