"""Time, working memory and page size of the map report, by the size of the map.

    python benchmarks/mapreport.py [SIDE ...]

A scene of noise, a map of areas of 8 x 8 px and its confidence, as COGs. Each size is drawn by a process of its own.
Prints one JSON line per size; the bar: memory that no longer grows beyond the finest level of the page (4,096 px).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
import torch
from memory import write_scene

from skysense_core import modalities, runtime
from skysense_core.geo.raster import open_stack
from skysense_core.mapreport import write_map_report
from skysense_core.tasks import default_colours

SIDES = (1024, 4096, 10980, 21960)
CLASSES = ("water", "forest", "field", "town")


def as_cog(path: Path, scene: Path, *, most: int) -> Path:
    """Codes 0 to `most` on the grid of a scene."""
    rng, raw = np.random.default_rng(1), path.with_suffix(".raw.tif")
    with rasterio.open(scene) as like:
        profile = {**like.profile, "count": 1, "nodata": 255, "photometric": "minisblack"}
        with rasterio.open(raw, "w", **profile) as made:
            for row in range(0, like.height, 256):
                rows = min(256, like.height - row)
                codes = rng.integers(0, most, (1, -(-rows // 8), -(-like.width // 8)), dtype=np.uint8, endpoint=True)
                pixels = codes.repeat(8, axis=1).repeat(8, axis=2)[:, :rows, : like.width]
                made.write(pixels, window=((row, row + rows), (0, like.width)))
    rasterio.shutil.copy(raw, path, driver="COG", compress="deflate", overview_resampling="nearest")
    raw.unlink()
    return path


def draw(folder: Path, side: int) -> None:
    """One size, in this process."""
    page, hr = folder / "page.html", modalities.load("hr", {})
    image = open_stack([str(folder / "scene.tif")], bands=[band.names for band in hr.bands], unit=hr.unit)
    start = time.perf_counter()
    taken = runtime.working_memory(
        torch.device("cpu"),
        lambda: write_map_report(
            page,
            title="map",
            image=image,
            modality=hr,
            codes=folder / "map.tif",
            confidence=folder / "confidence.tif",
            classes=CLASSES,
            colours=default_colours(CLASSES),
            areas=[1.0] * len(CLASSES),
            facts="",
        ),
    )
    seconds = round(time.perf_counter() - start, 1)
    size = round(page.stat().st_size / 2**20, 1)
    print(json.dumps({"side": side, "seconds": seconds, "memory_mib": taken // 2**20, "page_mib": size}), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--draw"]:
        return draw(Path(sys.argv[2]), int(sys.argv[3]))
    for side in map(int, sys.argv[1:] or SIDES):
        with tempfile.TemporaryDirectory() as folder:
            scene = write_scene(Path(folder) / "raw.tif", side, side)
            rasterio.shutil.copy(scene, Path(folder) / "scene.tif", driver="COG", compress="deflate")
            scene.unlink()
            as_cog(Path(folder) / "map.tif", Path(folder) / "scene.tif", most=len(CLASSES) - 1)
            as_cog(Path(folder) / "confidence.tif", Path(folder) / "scene.tif", most=254)
            subprocess.run([sys.executable, __file__, "--draw", folder, str(side)], check=True)


if __name__ == "__main__":
    main()
