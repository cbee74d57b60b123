"""Where samples lie: cells of a lattice anchored at the origin of the CRS, the same for every scene and every run.

A cell belongs to the UTM zone in which its centre lies, so that each place has one cell although zones overlap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float, Int, Shaped
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import transform
from skysense_core.geo.outline import LONLAT, footprint_lonlat
from skysense_core.geo.windows import Window
from skysense_core.modalities import CELL, CELLS, Modality, side_beside

PIXEL = 10.0
"""Metres of a Sentinel-2 pixel, in which sizes are counted."""
ZONE = 6.0
"""Degrees of longitude of a UTM zone."""
NORTH, SOUTH = 84.0, -80.0
"""Latitudes between which UTM is defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Squares of `size` pixels of 10 m, `stride` pixels apart."""

    size: int
    stride: int

    @property
    def side(self) -> float:
        """Metres."""
        return self.size * PIXEL

    @property
    def step(self) -> float:
        """Metres from one cell to the next."""
        return self.stride * PIXEL

    def pixels(self, reference: Modality, modality: Modality) -> int:
        """Pixels of a modality along a cell; `reference` is the one in whose pixels the lattice counts.

        Raises UsageError where cells would not begin at a pixel of it.
        """
        side = side_beside(reference, modality, self.size)
        if side * self.stride % self.size:
            whole = self.size // math.gcd(self.size, side)
            raise UsageError(
                f"--stride {self.stride}: footprints would begin within a pixel of {modality.name}",
                fix=f"Use a multiple of {whole}.",
            )
        return side

    def stored(self, modality: Modality, side: int) -> Modality:
        """The modality as `side` pixels per cell hold it: its pixel size, and no training crop larger than a cell."""
        unit = CELL[modality.encoder] * CELLS
        window = side if side < modality.window and side % unit == 0 else modality.window
        return replace(modality, gsd=float(f"{self.side / side:.6g}"), window=window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Some cells in one CRS."""

    lattice: Lattice
    crs: str
    cols: Int[np.ndarray, "n"]
    rows: Int[np.ndarray, "n"]
    """Counted from the origin of the CRS to the east and to the north."""

    def __len__(self) -> int:
        return len(self.cols)

    def __getitem__(self, chosen: Shaped[np.ndarray, "_"]) -> "Cells":
        return Cells(lattice=self.lattice, crs=self.crs, cols=self.cols[chosen], rows=self.rows[chosen])

    def name(self, index: int) -> str:
        """The same for this place in every store."""
        code = CRS(self.crs).to_epsg() or "local"
        return f"{code}_{self.cols[index]:06d}_{self.rows[index]:06d}"

    def boxes(self, margin: float = 0.0) -> Shaped[np.ndarray, "n"]:
        """Outlines in the CRS, `margin` metres wider."""
        left, bottom = self.cols * self.lattice.step, self.rows * self.lattice.step
        side = self.lattice.side
        return shapely.box(left - margin, bottom - margin, left + side + margin, bottom + side + margin)

    def outlines(self, margin: float = 0.0) -> Shaped[np.ndarray, "n"]:
        """The same in EPSG:4326; one that crosses the antimeridian goes on beyond 180."""
        pieces = shapely.segmentize(self.boxes(margin), max(self.lattice.side, 1.0))
        counts = shapely.get_num_coordinates(pieces)
        coordinates = shapely.get_coordinates(pieces)
        lon, lat = transform(CRS(self.crs), LONLAT, coordinates[:, 0], coordinates[:, 1])
        first = np.repeat(lon[np.concatenate([[0], np.cumsum(counts)[:-1]])], counts) if len(lon) else lon
        lon = lon - 360 * np.round((lon - first) / 360)
        return shapely.set_coordinates(pieces, np.column_stack([lon, lat]))

    def centres(self) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Longitudes and latitudes."""
        half = self.lattice.side / 2
        x, y = self.cols * self.lattice.step + half, self.rows * self.lattice.step + half
        return transform(CRS(self.crs), LONLAT, x, y)

    def grid(self, side: int) -> GeoBox:
        """All of their rectangle, with `side` pixels per cell."""
        size, lattice = self.lattice.side / side, self.lattice
        left, top = float(self.cols.min() * lattice.step), float(self.rows.max() * lattice.step + lattice.side)
        width, height = (int(np.ptp(axis)) * side * lattice.stride // lattice.size + side
                         for axis in (self.cols, self.rows))  # fmt: skip
        return GeoBox((height, width), Affine(size, 0, left, 0, -size, top), self.crs)

    def window(self, index: int, side: int) -> Window:
        """Where a cell lies in `grid`."""
        step = side * self.lattice.stride // self.lattice.size
        row, col = int(self.rows.max() - self.rows[index]) * step, int(self.cols[index] - self.cols.min()) * step
        return Window(row=row, col=col, height=side, width=side)

    def blocks(self, count: int) -> list["Cells"]:
        """In squares of `count` x `count` lattice positions, from south-west to north-east, each sorted by name."""
        key = np.stack([self.cols // count, self.rows // count], axis=1)
        found, member = np.unique(key, axis=0, return_inverse=True)
        order = np.lexsort((self.rows, self.cols, member.ravel()))
        ends = np.cumsum(np.bincount(member.ravel(), minlength=len(found)))
        return [self[part] for part in np.split(order, ends[:-1])] if len(self) else []


def footprints(grids: Sequence[GeoBox]) -> BaseGeometry:
    """The ground of some grids in EPSG:4326, each counted once."""
    unique = {(tuple(grid.shape), grid.affine[:6], str(grid.crs)): grid for grid in grids}
    return shapely.union_all([footprint_lonlat(grid)[0] for grid in unique.values()])


def cells_over(
    ground: BaseGeometry, lattice: Lattice, *, crs: str | None, areas: Sequence[BaseGeometry] = ()
) -> list[Cells]:
    """The cells that share ground with `ground` and with each of `areas` (all in EPSG:4326), by CRS.

    `crs`: that of all cells; None: of the UTM zones. Raises UsageError where it is not in metres, and SkysenseError
    for ground beyond UTM.
    """
    if crs is not None:
        own = CRS(crs)
        if not own.projected or own.proj.axis_info[0].unit_conversion_factor != 1:
            raise UsageError(f"--crs {crs}: not a projected CRS in metres", fix="For example --crs EPSG:3035")
        found = _cells(str(own), ground, lattice, areas)
        return [found] if len(found) else []
    west, south, east, north = ground.bounds
    if south < SOUTH or north > NORTH:
        raise SkysenseError("the imagery reaches beyond the UTM zones", fix="Choose a CRS: --crs EPSG:3995 (Arctic)")
    kept = []
    for number in range(math.floor((west + 180) / ZONE), math.floor((east + 180) / ZONE) + 1):
        for base, (low, high) in ((32601, (0.0, NORTH)), (32701, (SOUTH, 0.0))):
            # A margin of degrees, for cells that reach over the zone's border.
            strip = shapely.box(-180 + ZONE * number - 0.5, low - 0.5, -180 + ZONE * (number + 1) + 0.5, high + 0.5)
            part = ground.intersection(strip)
            if part.is_empty:
                continue
            cells = _cells(f"EPSG:{base + number % 60}", part, lattice, areas)
            lon, lat = cells.centres()
            own_zone = np.floor((lon + 180) / ZONE).astype(np.int64) % 60 == number % 60
            cells = cells[own_zone & ((lat >= 0) if base == 32601 else (lat < 0))]
            if len(cells):
                kept.append(cells)
    return kept


def _cells(crs: str, ground: BaseGeometry, lattice: Lattice, areas: Sequence[BaseGeometry]) -> Cells:
    shapes = [_moved(ground, crs), *(_moved(area, crs) for area in areas)]
    boxes = np.array([shape.bounds for shape in shapes if not shape.is_empty])
    empty = Cells(lattice=lattice, crs=crs, cols=np.zeros(0, np.int64), rows=np.zeros(0, np.int64))
    if len(boxes) < len(shapes):
        return empty
    west, south = boxes[:, :2].max(axis=0)
    east, north = boxes[:, 2:].min(axis=0)
    if west >= east or south >= north:
        return empty
    (first_col, last_col), (first_row, last_row) = (
        (math.floor((low - lattice.side) / lattice.step), math.ceil(high / lattice.step))
        for low, high in ((west, east), (south, north))
    )
    cols, rows = np.meshgrid(np.arange(first_col, last_col + 1), np.arange(first_row, last_row + 1), indexing="ij")
    cells = Cells(lattice=lattice, crs=crs, cols=cols.ravel(), rows=rows.ravel())
    keep = np.ones(len(cells), dtype=bool)
    outlines = cells.boxes(-lattice.side * 1e-6)  # sharing an edge is sharing no ground
    for shape in shapes:
        shapely.prepare(shape)
        keep &= shapely.intersects(shape, outlines)
    return cells[keep]


def _moved(shape: BaseGeometry, crs: str) -> BaseGeometry:
    """A shape of EPSG:4326 in a CRS."""
    pieces = shapely.segmentize(shape, 0.05)
    moved = shapely.transform(pieces, lambda xy: np.stack(transform(LONLAT, CRS(crs), *xy.T), axis=1))
    return shapely.make_valid(moved)
