"""What the index of a store says: samples, ground, dates, labels; by itself, for its libraries take long to import."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

from skysense_core.data import store
from skysense_core.errors import UsageError
from skysense_core.geo.footprints import check_map, write_map
from skysense_core.info.stored import Content, StoreInfo
from skysense_core.modalities import Modality

EQUAL_AREA = "EPSG:6933"


def is_store(folder: Path, map_to: Path | None) -> bool:
    """Whether a folder is one. Raises UsageError where it is not and a map of it is wanted, or in another format."""
    found = (folder / store.DESCRIPTION).is_file()
    if map_to is not None:
        check_map(map_to)
        if not found:
            raise UsageError(f"--map: {folder} is no store", fix="Only the samples of a store can be drawn.")
    return found


def look_at_store(folder: Path, map_to: Path | None) -> StoreInfo:
    """What a store holds; `map_to` takes a map of its samples. Raises SkysenseError where it cannot be read."""
    description = store.load_description(folder)
    table = store.read_index(folder)
    frame = table.drop_columns(["geometry"]).to_pandas()
    geometry = gpd.GeoSeries.from_wkb(table["geometry"].to_pandas(), crs="EPSG:4326")
    placed = gpd.GeoDataFrame(frame, geometry=geometry)
    if map_to is not None:
        write_map(map_to, placed, folder.name)
    ground = geometry[~(geometry.isna() | geometry.is_empty)].to_crs(EQUAL_AREA)
    pixels = np.zeros(len(description.classes), dtype=np.int64)
    for counts in frame["label_counts"]:
        pixels[: len(counts)] += np.asarray(counts, dtype=np.int64)
    failures = folder / store.FAILURES
    return StoreInfo(
        path=folder,
        version=description.version,
        samples=len(frame),
        area_km2=float(ground.union_all().area / 1e6) if len(ground) else 0.0,
        crs=_counts(frame["crs"]),
        splits=_counts(frame["split"]),
        modalities={
            name: _content(frame, modality, description.facts[name].notes if name in description.facts else ())
            for name, modality in description.modalities.items()
        },
        labels=dict(zip(description.classes, pixels.tolist(), strict=True)),
        shards=sum(1 for _ in (folder / store.SHARDS).glob("*.tar")),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        failures=len(failures.read_text(encoding="utf-8").splitlines()) if failures.is_file() else 0,
    )


def _counts(column: "pd.Series[str]") -> dict[str, int]:
    return {str(name): int(count) for name, count in column.fillna("").value_counts().items()}


def _content(frame: pd.DataFrame, modality: Modality, notes: Sequence[str]) -> Content:
    own = frame[frame[f"{modality.name}_size"] > 0]
    days = [str(day) for days in own[f"{modality.name}_dates"] for day in days]
    months = Counter(day[:7] for day in days if day)
    first, last = (min(months), max(months)) if months else ("1970-01", "1969-12")
    span = np.arange(np.datetime64(first, "M"), np.datetime64(last, "M") + 1).astype(str).tolist()
    return Content(
        modality=modality,
        samples=len(own),
        images=len(days),
        undated=days.count(""),
        valid=float(own[f"{modality.name}_valid"].mean()) if len(own) else 0.0,
        months={month: months[month] for month in span},
        notes=tuple(notes),
    )
