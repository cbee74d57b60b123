"""Join the results of many predictions into one file, in memory that does not grow with their size."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from skysense_core import runtime
from skysense_core.errors import UsageError
from skysense_core.geo import cog
from skysense_core.geo.cog import Product
from skysense_core.geo.mosaic import Result, lay_out, open_result, write_vrt
from skysense_core.geo.paths import expand

SAME = ("kind", "classes", "bands", "dtype", "nodata", "scale", "offset")
"""What all parts have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicConfig:
    """The settings of one mosaic."""

    inputs: tuple[str, ...]
    """Results of predict: files, globs, folders; `-` reads a list of them from stdin. The first one wins."""
    out: Path
    creation_options: Mapping[str, str] = field(default_factory=dict)
    """Of GDAL's COG driver."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicResult:
    """What was written."""

    path: Path
    parts: int
    width: int
    height: int
    """In pixels."""
    seconds: float
    notes: tuple[str, ...]


def mosaic(config: MosaicConfig) -> MosaicResult:
    """Join results of predict that lie on one pixel lattice into one cloud-optimised GeoTIFF.

    It carries what they carry: colours (those of the first), class names, band names, scale, nodata and provenance.
    Where they overlap the first one with a valid pixel counts. Raises UsageError where they do not fit together,
    naming two files and how they differ, and SkysenseError where one cannot be read. The file appears whole or not at
    all.
    """
    started = time.perf_counter()
    out = config.out
    if out.is_dir() or out.suffix.lower() not in (".tif", ".tiff"):
        raise UsageError(f"--out {out}: not the name of a GeoTIFF", fix="For example --out all.tif")
    paths = expand([line for item in config.inputs for line in _listed(item)])
    if any(Path(path).resolve() == out.resolve() for path in paths):
        raise UsageError(f"--out {out} is one of the inputs", fix="Write it elsewhere, or name the inputs otherwise.")
    if out.exists() and not config.overwrite:
        raise UsageError(f"{out} exists", fix="Use --overwrite to replace it.")
    results = [open_result(path) for path in paths]
    product = _common(results)
    grid, windows = lay_out([(result.path, result.grid) for result in results])
    parts = list(zip(paths, windows, strict=True))
    with runtime.interruptible("mosaic interrupted; nothing was written"), cog.scratch_beside(out) as scratch:
        joined = write_vrt(parts, grid, product, scratch / f"{out.stem}.parts")
        cog.publish(cog.write_cog(joined, product, config.creation_options), out)
    return MosaicResult(
        path=out,
        parts=len(parts),
        width=grid.shape.x,
        height=grid.shape.y,
        seconds=time.perf_counter() - started,
        notes=_notes(product),
    )


def _listed(item: str) -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()] if item == "-" else [item]


def _common(results: Sequence[Result]) -> Product:
    """What all results are. A tag that differs between them holds every value, each once."""
    first = results[0]
    for other in results[1:]:
        for name in SAME:
            own, found = (_said(getattr(result.product, name)) for result in (first, other))
            if own != found:
                raise UsageError(
                    f"{other.path} cannot be joined with {first.path}: {name} {found}, not {own}",
                    fix="Join results of one kind and one set of classes, each kind by itself.",
                )
    values: dict[str, dict[str, None]] = {}
    for result in results:
        for key, value in result.product.tags.items():
            values.setdefault(key, {})[value] = None
    return replace(first.product, tags={key: "; ".join(found) for key, found in values.items()})


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _notes(product: Product) -> tuple[str, ...]:
    several = "; " in product.tags.get("MODEL_DIGEST", "")
    return (f"the parts were made by different models: {product.tags.get('MODEL')}",) if several else ()
