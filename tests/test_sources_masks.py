"""Data sets of pictures and masks in the layouts of their publications: Potsdam, iSAID, Dynamic EarthNet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from skysense_core import sources
from skysense_core.errors import SkysenseError
from skysense_core.sources.dynamic_earthnet import CLASSES, DynamicEarthnet
from skysense_core.sources.isaid import Isaid
from skysense_core.sources.potsdam import Potsdam
from skysense_core.types import IGNORE, ClassMap, ClassMaps

SIDE = 40
Write = Callable[..., Path]


def painted(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Stripes of colours from top to bottom, as (3, h, w)."""
    rows = np.array(colours, dtype=np.uint8)[np.arange(SIDE) * len(colours) // SIDE]
    return np.ascontiguousarray(np.broadcast_to(rows.T[:, :, None], (3, SIDE, SIDE)))


def picture(value: int, bands: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.full((bands, SIDE, SIDE), value, dtype=dtype)


@pytest.fixture
def potsdam(tmp_path: Path, write_raster: Write) -> Path:
    for folder in ("2_Ortho_RGB", "5_Labels_all"):
        (tmp_path / folder).mkdir()
    for number, tile in enumerate(("2_10", "2_11", "6_7", "7_13", "2_13")):
        write_raster(tmp_path / "2_Ortho_RGB" / f"top_potsdam_{tile}_RGB.tif", picture(10 * number + 1))
        mask = painted(
            [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 252, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)]
        )
        write_raster(tmp_path / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", mask)
    return tmp_path


def test_potsdam_has_its_published_parts_and_five_classes(potsdam: Path) -> None:
    assert sources.detect(potsdam) == "potsdam"
    source = Potsdam(path=potsdam)
    wanted = source.described()
    parts = {part: source.open(part, wanted) for part in ("train", "val", "test")}
    assert {name: len(split) for name, split in parts.items()} == {"train": 2, "val": 1, "test": 2}
    assert [parts["test"][index].id for index in range(2)] == ["2_13", "7_13"]
    sample = parts["test"][0]
    assert sample.epochs[0]["hr"].pixels[0, :, 0, 0].tolist() == [41, 41, 41]
    assert isinstance(sample.label, ClassMap)
    # Clutter and boundaries are left out, and a colour that is off by three is what it is meant to be.
    assert list(dict.fromkeys(sample.label.codes[:, 0].tolist())) == [0, 1, 2, 3, 4, IGNORE]
    assert parts["test"].classes[3] == "tree"
    assert parts["test"].colours is not None
    assert len(parts["test"].colours) == 5


def test_potsdam_names_a_missing_mask(potsdam: Path) -> None:
    (potsdam / "5_Labels_all" / "top_potsdam_7_13_label.tif").unlink()
    with pytest.raises(SkysenseError, match="no mask of tile 7_13"):
        Potsdam(path=potsdam).open("test", Potsdam(path=potsdam).described())


@pytest.fixture
def isaid(tmp_path: Path, write_raster: Write) -> Path:
    for part, names in {
        "train": ("P0000", "P0001_0_896_0_896", "P0001_0_896_512_1408", "P0005"),
        "val": ("P0003",),
    }.items():
        folder = tmp_path / part / "images"
        folder.mkdir(parents=True)
        for name in names:
            write_raster(folder / f"{name}.png", picture(len(name)), driver="PNG")
            mask = painted([(0, 0, 0), (0, 0, 63), (0, 100, 155)])
            write_raster(folder / f"{name}_instance_color_RGB.png", mask, driver="PNG")
            write_raster(folder / f"{name}_instance_id_RGB.png", picture(0), driver="PNG")
    return tmp_path


def test_isaid_reads_colours_and_keeps_pieces_of_a_picture_together(isaid: Path) -> None:
    assert sources.detect(isaid) == "isaid"
    source = Isaid(path=isaid)
    wanted = source.described()
    parts = {part: source.open(part, wanted) for part in ("train", "val", "test")}
    assert [parts["test"][0].id, len(parts["test"])] == ["P0003", 1]
    codes = parts["test"].label(0).codes
    assert [parts["test"].classes[code] for code in dict.fromkeys(codes[:, 0].tolist())] == [
        "background", "ship", "harbour"
    ]  # fmt: skip
    named = {part: {parts[part][i].id.split("_")[0] for i in range(len(parts[part]))} for part in ("train", "val")}
    assert not named["train"] & named["val"]
    assert len(parts["train"]) + len(parts["val"]) == 4


def test_isaid_names_a_picture_without_mask(isaid: Path) -> None:
    (isaid / "val" / "images" / "P0003_instance_color_RGB.png").unlink()
    with pytest.raises(SkysenseError, match=r"no P0003_instance_color_RGB\.png beside P0003\.png"):
        Isaid(path=isaid).open("test", Isaid(path=isaid).described())


def test_isaid_names_a_colour_that_is_no_class(isaid: Path, write_raster: Write) -> None:
    write_raster(isaid / "val" / "images" / "P0003_instance_color_RGB.png", painted([(1, 2, 3)]), driver="PNG")
    split = Isaid(path=isaid).open("test", Isaid(path=isaid).described())
    with pytest.raises(SkysenseError, match=r"P0003_instance_color_RGB\.png: values beyond the classes"):
        split.label(0)


MONTHS = ("2018-01", "2018-02", "2018-03")
CUBES = {"train": ("1311_3077_13", "1417_3281_13"), "val": ("2065_3647_13",), "test": ("2235_3403_13",)}


@pytest.fixture
def dynamic(tmp_path: Path, write_raster: Write, utm: GeoBox) -> Path:
    lists = tmp_path / "dynnet_training_splits"
    lists.mkdir()
    for part, cubes in CUBES.items():
        lines = []
        for cube in cubes:
            planet, label = tmp_path / "planet" / "10N" / cube / "PF-SR", tmp_path / "labels" / f"{cube}_10N"
            others = [tmp_path / name / cube for name in ("sentinel2", "sentinel1")]
            for folder in (planet, label, *others):
                folder.mkdir(parents=True)
            for number, month in enumerate(MONTHS):
                values = np.arange(4)[:, None, None] * 100 + np.full((4, SIDE, SIDE), number)
                write_raster(planet / f"{month}-01.tif", values.astype(np.uint16), utm)
                write_raster(others[0] / f"{month}.tif", picture(7, 12, np.uint16), utm)
                write_raster(others[1] / f"{month}.tif", picture(-9, 8, np.float32), utm)
                bands = np.zeros((7, SIDE, SIDE), dtype=np.uint8)
                bands[number, : SIDE // 2], bands[6, SIDE // 2 :] = 255, 255
                write_raster(label / f"x-{month.replace('-', '_')}-01.tif", bands, utm)
                lines.append(f"/planet/10N/{cube}/PF-SR /labels/{cube}_10N/x-{month.replace('-', '_')}-01.tif {month}")
        (lists / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def utm() -> GeoBox:
    return GeoBox.from_bbox((500000, 4000000, 500000 + 3 * SIDE, 4000000 + 3 * SIDE), "EPSG:32610", shape=(SIDE, SIDE))


def test_dynamic_earthnet_months_are_samples_or_epochs(dynamic: Path) -> None:
    assert sources.detect(dynamic) == "dynamic_earthnet"
    source = DynamicEarthnet(path=dynamic)
    wanted = {name: one for name, one in source.described().items() if name != "s1"}
    split = source.open("train", wanted)
    assert len(split) == 6
    sample = split[1]
    assert sample.id == "1311_3077_13_2018-02"
    # The model's order is red, green, blue, near infrared; the files' begins with blue.
    assert sample.epochs[0]["hr"].pixels[0, :, 0, 0].tolist() == [201, 101, 1, 301]
    assert sample.epochs[0]["s2"].pixels.shape == (1, 10, SIDE, SIDE)
    assert (sample.label.codes[: SIDE // 2] == 1).all()
    assert (sample.label.codes[SIDE // 2 :] == IGNORE).all()  # snow
    assert split.classes == CLASSES

    cubes = DynamicEarthnet(path=dynamic, months="together").open("train", wanted)
    assert len(cubes) == 2
    cube = cubes[0]
    assert len(cube.epochs) == 3
    assert isinstance(cube.label, ClassMaps)
    assert cube.label.codes[:, 0, 0].tolist() == [0, 1, 2]


def test_dynamic_earthnet_asks_for_the_bands_of_sentinel_1(dynamic: Path) -> None:
    source = DynamicEarthnet(path=dynamic)
    with pytest.raises(SkysenseError, match="bands"):
        source.open("test", {"s1": source.described()["s1"]})[0]
    bands = {"s1": {"bands": ("vv", "vh", *"------")}}
    told = DynamicEarthnet(path=dynamic, read=bands)
    assert told.open("test", {"s1": told.described()["s1"]})[0].epochs[0]["s1"].pixels.shape == (1, 2, SIDE, SIDE)


def test_dynamic_earthnet_names_what_is_missing(dynamic: Path) -> None:
    source = DynamicEarthnet(path=dynamic)
    (dynamic / "sentinel2" / "2235_3403_13" / "2018-02.tif").unlink()
    with pytest.raises(SkysenseError, match="sentinel2: no file of cube 2235_3403_13 and month 2018-02"):
        source.open("test", {"s2": source.described()["s2"]})
    (dynamic / "planet" / "10N" / "2235_3403_13" / "PF-SR" / "2018-03-01.tif").unlink()
    with pytest.raises(SkysenseError, match=r"2018-03-01\.tif: no such file"):
        source.open("test", {"hr": source.described()["hr"]})
    lists = dynamic / "dynnet_training_splits"
    (lists / "val.txt").write_text("\n".join((lists / "train.txt").read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(SkysenseError, match="cube 1417_3281_13 has 2 months, another 3"):
        DynamicEarthnet(path=dynamic, months="together").open("val", {"hr": source.described()["hr"]})
