#!/usr/bin/env python
"""How many labels does it take? Trains on shares of them, from scratch and from a trained encoder (paper, Fig. 4a).

    examples/label_fraction.py --init MODEL --out STUDY/ [--shares 0.01,0.1,1] [--steps 60] OPTION...

    skysense pretrain --data all.parquet --set views.window_cells=4 ... --out runs/ssl
    examples/label_fraction.py --init runs/ssl --out study/ --task classification --data points.parquet \\
        --label-column crop --split-by cell

Further options are those of `skysense finetune`, the same for all runs. All are tested on the same test part, which
MODEL must not have seen with labels. STUDY/ then holds a run for each, scores.csv and label_fraction.png. What is
finished stays: run it again after a stop, or with more shares. A minute of steps shows the way, not what many labels
can do: give --steps the hundreds that a training needs, and conclude from lines well above that of the commonest class.
"""

import argparse
import json
import subprocess
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--init", required=True, metavar="MODEL")
    parser.add_argument("--out", type=Path, required=True, metavar="STUDY")
    parser.add_argument("--shares", default="0.01,0.1,1")
    parser.add_argument("--steps", default="60")
    parser.add_argument("--score", default="oa", help="a score that evaluate gives: oa, mf1, miou, f1 ...")
    given, options = parser.parse_known_args()
    options += ["--steps", given.steps]
    starts: dict[str, list[str]] = {"from scratch": [], f"from {Path(given.init).name}": ["--init", given.init]}
    rows = []
    for share in sorted(map(float, given.shares.split(","))):
        for number, (start, init) in enumerate(starts.items()):
            run = given.out / f"{('scratch', 'init')[number]}-{share:g}"
            metrics = run / "evaluation" / "test" / "metrics.json"
            if not metrics.exists():
                resume = ["--resume"] if (run / "config.toml").exists() else []
                train = ["--label-fraction", f"{share:g}", *init, "--out", str(run), *resume]
                skysense("finetune", *options, *train)
                skysense("evaluate", "--model", str(run), "--split", "test")
            scores = json.loads(metrics.read_text())["scores"]
            score, floor = scores["model"][given.score], scores["majority"][given.score]
            rows.append({"share": share, "start": start, given.score: score, "majority": floor})
            print(f"{share:.0%} of the labels, {start}: {given.score} {score:.3f}", flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(given.out / "scores.csv", index=False)
    draw(table, given.score, given.out / "label_fraction.png")


def skysense(*words: str) -> None:
    subprocess.run(["skysense", *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def draw(table: pd.DataFrame, score: str, path: Path) -> None:
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for start, own in table.groupby("start", sort=False):
        axes.plot(100 * own["share"], own[score], marker="o", label=start)
    axes.axhline(table["majority"].iloc[0], color="0.5", linestyle=":", label="commonest class")
    axes.set_xscale("log")
    shares = 100 * table["share"].unique()
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.minorticks_off()
    axes.set(xlabel="labels, percent", ylabel=f"{score} of the test part")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
