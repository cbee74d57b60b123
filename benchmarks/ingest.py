"""Ingest against merely decoding the same JPEG 2000 blocks once, and its peak memory at 1, 10 and 100 scenes.

    python benchmarks/ingest.py FOLDER [--side 4096] [--jobs 1 2] [--scenes 1 10 100]

FOLDER holds the bands of a real Sentinel-2 scene as loose JP2 files (T33UUU_20170216T102101_B02.jp2 ...). They are
mirrored side by side to a tile of `--side` pixels of 10 m in blocks of 1024, as ESA writes them. Prints one JSON line
per measurement. The bars: at least 0.6 of the decoding's throughput with as many processes, and flat memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from skysense_core.ingest import IngestConfig, ingest

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
BLOCK = 1024


def write_tile(folder: Path, out: Path, side: int) -> list[Path]:
    """The scene of a folder, mirrored to a square of `side` pixels of 10 m; 20 m bands have half as many."""
    written = []
    out.mkdir(parents=True, exist_ok=True)
    for band in BANDS:
        (source,) = folder.glob(f"*_{band}.jp2")
        with rasterio.open(source) as dataset:
            pixels, profile = dataset.read(1), dataset.profile
        size = round(side * 10 / profile["transform"].a)
        repeats = [-(-size // length) for length in pixels.shape]
        for axis, count in enumerate(repeats):
            pixels = np.concatenate([pixels if n % 2 == 0 else np.flip(pixels, axis) for n in range(count)], axis)
        profile |= {"height": size, "width": size, "blockxsize": BLOCK, "blockysize": BLOCK}
        path = out / source.name
        with rasterio.open(path, "w", QUALITY="100", REVERSIBLE="YES", **profile) as dataset:
            dataset.write(pixels[:size, :size], 1)
        written.append(path)
    return written


def decode(task: tuple[Path, int, int]) -> int:
    """Decode one block; returns its pixels."""
    path, row, col = task
    with rasterio.Env(GDAL_NUM_THREADS="1"), rasterio.open(path) as dataset:
        window = Window(col, row, min(BLOCK, dataset.width - col), min(BLOCK, dataset.height - row))
        return int(dataset.read(1, window=window).size)


def time_decoding(paths: list[Path], jobs: int) -> tuple[float, float]:
    """Seconds and megapixels times bands of decoding each block once."""
    tasks = []
    for path in paths:
        with rasterio.open(path) as dataset:
            tasks += [(path, i, j) for i in range(0, dataset.height, BLOCK) for j in range(0, dataset.width, BLOCK)]
    started = time.perf_counter()
    if jobs == 1:
        pixels = sum(map(decode, tasks))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            pixels = sum(pool.map(decode, tasks))
    return time.perf_counter() - started, pixels / 1e6


def child(folder: Path, out: Path, jobs: int) -> None:
    """Ingest in this process (and its own), print seconds and peak memory in bytes."""
    import resource

    result = ingest(IngestConfig(out=out, inputs={"s2": str(folder)}, jobs=jobs))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
    print(json.dumps({"seconds": result.seconds, "samples": result.samples, "bytes": result.size, "peak": peak}))


def measure(folder: Path, out: Path, jobs: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--child", str(out), "--jobs", str(jobs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--jobs", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--scenes", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--child", type=Path)
    given = parser.parse_args()
    if given.child is not None:
        child(given.folder, given.child, given.jobs[0])
        return
    with tempfile.TemporaryDirectory() as name:
        paths = write_tile(given.folder, Path(name) / "tile", given.side)
        for jobs in given.jobs:
            seconds, megapixels = time_decoding(paths, jobs)
            ours = measure(Path(name) / "tile", Path(name) / f"store{jobs}", jobs)
            line = {"jobs": jobs, "decoded": megapixels / seconds, "ingested": megapixels / ours["seconds"]}
            print(json.dumps({**line, "ratio": seconds / ours["seconds"], "codec": "zstd level 1", **ours}), flush=True)
        small = write_tile(given.folder, Path(name) / "small", 1024)
        for count in given.scenes:
            series = Path(name) / f"series{count}"
            series.mkdir()
            for number in range(count):
                day = np.datetime64("2017-01-01") + 3 * number
                for path in small:
                    copy = path.name.replace("20170216", str(day).replace("-", ""))
                    os.symlink(path, series / copy)
            print(json.dumps({"scenes": count, **measure(series, Path(name) / f"long{count}", 1)}), flush=True)


if __name__ == "__main__":
    main()
