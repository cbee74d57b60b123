"""Random reads of samples: from a store, from loose GeoTIFF chips, and from windows of the original JP2 files.

    python benchmarks/store.py FOLDER [--side 4096] [--reads 300] [--steps 30]

FOLDER as for benchmarks/ingest.py. Each way reads the same samples (64 x 64 pixels, ten bands) in one random
order, one process. The tile is larger than GDAL's cache, as a data set is: of a smaller one the blocks would be decoded
once and then come from memory. Then `nano` is pre-trained on the store, with two processes that load: how much of a
step is spent waiting for them, after ten steps. Prints one JSON line. The bars: at least 5 times the windowed reads,
not slower than loose chips, at most 5 % of a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ingest import write_tile

from skysense_core.geo.chips import read_chip
from skysense_core.geo.raster import open_stack
from skysense_core.ingest import IngestConfig, ingest
from skysense_core.sources.store import Store

WARM = 10
"""Steps until the processes that load have started."""
CACHE = 64
"""Megabytes of decoded blocks that GDAL keeps; the tile has 185."""


def rate(read: Callable[[int], object], order: list[int]) -> float:
    """Reads per second."""
    started = time.perf_counter()
    for index in order:
        read(index)
    return len(order) / (time.perf_counter() - started)


def waiting(store: Path, out: Path, steps: int) -> dict[str, float]:
    """Share of a step that waits for data, and samples per second, over all steps after the first ten."""
    words = ["--data", str(store), "--preset", "nano", "--steps", str(steps), "--workers", "2", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "skysense_cli", "pretrain", *words, "-q"], check=True, stdout=sys.stderr)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    late = [line for line in lines if line["step"] > WARM and "data_wait" in line]
    return {key: float(np.mean([line[key] for line in late])) for key in ("data_wait", "samples_per_s")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--reads", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    os.environ["GDAL_CACHEMAX"] = str(CACHE)  # GDAL looks once, at its first block
    with tempfile.TemporaryDirectory() as name:
        tile, out, loose = (Path(name) / part for part in ("tile", "store", "loose"))
        write_tile(given.folder, tile, given.side)
        ingest(IngestConfig(out=out, inputs={"s2": str(tile)}, val_share=0.0, test_share=0.0))
        source = Store(path=str(out))
        modality = source.described()["s2"]
        split = source.open("train", {"s2": modality})
        for shard in (out / "shards").iterdir():
            with tarfile.open(shard) as tar:
                tar.extractall(loose, filter="data")
        bands = [band.names for band in modality.bands]
        stack = open_stack(tile, bands=bands, unit=modality.unit)
        samples = [split[index] for index in range(len(split))]
        order = np.random.default_rng(0).integers(0, len(split), given.reads).tolist()
        rates = {
            "store": rate(lambda index: split[index], order),
            "loose": rate(lambda index: read_chip(str(loose / f"{samples[index].id}.s2.tif"), bands), order),
            "windows": rate(
                lambda index: stack.read(samples[index].epochs[0]["s2"].geobox), order[: given.reads // 10]
            ),
        }
        ratios = {f"store / {other}": rates["store"] / rates[other] for other in ("loose", "windows")}
        print(json.dumps({**rates, **ratios, **waiting(out, Path(name) / "model", given.steps)}))


if __name__ == "__main__":
    main()
