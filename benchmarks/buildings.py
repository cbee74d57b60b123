"""Buildings of two cities from scratch: train on one, test on the other, beside a pixel random forest.

    python benchmarks/buildings.py ../shared/data/seg_buildings runs/buildings [--zooms 20] [--ship] [--boxes]

The tiles of ../shared/data/seg_buildings (web mercator, 256 px, zoom 19 to 21) become one mosaic per city and zoom;
everything after that is ordinary `skysense` commands, printed as they run. `--ship` trains the packaged model on both
cities at zoom 19 and 20, split by ground, instead. Haze, season and scale are made up in training. `--boxes` finds
each building as an oriented box instead of mapping its pixels; there is no forest beside that.
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

WORLD = 20037508.342789244
"""Half the width of the web-mercator world, in metres."""
CITIES = ("zanzibar", "nairobi")
AUGMENT = ("contrast=0.2", "colour=0.1", "haze=0.3", "scale=1.2")


def mosaic(tiles: Path, zoom: int, out: Path) -> None:
    """One GeoTIFF of every tile of a zoom level, masked where there is none."""
    found = [
        (int(m[1]), int(m[2]), path)
        for path in tiles.iterdir()
        if (m := re.search(rf"(\d+)-(\d+)-{zoom}\.png$", path.name))
    ]
    left, top = min(x for x, _, _ in found), min(y for _, y, _ in found)
    columns, rows = max(x for x, _, _ in found) - left + 1, max(y for _, y, _ in found) - top + 1
    side = 2 * WORLD / 2**zoom
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 3, "width": columns * 256, "height": rows * 256,
        "crs": "EPSG:3857", "transform": from_origin(left * side - WORLD, WORLD - top * side, side / 256, side / 256),
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "photometric": "RGB",
        "sparse_ok": True,
    }  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(out, "w", **profile) as mosaic:
        mask = np.zeros((rows * 256, columns * 256), dtype=np.uint8)
        for x, y, path in found:
            with rasterio.open(path) as tile:
                pixels = tile.read((1, 2, 3))
            row, column = (y - top) * 256, (x - left) * 256
            mosaic.write(pixels, window=((row, row + 256), (column, column + 256)))
            mask[row : row + 256, column : column + 256] = 255
        mosaic.write_mask(mask)


def run(*words: object) -> None:
    """Print an ordinary command and run it."""
    line = [str(word) for word in words]
    print("$", shlex.join(line), flush=True)
    subprocess.run([sys.executable, "-m", "skysense_cli", *line[1:]], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--zooms", type=int, nargs="+", default=[20])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ship", action="store_true", help="train on both cities, split by ground")
    parser.add_argument("--boxes", action="store_true", help="oriented_detection instead of segmentation")
    parser.add_argument("--init", type=Path, help="a pre-trained model to start from")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of finetune")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for city in CITIES:
        for zoom in options.zooms:
            path = options.out / f"{city}_{zoom}.tif"
            if not path.exists():
                mosaic(options.tiles / f"fair_{city}", zoom, path)

    def scenes(city: str, split: str) -> str:
        labels = (options.tiles / f"fair_{city}" / "labels.geojson").resolve()
        return "".join(f'[[scene]]\nhr = "{city}_{zoom}.tif"\nlabels = "{labels}"\n{split}\n' for zoom in options.zooms)

    experiments = (
        {"both": scenes(CITIES[0], "") + scenes(CITIES[1], "")}
        if options.ship
        else {city: scenes(city, "") + scenes(other, 'split = "test"') for city, other in (CITIES, CITIES[::-1])}
    )
    asked = (
        ("--task", "oriented_detection", "--source", "vector_boxes")
        if options.boxes
        else ("--task", "segmentation", "--unlabelled", "background")
    )
    for name, text in experiments.items():
        data, model = options.out / f"{name}.toml", options.out / f"{name}-{options.preset}-{options.seed}"
        data.write_text(text)
        run(
            "skysense", "finetune", *asked, "--data", data, "--classes", "building",
            "--preset", options.preset, "--steps", options.steps, "--batch-size", options.batch_size,
            "--seed", options.seed, "--out", model, "--resume",
            "--set", "modalities.hr.gsd=0.2", "--set", "modalities.hr.window=256", "--set", "data.block=2",
            *(word for strength in AUGMENT for word in ("--set", f"augment.{strength}")),
            *(["--init", options.init] if options.init else []),
            *([] if options.ship else ["--set", "data.test_share=0.0"]),
            *(word for given in options.set for word in ("--set", given)),
        )  # fmt: skip
        beside = [] if options.boxes else ["--baselines"]
        run("skysense", "evaluate", "--model", model, "--split", "test", *beside)


if __name__ == "__main__":
    main()
