"""Several epochs of pictures of the same places, with a mask each: what sources of change detection open.

All pictures of a place lie on the same pixels: nothing is resampled, and one of another size is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from skysense_core.errors import SkysenseError
from skysense_core.geo.files import open_file
from skysense_core.geo.labels import Legend
from skysense_core.geo.options import ReadOptions
from skysense_core.geo.raster import read_picture
from skysense_core.geo.vector import footprint_lonlat
from skysense_core.modalities import Modality
from skysense_core.types import ClassMap, PartName, Raster, Sample

CHANGE = Legend(classes=("unchanged", "changed"), codes={"0": 0, "1": 1, "255": 1})
"""Masks of change are written 0 and 255, or 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The pictures of one place, and its mask."""

    id: str
    epochs: tuple[Mapping[str, Path], ...]
    """By modality, in the order of time; a folder holds the bands of one picture as files."""
    mask: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesSplit:
    """Places as they are: no resampling."""

    modalities: Mapping[str, Modality]
    legend: Legend
    places: tuple[Place, ...]
    sizes: tuple[tuple[int, int], ...]
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

    def label(self, index: int) -> ClassMap:
        path = self.places[index].mask
        mask = read_picture(path, bands=None)
        if mask.pixels.shape[1] != 1:
            raise SkysenseError(f"{path}: {mask.pixels.shape[1]} bands; a mask has one")
        return ClassMap(codes=self.legend.encode(mask.pixels[0, 0], mask.valid[0], str(path)), geobox=mask.geobox)

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
    read: Mapping[str, ReadOptions] | None = None,
    notes: tuple[str, ...] = (),
) -> PicturesSplit:
    """The places of one part of the data set in `folder`, checked before anything is learnt from them.

    Raises SkysenseError for a part that is empty, a file that is missing and pictures of one place that differ in size.
    """
    if not places:
        raise SkysenseError(f"{folder}: the {part} part is empty")
    sizes = tuple(_common_size(place) for place in places)
    return PicturesSplit(
        modalities=dict(modalities), legend=legend, places=places, sizes=sizes, read=read or {}, notes=notes
    )


def _common_size(place: Place) -> tuple[int, int]:
    sizes = {}
    for path in (*(path for epoch in place.epochs for path in epoch.values()), place.mask):
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
