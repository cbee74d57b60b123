"""Tables of point time series: equal to what pandas reads, split by places, and one patch of a ViT each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skysense_core import config, modalities, sources
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.sources.series import Series, SeriesSplit
from skysense_core.types import PartName, ValueMap

TEN = [band.name for band in modalities.load("s2").bands]
RADAR = {"s1": {"log10": 20.0, "offset": -83.0}}


def opened(fields: config.Table, part: PartName = "train", **overrides: config.Table) -> SeriesSplit:
    source = config.build(Series, fields)
    own = source.described()
    wanted = {name: modalities.load(name, overrides.get(name), own[name]) for name in overrides or own}
    return source.open(part, wanted)


# Analysts' tables


@pytest.fixture(scope="module")
def canada(shared_data: Path) -> Path:
    return shared_data / "sits_pixel" / "worldcereal_canada_2017" / "2017_CAN_AAFC-ACIGTD.parquet"


@pytest.fixture
def fields(canada: Path) -> config.Table:
    return {
        "path": canada,
        "id_column": "sample_id",
        "date_column": "timestamp",
        "nodata": 65535,
        "values": RADAR,
    }


def test_a_long_table_is_that_of_pandas(canada: Path, fields: config.Table) -> None:
    assert sources.detect(canada) == sources.detect(canada.parents[1] / "deafrica_cropmask") == "series"
    with pytest.raises(UsageError, match=r"series: a table .* a folder of them alone"):
        sources.detect(canada.parent)  # a README lies beside the tables
    split = opened(fields)
    frame = pd.read_parquet(canada)
    assert len(split) == frame.sample_id.nunique() == 3621
    for index in (0, 1234, 3620):
        sample = split[index]
        rows = frame[frame.sample_id == sample.id].sort_values("timestamp")
        assert sample.lonlat == pytest.approx((rows.lon.iloc[0], rows.lat.iloc[0]), abs=1e-6)
        optical, radar = sample.epochs[0]["s2"], sample.epochs[0]["s1"]
        names = [band for band in TEN if band != "B8A"]
        stored = rows[[f"S2-L2A-{name}" for name in names]].to_numpy()
        seen = (stored != 65535).all(axis=1)
        assert optical.pixels.shape == (len(rows), 9, 4, 4)
        for row, col in ((0, 0), (3, 2)):
            np.testing.assert_array_equal(optical.valid[:, row, col], seen)
            np.testing.assert_array_equal(optical.pixels[:, :, row, col], stored * seen[:, None])
        counts = rows[["S1-SIGMA0-VV", "S1-SIGMA0-VH"]].to_numpy()
        heard = (counts != 65535).all(axis=1)
        np.testing.assert_array_equal(radar.valid[:, 1, 1], heard)
        expected = 20 * np.log10(counts[heard]) - 83
        np.testing.assert_allclose(radar.pixels[heard, :, 1, 1], expected, rtol=1e-5)
        days = rows.timestamp.to_numpy().astype("datetime64[D]").astype(int)
        np.testing.assert_array_equal(optical.days, days)
        assert optical.dated.all()


def test_places_belong_to_one_part(canada: Path, fields: config.Table) -> None:
    fields |= {"label_column": "CROPTYPE_LABEL", "split_by": "h3_l3_cell", "classes": ("1110", "1200", "4100")}
    frame = pd.read_parquet(canada).drop_duplicates("sample_id").set_index("sample_id")
    cells, ids = {}, {}
    for part in ("train", "val", "test"):
        split = opened(fields, part, s1={})
        ids[part] = [split.ids[row] for row in split.rows]
        assert split[3].id == ids[part][3]
        cells[part] = set(frame.h3_l3_cell[ids[part]])
        for index in range(0, len(split), 20):
            codes = split.label(index).codes
            assert codes.shape == (4, 4)
            assert split.classes[codes[0, 0]] == str(frame.CROPTYPE_LABEL[ids[part][index]])
            assert (codes == codes[0, 0]).all()
    assert len(set.union(*cells.values())) == sum(map(len, cells.values()))
    wanted = frame[frame.CROPTYPE_LABEL.isin((1110, 1200, 4100))]
    assert sum(map(len, ids.values())) == len(wanted)
    assert len(cells["test"]) == pytest.approx(0.2 * wanted.h3_l3_cell.nunique(), abs=1)


def test_a_wide_table_with_steps(shared_data: Path) -> None:
    path = shared_data / "sits_pixel" / "worldcereal_eastafrica" / "test_public_extractions.parquet"
    table = {
        "path": path,
        "id_column": "sample_id",
        "columns": r"(?:OPTICAL|SAR)-(?P<band>\w+)-ts(?P<step>\d+)-\d+m",
        "start_column": "start_date",
        "nodata": 65535,
        "values": RADAR,
        "label_column": "finetune_class",
        "split_by": "h3_l3_cell",
    }
    split, frame = opened(table), pd.read_parquet(path)
    assert {name: modality.band_names for name, modality in split.modalities.items()} == {
        "s2": tuple(TEN),
        "s1": ("VV", "VH"),
    }
    sample = split[3]
    row = frame[frame.sample_id.astype(str) == sample.id].iloc[0]
    raster = sample.epochs[0]["s2"]
    resolution = {band: next(name.split("-")[-1] for name in frame if f"-{band}-ts0-" in name) for band in TEN}
    stored = np.array([[row[f"OPTICAL-{band}-ts{step}-{resolution[band]}"] for band in TEN] for step in range(12)])
    seen = (stored != 65535).all(axis=1)
    np.testing.assert_array_equal(raster.valid[:, 0, 0], seen)
    np.testing.assert_array_equal(raster.pixels[seen][:, :, 2, 2], stored[seen])
    start = pd.Timestamp(row.start_date)
    months = [str((start + pd.DateOffset(months=step)).date()) for step in range(12)]
    assert raster.days.astype("datetime64[D]").astype(str).tolist() == months
    assert split.classes[sample.label.codes[0, 0]] == row.finetune_class


def test_a_folder_of_regions_without_places_or_dates(shared_data: Path) -> None:
    table = {
        "path": shared_data / "sits_pixel" / "deafrica_cropmask",
        "columns": r"(?P<band>[a-z_0-9]+)_S(?P<step>[12])",
        "values": {"s2": {"scale": 10000.0}},
        "label_column": "Class",
        "split_by": "file",
    }
    parts = {part: opened(table, part) for part in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 6153 + 4445 + 3509 + 2113
    sample = parts["test"][0]
    assert parts["test"].classes == ("0", "1")
    assert (sample.lonlat, sample.footprint, sample.epochs[0]["s2"].geobox) == (None, None, None)
    raster = sample.epochs[0]["s2"]
    assert raster.pixels.shape == (2, 9, 4, 4)
    assert not raster.dated.any()
    assert any("no dates" in note for note in parts["test"].notes)


# Small tables


def write_points(path: Path, points: int = 24, dates: int = 3) -> Path:
    """Two crops that reflect differently, in six cells; a row per point and date."""
    rng = np.random.default_rng(0)
    rows = []
    for point in range(points):
        crop = point % 2
        for date in range(dates):
            values = 1000 + 1500 * ((crop + np.arange(10)) % 2) + rng.normal(0, 50, 10)
            rows.append(
                {
                    "id": f"p{point}",
                    "date": f"2021-0{date + 4}-01",
                    "lon": 10 + point / 100,
                    "lat": 50.0,
                    "crop": ("maize", "wheat")[crop],
                    "cell": f"c{point // 4}",
                    **dict(zip(TEN, values.round(), strict=True)),
                }
            )
    frame = pd.DataFrame(rows)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


CROPS = {"label_column": "crop", "split_by": "cell"}


def test_a_wide_csv_with_dates_as_columns_is_the_long_one(tmp_path: Path) -> None:
    long = write_points(tmp_path / "long.parquet")
    frame = pd.read_parquet(long).pivot(index=["id", "lon", "lat", "crop", "cell"], columns="date", values=TEN)
    frame.columns = [f"{band}_{date.replace('-', '')}" for band, date in frame.columns]
    frame.reset_index().to_csv(tmp_path / "wide.csv.gz", index=False)
    one, other = (opened({"path": path, **CROPS}) for path in (long, tmp_path / "wide.csv.gz"))
    assert len(one) == len(other) > 0
    samples = {split[index].id: split[index] for split in (other,) for index in range(len(split))}
    for index in range(len(one)):
        mine, same = one[index], samples[one[index].id]
        np.testing.assert_array_equal(mine.epochs[0]["s2"].pixels, same.epochs[0]["s2"].pixels)
        np.testing.assert_array_equal(mine.epochs[0]["s2"].days, same.epochs[0]["s2"].days)
        np.testing.assert_array_equal(mine.label.codes, same.label.codes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split_by": None}, "--split-by"),
        ({"split_by": "cel"}, "did you mean cell"),
        ({"id_column": "point"}, "--set data.id_column=NAME"),
        ({"date_column": "day"}, "--set data.date_column=NAME"),
        ({"label_column": "species"}, "--set data.label_column=NAME"),
        ({"classes": ("rice",)}, "maize (12)"),
        ({"split_column": "cell"}, "--split-by cell"),
        ({"columns": "B02"}, "no group band"),
        ({"values": {"s2": {"scale": 0.0001}}}, "--set data.values.s2.scale=10000"),
        ({"nodata": None, "poison": 65535}, "--set data.nodata=65535"),
        ({"date_poison": "soon"}, "which is no date"),
        ({"crop_poison": "rice"}, "several values of crop"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, change: config.Table, said: str) -> None:
    path = write_points(tmp_path / "points.csv")
    frame, change = pd.read_csv(path), dict(change)
    for key, column in (("poison", "B04"), ("date_poison", "date"), ("crop_poison", "crop")):
        if key in change:
            frame[column] = frame[column].astype(object)
            frame.loc[1, column] = change.pop(key)
    frame.to_csv(path, index=False)
    with pytest.raises(SkysenseError) as error:
        opened({"path": path, **CROPS, **change})
    assert said in str(error.value)


def test_backscatter_that_is_not_in_decibels_is_refused(tmp_path: Path) -> None:
    frame = pd.read_parquet(write_points(tmp_path / "points.parquet"))
    frame["VV"], frame["VH"] = 0.1, 0.02
    frame.to_parquet(tmp_path / "points.parquet")
    with pytest.raises(UsageError, match=r"--set data\.values\.s1\.log10=10"):
        opened({"path": tmp_path / "points.parquet", **CROPS}, s1={})
    table = {"path": tmp_path / "points.parquet", **CROPS, "values": {"s1": {"log10": 10.0}}}
    np.testing.assert_allclose(opened(table, s1={})[0].epochs[0]["s1"].pixels[:, 0], -10, atol=1e-5)


def test_a_model_with_a_band_that_the_table_lacks_is_told(tmp_path: Path) -> None:
    path = write_points(tmp_path / "points.csv")
    pd.read_csv(path).drop(columns="B8A").to_csv(path, index=False)
    assert "B8A" not in config.build(Series, {"path": path}).described()["s2"].band_names
    with pytest.raises(UsageError, match=r"B8A of s2"):
        config.build(Series, {"path": path}).open("train", {"s2": modalities.load("s2")})


def test_an_official_split_is_kept_and_places_validate(tmp_path: Path) -> None:
    path = write_points(tmp_path / "points.parquet")
    frame = pd.read_parquet(path)
    frame["part"] = np.where(frame.cell.isin(["c0", "c1"]), "test", "train")
    frame.to_parquet(path)
    official = {"path": path, "label_column": "crop", "split_column": "part"}
    assert {one.id for one in map(opened(official, "test").__getitem__, range(8))} == {f"p{n}" for n in range(8)}
    assert len(opened(official, "val")) == 0
    dealt = {part: opened({**official, "split_by": "cell"}, part) for part in ("train", "val", "test")}
    assert {part: len(split) for part, split in dealt.items()} == {"train": 12, "val": 4, "test": 8}


def test_without_labels_all_points_train(tmp_path: Path) -> None:
    path = write_points(tmp_path / "points.parquet")
    split = opened({"path": path})
    assert (len(split), split.classes, split[0].label) == (24, (), None)
    assert len(opened({"path": path}, "test")) == 0
    with pytest.raises(UsageError, match="--label-column"):
        split.label(0)


def test_a_point_is_not_padded(tmp_path: Path) -> None:
    from skysense_core.data.chips import Augment, EvaluationChips, TrainingChips
    from skysense_core.tasks.crop import Crop

    split = opened({"path": write_points(tmp_path / "points.parquet"), **CROPS})
    assert split.modalities["s2"].window == 64
    chips = TrainingChips(split, split.modalities, Crop().encode, augment=Augment(), seed=0)
    sample, target = chips[0, 0]
    assert sample.epochs[0]["s2"].pixels.shape == (3, 10, 4, 4)
    assert target.shape == (4, 4)
    assert EvaluationChips(split, split.modalities, Crop().encode)[0][1].shape == (4, 4)


def test_a_model_learns_from_points(tmp_path: Path) -> None:
    from skysense_core.evaluate import EvaluateConfig, evaluate
    from skysense_core.finetune import FinetuneConfig, finetune

    table = {
        "data": {"path": write_points(tmp_path / "points.parquet"), **CROPS},
        "task": {"name": "crop"},
        "out": tmp_path / "run",
        "model": {"preset": "nano"},
        "optim": {"lr": 1e-3},
        "train": {"steps": 12, "batch_size": 8},
        "device": "cpu",
    }
    result = finetune(config.build(FinetuneConfig, table))
    assert result.metrics["oa"] > 0.9
    scores = evaluate(EvaluateConfig(model=tmp_path / "run", device="cpu")).scores
    assert scores["model"]["oa"] > 0.9 > scores["majority"]["oa"]


def test_a_table_of_its_own_says_the_parts(canada: Path, fields: config.Table) -> None:
    """A published split of Canada: 30 % of the cells are held out, points that are not listed are left out."""
    table = canada.with_name("split_seed1.csv")
    said = pd.read_csv(table).set_index("sample_id")
    crops = [str(code) for code in sorted(set(said.croptype))]
    given = {**fields, "label_column": "CROPTYPE_LABEL", "classes": crops, "split_table": table}
    found = {part: opened({**given, "split_by": "h3_l3_cell"}, part) for part in ("train", "val", "test")}
    ids = {part: [split.ids[row] for row in split.rows] for part, split in found.items()}
    assert set(ids["test"]) == set(said.index[said.split == "test"])
    assert set(ids["train"]) | set(ids["val"]) == set(said.index[said.split == "train"])
    assert not set(said.loc[ids["train"], "h3_l3_cell"]) & set(said.loc[ids["val"], "h3_l3_cell"])
    for part, index in (("test", 0), ("train", 7)):
        code = found[part].label(index).codes[0, 0]
        assert found[part].classes[code] == str(said.loc[ids[part][index], "croptype"])


def test_a_column_of_numbers_is_a_map_of_values(tmp_path: Path) -> None:
    rows = {
        "id": ["a", "b", "c", "d"],
        **{f"B{band:02d}_2020-0{month}-01": [100 * month + band] * 4 for band in (2, 3) for month in (1, 2)},
        "moisture": [81.5, np.nan, 120.0, 7.25],
        "place": ["p", "q", "r", "s"],
    }
    path = tmp_path / "points.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    (tmp_path / "parts.csv").write_text("id,split\na,train\nc,test\nb,train\n")
    given = {"path": path, "value_column": "moisture", "split_table": tmp_path / "parts.csv"}
    found = {part: opened(given, part) for part in ("train", "test")}
    assert [len(split) for split in found.values()] == [1, 1]  # b has no value, d is not listed
    assert any("1 points that parts.csv does not list" in note for note in found["train"].notes)
    label = found["test"][0].label
    assert isinstance(label, ValueMap)
    assert (label.values == 120.0).all()
    assert sources.labelled(found["train"], "series") is found["train"]
    with pytest.raises(UsageError, match="no column of numbers"):
        opened({**given, "value_column": "place"})
    with pytest.raises(UsageError, match="Leave one out"):
        opened({**given, "label_column": "place"})
    with pytest.raises(UsageError, match="which column says where"):
        opened({"path": path, "value_column": "moisture"})
    (tmp_path / "parts.csv").write_text("id,split\nz,train\n")
    with pytest.raises(UsageError, match="is in it"):
        opened(given)
