"""Bad samples among good ones, and labels that teach nothing: named, refused, or left out where that is wanted."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pairs import write_levir
from PIL import Image

from skysense_cli.app import main
from skysense_core import modalities, sources
from skysense_core.data.sound import going_on, sound
from skysense_core.errors import SkysenseError
from skysense_core.geo.raster import read_picture
from skysense_core.tasks.change import Change
from skysense_core.tasks.classification import Classification
from skysense_core.tasks.segmentation import Segmentation

HR = {"hr": modalities.load("hr")}


def picture(path: Path, seed: int = 0, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def cut(path: Path, share: float) -> None:
    """What an interrupted copy leaves of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


def class_folders(folder: Path) -> Path:
    for seed, name in enumerate(("sand", "sea")):
        for number in range(10):
            picture(folder / name / f"{name}_{number}.png", 20 * seed + number)
    return folder


def masked(folder: Path, *, code: int | None = None) -> Path:
    """Pictures with masks of two classes, or of one only."""
    for number in range(12):
        picture(folder / "images" / f"{number}.png", number)
        mask = np.arange(32 * 32).reshape(32, 32) // 512 if code is None else np.full((32, 32), code)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("land\nwater\n")
    return folder


def boxed(folder: Path) -> Path:
    for number in range(12):
        picture(folder / "images" / f"{number}.png", number)
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(12)]
    rows = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 9, 9]} for n in range(12)]
    table = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "ship"}]}
    (folder / "boxes.json").write_text(json.dumps(table))
    return folder


def levir(folder: Path) -> Path:
    return write_levir(folder, side=32, count=8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_off_is_never_read_as_a_picture(tmp_path: Path, suffix: str, share: float) -> None:
    path = picture(tmp_path / f"a.{suffix}", side=256)
    read_picture(path, bands=None)
    cut(path, share)
    with pytest.raises(SkysenseError, match=rf"a\.{suffix}.*(cannot be read|not a raster)"):
        read_picture(path, bands=None)


@pytest.mark.parametrize("write", [class_folders, masked, boxed, levir])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_what_cannot_be_read_is_left_out_and_the_rest_is_as_before(
    tmp_path: Path, write: Callable[[Path], Path], share: float
) -> None:
    """Files without a header fail when the source is opened, cut ones when their pixels are read."""
    folder = write(tmp_path / "data")
    _, source = sources.from_table({"path": str(folder)})
    whole = source.open("train", HR)
    ids = [whole[index].id for index in range(len(whole))]
    odd = next(path for path in sorted(folder.rglob("*.png")) if path.stem == Path(ids[1]).stem)
    cut(odd, share)
    with pytest.raises(SkysenseError, match=odd.name):
        sound(source.open("train", HR), "train")
    with going_on(True) as failures:
        opened = source.open("train", HR)
        kept = sound(opened, "train")
    assert [opened[index].id for index in kept] == [ids[0], *ids[2:]]
    assert [opened.size(index) for index in kept] == [(32, 32)] * len(kept)
    assert len(failures) == 1
    assert str(odd) in failures[0]
    for path in folder.rglob("*.png"):
        cut(path, 0.5)
    with going_on(True), pytest.raises(SkysenseError, match=r"cannot be read|not a raster"):
        sound(source.open("train", HR), "train")


def test_training_and_measuring_go_on_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = class_folders(tmp_path / "data"), tmp_path / "run"
    split = {part: sources.from_table({"path": str(data)})[1].open(part, HR) for part in ("train", "test")}
    odd = {part: data / one[0].id for part, one in split.items()}
    cut(odd["train"], 0.0)
    cut(odd["test"], 0.6)

    def called(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["skysense", *words, "--device", "cpu", "--precision", "fp32"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    train = ["finetune", "--task", "classification", "--data", str(data), "--preset", "nano", "--out", str(run)]
    train += ["--steps", "2", "--batch-size", "2"]
    code, said = called(*train)
    assert code == 1
    assert odd["train"].name in said
    assert not (run / "best").exists()
    code, said = called(*train, "--keep-going")
    assert code == 3
    assert f"1 left out, the first: {odd['train']}" in said
    assert odd["train"].name in json.loads((run / "failures.jsonl").read_text())["error"]
    assert (run / "best" / "config.toml").exists() or list((run / "best").iterdir())
    measure = ["evaluate", "--model", str(run)]
    code, said = called(*measure)
    assert code == 1
    assert odd["test"].name in said
    code, said = called(*measure, "--keep-going")
    assert code == 3
    scores = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())["scores"]["model"]
    assert scores["support"] == len(split["test"]) - 1
    assert odd["test"].name in (run / "evaluation" / "test" / "failures.jsonl").read_text()
    shutil.copy(next(data.glob("sea/*.png")), odd["test"])
    code, _ = called(*measure, "--keep-going", "--overwrite")
    assert code == 0
    assert not (run / "evaluation" / "test" / "failures.jsonl").exists()


def test_labels_of_one_class_only_are_refused(tmp_path: Path) -> None:
    _, source = sources.from_table({"path": str(masked(tmp_path / "masks", code=1))})
    with pytest.raises(SkysenseError, match=r"all labels of the training part are water"):
        Segmentation().completed(source.open("train", HR))
    pairs = levir(tmp_path / "pairs")
    for path in (pairs / "train" / "label").iterdir():
        with rasterio.open(path, "r+") as mask:
            mask.write(np.zeros((1, 32, 32), dtype=np.uint8))
    _, source = sources.from_table({"path": str(pairs)})
    with pytest.raises(SkysenseError, match=r"all labels of the training part are unchanged"):
        Change().completed(source.open("train", HR))
    folders = class_folders(tmp_path / "classes")
    for part, name in (("train", "sea"), ("test", "sea"), ("test", "sand")):
        (folders / part).mkdir(exist_ok=True)
        shutil.copytree(folders / name, folders / part / name)
    _, source = sources.from_table({"path": str(folders)})
    with pytest.raises(SkysenseError, match=r"all labels of the training part are sea"):
        Classification().completed(source.open("train", HR))
