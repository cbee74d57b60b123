"""Data sets in exactly the layouts of their publications, a few small pictures each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from affine import Affine
from odc.geo.geobox import GeoBox
from pairs import write_levir
from tiny_data import write_pastis

Write = Callable[..., Path]
"""The fixture `write_raster`."""
SIDE = 64
MONTHS = ("2018-01", "2018-02", "2018-03")
UPRIGHT = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>50</ymax></bndbox>"
CORNERS = {"left_top": (20, 10), "right_top": (40, 20), "right_bottom": (35, 30), "left_bottom": (15, 20)}
TURNED = "".join(f"<{a}_{k}>{v}</{a}_{k}>" for k, xy in CORNERS.items() for a, v in zip("xy", xy, strict=True))
OSCD = "Onera Satellite Change Detection dataset - "
S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


def noise(seed: int, bands: int = 3, side: int = SIDE, *, most: int = 255, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most, (bands, side, side)).astype(dtype)


def stripes(values: list[int] | list[tuple[int, int, int]], side: int = SIDE) -> np.ndarray:
    """Values or colours from top to bottom, as (c, h, w)."""
    rows = np.array(values, dtype=np.uint8).reshape(len(values), -1)[np.arange(side) * len(values) // side]
    return np.ascontiguousarray(np.broadcast_to(rows.T[:, :, None], (rows.shape[1], side, side)))


def grid(side: int, pixel: float) -> GeoBox:
    return GeoBox((side, side), Affine(pixel, 0, 500000, 0, -pixel, 4000000), "EPSG:32633")


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def raster(write: Write, path: Path, pixels: np.ndarray, geobox: GeoBox | None = None, driver: str = "GTiff") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, pixels, geobox, driver=driver)


def potsdam(folder: Path, write: Write) -> Path:
    colours = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 252, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)]
    for number, tile in enumerate(("2_10", "2_11", "6_7", "7_13", "2_13")):
        raster(write, folder / "2_Ortho_RGB" / f"top_potsdam_{tile}_RGB.tif", noise(number))
        raster(write, folder / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", stripes(colours))
    return folder


def isaid(folder: Path, write: Write) -> Path:
    parts = {"train": ("P0000", "P0001_0_896_0_896", "P0001_0_896_512_1408", "P0005"), "val": ("P0003",)}
    for part, names in parts.items():
        for number, name in enumerate(names):
            at = folder / part / "images"
            raster(write, at / f"{name}.png", noise(number), driver="PNG")
            mask = stripes([(0, 0, 0), (0, 0, 63), (0, 100, 155)])
            raster(write, at / f"{name}_instance_color_RGB.png", mask, driver="PNG")
            raster(write, at / f"{name}_instance_id_RGB.png", noise(9), driver="PNG")
    return folder


def dynamic_earthnet(folder: Path, write: Write) -> Path:
    cubes = {"train": ("1311_3077_13", "1417_3281_13"), "val": ("2065_3647_13",), "test": ("2235_3403_13",)}
    for part, names in cubes.items():
        lines = []
        for cube in names:
            for number, month in enumerate(MONTHS):
                planet, label = f"planet/10N/{cube}/PF-SR", f"labels/{cube}_10N/x-{month.replace('-', '_')}-01.tif"
                flat = np.arange(4)[:, None, None] * 100 + np.full((4, SIDE, SIDE), number)
                radar = noise(number, 8).astype(np.float32) / -10
                onehot = np.zeros((7, SIDE, SIDE), dtype=np.uint8)
                onehot[number, : SIDE // 2], onehot[6, SIDE // 2 :] = 255, 255
                ground = grid(SIDE, 3.0)
                raster(write, folder / planet / f"{month}-01.tif", flat.astype(np.uint16), ground)
                raster(
                    write,
                    folder / "sentinel2" / cube / f"{month}.tif",
                    noise(number, 12, most=9999, dtype=np.uint16),
                    ground,
                )
                raster(write, folder / "sentinel1" / cube / f"{month}.tif", radar, ground)
                raster(write, folder / label, onehot, ground)
                lines.append(f"/{planet} /{label} {month}")
        text(folder / "dynnet_training_splits" / f"{part}.txt", "\n".join(lines) + "\n")
    return folder


def dior(folder: Path, write: Write) -> Path:
    for part, name, images in (
        ("train", "00001", "trainval"), ("val", "00002", "trainval"), ("test", "11726", "test")
    ):  # fmt: skip
        text(folder / "ImageSets" / "Main" / f"{part}.txt", f"{name}\n")
        raster(write, folder / f"JPEGImages-{images}" / f"{name}.jpg", noise(1, side=128), driver="JPEG")
        for boxes, box in (
            ("Horizontal Bounding Boxes", UPRIGHT),
            ("Oriented Bounding Boxes", f"<robndbox>{TURNED}</robndbox>"),
        ):
            voc = f"<annotation><object><name>ship</name>{box}<difficult>0</difficult></object></annotation>"
            text(folder / "Annotations" / boxes / f"{name}.xml", voc)
    return folder


def fair1m(folder: Path, write: Write) -> Path:
    points = "".join(f"<point>{x}.0,{y}.0</point>" for x, y in [*CORNERS.values(), CORNERS["left_top"]])
    found = f"<object><possibleresult><name>Boeing737</name></possibleresult><points>{points}</points></object>"
    for part, names in (("train/part1", "abc"), ("train/part2", "de"), ("validation", "f")):
        for name in names:
            raster(write, folder / part / "images" / f"{name}.tif", noise(ord(name), side=128))
            text(folder / part / "labelXml" / f"{name}.xml", f"<annotation><objects>{found}</objects></annotation>")
    return folder


def levir_cd(folder: Path, write: Write) -> Path:
    return write_levir(folder, count=2)


def oscd(folder: Path, write: Write) -> Path:
    for part, cities in {"train": ("abudhabi", "beirut", "paris"), "test": ("rio",)}.items():
        for number, city in enumerate(cities):
            for date in (1, 2):
                for band, name in enumerate((*S2, "B10")):
                    pixels = noise(100 * number + 20 * date + band, 1, most=9999, dtype=np.uint16)
                    raster(write, folder / f"{OSCD}Images" / city / f"imgs_{date}_rect" / f"{name}.tif", pixels)
            labels = folder / f"{OSCD}{part.title()} Labels" / city / "cm" / f"{city}-cm.tif"
            raster(write, labels, stripes([1, 2]))
        text(folder / f"{OSCD}Images" / f"{part}.txt", ",".join(cities) + "\n")
    return folder


def class_folders(folder: Path, write: Write) -> Path:
    for code, name in enumerate(("Airport", "Beach", "Farmland")):
        for number in range(20):
            raster(write, folder / name / f"{name.lower()}_{number}.jpg", noise(100 * code + number), driver="JPEG")
    return folder


def bigearthnet(folder: Path, write: Write) -> Path:
    rows = []
    for number, part in enumerate(("train", "train", "train", "validation", "test")):
        s2 = f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{70 + number}_43"
        s1 = f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{70 + number}_43"
        for band in S2:
            side = 20 if band in ("B01", "B09") else 120 if band in ("B02", "B03", "B04", "B08") else 60
            pixels = noise(number, 1, side, most=9999, dtype=np.uint16)
            at = folder / "BigEarthNet-S2" / s2.rsplit("_", 2)[0] / s2 / f"{s2}_{band}.tif"
            raster(write, at, pixels, grid(side, 1200 / side))
        for band in ("VV", "VH"):
            pixels = noise(number, 1, 120).astype(np.float32) / -10
            at = folder / "BigEarthNet-S1" / s1.rsplit("_", 3)[0] / s1 / f"{s1}_{band}.tif"
            raster(write, at, pixels, grid(120, 10.0))
        labels = ["Arable land", "Marine waters"][: 1 + number % 2]
        rows.append({"patch_id": s2, "s1_name": s1, "split": part, "labels": labels})
    pd.DataFrame(rows).to_parquet(folder / "metadata.parquet")
    return folder


def fmow(folder: Path, write: Write) -> Path:
    for part, places in (("train", 2), ("val", 1), ("test_gt", 1)):
        rows = []
        for category in ("airport", "dam"):
            for place in range(places):
                for image, day in enumerate(("2015-07-25", "2016-05-01")):
                    pixels = noise(10 * place + image, 13, 100, most=9999, dtype=np.uint16)
                    at = folder / part / category / f"{category}_{place}" / f"{category}_{place}_{image}.tif"
                    raster(write, at, pixels, grid(100, 10.0))
                    rows.append((category, place, image, f"{day}T10:00:00Z", "POLYGON EMPTY"))
        columns = ["category", "location_id", "image_id", "timestamp", "polygon"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / f"{part}.csv")
    return folder


def pastis(folder: Path, write: Write) -> Path:
    return write_pastis(folder)
