"""End-to-end `predict` against the bare forward passes of the smallest lattice of windows that covers the scene.

    python benchmarks/overhead.py [PRESET] [--side 2048] [--repeats 5]

Same model, windows, stride, batch size, dtype and threads; the two are timed in turn. The bare passes read no file,
blend nothing and write nothing, and their lattice begins at the scene's corner, where ours is anchored in the CRS and
may need one row and column of windows more: each repeat lies elsewhere. `predict` includes loading the model. The bar
for `small` at 2,048 px is a median ratio of at most 1.2. Prints one JSON object.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from memory import write_model, write_scene

from skysense_core import runtime
from skysense_core.checkpoint import load_model
from skysense_core.data.batch import collate
from skysense_core.data.scene import open_stacks
from skysense_core.geo.windows import Window
from skysense_core.inference import plan_sweep
from skysense_core.predict import PredictConfig, predict

WINDOW = 512
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="small")
    parser.add_argument("--side", type=int, default=2048, help="rows and columns of the scene")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options.preset, options.side, options.repeats, options.device)))


def measure(folder: Path, preset: str, side: int, repeats: int, name: str) -> dict[str, object]:
    device = runtime.choose_device(name)
    scene = folder / "scene.tif"
    write_scene(scene, side, side)
    model_folder = write_model(folder / "model", preset, window=WINDOW, classes=CLASSES)
    model = load_model(model_folder, device)
    plan = plan_sweep(open_stacks([str(scene)], model.modalities, {}), model.modalities)
    batch_size, stride = plan.batch_size(device), plan.lattice.stride
    smallest = (math.ceil(max(side - WINDOW, 0) / stride) + 1) ** 2
    sample = plan.scene.read(Window(row=0, col=0, height=WINDOW, width=WINDOW))
    assert sample is not None
    batch = collate([sample] * batch_size).to(device)
    rest = collate([sample] * (smallest % batch_size or batch_size)).to(device)

    def bare() -> float:
        started = time.perf_counter()
        with torch.inference_mode(), runtime.autocast(device, "auto"):
            for _ in range(math.ceil(smallest / batch_size) - 1):
                model.task.scores(model.model, batch)
            model.task.scores(model.model, rest).sum().item()  # .item() waits for the device
        return time.perf_counter() - started

    config = PredictConfig(
        inputs=(str(scene),),
        out=folder / "map.tif",
        model=model_folder,
        batch_size=batch_size,
        device=name,
        overwrite=True,
    )
    bare()  # warm-up
    runs = []
    for repeat in range(repeats):
        write_scene(scene, side, side, shift=repeat * stride * 2 // 5)  # five shifts are spread evenly over the stride
        limit = bare()
        started = time.perf_counter()
        result = predict(config)
        ours = time.perf_counter() - started
        runs.append({"windows": result.windows, "bare": limit, "predict": ours, "ratio": ours / limit})
    return {
        "preset": preset,
        "side": side,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "smallest_lattice": smallest,
        "median_ratio": round(statistics.median(run["ratio"] for run in runs), 3),
        "runs": [{key: round(value, 3) for key, value in run.items()} for run in runs],
    }


if __name__ == "__main__":
    main()
