"""The store: aligned samples of several modalities on disk, with everything that training needs to know of them.

    store.toml         modalities with their measured statistics, classes, what was done to the values
    index.parquet      GeoParquet, a row per sample: place, dates, validity, part, and where its chips lie
    shards/00000.tar   chips (`geo.chips`), read in place by offset and size; tar -xf gives GeoTIFFs
    failures.jsonl     inputs that could not be read, where there were any

21 million samples are so some thousand files, not 65 million. Paths are relative to the store, which may be copied,
or read from a web server as it lies.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import shapely
from shapely import Polygon

from skysense_core import config
from skysense_core.errors import SkysenseError
from skysense_core.modalities import Modality

VERSION = 1
"""Of the format; a store of a higher one is refused."""
DESCRIPTION, INDEX, FAILURES, SHARDS = "store.toml", "index.parquet", "failures.jsonl", "shards"
BUFFERED = 50_000
"""Rows of a row group of the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the chips of one modality, beside what its table says."""

    level: str | None = None
    """The product level that the files state; None: they do not say."""
    offsets: tuple[float, ...] = ()
    """What was added to the stored values: -1000 for Sentinel-2 of processing baseline 04.00 and later."""
    samples: int = 0
    images: int = 0
    """All dates of all samples."""
    pixels: int = 0
    """Valid ones, of which the statistics are."""
    p2: tuple[float, ...] = ()
    p50: tuple[float, ...] = ()
    p98: tuple[float, ...] = ()
    """Percentiles of each band."""
    notes: tuple[str, ...] = ()
    """What the reader said of the inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """`store.toml`."""

    version: int = VERSION
    skysense: str
    """Version of the package that wrote it."""
    plan: str
    """Digest of what it was made from: the same command finds it finished."""
    size: int | None = None
    """Side of a footprint in Sentinel-2 pixels of 10 m; None: a data set's own."""
    samples: int
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    modalities: dict[str, Modality]
    """Complete tables, with the statistics of the store."""
    facts: dict[str, Facts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """Where one modality of a sample lies, and what it holds."""

    offset: int
    size: int
    dates: tuple[str, ...]
    """ISO; empty where not known."""
    valid: float
    """Share of valid pixels over all dates."""
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample in the index."""

    id: str
    split: str
    """train, val, test, or empty: in none of them."""
    crs: str
    lonlat: tuple[float, float] | None
    footprint: Polygon | None
    """In EPSG:4326."""
    shard: str
    chips: Mapping[str, Chip]
    label: tuple[int, int] = (0, 0)
    """Offset and size."""
    label_counts: tuple[int, ...] = ()
    items: tuple[str, ...] = ()

    def record(self, modalities: Iterable[str]) -> dict[str, Any]:
        """The columns of the index; the geometry as hexadecimal WKB."""
        lon, lat = self.lonlat or (None, None)
        columns: dict[str, Any] = {
            "id": self.id,
            "split": self.split,
            "crs": self.crs,
            "lon": lon,
            "lat": lat,
            "shard": self.shard,
        }
        for name in modalities:
            chip = self.chips.get(name)
            columns |= {
                f"{name}_offset": chip.offset if chip else 0,
                f"{name}_size": chip.size if chip else 0,
                f"{name}_dates": list(chip.dates) if chip else [],
                f"{name}_valid": chip.valid if chip else 0.0,
                f"{name}_height": chip.height if chip else 0,
                f"{name}_width": chip.width if chip else 0,
            }
        return columns | {
            "label_offset": self.label[0],
            "label_size": self.label[1],
            "label_counts": list(self.label_counts),
            "items": list(self.items),
            "geometry": None if self.footprint is None else shapely.to_wkb(self.footprint, hex=True),
        }


def schema(modalities: Iterable[str]) -> pa.Schema:
    """Columns and types of the index; it is GeoParquet by its metadata."""
    fields: list[tuple[str, pa.DataType]] = [("id", pa.string()), ("split", pa.string()), ("crs", pa.string())]
    fields += [("lon", pa.float64()), ("lat", pa.float64()), ("shard", pa.string())]
    for name in modalities:
        fields += [(f"{name}_offset", pa.int64()), (f"{name}_size", pa.int64())]
        fields += [(f"{name}_dates", pa.list_(pa.string())), (f"{name}_valid", pa.float32())]
        fields += [(f"{name}_height", pa.int32()), (f"{name}_width", pa.int32())]
    fields += [("label_offset", pa.int64()), ("label_size", pa.int64()), ("label_counts", pa.list_(pa.int64()))]
    fields += [("items", pa.list_(pa.string())), ("geometry", pa.binary())]
    geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": pyproj.CRS("EPSG:4326").to_json_dict()}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    return pa.schema(fields, metadata={"geo": json.dumps(geo, sort_keys=True)})


def write_index(path: Path, records: Iterable[Mapping[str, Any]], modalities: Sequence[str]) -> None:
    """Write the index, atomically and in bounded memory, from rows as `Row.record` makes them."""
    columns, draft = schema(modalities), path.with_name(f".{path.name}.tmp")
    buffer: list[Mapping[str, Any]] = []
    with pq.ParquetWriter(draft, columns, compression="zstd") as writer:

        def flush() -> None:
            rows = [{**row, "geometry": row["geometry"] and bytes.fromhex(row["geometry"])} for row in buffer]
            writer.write_table(pa.Table.from_pylist(rows, columns))
            buffer.clear()

        for record in records:
            buffer.append(dict(record))
            if len(buffer) == BUFFERED:
                flush()
        if buffer:
            flush()
    draft.replace(path)


def read_index(root: str | Path, *, split: str | None = None) -> pa.Table:
    """The rows of a store, or those of one part. Raises SkysenseError where it cannot be read."""
    content = _content(root, INDEX)
    try:
        # In this thread: a process that ends while Arrow's own threads do may be aborted.
        table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise SkysenseError(f"{root}/{INDEX}: cannot be read: {error}", fix="Copy or ingest it again.") from None
    return table if split is None else table.filter(pc.equal(table["split"], split))


def load_description(root: str | Path) -> Description:
    """`store.toml` of a store. Raises SkysenseError where there is none, or one of a newer version of the format."""
    path = f"{root}/{DESCRIPTION}"
    if web_address(root) is None:
        table = config.load_toml(Path(root) / DESCRIPTION)
    else:
        import tomllib

        table = tomllib.loads(_content(root, DESCRIPTION).decode())
    version = table.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise SkysenseError(
            f"{path}: a store of version {version}, written by skysense {table.get('skysense', '?')}; "
            f"this one reads up to version {VERSION}",
            fix="Update skysense: pip install -U skysense",
        )
    return config.build(Description, table, DESCRIPTION)


def write_description(root: Path, description: Description) -> None:
    """Write `store.toml`, atomically: with it the store is complete."""
    config.write_toml(root / DESCRIPTION, config.to_table(description))


def web_address(root: str | Path) -> str | None:
    """The address of a store on a web server, also as GDAL writes it (`/vsicurl/http...`); None for a local one."""
    found = re.match(r"(?:/vsicurl/)?(https?://.*)", str(root))
    return found[1].rstrip("/") if found else None


def path_of(root: str | Path, shard: str) -> str:
    """GDAL's name of a shard of a store."""
    web = web_address(root)
    return str(Path(root) / shard) if web is None else f"/vsicurl/{web}/{shard}"


def _content(root: str | Path, name: str) -> bytes:
    web = web_address(root)
    try:
        if web is None:
            return (Path(root) / name).read_bytes()
        with urllib.request.urlopen(f"{web}/{name}", timeout=30) as answer:
            return answer.read()
    except FileNotFoundError:
        raise SkysenseError(f"{root}: no store: {name} is missing", fix="Was skysense ingest finished?") from None
    except urllib.error.URLError as error:
        raise SkysenseError(f"{web}/{name}: {error}", fix="Check the address and the connection.") from None
