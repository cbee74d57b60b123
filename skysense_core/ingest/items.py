"""Addresses of STAC APIs among the inputs become the items that are found there, kept in files beside the store."""

from dataclasses import replace

from skysense_core import modalities
from skysense_core.errors import UsageError
from skysense_core.geo.outline import LONLAT
from skysense_core.geo.search import Box, is_api, search
from skysense_core.geo.units import DECIBEL
from skysense_core.geo.vector import load_aoi
from skysense_core.ingest.settings import IngestConfig


def with_items(given: IngestConfig) -> IngestConfig:
    """The settings with the files of the found items in the place of each API; they lie in `<out>.items/<modality>`.

    Raises UsageError where nothing is found or the question makes no sense, SkysenseError where an API fails.
    """
    if not given.collections and given.datetime is None and given.max_cloud is None:
        return given
    listed = {name: (paths,) if isinstance(paths, str) else paths for name, paths in given.inputs.items()}
    if not any(is_api(path) for paths in listed.values() for path in paths):
        raise UsageError(
            "--collections, --datetime and --max-cloud ask a STAC API, and no address of one is given",
            fix="For example s2=https://HOST/stac --collections sentinel-2-l2a",
        )
    box = _box(given)
    folder = given.out.with_name(f"{given.out.name}.items")
    inputs: dict[str, str | tuple[str, ...]] = {}
    for name, paths in listed.items():
        radar = bool(name) and modalities.load(name, given.modalities.get(name)).unit == DECIBEL
        found: list[str] = []
        for number, path in enumerate(paths):
            if not is_api(path):
                found.append(path)
                continue
            items = search(
                path,
                folder=folder / (name or "any") / str(number),
                collections=given.collections.get(name, given.collections.get("", ())),
                bbox=box,
                datetime=given.datetime,
                max_cloud=None if radar else given.max_cloud,
            )
            found += map(str, items)
        inputs[name] = tuple(found)
    return replace(given, inputs=inputs)


def _box(given: IngestConfig) -> Box:
    """West, south, east, north of the area that is wanted, in degrees."""
    if given.bbox is not None and given.bbox_crs.upper() == "EPSG:4326":
        return given.bbox
    source = given.aoi if given.bbox is None else given.bbox
    if source is None:
        raise UsageError("a search without a place", fix="Say where: --bbox WEST,SOUTH,EAST,NORTH or --aoi FILE.")
    west, south, east, north = load_aoi(source, LONLAT, bbox_crs=given.bbox_crs).bounds
    return west, south, east, north
