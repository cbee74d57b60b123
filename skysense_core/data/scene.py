"""A place to be mapped: the rasters of every modality, on the grid that the model gets, read window by window."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core.data.transforms import subsample_dates
from skysense_core.errors import UsageError, unknown
from skysense_core.geo.grid import crs_of, ground_gsd, place, scaled, transform
from skysense_core.geo.outline import LONLAT
from skysense_core.geo.paths import is_remote
from skysense_core.geo.raster import ReadOptions, Stack, open_stack
from skysense_core.geo.windows import Window, cells_of, pixels_of, reflect_pad
from skysense_core.modalities import Modality, finest, side_beside
from skysense_core.types import Raster, Sample

if TYPE_CHECKING:  # it is for predictions within polygons, and takes long to import
    from geopandas import GeoDataFrame

SAME_GSD = 0.1
"""A scene whose pixel size differs less from the model's is used as it is: training has seen as much."""
FACTOR = 2.0
"""Most that a scene is resampled by; beyond, the model would see another world."""


def open_stacks(
    inputs: Sequence[str], modalities: Mapping[str, Modality], read: Mapping[str, ReadOptions]
) -> dict[str, Stack]:
    """A stack per modality that is given, checked against its bands, unit and level.

    `inputs` are `MODALITY=PATH`, or bare paths where there is one modality; several paths of one are joined. `read`
    says how a modality's files are read, "" those of every modality not named. Raises UsageError where they do not fit.
    """
    (stacks,) = open_epochs(inputs, modalities, read, 1)
    return stacks


def open_epochs(
    inputs: Sequence[str], modalities: Mapping[str, Modality], read: Mapping[str, ReadOptions], epochs: int
) -> tuple[dict[str, Stack], ...]:
    """The stacks of so many epochs, as `open_stacks` opens those of one.

    Of several epochs every modality that is given has one input (a file, glob or folder) for each, in the order of
    time. Raises UsageError where there are more or fewer.
    """
    opened: tuple[dict[str, Stack], ...] = tuple({} for _ in range(epochs))
    for name, paths in _by_modality(inputs, modalities).items():
        modality = modalities[name]
        options = read.get(name, read.get("", ReadOptions()))
        if epochs > 1 and len(paths) != epochs:
            raise UsageError(
                f"{name} has {len(paths)} of {epochs} dates: {', '.join(paths)}",
                fix=f"The model compares {epochs}, in the order of time: {name}=BEFORE {name}=AFTER, each a file, a "
                "folder or a glob in quotes.",
            )
        # One date for each epoch is as good as one for all.
        dates = [(date,) for date in options.dates] if len(options.dates) == epochs else [options.dates] * epochs
        for epoch, (stacks, date) in enumerate(zip(opened, dates, strict=True)):
            stack = open_stack(
                paths if epochs == 1 else [paths[epoch]],
                bands=[band.names for band in modality.bands],
                unit=modality.unit,
                options=options if epochs == 1 else replace(options, dates=date),
            )
            stacks[name] = of_level(stack, modality)
    return opened


def of_level(stack: Stack, modality: Modality) -> Stack:
    """The stack, if it may be of the modality's product level; raises UsageError otherwise."""
    if stack.level is not None and stack.level != modality.level:
        raise UsageError(
            f"{stack.paths[0]} is {stack.level}, and the model was trained on {modality.level}",
            fix=f"Give a {modality.level} product, or a model trained on {stack.level}.",
        )
    return stack


def _by_modality(inputs: Sequence[str], modalities: Mapping[str, Modality]) -> dict[str, list[str]]:
    reference = finest(modalities)
    paths: dict[str, list[str]] = {}
    for item in inputs:
        name, equals, path = item.partition("=")
        if not equals or (name not in modalities and (Path(item).exists() or is_remote(name))):
            if len(modalities) > 1:
                raise UsageError(
                    f"{item}: the model reads {', '.join(modalities)}: which is it?",
                    fix=f"Write {reference}={item}",
                )
            name, path = reference, item
        elif name not in modalities:
            raise unknown("modality", name, modalities)
        paths.setdefault(name, []).append(path)
    if reference not in paths:
        raise UsageError(f"no input for {reference}, on whose grid the map is made", fix=f"Add {reference}=PATH.")
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The imagery of every modality, to be read window by window; windows are counted in cells of the reference's
    grid, which are its pixels where results lie on these."""

    stacks: Mapping[str, Stack]
    modalities: Mapping[str, Modality]
    reference: str
    grid: GeoBox
    """The reference modality's grid at the pixel size that the model gets."""
    area: "GeoDataFrame | None" = None
    """Polygons in the grid's CRS; windows that touch none are not read."""
    cell: int = 1
    """Side of a cell in pixels."""
    later: tuple[Mapping[str, Stack], ...] = ()
    """Stacks of the epochs after the first, where several are compared: they are read onto the first one's grids."""

    @property
    def every_stack(self) -> list[Stack]:
        """Of all epochs and modalities."""
        return [stack for stacks in (self.stacks, *self.later) for stack in stacks.values()]

    @property
    def cells(self) -> GeoBox:
        """The grid of the cells: that of the results."""
        return cells_of(self.grid, self.cell)

    def read(self, window: Window, *, blank: bool = False) -> Sample | None:
        """A sample of one window; None where it lies off the area or the reference modality of an epoch is invalid
        throughout, unless `blank` asks for it all the same.

        The reference is mirrored beyond the scene's border. Every other modality is read on the whole footprint at
        its own pixel size, invalid where it is absent.
        """
        window = pixels_of(self.grid, self.cell, window)
        inside = self.footprint(window, self.reference)
        if (
            self.area is not None
            and not blank
            and not len(self.area.sindex.query(inside.extent.geom, predicate="intersects"))
        ):
            return None
        epochs = []
        for stacks in (self.stacks, *self.later):
            seen = stacks[self.reference].read(inside)
            if not seen.valid.any() and not blank:
                return None
            rasters = {self.reference: reflect_pad(seen, window, (self.grid.shape.y, self.grid.shape.x))}
            for name, stack in stacks.items():
                if name != self.reference:
                    rasters[name] = stack.read(self.footprint(window, name))
            epochs.append(rasters)
        lonlat = _centre(window.geobox(self.grid))
        sample = Sample(id=f"{window.row},{window.col}", epochs=tuple(epochs), lonlat=lonlat)
        return subsample_dates(sample, {name: modality.dates for name, modality in self.modalities.items()})

    def footprint(self, window: Window, name: str) -> GeoBox:
        """The grid on which a modality is read for a window of pixels: the reference's part of it that lies in the
        scene, or the whole window at another modality's own pixel size."""
        if name == self.reference:
            return (window & Window.of(self.grid)).geobox(self.grid)
        sizes = self.modalities[self.reference], self.modalities[name]
        shape = side_beside(*sizes, window.height), side_beside(*sizes, window.width)
        return scaled(window.geobox(self.grid), shape)


def read_place(stacks: Mapping[str, Stack], modalities: Mapping[str, Modality], grid: GeoBox) -> dict[str, Raster]:
    """Every modality with a stack on the ground of `grid`, which is the reference's, at its own pixel size."""
    reference, rasters = modalities[finest(modalities)], {}
    for name, stack in stacks.items():
        height, width = grid.shape.y, grid.shape.x
        if name != reference.name:
            height, width = (side_beside(reference, modalities[name], side) for side in (height, width))
        rasters[name] = stack.read(scaled(grid, (height, width)))
    return rasters


def model_grid(native: GeoBox, modality: Modality) -> tuple[GeoBox, list[str]]:
    """The grid that the model gets: the scene's own where its pixels are within a tenth of the model's, else resampled.

    Returns the grid and notes for the user. Raises UsageError where the pixels differ by more than a factor 2, and
    SkysenseError where the scene does not lie on Earth.
    """
    _centre(native)  # a model of the Earth has nothing to say on another planet
    gsd = ground_gsd(native)
    ratio = gsd / modality.gsd
    if abs(ratio - 1) <= SAME_GSD:
        return native, []
    if max(ratio, 1 / ratio) > FACTOR * 1.001:  # ground sizes vary a little within a projection
        raise UsageError(
            f"{modality.name}: the scene's pixels are {gsd:.3g} m, the model's {modality.gsd:.3g} m",
            fix=f"Resample it first, if that makes sense: gdalwarp -tr {modality.gsd:g} {modality.gsd:g} (metres), "
            "or use a model of that pixel size.",
        )
    height, width = (math.ceil(side * ratio) for side in native.shape)
    resampled = GeoBox((height, width), native.affine * Affine.scale(1 / ratio), native.crs)
    return resampled, [f"{modality.name}: resampled from {gsd:.3g} m to the model's {modality.gsd:.3g} m"]


def _centre(grid: GeoBox) -> tuple[float, float] | None:
    """Longitude and latitude of the middle; None where that is beyond the edge of the earth's disk."""
    height, width = grid.shape
    x, y = place(grid.affine, np.array([width / 2]), np.array([height / 2]))
    lon, lat = transform(crs_of(grid), LONLAT, x, y)
    return (float(lon[0]), float(lat[0])) if np.isfinite([lon[0], lat[0]]).all() else None
