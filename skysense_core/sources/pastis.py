"""PASTIS and PASTIS-R (Garnot and Landrieu 2021; Garnot et al. 2022): crops of 2,433 French patches, S2 and S1 series.

Layout (METHOD 4): `metadata.geojson`; `DATA_S2/S2_<id>.npy` (T, 10, 128, 128); `DATA_S1A/S1A_<id>.npy` and
`DATA_S1D/S1D_<id>.npy` (T, 3, 128, 128; VV, VH and their ratio), which together are one s1 series;
`ANNOTATIONS/TARGET_<id>.npy`, channel 0. For PASTIS-MM also `DATA_HR/HR_<id>.npy` or `.tif` (3, H, W).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Num
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pydantic import Field
from shapely import Polygon
from shapely.geometry import shape

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import scaled, transform
from skysense_core.geo.raster import read_picture
from skysense_core.modalities import Modality
from skysense_core.sources import About
from skysense_core.types import IGNORE, ClassMap, PartName, Raster, Sample

CLASSES = (
    *("Background", "Meadow", "Soft winter wheat", "Corn", "Winter barley", "Winter rapeseed", "Spring barley"),
    *("Sunflower", "Grapevine", "Beet", "Winter triticale", "Winter durum wheat", "Fruits, vegetables, flowers"),
    *("Potatoes", "Leguminous fodder", "Soybeans", "Orchard", "Mixed cereal", "Sorghum"),
)
VOID = len(CLASSES)
SIDE, PIXEL = 128, 10.0
FOLDS = 5
TRACKS = {"s2": ("S2",), "s1": ("S1A", "S1D")}
"""The folders DATA_<track> that make one series."""
BANDS = {
    "hr": ("red", "green", "blue"),
    "s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    "s1": ("VV", "VH"),
}
"""Bands in the order of the files; the third s1 plane is the ratio of the first two and is left out."""
LAYOUT = (
    "PASTIS has metadata.geojson, DATA_S2/S2_<id>.npy, DATA_S1A/S1A_<id>.npy, DATA_S1D/S1D_<id>.npy and "
    "ANNOTATIONS/TARGET_<id>.npy."
)
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """What the metadata say of one patch."""

    id: str
    fold: int
    grid: GeoBox
    """128 x 128 pixels of 10 m around the centre of its outline."""
    outline: Polygon
    """In degrees (EPSG:4326)."""
    days: Mapping[str, tuple[int, ...]]
    """Days since 1970-01-01 of every image, by track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pastis:
    """The `[data]` table of a PASTIS folder."""

    looked_for: ClassVar[str] = "a folder with metadata.geojson, DATA_S2/ and ANNOTATIONS/"
    about: ClassVar[About] = About(
        tasks=("crop", "segmentation"),
        modalities=("s2", "s1", "hr"),
        classes="19",
        split="five folds as published",
        licence="see its page",
        where="github.com/VSainteuf/pastis-benchmark",
    )

    path: Path
    fold: Annotated[int, Field(ge=1, le=FOLDS)] = 1
    """Test fold k; fold k mod 5 + 1 validates and the other three train (the official rule)."""
    hr_folder: str = "DATA_HR"
    """Folder of the aerial images HR_<id>.npy or HR_<id>.tif, where there are any."""

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / "metadata.geojson").is_file() and (path / "ANNOTATIONS").is_dir()

    def available(self) -> tuple[str, ...]:
        folders = {"hr": self.hr_folder, "s2": "DATA_S2", "s1": "DATA_S1A"}
        return tuple(name for name, folder in folders.items() if (self.path / folder).is_dir())

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "PastisSplit":
        """Patches of the folds of one part. Raises SkysenseError for anything missing."""
        for name, modality in modalities.items():
            if name not in self.available():
                raise UsageError(f"{self.path} has no {name}", fix=f"It has {', '.join(self.available())}. {LAYOUT}")
            if not set(modality.band_names) <= set(BANDS[name]):
                raise UsageError(f"{name} of PASTIS has the bands {', '.join(BANDS[name])}")
        validation = self.fold % FOLDS + 1
        folds = {"test": {self.fold}, "val": {validation}, "train": {*range(1, FOLDS + 1)} - {self.fold, validation}}
        tracks = tuple(track for name in modalities for track in TRACKS.get(name, ()))
        patches = load_patches(self.path / "metadata.geojson", tracks)
        patches = tuple(patch for patch in patches if patch.fold in folds[split])
        if not patches:
            raise SkysenseError(f"{self.path}: no patch in fold {', '.join(map(str, sorted(folds[split])))}")
        opened = PastisSplit(source=self, patches=patches, modalities=dict(modalities))
        for path in opened.files():
            if not path.is_file():
                raise SkysenseError(f"{path}: no such file", fix=LAYOUT)
        return replace(opened, side=opened.aerial_side()) if "hr" in modalities else opened


@dataclass(frozen=True, slots=True, kw_only=True)
class PastisSplit:
    """Some patches; pixels are mapped from disk, so only what a crop uses is read."""

    source: Pastis
    patches: tuple[Patch, ...]
    modalities: Mapping[str, Modality]
    side: int = SIDE
    """Pixels along a sample on the reference grid."""
    classes: tuple[str, ...] = CLASSES
    colours: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ("void pixels (19) are ignored",)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Sample:
        patch = self.patches[index]
        images = {
            name: self._series(name, patch) if name in TRACKS else self._picture(patch) for name in self.modalities
        }
        centre = patch.outline.centroid
        return Sample(
            id=patch.id,
            epochs=(images,),
            footprint=patch.outline,
            lonlat=(centre.x, centre.y),
            label=self.label(index),
        )

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def label(self, index: int) -> ClassMap:
        """Crop codes 0..18; beside an aerial image each 10 m pixel is repeated on its grid."""
        path = self._target(self.patches[index])
        target = _array(path)
        codes = target[0] if target.ndim == 3 else target
        if codes.shape != (SIDE, SIDE) or codes.min() < 0 or codes.max() > VOID:
            raise SkysenseError(
                f"{path}: expected {SIDE} x {SIDE} codes 0..{VOID}, found {codes.shape} up to {codes.max()}"
            )
        codes = np.where(codes == VOID, IGNORE, codes).astype(np.uint8)
        codes = codes.repeat(self.side // SIDE, axis=0).repeat(self.side // SIDE, axis=1)
        return ClassMap(codes=codes, geobox=scaled(self.patches[index].grid, (self.side, self.side)))

    def aerial_side(self) -> int:
        """Pixels along the aerial images, which all have one size. Raises SkysenseError where hr has another gsd."""
        path, gsd = self._aerial(self.patches[0]), self.modalities["hr"].gsd
        height, width = self._aerial_pixels(path).pixels.shape[-2:]
        if height != width or height % SIDE:
            raise SkysenseError(f"{path}: {height} x {width} pixels; expected a square, a multiple of {SIDE}")
        found = SIDE * PIXEL / height
        if not 0.9 <= found / gsd <= 1.1:
            raise SkysenseError(
                f"{path}: {found:g} m per pixel, the model expects {gsd:g} m", fix=f"--set modalities.hr.gsd={found:g}"
            )
        return height

    def files(self) -> Iterator[Path]:
        """Every file that the samples are read from."""
        for patch in self.patches:
            yield self._target(patch)
            for name in self.modalities:
                tracks = TRACKS.get(name, ())
                yield from (self._file(track, patch) for track in tracks)
                if not tracks:
                    yield self._aerial(patch)

    def _file(self, track: str, patch: Patch) -> Path:
        return self.source.path / f"DATA_{track}" / f"{track}_{patch.id}.npy"

    def _target(self, patch: Patch) -> Path:
        return self.source.path / "ANNOTATIONS" / f"TARGET_{patch.id}.npy"

    def _aerial(self, patch: Patch) -> Path:
        path = self.source.path / self.source.hr_folder / f"HR_{patch.id}.tif"
        return path if path.is_file() else path.with_suffix(".npy")

    def _series(self, name: str, patch: Patch) -> Raster:
        arrays: list[Num[np.ndarray, "t c h w"]] = []
        days: list[int] = []
        for track in TRACKS[name]:
            path = self._file(track, patch)
            array = _array(path)
            dates = patch.days[track]
            if array.ndim != 4 or array.shape[1] < len(BANDS[name]) or array.shape[2:] != (SIDE, SIDE):
                raise SkysenseError(
                    f"{path}: expected (T, {len(BANDS[name])}, {SIDE}, {SIDE}), found {array.shape}", fix=LAYOUT
                )
            if len(array) != len(dates):
                raise SkysenseError(f"{path}: {len(array)} images, but {len(dates)} dates-{track} in metadata.geojson")
            arrays.append(array[:, _columns(self.modalities[name], BANDS[name])])
            days += dates
        order = np.argsort(days, kind="stable")
        # A series of one track in order stays mapped: what is not used is not read.
        pixels = arrays[0] if len(arrays) == 1 and days == sorted(days) else np.concatenate(arrays)[order]
        return Raster(
            pixels=pixels,
            valid=_finite(pixels),
            days=np.array(days, dtype=np.int64)[order],
            dated=np.ones(len(days), dtype=bool),
            geobox=patch.grid,
        )

    def _picture(self, patch: Patch) -> Raster:
        path = self._aerial(patch)
        picture = self._aerial_pixels(path)
        if picture.pixels.shape[-2:] != (self.side, self.side):
            raise SkysenseError(f"{path}: {picture.pixels.shape[-2:]} pixels, the first image has {self.side}")
        return replace(picture, geobox=scaled(patch.grid, (self.side, self.side)))

    def _aerial_pixels(self, path: Path) -> Raster:
        modality = self.modalities["hr"]
        if path.suffix == ".tif":
            return read_picture(path, bands=[band.names for band in modality.bands], unit=modality.unit)
        pixels = _array(path)
        if pixels.ndim != 3 or len(pixels) != len(BANDS["hr"]):
            raise SkysenseError(f"{path}: expected (3, H, W), found {pixels.shape}")
        pixels = pixels[_columns(modality, BANDS["hr"])][None]
        return Raster(
            pixels=pixels, valid=_finite(pixels), days=np.zeros(1, dtype=np.int64), dated=np.zeros(1, dtype=bool)
        )


def load_patches(path: Path, tracks: tuple[str, ...]) -> tuple[Patch, ...]:
    """The patches of a `metadata.geojson` with the dates of some tracks. Raises SkysenseError naming what one lacks."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        crs = CRS(table.get("crs", {}).get("properties", {}).get("name", "EPSG:2154"))
        return tuple(_patch(feature, crs, tracks) for feature in table["features"])
    except FileNotFoundError:
        raise SkysenseError(f"{path}: no such file", fix=LAYOUT) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise SkysenseError(f"{path}: not the metadata of PASTIS: {error}", fix=LAYOUT) from None
    except KeyError as error:
        raise SkysenseError(f"{path}: a patch has no {error}", fix=LAYOUT) from None


def _patch(feature: Mapping[str, Any], crs: CRS, tracks: tuple[str, ...]) -> Patch:
    facts = feature["properties"]
    outline = shape(feature["geometry"]).convex_hull
    centre = outline.envelope.centroid
    half = SIDE * PIXEL / 2
    affine = Affine(PIXEL, 0, centre.x - half, 0, -PIXEL, centre.y + half)
    return Patch(
        id=str(facts["ID_PATCH"]),
        fold=int(facts["Fold"]),
        grid=GeoBox((SIDE, SIDE), affine, crs),
        outline=shapely.transform(outline, lambda xy: np.stack(transform(crs, CRS("EPSG:4326"), *xy.T), axis=1)),
        days={track: _days(facts[f"dates-{track}"]) for track in tracks},
    )


def _days(dates: Mapping[str, int]) -> tuple[int, ...]:
    ordered = [dates[key] for key in sorted(dates, key=int)]
    return tuple((datetime.strptime(str(day), "%Y%m%d").date() - EPOCH).days for day in ordered)


def _array(path: Path) -> Num[np.ndarray, "..."]:
    """A `.npy` file, mapped. Raises SkysenseError where it is missing, cut short or no numbers."""
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise SkysenseError(f"{path}: no such file", fix=LAYOUT) from None
    except (ValueError, EOFError, OSError) as error:
        raise SkysenseError(f"{path}: not a readable .npy file: {error}") from None
    if array.dtype.kind not in "iuf":
        raise SkysenseError(f"{path}: expected numbers, found {array.dtype}")
    return array


def _columns(modality: Modality, bands: tuple[str, ...]) -> slice | list[int]:
    """Where the modality's bands stand in a file; a slice where they open it, which copies nothing."""
    columns = [bands.index(name) for name in modality.band_names]
    return slice(len(columns)) if columns == list(range(len(columns))) else columns


def _finite(pixels: Num[np.ndarray, "t c h w"]) -> Bool[np.ndarray, "t h w"]:
    """Integers have no nodata value in PASTIS; floats are invalid where a band is NaN or infinite."""
    if pixels.dtype.kind == "f":
        return np.isfinite(pixels).all(axis=1)
    return np.ones((len(pixels), *pixels.shape[2:]), dtype=bool)
