"""BigEarthNet v1 and v2: patches of both sensors find each other, and are equal to what rasterio reads."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.enums import Resampling
from surfaces import oracle

from skysense_core import config, modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources.bigearthnet import CLASSES, CORINE, Bigearthnet
from skysense_core.types import PartName, Split, Tags

BOTH: config.Table = {"s2": {}, "s1": {}}


@pytest.fixture(scope="module")
def v1(shared_data: Path) -> Path:
    return shared_data / "layouts" / "BigEarthNet-v1"


@pytest.fixture(scope="module")
def v2(shared_data: Path) -> Path:
    return shared_data / "layouts" / "BigEarthNet"


def opened(path: Path, part: PartName = "train", tables: config.Table = BOTH) -> Split:
    wanted = {name: modalities.load(name, table) for name, table in tables.items()}
    return Bigearthnet(path=path).open(part, wanted)


def test_both_versions_are_found(v1: Path, v2: Path) -> None:
    for path in (v1, v2):
        assert sources.detect(path) == "bigearthnet"
        assert Bigearthnet(path=path).available() == ("s2", "s1")


def test_patches_of_v1_find_each_other_and_are_as_stored(v1: Path) -> None:
    split = opened(v1)
    assert len(split) == 6  # three pairs, and three of S1 whose partner is not there
    samples = {sample.id: sample for sample in (split[index] for index in range(6))}
    sample = samples["S2A_MSIL2A_20170617T113321_36_85"]
    images = sample.epochs[0]
    folders = {
        "s2": v1 / "s2-tiny" / sample.id,
        "s1": v1 / "s1-tiny" / "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85",
    }
    for name, bands in (("s2", {"B02": 0, "B08": 6}), ("s1", {"VV": 0, "VH": 1})):
        for band, number in bands.items():
            with rasterio.open(folders[name] / f"{folders[name].name}_{band}.tif") as file:
                np.testing.assert_array_equal(images[name].pixels[0, number], file.read(1))
    coarse = oracle(folders["s2"] / f"{sample.id}_B05.tif", images["s2"].geobox, Resampling.bilinear)
    np.testing.assert_allclose(images["s2"].pixels[0, 3], coarse[0], atol=1.0)
    assert images["s2"].geobox == images["s1"].geobox
    assert [str(raster.days.astype("datetime64[D]")[0]) for raster in images.values()] == ["2017-06-17"] * 2
    assert [set(samples[name].epochs[0]) for name in samples if name.startswith("S1")] == [{"s1"}] * 3


def test_patches_of_v2_are_as_stored_and_reference_maps_are_none(v2: Path) -> None:
    split = opened(v2, tables={"s2": {"bands": ["B04", "B03", "B02"]}})
    samples = [split[index] for index in range(len(split))]
    assert len(samples) == 3
    for sample in samples:
        (folder,) = (path for path in v2.rglob(sample.id) if "Reference_Maps" not in path.parts)
        with rasterio.open(next(folder.glob("*_B03.tif*"))) as file:
            np.testing.assert_array_equal(sample.epochs[0]["s2"].pixels[0, 1], file.read(1))
        assert sample.epochs[0]["s2"].valid.all()


def test_the_metadata_of_v2_say_parts_and_partners(v2: Path, tmp_path: Path) -> None:
    for name in ("BigEarthNet-S1", "BigEarthNet-S2"):
        (tmp_path / name).symlink_to(v2 / name)
    patches = sorted(path.name for path in (v2 / "BigEarthNet-S2").glob("*/*"))
    radar = sorted(path.name for path in (v2 / "BigEarthNet-S1").glob("*/*"))
    rows = [(patches[0], radar[0], "test"), (patches[1], radar[1], "train"), ("not here", radar[2], "validation")]
    pd.DataFrame(rows, columns=["patch_id", "s1_name", "split"]).to_parquet(tmp_path / "metadata.parquet")
    found = {part: opened(tmp_path, part) for part in ("train", "val", "test")}
    assert {part: [set(split[i].epochs[0]) for i in range(len(split))] for part, split in found.items()} == {
        "train": [{"s2", "s1"}],
        "val": [{"s1"}],
        "test": [{"s2", "s1"}],
    }
    assert found["test"][0].id == patches[0]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(SkysenseError, match="metadata"):
        opened(tmp_path)


def names_of(split: Split, index: int) -> set[str]:
    label = split.label(index)
    assert isinstance(label, Tags)
    return {split.classes[code] for code in label.codes}


def test_labels_of_v1_are_those_of_its_files_and_become_the_nineteen(v1: Path) -> None:
    split = opened(v1)
    wide = Bigearthnet(path=v1, classes=43).open("train", {"s2": modalities.load("s2"), "s1": modalities.load("s1")})
    assert len(split.classes) == 19
    assert len(wide.classes) == 43
    for index in range(len(split)):
        sample = split[index]
        (file,) = v1.rglob(f"{sample.id}_labels_metadata.json")
        stored = set(json.loads(file.read_text())["labels"])
        assert names_of(wide, index) == stored
        assert sample.label == split.label(index)
        # Every name of the 43 that these patches have belongs to one of the 19.
        assert names_of(split, index) == {new for new, parts in CLASSES.items() if stored & set(parts)}
    marsh = next(index for index in range(6) if split[index].id.endswith("61_40"))
    assert names_of(split, marsh) == {
        *("Urban fabric", "Arable land", "Broad-leaved forest", "Inland wetlands", "Inland waters"),
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    }


def test_the_nomenclatures_are_whole() -> None:
    assert len(set(CORINE)) == len(CORINE) == 43
    assert sum(map(len, CLASSES.values())) == 32


def test_lists_beside_v1_say_the_parts_and_leave_out_what_they_do_not_name(v1: Path, tmp_path: Path) -> None:
    for name in ("s1-tiny", "s2-tiny"):
        (tmp_path / name).symlink_to(v1 / name)
    pairs = [
        ("S2A_MSIL2A_20170617T113321_36_85", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85"),
        ("S2A_MSIL2A_20170617T113321_4_55", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55"),
    ]
    (tmp_path / "train.csv").write_text(",".join(pairs[0]) + "\r\n")
    (tmp_path / "test.csv").write_text(",".join(pairs[1]) + "\n")
    found = {part: opened(tmp_path, part) for part in ("train", "val", "test")}
    assert {part: [split[i].id for i in range(len(split))] for part, split in found.items()} == {
        "train": [pairs[0][0]],
        "val": [],
        "test": [pairs[1][0]],
    }
    assert names_of(found["test"], 0) == {"Pastures"}


def test_labels_of_v2_stand_in_its_metadata(v2: Path, tmp_path: Path) -> None:
    for name in ("BigEarthNet-S1", "BigEarthNet-S2"):
        (tmp_path / name).symlink_to(v2 / name)
    patch = next((v2 / "BigEarthNet-S2").glob("*/*")).name
    radar = next((v2 / "BigEarthNet-S1").glob("*/*")).name
    row = {"patch_id": patch, "s1_name": radar, "split": "train", "labels": ["Arable land", "Marine waters"]}
    pd.DataFrame([row]).to_parquet(tmp_path / "metadata.parquet")
    split = opened(tmp_path)
    index = next(index for index in range(len(split)) if split[index].id == patch)
    assert names_of(split, index) == {"Arable land", "Marine waters"}
    with pytest.raises(UsageError, match="19 classes"):
        Bigearthnet(path=tmp_path, classes=43).open("train", {"s2": modalities.load("s2")})
    pd.DataFrame([row | {"labels": ["Moon"]}]).to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(SkysenseError, match="Moon is none of the 19"):
        opened(tmp_path).label(index)


def test_a_patch_whose_classes_nothing_says_is_named(v1: Path, tmp_path: Path) -> None:
    name = "S2A_MSIL2A_20170617T113321_36_85"
    for patch in (name, "S2A_MSIL2A_20170617T113321_4_55"):
        (tmp_path / patch).mkdir()
        for file in (v1 / "s2-tiny" / patch).iterdir():
            if patch != name or file.suffix != ".json":
                (tmp_path / patch / file.name).symlink_to(file)
    split = opened(tmp_path, tables={"s2": {}})
    assert [split[index].label is None for index in range(2)] == [True, False]
    with pytest.raises(SkysenseError, match=f"{name}: nothing says its classes"):
        split.label(0)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"hr": {}}, "has no hr"),
        ({"s2": {"level": "L1C"}}, "--set modalities.s2.level=L2A"),
        ({"s1": {"gsd": 20.0}}, "--set modalities.s1.gsd=10"),
    ],
)
def test_what_does_not_fit_is_refused(v1: Path, tables: config.Table, said: str) -> None:
    with pytest.raises(UsageError) as error:
        opened(v1, tables=tables)
    assert said in str(error.value)


def test_a_patch_without_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "s2" / "S2A_MSIL2A_20170617T113321_36_85").mkdir(parents=True)
    with pytest.raises(SkysenseError, match="S2A_MSIL2A_20170617T113321_36_85"):
        opened(tmp_path, tables={"s2": {}})[0]


@pytest.mark.slow
def test_a_model_is_pretrained_on_it(v1: Path, tmp_path: Path) -> None:
    from skysense_core.pretrain import PretrainConfig, pretrain

    table = {
        "data": {"path": v1},
        "out": tmp_path / "run",
        "model": {"preset": "nano"},
        "train": {"steps": 2, "batch_size": 2},
        "device": "cpu",
    }
    result = pretrain(config.build(PretrainConfig, table))
    assert set(result.features) >= {"s2.std", "s1.std", "fused.std"}
