"""The paper's experiments: every file is valid, says what it needs, and trains and measures on a miniature."""

from collections.abc import Callable
from pathlib import Path

import miniatures
import pytest

from skysense_core import config, sources
from skysense_core.evaluate import EvaluateConfig, evaluate
from skysense_core.finetune import FinetuneConfig, finetune

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
EXPERIMENTS = {
    "dyna_pla": ("segmentation", "dynamic_earthnet", "miou"),
    "isaid": ("segmentation", "isaid", "miou"),
    "potsdam": ("segmentation", "potsdam", "mf1"),
    "dyna_s2": ("segmentation", "dynamic_earthnet", "miou"),
    "dior": ("detection", "dior", "map50"),
    "dior_r": ("oriented_detection", "dior_r", "map50"),
    "fair1m": ("oriented_detection", "fair1m", "map50"),
    "levir_cd": ("change", "levir_cd", "f1"),
    "oscd": ("change", "oscd", "f1"),
    "dyna_s2_change": ("semantic_change", "dynamic_earthnet", "scs"),
    "aid": ("classification", "class_folders", "oa"),
    "resisc45": ("classification", "class_folders", "oa"),
    "ben_s2": ("multilabel", "bigearthnet", "map_micro"),
    "fmow_s2": ("classification", "fmow", "oa"),
    "dyna_mm": ("segmentation", "dynamic_earthnet", "miou"),
    "pastis_mm": ("crop", "pastis", "oa"),
    "ben_mm": ("multilabel", "bigearthnet", "map_micro"),
}
"""By file: task, source and the published score (METHOD 4)."""
QUICK = {
    "model": {"preset": "nano"},
    "train": {"steps": 2, "batch_size": 2, "precision": "fp32"},
    "device": "cpu",
}


def test_there_is_a_file_for_each_of_the_seventeen() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(EXPERIMENTS)
    assert len(EXPERIMENTS) == 17


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_valid_and_says_what_it_needs(name: str) -> None:
    path = FOLDER / f"{name}.toml"
    table = config.load_toml(path)
    given = config.build(FinetuneConfig, config.merge({"data": {}, "out": "runs/x"}, table))
    assert given.task["name"] == EXPERIMENTS[name][0]
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"skysense finetune --config examples/paper/{name}.toml --data " in "\n".join(head)
    assert any("Published: " in line and any(sign.isdigit() for sign in line) for line in head)
    assert any("You need: " in line for line in head)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_on_its_layout(name: str, tmp_path: Path, write_raster: Callable[..., Path]) -> None:
    _, source, score = EXPERIMENTS[name]
    data = getattr(miniatures, source.removesuffix("_r"))(tmp_path / "data", write_raster)
    assert sources.detect(data) == source.removesuffix("_r")
    table = config.merge(
        config.load_toml(FOLDER / f"{name}.toml"),
        {"data": {"path": str(data), "source": source}, "out": str(tmp_path / "run"), **QUICK},
    )
    table["train"].pop("epochs", None)
    finetune(config.build(FinetuneConfig, table))
    found = evaluate(EvaluateConfig(model=tmp_path / "run", split="test", device="cpu", precision="fp32")).scores
    assert 0 <= found["model"][score] <= 1
