"""How well windows join: tiled against whole-image prediction, and jumps across seams.

    python benchmarks/seams.py SCENE.tif [--model RUN]

Two measures. A model of convolutions only, tiled with a trim of its receptive radius, against one pass over the whole
image: the largest difference of probabilities in the interior, and the pixels whose class differs. And the given model
(a packaged one, if none is given): the mean jump of logits across seams minus that between ordinary neighbours, over
the standard deviation of the logits (bar: below 0.1), and for comparison the same without blending. Prints one JSON
object.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skysense_core.checkpoint import load_model
from skysense_core.data.batch import Batch
from skysense_core.data.scene import Scene, open_stacks
from skysense_core.description import packaged_models
from skysense_core.geo.windows import Lattice, Window
from skysense_core.inference import Meter, plan_sweep, sweep
from skysense_core.merge.raster import RasterMerger

CPU = torch.device("cpu")
RADIUS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--model", type=Path, default=next(iter(packaged_models().values()), None))
    parser.add_argument("--side", type=int, default=2048, help="rows and columns that are looked at, at most")
    options = parser.parse_args()
    if options.model is None:
        parser.error("no packaged model: give one with --model")
    model = load_model(options.model, CPU)
    plan = plan_sweep(open_stacks([options.scene], model.modalities, {}), model.modalities)
    whole = Window.of(plan.scene.grid)
    region = Window(row=0, col=0, height=min(whole.height, options.side), width=min(whole.width, options.side))

    @torch.inference_mode()
    def score(batch: Batch) -> torch.Tensor:
        return model.task.scores(model.model, batch)

    cut = Lattice(shape=plan.lattice.shape, origin=plan.lattice.origin, window=plan.lattice.stride, trim=0, overlap=0)
    report = {
        "scene": options.scene,
        "model": model.name,
        "pixels": [region.height, region.width],
        **convolutional(plan.scene, plan.lattice, region),
        "seam_jump": round(seam_jump(plan.scene, plan.lattice, region, score, len(model.classes)), 4),
        "seam_jump_without_blending": round(seam_jump(plan.scene, cut, region, score, len(model.classes)), 4),
    }
    print(json.dumps(report))


def tiled(scene: Scene, lattice: Lattice, region: Window, score: Callable, classes: int) -> np.ndarray:
    """Blended probabilities (k, h, w) of a region."""
    scores = np.empty((classes, region.height, region.width), dtype=np.float32)
    with Meter(len(lattice.windows(region)), region.height * region.width) as meter:
        for part in sweep(
            scene,
            lattice,
            [region],
            score,
            lambda strip: RasterMerger(lattice, strip, classes, CPU),
            on=CPU,
            batch_size=4,
            readers=2,
            meter=meter,
        ):
            top = part.window.row - region.row
            scores[:, top : top + part.window.height] = part.scores.numpy()
    return scores


def convolutional(scene: Scene, lattice: Lattice, region: Window) -> dict[str, float]:
    """A network of receptive radius RADIUS: tiles against the whole image, away from the region's border."""
    torch.manual_seed(0)
    bands = len(scene.modalities[scene.reference].bands)
    scale = torch.from_numpy(scene.modalities[scene.reference].std).float().view(1, -1, 1, 1)
    layers: list[nn.Module] = [nn.Conv2d(bands, 16, 3, padding=1)]
    for _ in range(RADIUS - 2):
        layers += [nn.GELU(), nn.Conv2d(16, 16, 3, padding=1)]
    network = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(16, 5, 3, padding=1)).eval()

    @torch.inference_mode()
    def score(batch: Batch) -> torch.Tensor:
        return (10 * network(batch.epochs[0][scene.reference].pixels[:, 0] / scale)).softmax(dim=1)

    side = lattice.window - 2 * RADIUS - lattice.stride
    trimmed = Lattice(
        shape=lattice.shape, origin=lattice.origin, window=lattice.window, trim=RADIUS, overlap=max(side, 0)
    )
    inner = (slice(None), slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    tiles = tiled(scene, trimmed, region, score, 5)[inner]
    seen = scene.stacks[scene.reference].read(region.geobox(scene.grid))
    with torch.inference_mode():
        image = torch.from_numpy(seen.pixels[0]).float()[None] / scale
        whole = (10 * network(image)).softmax(dim=1)[0].numpy()[inner]
    valid = seen.valid[0][inner[1:]]
    return {
        "convolutional_largest_difference": float(np.abs(tiles - whole)[:, valid].max()),
        "convolutional_pixels_of_another_class": int((tiles.argmax(axis=0) != whole.argmax(axis=0))[valid].sum()),
    }


def seam_jump(scene: Scene, lattice: Lattice, region: Window, score: Callable, classes: int) -> float:
    """(mean jump of logits across seams - mean jump between other neighbours) / standard deviation of the logits.

    A seam is where a window begins or ends to count. Logits are those of the blended probabilities, centred per pixel.
    """
    logits = np.log(np.clip(tiled(scene, lattice, region, score, classes), 1e-7, 1))
    logits -= logits.mean(axis=0, keepdims=True)
    inner = [lattice.inner(window) for window in lattice.windows(region)]
    edges = (
        {edge - region.row for window in inner for edge in (window.row, window.row_stop)},
        {edge - region.col for window in inner for edge in (window.col, window.col_stop)},
    )
    across, elsewhere = [], []
    for axis, seams in zip((1, 2), edges, strict=True):
        jumps = np.abs(np.diff(logits, axis=axis)).mean(axis=(0, 3 - axis))
        at_seam = np.isin(np.arange(1, len(jumps) + 1), list(seams))
        across.append(jumps[at_seam])
        elsewhere.append(jumps[~at_seam])
    return float((np.concatenate(across).mean() - np.concatenate(elsewhere).mean()) / logits.std())


if __name__ == "__main__":
    main()
