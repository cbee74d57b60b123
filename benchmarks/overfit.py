"""Samples of data sets that are at hand with a few patches only: learnt by heart and read back.

    python benchmarks/overfit.py ../shared/data/layouts runs/overfit [--sets NAME ...] [--steps 100]

EuroSAT (both versions), UC Merced and BigEarthNet v1 (s2 with its s1). Every patch is there once for each part, under
other names in the layout of the data set, and the commands are those of any training: a perfect score says that
reading, label, loss, head and metric fit together, and nothing about patches that were not seen.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

SETS = {
    "eurosat-ms": ("EuroSAT_MS", "classification", ("s2",), 16),
    "eurosat-rgb": ("EuroSAT_RGB", "classification", ("hr",), 64),
    "ucmerced": ("UCMerced_LandUse", "classification", ("hr",), 256),
    "bigearthnet-v1": ("BigEarthNet-v1", "multilabel", ("s2", "s1"), 24),
}
"""Folder, task, modalities, and window in pixels."""
PARTS = ("train", "val", "test")


def copied_folders(root: Path, out: Path) -> None:
    """Each picture of a folder of classes five times, so that a hash of the names deals it to every part."""
    for picture in sorted(path for path in root.rglob("*") if path.suffix.lower() in {".tif", ".jpg"}):
        kind = picture.parent.name
        (out / kind).mkdir(parents=True, exist_ok=True)
        # One picture of each class: what another one of the class teaches would be no learning by heart.
        if not any((out / kind).iterdir()):
            for number in range(1, 6):
                (out / kind / f"{kind}_{number}{picture.suffix}").symlink_to(picture.resolve())


def copied_patches(root: Path, out: Path) -> None:
    """Each patch of BigEarthNet v1 that has both sensors once for each part, with the official lists of the parts."""
    for radar in sorted(root.glob("s1-tiny/*")):
        about = json.loads((radar / f"{radar.name}_labels_metadata.json").read_text())
        optical = root / "s2-tiny" / about["corresponding_s2_patch"]
        if not optical.is_dir():
            continue
        for number, part in enumerate(PARTS, 1):
            names = {folder: f"{folder.name}{number}" for folder in (radar, optical)}
            for folder, name in names.items():
                (out / name).mkdir(parents=True, exist_ok=True)
                for band in folder.glob("*.tif"):
                    (out / name / band.name.replace(folder.name, name)).symlink_to(band.resolve())
                table = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
                table |= {"corresponding_s2_patch": names[optical]} if folder == radar else {}
                (out / name / f"{name}_labels_metadata.json").write_text(json.dumps(table))
            with (out / f"{part}.csv").open("a") as lines:
                lines.write(f"{names[optical]},{names[radar]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    for name in options.sets:
        folder, task, modalities, window = SETS[name]
        data, run = options.out / f"{name}-data", options.out / name
        if not data.exists():
            (copied_patches if task == "multilabel" else copied_folders)(options.layouts / folder, data)
        words = ["--task", task, "--data", data, "--modalities", ",".join(modalities), "--preset", "nano"]
        for modality in modalities:
            words += ["--set", f"modalities.{modality}.window={window}"]
        for line in (
            [
                "finetune",
                *words,
                "--lr",
                "1e-3",
                "--batch-size",
                "3",
                "--steps",
                options.steps,
                "--out",
                run,
                "--resume",
            ],
            ["evaluate", "--model", run, "--split", "test", "--overwrite"],
        ):
            print("$ skysense", *line, flush=True)
            subprocess.run([sys.executable, "-m", "skysense_cli", *map(str, line)], check=True)


if __name__ == "__main__":
    main()
