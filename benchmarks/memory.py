"""Peak memory of `predict` on scenes that are valid throughout: 2,048 px wide and ever higher, then very wide.

    python benchmarks/memory.py [PRESET]

Each size is predicted by a process of its own. Prints one JSON line per size with the peak resident memory, that above
a 256 px scene (interpreter, libraries and model), and the ratio to the first size. The bar: eight times the height
takes at most 1.1 times the memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from skysense_core import modalities, runtime
from skysense_core.checkpoint import save_model
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.predict import PredictConfig, predict
from skysense_core.tasks.segmentation import Segmentation

SIZES = ((2048, 2048), (8192, 2048), (40000, 2048), (2048, 40000), (10980, 10980))
"""Rows and columns."""
CLASSES = 10
WINDOW = 256


def write_scene(path: Path, height: int, width: int, shift: int = 0) -> Path:
    """A valid RGB scene at 0.3 m, tiled, written block row by block row; `shift` pixels to the south-east."""
    profile = {
        "driver": "GTiff",
        "count": 3,
        "dtype": "uint8",
        "height": height,
        "width": width,
        "crs": "EPSG:32636",
        "transform": Affine(0.3, 0, 500_000 + 0.3 * shift, 0, -0.3, 4_000_000 - 0.3 * shift),
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "photometric": "RGB",
        "compress": "deflate",
        "zlevel": 1,
    }
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, height, 256):
            rows = min(256, height - row)
            coarse = rng.integers(1, 255, (3, -(-rows // 8), -(-width // 8)), dtype=np.uint8)
            pixels = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :rows, :width]
            dataset.write(pixels, window=((row, row + rows), (0, width)))
    return path


def write_model(folder: Path, preset: str, *, window: int = WINDOW, classes: int = CLASSES) -> Path:
    """A model with random weights on RGB at 0.3 m."""
    torch.manual_seed(0)
    task = Segmentation(classes=tuple(f"class {code}" for code in range(classes)))
    spec = ModelSpec(preset=preset, fusion=False)
    model = task.build_model(SkySense(spec, {"hr": modalities.load("hr", {"window": window})}))
    save_model(folder, model, task, name=f"random {preset}", training={}, metrics={}, licence="none")
    return folder


def peak(height: int, width: int, preset: str) -> int:
    """Peak memory in bytes of one prediction by a process of its own."""
    command = [sys.executable, __file__, "--child", str(height), str(width), preset]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def child(height: int, width: int, preset: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A process that wrote the scene would have GDAL's cache full of it already.
        write = f"from memory import *; write_scene(Path({str(folder / 'scene.tif')!r}), {height}, {width})"
        subprocess.run([sys.executable, "-c", write], cwd=Path(__file__).parent, check=True)
        model = write_model(folder / "model", preset)
        predict(
            PredictConfig(
                inputs=(str(folder / "scene.tif"),),
                out=folder / "map.tif",
                model=model,
                batch_size=4,
                jobs=2,
                device="cpu",
            )
        )
    print(runtime.peak_memory())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="nano")
    parser.add_argument("--child", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="predict one size")
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.preset)
        return
    floor = peak(256, 256, options.preset)
    first = None
    for height, width in SIZES:
        used = peak(height, width, options.preset)
        first = first or used
        numbers = {"peak_mb": used / 2**20, "above_a_tiny_scene_mb": (used - floor) / 2**20, "ratio": used / first}
        report = {"preset": options.preset, "classes": CLASSES, "height": height, "width": width}
        print(json.dumps(report | {key: round(value, 3) for key, value in numbers.items()}), flush=True)


if __name__ == "__main__":
    main()
