#!/usr/bin/env python
"""Which geo-context prototype is nearest to each place of a scene? The map of the paper's Fig. 5, and a picture of it.

    examples/prototype_map.py MODALITY=SCENE --out OUT/ --model PRETRAINED [OPTION...]
    examples/prototype_map.py s2=scenes/ --out OUT/ [--steps 60] [OPTION...]

SCENE is a raster, a glob or a folder whose files name their bands. PRETRAINED comes from `skysense pretrain` and has
seen the region of the scene. Without it a nano model is pre-trained for some steps on the scene itself, with the
further options (`--set modalities.s2.level=L1C`): enough to see how it works, not for prototypes that mean much.

OUT/ then holds prototypes.tif, with a colour and a category for each prototype, and prototypes.png. Colours mean
nothing by themselves. What is finished stays when it is run again.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.figure import Figure
from odc.geo.geobox import GeoBox

import skysense_core
from skysense_core.geo.raster import open_stack
from skysense_core.preview import fullest_date, natural_colour


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("scene", metavar="MODALITY=SCENE")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--model", help="that skysense pretrain left; not given: one is pre-trained on the scene")
    parser.add_argument("--steps", default="60", help="of that pre-training")
    given, options = parser.parse_known_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model, map_ = given.model, given.out / "prototypes.tif"
    if model is None:
        model = str(given.out / "pretrained")
        resume = ["--resume"] if (Path(model) / "config.toml").exists() else []
        words = ["--preset", "nano", "--steps", given.steps, "--batch-size", "8", "--out", model, *resume]
        subprocess.run(["skysense", "pretrain", "--data", given.scene, *words, *options], check=True)
    if not map_.exists():
        words = [given.scene, "--model", model, "--prototypes", "--out", str(map_)]
        subprocess.run(["skysense", "embed", *words], check=True)
    draw(given.scene, model, map_, given.out / "prototypes.png")


def draw(scene: str, model: str, map_: Path, path: Path) -> None:
    """The scene beside its prototypes."""
    name, _, files = scene.partition("=")
    modality = skysense_core.load(model).modalities[name]
    with rasterio.open(map_) as dataset:
        codes, seen, palette = dataset.read(1), dataset.read_masks(1) > 0, dataset.colormap(1)
        grid = GeoBox(dataset.shape, dataset.transform, str(dataset.crs))
    stack = open_stack(files, bands=[band.names for band in modality.bands], unit=modality.unit)
    _, raster = fullest_date(stack, grid)
    colours = np.array([palette.get(code, (255, 255, 255))[:3] for code in range(int(codes.max()) + 1)], dtype=np.uint8)
    used = len(np.unique(codes[seen]))
    figure = Figure(figsize=(9, 4.8 * grid.shape[0] / grid.shape[1] + 0.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(natural_colour(raster.pixels[0], raster.valid[0], modality))
    right.imshow(np.where(seen[..., None], colours[codes], 255), interpolation="nearest")
    for axes, title in ((left, modality.title), (right, f"nearest of the prototypes: {used} occur")):
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(path, dpi=90)
    print(path)


if __name__ == "__main__":
    main()
