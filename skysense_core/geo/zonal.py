"""Means of a raster of many bands over polygons, tile by tile: memory does not grow with the raster."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from jaxtyping import Bool, Float, Int
from odc.geo.geobox import GeoBox
from pyarrow import parquet
from rasterio import features
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from skysense_core.errors import SkysenseError
from skysense_core.geo.cog import FULL, scratch_beside
from skysense_core.geo.grid import crs_of, place
from skysense_core.geo.regions import ID, cut, over
from skysense_core.geo.windows import Window

TILE = 128
"""Side of a tile in pixels."""
CELLS, EMBEDDING = "cells", "embedding"
"""Columns that `write_means` adds."""


def zonal_means(
    raster: Path, polygons: gpd.GeoSeries
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The mean of each band over the valid pixels whose centres lie in each polygon, float32, NaN where there is none.

    A polygon that holds no centre gets the pixel under its representative point. Returns the means, how many pixels
    they are of, and how many centres each polygon holds. Nodata is NaN; the polygons are in the raster's CRS.
    """
    count = len(polygons)
    with rasterio.open(raster) as dataset:
        sums = np.zeros((count, dataset.count))
        valid, centres = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for grid, chosen, pixels, known in _tiles(dataset, polygons):
            for number in chosen.tolist():
                part, inside = _inside(polygons.iloc[number], grid)
                centres[number] += int(inside.sum())
                inside &= known[part]
                sums[number] += pixels[:, *part][:, inside].sum(axis=1, dtype=np.float64)
                valid[number] += int(inside.sum())
        small = np.flatnonzero(centres == 0)
        points = polygons.iloc[small].representative_point()
        for grid, chosen, pixels, known in _tiles(dataset, points):
            x, y = (getattr(points.iloc[chosen].geometry, axis).to_numpy() for axis in "xy")
            col, row = (np.floor(edge).astype(int) for edge in place(~grid.affine, x, y))
            here = (row >= 0) & (row < grid.shape.y) & (col >= 0) & (col < grid.shape.x)
            here[here] &= known[row[here], col[here]]
            # A point on the edge of two tiles counts once.
            here &= valid[small[chosen]] == 0
            sums[small[chosen[here]]] = pixels[:, row[here], col[here]].T
            valid[small[chosen[here]]] = 1
    means = np.divide(sums, valid[:, None], out=np.full_like(sums, np.nan), where=valid[:, None] > 0)
    return means.astype(np.float32), valid, centres


def _tiles(
    dataset: DatasetReader, shapes: gpd.GeoSeries
) -> Iterator[tuple[GeoBox, Int[np.ndarray, "n"], Float[np.ndarray, "d h w"], Bool[np.ndarray, "h w"]]]:
    """The tiles that some shapes touch: grid, numbers of the shapes, pixels, and which of them are valid."""
    whole = GeoBox(dataset.shape, dataset.transform, str(dataset.crs))
    for row in range(0, dataset.height, TILE):
        for col in range(0, dataset.width, TILE):
            height, width = min(TILE, dataset.height - row), min(TILE, dataset.width - col)
            grid = Window(row=row, col=col, height=height, width=width).geobox(whole)
            chosen = np.sort(shapes.sindex.query(grid.extent.geom, predicate="intersects"))
            if len(chosen):
                pixels = dataset.read(window=RasterioWindow(col, row, width, height))
                yield grid, chosen, pixels, ~np.isnan(pixels[0])


def _inside(shape: shapely.Geometry, grid: GeoBox) -> tuple[tuple[slice, slice], Bool[np.ndarray, "h w"]]:
    """The rows and columns of a grid around a shape, and which of their pixels have their centre in it."""
    window = over(grid, shape.bounds)
    part = slice(window.row, window.row_stop), slice(window.col, window.col_stop)
    if window.empty:
        return part, np.zeros((window.height, window.width), dtype=bool)
    shown = features.geometry_mask(
        [shape], (window.height, window.width), window.geobox(grid).affine, all_touched=False, invert=True
    )
    return part, shown


def squares(grid: GeoBox, side: int) -> gpd.GeoDataFrame:
    """Squares of `side` pixels over a grid, with ids as `skysense regions` gives them."""
    found = cut(grid, side)
    shapes = shapely.box(*np.transpose([region.bounds for region in found]))
    return gpd.GeoDataFrame({ID: [region.id for region in found]}, geometry=shapes, crs=crs_of(grid).proj)


def write_means(raster: Path, frame: gpd.GeoDataFrame, out: Path, tags: Mapping[str, str]) -> tuple[int, int]:
    """The rows of a frame as GeoParquet with the mean of the raster in each: columns `cells` and `embedding`.

    `cells`: how many valid pixels the mean is of; 0 where the polygon holds no pixel's centre and takes the one under
    it. Rows without a valid pixel are left out. `tags` go into the file's metadata, under "skysense". Returns how many
    were left out, and how many are smaller than a pixel. The file appears whole or not at all.

    Raises SkysenseError where no row is left or the file cannot be written.
    """
    with rasterio.open(raster) as dataset:
        shapes = frame.geometry.to_crs(dataset.crs)
    means, valid, centres = zonal_means(raster, shapes)
    shown = valid > 0
    if not shown.any():
        raise SkysenseError(f"no valid pixel in any of {len(frame)} polygons")
    cells = np.where(centres > 0, valid, 0)[shown]
    kept = frame[shown].assign(**{CELLS: cells, EMBEDDING: list(means[shown])})
    with scratch_beside(out) as scratch:
        draft = scratch / out.name
        try:
            kept.to_parquet(draft, index=False)
            table = parquet.read_table(draft)
            said = {**(table.schema.metadata or {}), b"skysense": json.dumps(dict(tags)).encode()}
            parquet.write_table(table.replace_schema_metadata(said), draft, compression="zstd")
        except OSError as error:
            raise SkysenseError(f"{out}: cannot be written: {error}", fix=FULL) from None
        draft.replace(out)
    return int((~shown).sum()), int((cells == 0).sum())
