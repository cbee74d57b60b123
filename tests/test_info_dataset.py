"""`skysense info` of data sets: every layout is told as it is read, and what would spoil a training is named."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import miniatures
import numpy as np
import pandas as pd
import pytest
from affine import Affine
from miniatures import Write, grid, noise, raster
from odc.geo.geobox import GeoBox

from skysense_cli.app import main
from skysense_core import sources
from skysense_core.errors import UsageError
from skysense_core.info import DatasetInfo, as_table, info, next_command
from skysense_core.info import dataset as module

KINDS = {
    "potsdam": "pixels",
    "isaid": "pixels",
    "dynamic_earthnet": "pixels",
    "dior": "objects",
    "fair1m": "objects",
    "levir_cd": "pixels",
    "oscd": "pixels",
    "class_folders": "samples",
    "bigearthnet": "samples",
    "fmow": "samples",
    "pastis": "pixels",
}


def tiles(folder: Path, write: Write, parts: dict[str, list[tuple[np.ndarray, GeoBox | None]]]) -> Path:
    """Images and masks of two classes in folders of their parts."""
    for part, images in parts.items():
        for number, (pixels, place) in enumerate(images):
            raster(write, folder / part / "images" / f"{part}_{number}.tif", pixels, place)
            mask = (np.arange(pixels[0].size).reshape(1, *pixels.shape[1:]) % 4 == 0).astype(np.uint8)
            raster(write, folder / part / "masks" / f"{part}_{number}.tif", mask, place)
    (folder / "classes.txt").write_text("land\nwater\n")
    return folder


def pictures(first: int, count: int) -> list[tuple[np.ndarray, GeoBox | None]]:
    return [(noise(first + number), None) for number in range(count)]


def looked_at(path: Path, **how: object) -> DatasetInfo:
    found = info(str(path), **how)  # type: ignore[arg-type]
    assert isinstance(found, DatasetInfo)
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skysense", "info", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize("name", KINDS)
def test_every_layout_is_told_as_its_source_reads_it(name: str, tmp_path: Path, write_raster: Write) -> None:
    folder = getattr(miniatures, name)(tmp_path / "data", write_raster)
    # Of Sentinel-1 of Dynamic EarthNet nobody says the names of the bands.
    used: dict[str, dict[str, object]] = {"hr": {}, "s2": {}} if name == "dynamic_earthnet" else {}
    found = looked_at(folder, settings={"modalities": used} if used else None)
    assert found.source == name
    _, source = sources.from_table({"path": str(folder)})
    assert found.evidence == source.looked_for
    assert found.counted == KINDS[name]
    assert set(found.modalities) == set(used or source.available())
    for part, told in found.parts.items():
        opened = source.open(part, found.modalities)  # type: ignore[arg-type]
        assert (told.samples, told.looked_at) == (len(opened), len(opened))
        assert tuple(told.labels) == found.classes == opened.classes
        assert sum(told.labels.values()) > 0
    assert {*found.parts, *found.refused} == {"train", "val", "test"}
    assert found.unreadable == ()
    json.dumps(as_table(found), default=str)
    words = shlex.split(str(next_command(found)))
    assert words[:4] == ["skysense", "finetune", "--task", source.about.tasks[0]]
    assert words[words.index("--data") + 1] == str(folder)


def test_labels_are_counted_by_class(tmp_path: Path, write_raster: Write) -> None:
    folder = tiles(tmp_path / "tiles", write_raster, {"train": pictures(0, 3), "val": pictures(10, 2)})
    found = looked_at(folder)
    assert found.parts["train"].labels == {"land": 3 * 64 * 48, "water": 3 * 64 * 16}
    assert found.parts["train"].unknown == 0
    assert found.refused.keys() == {"test"}
    assert found.leaks == ()


def test_the_same_image_in_two_parts_is_named(tmp_path: Path, write_raster: Write) -> None:
    same, empty = (noise(5), None), (np.zeros((3, 64, 64), dtype=np.uint8), None)
    parts = {
        "train": [*pictures(0, 2), same, empty],
        "val": [*pictures(10, 2), empty],  # empty images are alike and say nothing
        "test": [same, *pictures(20, 2)],
    }
    found = looked_at(tiles(tmp_path / "tiles", write_raster, parts))
    (leak,) = found.leaks
    assert (leak.what, leak.parts, leak.samples) == ("image", ("train", "test"), 1)
    assert leak.examples == (("train_2", "test_0"),)


def test_ground_that_two_parts_share_is_named_and_neighbours_are_not(tmp_path: Path, write_raster: Write) -> None:
    box = grid(64, 0.3)
    parts = {
        "train": [(noise(0), box), (noise(1), box.translate_pix(200, 0))],
        "val": [(noise(2), box.translate_pix(32, 0))],
        "test": [(noise(3), box.translate_pix(264, 0))],  # beside the second of train
    }
    found = looked_at(tiles(tmp_path / "tiles", write_raster, parts))
    (leak,) = found.leaks
    assert (leak.what, leak.parts, leak.samples) == ("ground", ("train", "val"), 1)
    assert leak.examples == (("train_0", "val_0"),)


def test_odd_sizes_pixels_that_are_not_square_and_broken_files_are_named(
    tmp_path: Path, write_raster: Write, run: Callable[..., tuple[int, str, str]]
) -> None:
    oblong = GeoBox((64, 64), Affine(0.3, 0, 500000, 0, -0.4, 4000000), "EPSG:32633")
    parts = {
        "train": [*pictures(0, 8), (noise(30, side=48), None)],
        "val": [*pictures(10, 2), (noise(40), oblong)],
        "test": pictures(20, 2),
    }
    folder = tiles(tmp_path / "tiles", write_raster, parts)
    broken = folder / "train" / "images" / "train_3.tif"
    broken.write_bytes(broken.read_bytes()[:200])
    cut = folder / "val" / "images" / "val_1.tif"
    cut.write_bytes(cut.read_bytes()[:-6000])
    found = looked_at(folder)
    assert found.odd_sizes.examples == ("train: train_8 (48 x 48 pixels)",)
    assert found.not_square.samples == 1
    assert found.not_square.examples[0].startswith("val: val_2 (0.3 m across, 0.4 m along)")
    assert len(found.unreadable) == 2
    assert broken.name in found.unreadable[0]
    assert cut.name in found.unreadable[1]
    code, out, _ = run(folder)
    assert code == 0
    for text in ("train_8 (48 x 48 pixels)", "0.3 m across, 0.4 m along", "train_3.tif", "val_1.tif"):
        assert text in out
    assert out.splitlines()[-1].startswith("next  skysense finetune --task segmentation --data")


def test_of_a_large_part_some_samples_are_read_and_that_is_said(
    tmp_path: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    folder = tiles(tmp_path / "tiles", write_raster, {"train": pictures(0, 8), "val": pictures(10, 2)})
    found = looked_at(folder)
    assert (found.parts["train"].looked_at, found.parts["train"].labelled, found.whole) == (3, 3, False)
    code, out, _ = run(folder)
    assert code == 0
    assert "3 of 8 samples" in out
    assert "--all reads every sample" in out
    assert looked_at(folder, every=True).parts["train"].labelled == 8
    assert "--all" not in run(folder, "--all")[1]
    classes = miniatures.class_folders(tmp_path / "classes", write_raster)
    one = looked_at(classes).parts["train"]
    assert (one.looked_at, one.labelled, sum(one.labels.values())) == (3, one.samples, one.samples)


def test_what_the_files_do_not_say_is_asked_for_and_given(
    tmp_path: Path, write_raster: Write, run: Callable[..., tuple[int, str, str]]
) -> None:
    folder = tiles(tmp_path / "tiles", write_raster, {"train": pictures(0, 3), "val": pictures(10, 2)})
    (folder / "classes.txt").unlink()
    code, out, _ = run(folder)
    assert code == 0
    assert "what do the masks' codes mean?" in out
    assert "--classes" in out
    code, out, _ = run(folder, "--classes", "dry land,water", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["classes"] == ["dry land", "water"]
    words = shlex.split(found["next"])
    assert """data.classes=["dry land", "water"]""" in " ".join(words)
    code, _, err = run(folder, "--set", "data.clases=a")
    assert code == 2
    assert "did you mean" in err


def test_a_table_of_points_and_pictures_without_labels(tmp_path: Path, write_raster: Write) -> None:
    rows = [
        {"id": n, "date": f"2020-0{m}-01", "B02": n, "crop": "ab"[n % 2], "cell": n // 4}
        for n in range(24)
        for m in (1, 2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "points.csv", index=False)
    said = {"data": {"label_column": "crop", "split_by": "cell"}}
    found = looked_at(tmp_path / "points.csv", settings=said)
    assert (found.source, found.classes) == ("series", ("a", "b"))
    assert sum(one.samples for one in found.parts.values()) == 24
    assert "data.label_column" in str(next_command(found))
    folder = tmp_path / "pictures"
    for number, side in enumerate((32, 48, 64)):
        raster(write_raster, folder / f"{number}.png", noise(number, side=side), driver="PNG")
    bare = looked_at(folder)
    assert (bare.source, bare.counted, bare.parts["train"].samples) == ("images", None, 3)
    assert str(next_command(bare)).startswith("skysense pretrain --data")
    assert bare.odd_sizes.samples == 0  # they have no size in common


def test_options_of_data_sets_are_refused_elsewhere(tmp_path: Path, write_raster: Write) -> None:
    path = write_raster(tmp_path / "a.tif", noise(0), grid(64, 10.0))
    for how in ({"every": True}, {"speed": True}):
        with pytest.raises(UsageError, match="Leave it out"):
            info(str(path), **how)  # type: ignore[arg-type]


def test_real_data_sets_are_told(shared_data: Path) -> None:
    found = looked_at(shared_data / "layouts" / "BigEarthNet")
    assert found.source == "bigearthnet"
    assert set(found.modalities) == {"s2", "s1"}
    floods = looked_at(shared_data / "change_flood" / "ombria")
    assert [floods.parts[part].samples for part in ("train", "val", "test")] == [45, 11, 24]
    assert 0.3 < floods.parts["test"].labels["changed"] / sum(floods.parts["test"].labels.values()) < 0.35
    assert floods.leaks == ()
