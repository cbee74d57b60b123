"""Data sets of pictures and masks in the layouts of their publications: Potsdam, iSAID, Dynamic EarthNet."""

from pathlib import Path

import miniatures
import pytest
from miniatures import SIDE, Write, stripes

from skysense_core import sources
from skysense_core.errors import SkysenseError
from skysense_core.sources.dynamic_earthnet import CLASSES, DynamicEarthnet
from skysense_core.sources.isaid import Isaid
from skysense_core.sources.potsdam import Potsdam
from skysense_core.types import IGNORE, ClassMap, ClassMaps


@pytest.fixture
def potsdam(tmp_path: Path, write_raster: Write) -> Path:
    return miniatures.potsdam(tmp_path, write_raster)


def test_potsdam_has_its_published_parts_and_five_classes(potsdam: Path) -> None:
    assert sources.detect(potsdam) == "potsdam"
    source = Potsdam(path=potsdam)
    wanted = source.described()
    parts = {part: source.open(part, wanted) for part in ("train", "val", "test")}
    assert {name: len(split) for name, split in parts.items()} == {"train": 2, "val": 1, "test": 2}
    assert [parts["test"][index].id for index in range(2)] == ["2_13", "7_13"]
    sample = parts["test"][0]
    assert (sample.epochs[0]["hr"].pixels[0] == miniatures.noise(4)).all()
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
    return miniatures.isaid(tmp_path, write_raster)


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
    write_raster(isaid / "val" / "images" / "P0003_instance_color_RGB.png", stripes([(1, 2, 3)]), driver="PNG")
    split = Isaid(path=isaid).open("test", Isaid(path=isaid).described())
    with pytest.raises(SkysenseError, match=r"P0003_instance_color_RGB\.png: values beyond the classes"):
        split.label(0)


@pytest.fixture
def dynamic(tmp_path: Path, write_raster: Write) -> Path:
    return miniatures.dynamic_earthnet(tmp_path, write_raster)


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
