"""The STAC item of a model: valid by the STAC core schema and by two libraries that know the MLM extension."""

import json
from pathlib import Path
from typing import Any

import pystac
import pytest
import torch
from pystac.extensions.mlm import MLMExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from stac_model.schema import MLModelProperties
from test_checkpoint import built, save

from skysense_core import checkpoint
from skysense_core.description import packaged_models
from skysense_core.errors import SkysenseError
from skysense_core.tasks.segmentation import Segmentation


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stac-item.json").read_text())


def items(tmp_path: Path) -> dict[str, Path]:
    encoder = tmp_path / "5 Wälder"
    checkpoint.save_model(encoder, built(), None, name=encoder.name, training={}, metrics={}, licence="not stated")
    strange = tmp_path / "strange"
    task = Segmentation(classes=("cloud forest", "水"))
    checkpoint.save_model(strange, built(task), task, name="s", training={}, metrics={}, licence="CC0-1.0")
    return {"ponds": save(tmp_path / "ponds", built()), "encoder": encoder, "strange": strange, **ZOO}


ZOO = packaged_models()


@pytest.mark.parametrize("which", ["ponds", "encoder", "strange", *ZOO])
def test_the_item_is_valid(tmp_path: Path, which: str) -> None:
    table = read(items(tmp_path)[which])
    JsonSchemaSTACValidator().validate_core(table, pystac.STACObjectType.ITEM, table["stac_version"])
    MLModelProperties(**{k.removeprefix("mlm:"): v for k, v in table["properties"].items() if k.startswith("mlm:")})
    read_by_pystac = MLMExtension.ext(pystac.Item.from_dict(table))
    assert read_by_pystac.mlm_name[:9] == "skysense "


def test_it_says_what_the_model_reads_and_draws(tmp_path: Path) -> None:
    folder = save(tmp_path / "ponds", built())
    said, table = checkpoint.load_description(folder), read(folder)
    item = MLMExtension.ext(pystac.Item.from_dict(table))
    (given,), (drawn,) = item.input, item.output
    assert given.bands == ["red", "blue"]
    assert given.input.dim_order == ["batch", "time", "channel", "height", "width"]
    assert given.input.shape == [-1, 1, 2, 128, 128]
    scaling = table["properties"]["mlm:input"][0]["value_scaling"]
    assert [(one["type"], one["mean"], one["stddev"]) for one in scaling] == [
        ("z-score", band.mean, band.std) for band in said.modalities["hr"].bands
    ]
    assert drawn.classes is not None
    assert [(one.value, one.name, one.color_hint) for one in drawn.classes] == [
        (0, "water", "0000FF"),
        (1, "town", "FF0000"),
    ]
    model = table["assets"]["model"]
    assert model["file:checksum"] == f"1220{said.digest}"
    assert (folder / model["href"]).stat().st_size == model["file:size"]
    assert table["properties"]["skysense:licence"] == "CC0-1.0"
    assert table["geometry"] is None
    assert "bbox" not in table


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_item_of_a_packaged_model_is_that_of_its_weights(name: str) -> None:
    said, table = checkpoint.load_description(ZOO[name]), read(ZOO[name])
    assert table["assets"]["model"]["file:checksum"] == f"1220{said.digest}"
    assert table["properties"]["mlm:input"][0]["bands"] == list(said.modalities[said.reference].band_names)


def test_every_asset_is_there(tmp_path: Path) -> None:
    folder = save(tmp_path / "ponds", built())
    for asset in read(folder)["assets"].values():
        assert (folder / asset["href"]).is_file()


def test_an_item_of_another_model_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, other = save(tmp_path / "ponds", built()), save(tmp_path / "other", built(seed=1))
    checkpoint.load_model(folder, torch.device("cpu"))
    assert caplog.text == ""
    for text in ((other / "stac-item.json").read_text(), "no item"):
        caplog.clear()
        (folder / "stac-item.json").write_text(text)
        checkpoint.load_model(folder, torch.device("cpu"))
        assert "stac-item.json describes another model" in caplog.text
    with pytest.raises(SkysenseError, match=r"not its folder\n.*Give "):
        checkpoint.load_model(folder / "stac-item.json", torch.device("cpu"))
