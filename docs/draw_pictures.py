"""Draws the pictures of the pages in docs/tasks from real data: trains small models and looks at what they answer.

    python docs/draw_pictures.py DATA WORK [change] [crop] [multilabel] [regression]

DATA is the folder of real imagery that the tests use, WORK takes runs and rasters (what is there is not made again). A
picture takes some minutes on two cores. The commands are those of the pages.
"""

import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio import features
from shapely.geometry import shape

from skysense_core import checkpoint, modalities, sources
from skysense_core.config import load_toml
from skysense_core.data.loader import evaluation_loader
from skysense_core.tasks import evaluation_chips

IMAGES = Path(__file__).with_name("images")
NANO = ("--preset", "nano", "--batch-size", "8")
CROPS = {1200: "maize", 9120: "grass"}


def skysense(*words: object) -> None:
    subprocess.run(["skysense", *map(str, words)], check=True)


def train(run: Path, *words: object) -> Path:
    """A run, unless it is there."""
    if not (run / "report.html").exists():
        skysense("finetune", *words, "--out", run, "--overwrite")
    return run


def write(path: Path, pixels: np.ndarray, grid: GeoBox, names: Sequence[str]) -> Path:
    """(bands, rows, columns) as a GeoTIFF with named bands."""
    count, height, width = pixels.shape
    place = {"crs": str(grid.crs), "transform": grid.affine, "height": height, "width": width}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", count=count, dtype=pixels.dtype, **place) as made:
        made.write(pixels)
        made.descriptions = tuple(names)
    return path


def painted(path: Path) -> np.ndarray:
    """A class map in its colours, white where it says nothing."""
    with rasterio.open(path) as dataset:
        codes, palette = dataset.read(1), dataset.colormap(1)
        table = np.array([palette[code][:3] for code in range(256)], dtype=np.uint8)
        return np.where((dataset.read_masks(1) > 0)[..., None], table[codes], 255).astype(np.uint8)


def show(axes: Axes, pixels: np.ndarray, title: str = "") -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def save(figure: Figure, name: str) -> None:
    """As a PNG of 128 colours, which keeps it small."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    path = IMAGES / f"{name}.png"
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def change(data: Path, work: Path) -> None:
    """Floods: the first, the middle and the last test pair of OMBRIA."""
    ombria = data / "change_flood" / "ombria"
    run = train(work / "floods", "--task", "change", "--data", ombria, "--modalities", "s2", "--steps", 300, *NANO)
    part = ombria / "OmbriaS2" / "test"
    names = [path.stem.split("_")[-1] for path in sorted((part / "BEFORE").glob("*.png"))]
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    rows = figure.subplots(3, 4)
    grid = GeoBox.from_bbox((500000, 4000000, 502560, 4002560), "EPSG:32634", resolution=10)
    for row, name in enumerate((names[0], names[len(names) // 2], names[-1])):
        pictures = {}
        for when in ("before", "after"):
            pictures[when] = np.asarray(Image.open(part / when.upper() / f"S2_{when}_{name}.png"))
            bands = [f"channel {number}" for number in (1, 2, 3)]
            write(work / f"{when}-{name}.tif", pictures[when].transpose(2, 0, 1), grid, names=bands)
        map_ = work / f"flood-{name}.tif"
        skysense("predict", *(work / f"{when}-{name}.tif" for when in pictures), "--model", run, "--out", map_,
                 "--bands", ",".join(bands), "--overwrite", "--quiet")  # fmt: skip
        masks = ombria / "OmbriaS1" / "test" / "MASK"
        truth = np.asarray(Image.open(masks / f"S1_mask_{name}.png").convert("L")) > 0
        panels = {
            **pictures,
            "published flood": np.where(truth[..., None], (227, 26, 28), (217, 217, 217)).astype(np.uint8),
            "mapped": painted(map_),
        }
        for axes, (title, pixels) in zip(rows[row], panels.items(), strict=True):
            show(axes, pixels, title if row == 0 else "")
    save(figure, "change")


def crop(data: Path, work: Path) -> None:
    """Maize and grass in Flanders: the western half trains, all of it is mapped."""
    location = next((data / "sits_patch" / "worldcereal").iterdir())
    parts = [xr.open_dataset(next(location.glob(f"S2_L2A_{gsd}m_*.nc")), mask_and_scale=False) for gsd in (10, 20)]
    parts = [part.sortby("y", ascending=False).sortby("x").sel(timestamp=slice("2018-04", "2018-10")) for part in parts]
    cloudy = parts[1]["SCL"].isin((0, 1, 3, 8, 9, 10)).mean(("x", "y"))
    clear = sorted(cloudy.timestamp.values[np.argsort(cloudy.values, kind="stable")[:10]])
    x, y = parts[0].x.values, parts[0].y.values
    grid = GeoBox.from_bbox((x.min() - 5, y.min() - 5, x.max() + 5, y.max() + 5), "EPSG:32631", resolution=10)
    names = modalities.load("s2").band_names
    for moment in clear:
        bands = [next(part for part in parts if name in part)[name].sel(timestamp=moment).values for name in names]
        bands = [np.nan_to_num(band).repeat(64 // len(band), 0).repeat(64 // len(band), 1) for band in bands]
        write(work / "season" / f"{str(moment)[:10]}.tif", np.stack(bands).astype(np.uint16), grid, names)
    codes = xr.open_dataset(next(location.glob("OUTPUT_*.nc")))["CT"].sortby("y", ascending=False).sortby("x")
    codes = np.nan_to_num(codes.values).astype(np.int32)
    found = list(features.shapes(codes, mask=np.isin(codes, list(CROPS)), transform=grid.affine))
    fields = {"crop": [CROPS[int(code)] for _, code in found]}
    gpd.GeoDataFrame(fields, geometry=[shape(ring) for ring, _ in found], crs=str(grid.crs)).to_file(
        work / "fields.gpkg"
    )
    small = ("--set", "modalities.s2.window=16", "--set", "data.block=1", "--split-by", "west-east")
    labels = ("--labels", work / "fields.gpkg", "--label-column", "crop", "--unlabelled", "ignore", "--nodata", 0)
    run = train(
        work / "crops", "--task", "crop", "--data", f"s2={work / 'season'}", *labels, *small, "--steps", 150, *NANO
    )
    skysense("evaluate", "--model", run, "--split", "test", "--overwrite")
    skysense(
        "predict", f"s2={work / 'season'}", "--model", run, "--nodata", 0, "--out", work / "crops.tif", "--overwrite"
    )
    picture = np.stack(
        [parts[0][name].sel(timestamp=clear[len(clear) // 2]).values for name in ("B04", "B03", "B02")], -1
    )
    low, high = np.percentile(picture, (1, 99))
    mapped = painted(work / "crops.tif")
    with rasterio.open(work / "crops.tif") as dataset:
        palette = dataset.colormap(1)
    names_of = checkpoint.load_description(run / "best").classes
    truth = np.full((*codes.shape, 3), 255, dtype=np.uint8)
    for code, name in CROPS.items():
        truth[codes == code] = palette[names_of.index(name)][:3]
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    panels = {
        str(clear[len(clear) // 2])[:10]: np.clip((picture - low) / (high - low), 0, 1),
        "fields": truth,
        "mapped": mapped,
    }
    for axes, (title, pixels) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        show(axes, pixels, title)
        axes.axvline(31.5, color="black", linewidth=1, linestyle=":")
    for name in CROPS.values():
        colour = np.array(palette[names_of.index(name)][:3]) / 255
        figure.axes[0].plot([], [], "s", color=colour, label=name, markeredgecolor="0.4")
    figure.legend(loc="outside lower center", ncols=len(CROPS), frameon=False, fontsize=9)
    save(figure, "crop")


def answers(run: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """What the best model of a run says of a part, and what is true: (samples, numbers) each."""
    loaded = checkpoint.load_model(run, torch.device("cpu"))
    _, source = sources.from_table(load_toml(run / "config.toml")["data"])
    chips = evaluation_chips(loaded.task, source.open(part, loaded.modalities), loaded.modalities)
    said, true = [], []
    for batch in evaluation_loader(chips, batch_size=32, workers=0):
        with torch.inference_mode():
            said.append(loaded.task.scores(loaded.model, batch).flatten(2).mean(2))
        true.append(batch.target.float().flatten(1))
    return torch.cat(said).numpy(), torch.cat(true).numpy()


def multilabel(data: Path, work: Path) -> None:
    """Three patches of BigEarthNet, learnt by heart: what an answer looks like."""
    root = Path(__file__).resolve().parents[1] / "benchmarks"
    name, layouts = "bigearthnet-v1", data / "layouts"
    subprocess.run([sys.executable, root / "overfit.py", layouts, work / "overfit", "--sets", name], check=True)
    run = work / "overfit" / name
    said, true = answers(run, "test")
    classes = checkpoint.load_description(run / "best").classes
    loaded = checkpoint.load_model(run, torch.device("cpu"))
    _, source = sources.from_table(load_toml(run / "config.toml")["data"])
    split = source.open("test", loaded.modalities)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    for index, (picture, bars) in enumerate(figure.subplots(len(split), 2, width_ratios=(1, 2.4))):
        sample = split[index]
        bands = loaded.modalities["s2"].band_names
        pixels = sample.epochs[0]["s2"].pixels[0][[bands.index(band) for band in ("B04", "B03", "B02")]]
        low, high = np.percentile(pixels, (1, 99), axis=(1, 2), keepdims=True)
        show(picture, np.clip((pixels - low) / (high - low), 0, 1).transpose(1, 2, 0))
        order = np.argsort(said[index])[::-1][:5][::-1]
        colours = ["#1f78b4" if true[index, code] else "#bdbdbd" for code in order]
        bars.barh([classes[code].split(",")[0] for code in order], said[index, order], color=colours)
        bars.set(xlim=(0, 1))
        bars.tick_params(labelsize=8)
    figure.axes[-1].set_xlabel("probability; blue: a label of the patch", fontsize=8)
    save(figure, "multilabel")


def regression(data: Path, work: Path) -> None:
    """Live fuel moisture: sites that have not trained."""
    root = Path(__file__).resolve().parents[1] / "benchmarks"
    fuel, table = data / "sits_pixel" / "presto_fuel_moisture", work / "fuel.parquet"
    subprocess.run([sys.executable, root / "fuel.py", fuel, table], check=True)
    words = ("--config", root / "tasks" / "fuel.toml", "--data", table, "--preset", "nano", "--batch-size", 32)
    run = train(work / "fuel", "--task", "regression", *words, "--steps", 300, "--set", "augment.turns=false")
    said, true = answers(run, "test")
    said, true = said[:, 0], true[:, 0]
    spread = 1 - ((said - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    figure = Figure(figsize=(4.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(true, said, s=5, alpha=0.4, linewidths=0)
    axes.axline((100, 100), slope=1, color="0.5", linewidth=1, linestyle=":")
    axes.set(xlim=(0, 300), ylim=(0, 300), xlabel="measured, percent", ylabel="model, percent")
    axes.set_title(f"{len(true)} samples of sites that have not trained: R2 {spread:.2f}", fontsize=9)
    save(figure, "regression")


def main() -> None:
    data, work, *wanted = sys.argv[1:]
    drawn = {one.__name__: one for one in (change, crop, multilabel, regression)}
    Path(work).mkdir(parents=True, exist_ok=True)
    for name in wanted or drawn:
        drawn[name](Path(data).resolve(), Path(work).resolve())


if __name__ == "__main__":
    main()
