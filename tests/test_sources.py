"""Which source a path belongs to."""

from pathlib import Path

import pytest

from skysense_core import registry, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources import Source
from skysense_core.sources.pastis import Pastis
from skysense_core.sources.scenes import Scenes


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_every_source_is_one() -> None:
    assert set(registry.names("sources")) >= {"folder", "pastis", "scenes"}
    for name in registry.names("sources"):
        source = registry.load("sources", name)
        assert isinstance(source.looked_for, str)
        assert all(hasattr(source, part) for part in ("detect", "available", "open"))
    assert isinstance(Pastis(path=Path("x")), Source)


def test_an_unknown_layout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        sources.detect(folders(tmp_path, "pictures"))
    for name in registry.names("sources"):
        assert f"{name}: {registry.load('sources', name).looked_for}" in str(error.value)
    assert "--source" in str(error.value)


def test_an_ambiguous_layout_is_refused_with_the_choice(tmp_path: Path) -> None:
    folders(tmp_path, "images", "masks", "ANNOTATIONS", "DATA_S2")
    (tmp_path / "metadata.geojson").write_text("{}")
    with pytest.raises(UsageError, match="several sources") as error:
        sources.detect(tmp_path)
    assert "folder:" in str(error.value)
    assert "pastis:" in str(error.value)
    assert "scenes:" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SkysenseError, match="no such file or folder") as error:
        sources.detect(tmp_path / "absent")
    assert error.value.exit_code == 1


def test_only_what_no_layout_shows_stands_for_another_source() -> None:
    assert sources.stands_for("vector_boxes", "scenes")
    assert not sources.stands_for("eurosat", "class_folders")  # folders that look like EuroSAT are found as such
    assert not sources.stands_for("vector_boxes", "coco")


def test_a_data_table_names_its_source_or_shows_it(tmp_path: Path) -> None:
    path = str(folders(tmp_path / "a", "images", "masks"))
    name, source = sources.from_table({"path": path})
    assert name == "folder"
    assert source.available() == ("hr",)
    name, source = sources.from_table({"path": path, "source": "pastis", "fold": 2})
    assert name == "pastis"
    assert source == Pastis(path=Path(path), fold=2)
    name, source = sources.from_table({"rasters": {"s2": "a.tif", "hr": ["b.tif"]}, "labels": "c.gpkg"})
    assert name == "scenes"
    assert isinstance(source, Scenes)
    assert source.available() == ("s2", "hr")


def test_faults_in_a_data_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data given"):
        sources.from_table({})
    with pytest.raises(UsageError, match="unknown source 'pasits'") as error:
        sources.from_table({"source": "pasits", "path": "x"})
    assert "did you mean pastis?" in str(error.value)
    with pytest.raises(UsageError, match=r"data\.flod: unknown key") as error:
        sources.from_table({"source": "pastis", "path": "x", "flod": 1})
    assert "did you mean data.fold?" in str(error.value)
