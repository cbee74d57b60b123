"""Two or more runs on the same test samples: intersection over union of one class, and paired bootstrap intervals.

    python benchmarks/paired.py runs/floods-s2-s1 runs/floods-s2 runs/floods-s1

Samples are drawn again with replacement, the same ones for every run; the last columns are the first run's lead over
each, with the share of the draws in which it is behind.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from skysense_core import checkpoint, config, runtime, sources
from skysense_core.data.chips import EvaluationChips
from skysense_core.data.loader import Part, evaluation_loader
from skysense_core.tasks import measure
from skysense_core.types import PartName


def confusions(run: Path, part: PartName, device: str) -> tuple[list[str], tuple[str, ...], Int[np.ndarray, "n k k"]]:
    """Names of the samples, the classes, and every sample's own confusion matrix (true by predicted)."""
    chosen = runtime.choose_device(device)
    loaded = checkpoint.load_model(run, chosen)
    _, source = sources.from_table(config.load_toml(run / "config.toml")["data"])
    split = source.open(part, loaded.modalities)
    ids, found = [], []
    for index in range(len(split)):
        chips = EvaluationChips(Part(split, [index]), loaded.modalities, loaded.task.encode, whole=loaded.task.whole)
        batches = evaluation_loader(chips, batch_size=8, workers=0)
        scores = measure(loaded.task, loaded.model, batches, chosen, "auto")
        ids.append(split[index].id)
        found.append(scores["confusion"])
    return ids, loaded.classes, np.array(found)


def iou(counts: Int[np.ndarray, "*d k k"], code: int) -> Float[np.ndarray, "*d"]:
    """Of one class, from confusion matrices."""
    hit = counts[..., code, code]
    return hit / (counts[..., code, :].sum(-1) + counts[..., :, code].sum(-1) - hit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--class", dest="wanted", help="by name; else the last one")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    counts, known = [], None
    for run in options.runs:
        ids, classes, found = confusions(run, options.split, options.device)
        if known not in (None, (ids, classes)):
            parser.error(f"{run}: other samples or classes than {options.runs[0]}")
        known = ids, classes
        counts.append(found)
    code = classes.index(options.wanted) if options.wanted else len(classes) - 1
    drawn = np.random.default_rng(0).integers(len(ids), size=(options.draws, len(ids)))
    scores = [iou(found[drawn].sum(axis=1), code) for found in counts]
    print(f"IoU of {classes[code]}, {len(ids)} samples, 95 % of {options.draws} draws\n")
    print("| run | IoU | interval | lead of the first | interval | draws behind |")
    print("|---|---|---|---|---|---|")
    for run, found, own in zip(options.runs, counts, scores, strict=True):
        low, high = np.quantile(own, (0.025, 0.975))
        row = f"| {run.name} | {iou(found.sum(axis=0), code):.3f} | {low:.3f} to {high:.3f} |"
        if found is counts[0]:
            print(row, "- | - | - |")
            continue
        lead = scores[0] - own
        low, high = np.quantile(lead, (0.025, 0.975))
        whole = iou(counts[0].sum(axis=0), code) - iou(found.sum(axis=0), code)
        print(row, f"{whole:+.3f} | {low:+.3f} to {high:+.3f} | {100 * (lead < 0).mean():.1f} % |")


if __name__ == "__main__":
    main()
