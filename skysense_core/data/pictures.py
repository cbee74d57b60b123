"""Pictures of places at one or several epochs, with one mask or one for each epoch: what many sources open.

All pictures of a place lie on the same pixels: nothing is resampled, and one of another size is an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Num

from skysense_core.data.sound import readable
from skysense_core.errors import SkysenseError
from skysense_core.geo.files import open_file
from skysense_core.geo.labels import Legend
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.raster import read_picture
from skysense_core.modalities import Modality
from skysense_core.types import ClassMap, ClassMaps, PartName, Raster, Sample

Values: TypeAlias = Callable[[Raster, Path], Num[np.ndarray, "h w"]]
"""The bands of a mask become one number per pixel, which the legend knows."""

CHANGE = Legend(classes=("unchanged", "changed"), codes={"0": 0, "1": 1, "255": 1})
"""Masks of change are written 0 and 255, or 0 and 1."""


def one_band(mask: Raster, path: Path) -> Num[np.ndarray, "h w"]:
    """The numbers of the only band. Raises SkysenseError where there are several."""
    if mask.pixels.shape[1] != 1:
        raise SkysenseError(f"{path}: {mask.pixels.shape[1]} bands; a mask has one")
    return mask.pixels[0, 0]


def colours_of(mask: Raster, path: Path) -> Num[np.ndarray, "h w"]:
    """Red, green and blue as one number, 0xrrggbb. Raises SkysenseError where there are not these three bands."""
    if mask.pixels.shape[1] not in (3, 4):
        raise SkysenseError(f"{path}: {mask.pixels.shape[1]} bands; a mask of colours has red, green and blue")
    red, green, blue = mask.pixels[0, :3].astype(np.int32)
    return (red << 16) + (green << 8) + blue


def legend_of_colours(colours: Mapping[str, str]) -> Legend:
    """The legend of masks of colours, for {"#rrggbb": name of the class}; "ignore" leaves a colour out."""
    return Legend.of_mapping({str(int(colour.removeprefix("#"), 16)): name for colour, name in colours.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The pictures of one place, and their masks."""

    id: str
    epochs: tuple[Mapping[str, Path], ...]
    """By modality, in the order of time; a folder holds the bands of one picture as files."""
    masks: tuple[Path, ...]
    """One for all epochs, or one for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesSplit:
    """Places as they are: no resampling."""

    modalities: Mapping[str, Modality]
    legend: Legend
    places: tuple[Place, ...]
    sizes: tuple[tuple[int, int], ...]
    values: Values = one_band
    read: Mapping[str, ReadOptions] = field(default_factory=dict)
    """By modality: what its files do not say themselves."""
    notes: tuple[str, ...] = ()
    colours: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.legend.classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        place = self.places[index]
        epochs = tuple({name: self._read(name, path) for name, path in epoch.items()} for epoch in place.epochs)
        geobox = next(iter(epochs[0].values())).geobox
        footprint, lonlat = (None, None) if geobox is None else footprint_lonlat(geobox)
        label = replace(self.label(index), geobox=geobox)
        return Sample(id=place.id, epochs=epochs, footprint=footprint, lonlat=lonlat, label=label)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def label(self, index: int) -> ClassMap | ClassMaps:
        maps = [self._map(path) for path in self.places[index].masks]
        first, *later = maps
        return ClassMaps(codes=np.stack([one.codes for one in maps]), geobox=first.geobox) if later else first

    def _map(self, path: Path) -> ClassMap:
        mask = read_picture(path, bands=None)
        codes = self.legend.encode(self.values(mask, path), mask.valid[0], str(path))
        return ClassMap(codes=codes, geobox=mask.geobox)

    def _read(self, name: str, path: Path) -> Raster:
        modality, options = self.modalities[name], self.read.get(name)
        bands = [band.names for band in modality.bands]
        return read_picture(path, bands=bands, unit=modality.unit, options=options)


def open_places(
    places: tuple[Place, ...],
    modalities: Mapping[str, Modality],
    *,
    folder: Path,
    part: PartName,
    legend: Legend = CHANGE,
    values: Values = one_band,
    read: Mapping[str, ReadOptions] | None = None,
    notes: tuple[str, ...] = (),
    colours: tuple[str, ...] | None = None,
) -> PicturesSplit:
    """The places of one part of the data set in `folder`, checked before anything is learnt from them.

    Raises SkysenseError for a part that is empty, a file that is missing and pictures of one place that differ in size.
    """
    if not places:
        raise SkysenseError(f"{folder}: the {part} part is empty")
    sized = readable(places, _common_size)
    return PicturesSplit(
        modalities=dict(modalities),
        legend=legend,
        places=tuple(place for place, _ in sized),
        sizes=tuple(size for _, size in sized),
        values=values,
        read=read or {},
        notes=notes,
        colours=colours,
    )


def _common_size(place: Place) -> tuple[int, int]:
    sizes = {}
    for path in (*(path for epoch in place.epochs for path in epoch.values()), *place.masks):
        if not path.exists():
            raise SkysenseError(f"{path}: no such file", fix=f"Every date of {place.id} and its mask must be there.")
        for file in sorted(path.glob("*.tif")) if path.is_dir() else [path]:
            shape = open_file(str(file), ReadOptions(), colours=False, georeferenced=False).geobox.shape
            sizes[file] = (shape.y, shape.x)
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{path} has {h} x {w}" for path, (h, w) in sizes.items())
        raise SkysenseError(
            f"pictures of one place differ in size: {shown} pixels", fix="Resample them to the same pixels first."
        )
    return next(iter(sizes.values()))
