"""`predict` beside other engines and beside the bare forward passes: time, memory, and what they agree on.

    python benchmarks/predict.py [PRESET] [--side 2048] [--image SCENE.tif] [--repeats 5] [--defaults]

The peers live in an environment of their own that shares this one's torch:

    python -m venv benchmarks/.peers
    python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \\
      > $(benchmarks/.peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth
    benchmarks/.peers/bin/python -m pip install -r benchmarks/peers.txt

All get the same model (random weights, 10 classes), scene, windows of 512 px, stride, batch size, dtype and threads,
each in a process of its own, in turn, and each repeat begins with another one. The scene lies elsewhere in each repeat:
our lattice is anchored in the CRS and may need one row and column of windows more than the limit, which is nothing but
the forward passes of the fewest windows that cover the scene. The others load the model, read the scene and write the
map; that `predict` also makes overviews, measures areas and looks for invalid pixels counts against it.

`--defaults`: each engine at its own defaults instead (ours in bf16 where the hardware has it, the peers in fp32), and
what share of the pixels bf16 changes in our map. Random weights have no opinion, so take a trained `--model` for that.

Prints one JSON object, and a table on stderr.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from contenders import ENGINES, NODATA, PEERS, Job
from memory import write_model, write_scene
from rasterio.windows import Window

from skysense_core import runtime
from skysense_core.description import load_description

HERE = Path(__file__).parent
WINDOW, OVERLAP, CLASSES = 512, 160, 10
BLOCK = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="small")
    parser.add_argument("--side", type=size, default=(2048, 2048), metavar="N|ROWSxCOLUMNS", help="of the scene")
    parser.add_argument("--image", type=Path, help="a GeoTIFF of uint8 RGB, mirrored to size; else noise")
    parser.add_argument("--empty", type=float, default=0.0, help="share of the scene without data, at most 0.5")
    parser.add_argument("--model", type=Path, help="a model folder or packaged model for RGB, in place of PRESET")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--peers", type=Path, default=HERE / ".peers/bin/python", help="python of the peers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(Path(folder), options)))


def size(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns or rows)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    model = options.model or write_model(folder / "model", options.preset, window=WINDOW, classes=CLASSES)
    description = load_description(model)
    modality = description.modalities[description.reference]
    scene = folder / "scene.tif"
    if options.image is None:
        write_scene(scene, *options.side)
    else:
        write_mirrored(scene, options.image, *options.side)
    if options.empty:
        blank(scene, options.empty)

    def job(name: str, precision: str, out: str) -> Job:
        return Job(
            contender=name,
            scene=str(scene),
            out=str(folder / out),
            model=str(model),
            window=modality.window if options.defaults else WINDOW,
            overlap=OVERLAP,
            batch_size=options.batch_size,
            precision=precision,
            defaults=options.defaults,
        )

    # The limit is that of common settings.
    names = [name for name in ENGINES if name != "limit" or not options.defaults]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for repeat in range(options.repeats):
        move(scene, modality.gsd, shift=repeat * (WINDOW - OVERLAP) * 2 // 5)  # five are spread evenly over the stride
        first = repeat % len(names)
        for name in [name for name in [*names[first:], *names[:first]] if name not in failed]:
            precision = options.precision if not options.defaults else "fp32" if name in PEERS else "auto"
            done = contend(job(name, precision, f"{name}.tif"), options)
            print(f"repeat {repeat + 1}, {name}: {done}", file=sys.stderr, flush=True)
            if isinstance(done, str):
                failed[name] = done
            else:
                runs[name].append(done)
    rows = {
        name: {"failed": failed[name]} if name in failed else summary(name, runs, options.side, folder)
        for name in names
    }
    print(table(rows), file=sys.stderr)
    report = {
        "model": f"random {options.preset}" if options.model is None else description.name,
        "shape": options.side,
        "image": "noise" if options.image is None else options.image.name,
        "empty": options.empty,
        "settings": "each its own defaults"
        if options.defaults
        else f"window {WINDOW}, overlap {OVERLAP}, batch {options.batch_size}, {options.precision}",
        "bf16_in_hardware": runtime.has_bfloat16(torch.device("cpu")),
        "threads": options.threads,
        "contenders": rows,
    }
    if options.defaults:
        maps = {precision: f"ours_{precision}.tif" for precision in ("fp32", "bf16")}
        outcomes = [contend(job("ours", precision, out), options) for precision, out in maps.items()]
        faults = [outcome for outcome in outcomes if isinstance(outcome, str)]
        changed = {"failed": faults[0]} if faults else 1 - agreement(*(folder / out for out in maps.values()))
        report["share_of_pixels_that_bf16_changes"] = changed
    return report


def contend(job: Job, options: argparse.Namespace) -> dict[str, float] | str:
    """Times, windows and memory of one contender, or in words why there are none."""
    python = options.peers if job.contender in PEERS and options.peers.exists() else sys.executable
    done = subprocess.run(
        [python, HERE / "contenders.py", json.dumps(dataclasses.asdict(job))],
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    said = json.loads(done.stdout.splitlines()[-1])
    return said.get("failed") or said


def summary(name: str, runs: dict[str, list[dict[str, float]]], shape: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Medians over the repeats; ratios are those of neighbours in time."""
    own = runs[name]
    seconds = statistics.median(run["seconds"] for run in own)
    numbers: dict[str, Any] = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(statistics.median(run["cpu"] for run in own), 3),
        "megapixels_per_second": round(shape[0] * shape[1] / 1e6 / seconds, 3),
        "windows": [round(run["windows"]) for run in own],
    }
    for other in ("limit", "ours"):
        if len(runs.get(other, ())) == len(own) and other != name:
            ratios = [run["seconds"] / beside["seconds"] for run, beside in zip(own, runs[other], strict=True)]
            numbers[f"times_{other}"] = round(statistics.median(ratios), 3)
    numbers["peak_mb"] = round(max(run["peak"] for run in own) / 2**20)
    numbers["above_model_mb"] = round(max(run["peak"] - run["own"] for run in own) / 2**20)
    if name in PEERS and runs["ours"]:
        numbers["agrees_with_ours"] = round(agreement(folder / "ours.tif", folder / f"{name}.tif"), 4)
    numbers["all_seconds"] = [round(run["seconds"], 3) for run in own]
    return numbers


def table(rows: dict[str, dict[str, Any]]) -> str:
    columns = ("seconds", "cpu_seconds", "times_limit", "times_ours", "peak_mb", "above_model_mb", "agrees_with_ours")
    lines = [["", *columns]]
    for name, numbers in rows.items():
        lines.append(
            [name, numbers["failed"]] if "failed" in numbers else [name, *(str(numbers.get(c, "")) for c in columns)]
        )
    return "\n".join("".join(f"{cell:>17}" if i else f"{cell:<12}" for i, cell in enumerate(line)) for line in lines)


def bands_of_rows(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, BLOCK):
        yield Window(0, row, width, min(BLOCK, height - row))


def write_mirrored(path: Path, image: Path, height: int, width: int) -> None:
    """The first three bands of an image, mirrored at its borders to size."""
    with rasterio.open(image) as dataset:
        if dataset.count < 3 or dataset.dtypes[0] != "uint8":
            raise SystemExit(f"{image}: {dataset.count} bands of {dataset.dtypes[0]}; three of uint8 are wanted")
        pixels = dataset.read([1, 2, 3])
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": height, "width": width, "crs": "EPSG:32636"}
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "photometric": "RGB"}
    with rasterio.open(path, "w", **profile, **layout) as dataset:
        for band in bands_of_rows(height, width):
            rows = mirrored(np.arange(band.row_off, band.row_off + band.height), pixels.shape[1])
            cols = mirrored(np.arange(width), pixels.shape[2])
            dataset.write(pixels[:, rows][:, :, cols], window=band)


def mirrored(places: np.ndarray, side: int) -> np.ndarray:
    turned = places % (2 * side)
    return np.where(turned < side, turned, 2 * side - 1 - turned)


def blank(path: Path, share: float) -> None:
    """Take the data off a triangle at the left, like the edge of a swath; 0 becomes nodata and what was 0 becomes 1."""
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 0
        for band in bands_of_rows(*dataset.shape):
            rows = np.arange(band.row_off, band.row_off + band.height)[:, None]
            empty = np.arange(dataset.width) < 2 * share * dataset.width * (1 - rows / dataset.height)
            dataset.write(np.where(empty, 0, dataset.read(window=band).clip(1)), window=band)


def move(path: Path, gsd: float, shift: int) -> None:
    """Lay the scene at the pixel size that the model gets, `shift` pixels to the south-east."""
    with rasterio.open(path, "r+") as dataset:
        dataset.transform = Affine(gsd, 0, 500_000 + gsd * shift, 0, -gsd, 4_000_000 - gsd * shift)


def agreement(ours: Path, other: Path) -> float:
    """Share of the pixels with a class in our map that have the same one in the other."""
    same = classed = 0
    with rasterio.open(ours) as first, rasterio.open(other) as second:
        for band in bands_of_rows(*first.shape):
            codes = first.read(1, window=band)
            known = codes != NODATA
            same += int((known & (codes == second.read(1, window=band))).sum())
            classed += int(known.sum())
    return same / classed


if __name__ == "__main__":
    main()
