"""Weights in and out: import of a full-size file, load time of folders, and predict with PyTorch, torch.export, ONNX.

    python benchmarks/weights.py import
    python benchmarks/weights.py load base huge
    python benchmarks/weights.py predict [--model buildings-hr] [--image SCENE.tif] [--side 2048] [--repeats 5]

`import` writes a file with the names and shapes of the full release, sparse, and converts it. `load` measures one
`load_model` of a folder with random weights, its digest included. `predict` exports a model of RGB twice and predicts
one scene with all three, at the same windows, batch size and threads; each repeat begins with another one. Every
measurement is a process of its own. Time without imports; memory is the peak of the process, libraries included.
Prints one JSON object per line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import write_model, write_scene
from predict import agreement, move, write_mirrored

from skysense_core import runtime
from skysense_core.checkpoint import load_description, load_model
from skysense_core.convert import ConvertConfig, convert
from skysense_core.export import ExportConfig, export
from skysense_core.model.presets import preset
from skysense_core.predict import PredictConfig, predict

ENGINES = {"PyTorch": "", "torch.export": "model.pt2", "ONNX": "model.onnx"}
"""Names of the files; that of the folder is given."""
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("import")
    commands.add_parser("load").add_argument("presets", nargs="+")
    three = commands.add_parser("predict")
    three.add_argument("--model", default="buildings-hr")
    three.add_argument("--image", type=Path)
    three.add_argument("--side", type=int, default=2048)
    three.add_argument("--repeats", type=int, default=5)
    child = commands.add_parser("child")
    child.add_argument("work", choices=sorted(WORK))
    child.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    if options.command == "child":
        measure(WORK[options.work], options.arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.command == "import":
            file = folder / "skysense_full.pth"
            size = write_sparse(file)
            print(json.dumps({"gigabytes": round(size / 1e9, 2), **apart("import", file, folder / "model")}))
        elif options.command == "load":
            for one in options.presets:
                apart("write", one, folder / one)
                size = (folder / one / "model.safetensors").stat().st_size
                print(json.dumps({"preset": one, "gigabytes": round(size / 1e9, 2), **apart("load", folder / one)}))
        else:
            print(json.dumps(compare(folder, options)))


def write_sparse(path: Path) -> int:
    """A one-file checkpoint with the names and shapes of the full release and without its numbers; bytes of it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from official_layout import one_file

    tensors = {name: torch.empty(shape) for name, shape in one_file(preset("huge")).items()}
    with torch.serialization.skip_data():
        torch.save({"model": tensors}, path)
    return path.stat().st_size


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each, and the share of pixels with PyTorch's class."""
    scene, models = folder / "scene.tif", {"PyTorch": options.model}
    if options.image is None:
        write_scene(scene, options.side, options.side)
    else:
        write_mirrored(scene, options.image, options.side, options.side)
        described = load_description(Path(options.model))
        move(scene, described.modalities[described.reference].gsd, shift=0)
    export_seconds = {}
    for name, file in ENGINES.items():
        if file:
            done = apart("export", options.model, folder / file)
            models[name], export_seconds[name] = str(folder / file), done["seconds"]
    runs: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(options.repeats):
        names = [*models][repeat % len(models) :] + [*models][: repeat % len(models)]
        for name in names:
            done = apart("predict", scene, models[name], folder / f"{name}.tif")
            print(f"repeat {repeat + 1}, {name}: {done}", file=sys.stderr, flush=True)
            runs[name].append(done["seconds"])
    first = folder / "PyTorch.tif"
    return {
        "model": options.model,
        "side": options.side,
        "threads": torch.get_num_threads(),
        "seconds": {name: round(statistics.median(all_of), 2) for name, all_of in runs.items()},
        "all_seconds": runs,
        "export_seconds": export_seconds,
        "same_class": {name: round(agreement(first, folder / f"{name}.tif"), 6) for name in export_seconds},
    }


def apart(work: str, *arguments: object) -> dict[str, float]:
    """Seconds and peak megabytes of some work in a process of its own."""
    command = [sys.executable, __file__, "child", work, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(work: Callable[..., object], arguments: list[str]) -> None:
    imported, started = runtime.peak_memory(), time.perf_counter()
    work(*arguments)
    seconds, peak = time.perf_counter() - started, runtime.peak_memory()
    megabytes = {"peak_mb": round(peak / 2**20), "imports_mb": round(imported / 2**20)}
    print(json.dumps({"seconds": round(seconds, 2), **megabytes}))


WORK: dict[str, Callable[..., object]] = {
    "import": lambda file, out: convert(ConvertConfig(files={"": (Path(file),)}, out=Path(out))),
    "write": lambda name, out: write_model(Path(out), name),
    "load": lambda folder: load_model(Path(folder), torch.device("cpu")),
    "export": lambda model, out: export(ExportConfig(model=Path(model), out=Path(out))),
    "predict": lambda scene, model, out: predict(
        PredictConfig(
            inputs=(scene,),
            model=Path(model),
            out=Path(out),
            device="cpu",
            batch_size=BATCH,
            precision="fp32",
            overwrite=True,
        )
    ),
}


if __name__ == "__main__":
    main()
