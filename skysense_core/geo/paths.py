"""Which files an input means: a file, a glob or a folder, or anything that GDAL takes instead of a path."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from skysense_core.errors import SkysenseError, UsageError, did_you_mean

RASTERS = frozenset(
    {".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".img", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".asc", ".kea"}
)
CUBES = frozenset({".nc", ".nc4", ".cdf", ".zarr"})
DOCUMENTS = frozenset({".json", ".geojson"})
"""Of STAC: items, collections of items, catalogues."""
_ITEM = re.compile(r"https?://.+/collections/[^/]+/items/[^/]+")
METADATA = re.compile(r"(?:MTD_MSI|\w+_MTD_SAF)L(?:1C|2A)\w*\.xml")
"""Name of the file that describes a Sentinel-2 product, also in those of 2015 and 2016."""
_PACKED = re.compile(r"S2[A-Z]_\w+(?:\.SAFE)?\.zip", re.IGNORECASE)


def is_cube(path: str) -> bool:
    """Whether xarray reads it (NetCDF, Zarr) rather than GDAL."""
    return Path(path.rstrip("/")).suffix.lower() in CUBES and not path.startswith("/vsi")


def is_product(path: str) -> bool:
    """Whether it is a product folder (*.SAFE, or one with a Sentinel-2 product's metadata) or a zip archive, also on
    the web."""
    if is_web(path):
        return re.split(r"[?#]", path)[0].lower().endswith(".zip")
    if not is_plain(path):
        return False
    place = Path(path)
    if not place.is_dir():
        return place.suffix.lower() == ".zip"
    return place.suffix.upper() == ".SAFE" or any(METADATA.fullmatch(item.name) for item in place.iterdir())


def is_document(path: str) -> bool:
    """Whether it is a STAC document: a JSON file here or on the web, an item in one (`items.json#ID`), or an API's."""
    web = is_web(path)
    address = re.split(r"[?#]", path)[0] if web else path.split("#")[0]
    suffix = Path(address).suffix.lower()
    if suffix in DOCUMENTS:
        return web or is_plain(path)
    return web and bool(_ITEM.fullmatch(address)) and suffix not in RASTERS | CUBES


def is_web(path: str) -> bool:
    """Whether it is an address on the web."""
    return path.startswith(("http://", "https://"))


def is_remote(path: str) -> bool:
    """Whether reading it goes over a network, also within an archive there (/vsizip//vsicurl/...)."""
    return bool(re.search(r"://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)(_streaming)?/", path))


def is_plain(path: str) -> bool:
    """Whether it is an ordinary path of this machine: no URL, GDAL virtual file system or `DRIVER:` prefix."""
    return not ("://" in path or path.startswith("/vsi") or re.match(r"[A-Za-z0-9_]{2,}:", path))


def natural(text: str) -> list[tuple[int, int | str]]:
    """Sort key by which tile9 comes before tile10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", text) if part]


def expand(paths: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Every raster that the paths, globs and folders mean, each once, in the given order and naturally within one.

    A folder means the rasters in it, or else those below it; sidecar files (.ovr, .msk, .aux.xml) are none. A
    Sentinel-2 product (a folder *.SAFE or S2*.zip) is one input, and so is each item of a STAC document. Raises
    SkysenseError where something is missing or empty.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise UsageError("no raster given")
    found = [file for path in paths for file in _expand_one(str(path))]
    return tuple(dict.fromkeys(found))


def _expand_one(path: str) -> list[str]:
    if is_plain(path) and METADATA.fullmatch(Path(path).name) and Path(path).is_file():
        return [str(Path(path).parent)]
    if is_document(path) and (not is_plain(path) or Path(path).is_file() or not glob.has_magic(path)):
        from skysense_core.geo.catalog import members  # which imports this module

        return list(members(path))
    if not is_plain(path) or Path(path).is_file() or (Path(path).is_dir() and (is_cube(path) or is_product(path))):
        return [path]
    if Path(path).is_dir():
        documents = (str(item) for suffix in DOCUMENTS for item in Path(path).glob(f"*{suffix}"))
        files = _rasters(Path(path), "*") or _rasters(Path(path), "**/*") or _members(sorted(documents, key=natural))
        if not files:
            looked_for = " ".join(sorted(RASTERS | CUBES | DOCUMENTS))
            raise SkysenseError(
                f"{path}: no raster in this folder",
                fix=f"Looked for {looked_for}; a glob such as '{path}/*.dat' takes any other.",
            )
        return files
    if glob.has_magic(path):
        files = sorted(glob.glob(path, recursive=True), key=natural)
        if not files:
            raise SkysenseError(f"{path}: no file matches")
        return _members(files)
    parent = Path(path).parent
    hint = did_you_mean(Path(path).name, (item.name for item in parent.iterdir())) if parent.is_dir() else ""
    raise SkysenseError(f"{path}: no such file", fix=hint.strip() or None)


def _members(files: Sequence[str]) -> list[str]:
    """The same with STAC documents replaced by the items that they hold."""
    return [member for file in files for member in (_expand_one(file) if is_document(file) else [file])]


def _rasters(folder: Path, pattern: str) -> list[str]:
    files = (
        str(item)
        for item in folder.glob(pattern)
        if (
            item.suffix.lower() in RASTERS | CUBES
            or _PACKED.fullmatch(item.name)
            or (item.suffix.upper() == ".SAFE" and item.is_dir())
        )
        and not item.name.startswith(".")
        and not any(parent.suffix in (".zarr", ".SAFE") for parent in item.relative_to(folder).parents)
    )
    return sorted(files, key=natural)
