"""Rasters, with labels over them (polygons or a raster of class codes) or without: an analyst's own imagery.

Given as `--data s2=folder/ --labels fields.gpkg`, or as a TOML file for several scenes (paths are relative to it):

    [[scene]]
    hr = "zanzibar/*.tif"
    labels = "zanzibar.geojson"
    split = "train"            # optional: the whole scene belongs to this part
    read.hr.rescale = [0, 2000]

Samples are windows of the finest modality, cut from blocks that belong to one part each. Scenes without labels, which
is all of them or none, are material for pre-training only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

import geopandas as gpd
import numpy as np
import shapely
from jaxtyping import Bool
from odc.geo.geobox import GeoBox
from pydantic import Field

from skysense_core import config
from skysense_core.data.scene import model_grid, read_place
from skysense_core.errors import SkysenseError, UsageError, did_you_mean, unknown
from skysense_core.geo import blocks, vector
from skysense_core.geo.blocks import Block, Place
from skysense_core.geo.grid import crs_of, ground_gsd, scaled
from skysense_core.geo.labels import UNKNOWN, Classes, Legend, Truth, open_labels
from skysense_core.geo.options import NONE, ReadOptions
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.paths import is_plain
from skysense_core.geo.raster import Stack, open_stack
from skysense_core.geo.windows import Window
from skysense_core.modalities import Modality, finest
from skysense_core.sources import About
from skysense_core.types import IGNORE, ClassMap, PartName, Sample

Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
LEVELS = ("L1C", "L2A")
"""Product levels that files may state."""
DECIMATION = 16
"""Validity of whole windows is judged on every 16th pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene as the user gives it."""

    name: str
    rasters: Mapping[str, tuple[str, ...]]
    labels: str | None = None
    split: PartName | None = None
    read: Mapping[str, ReadOptions] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """The `[data]` table of rasters, with labels or without."""

    looked_for: ClassVar[str] = "a TOML file with [[scene]] tables, each with a raster per modality and perhaps labels"
    about: ClassVar[About] = About(
        tasks=("segmentation", "landcover", "crop"),
        modalities=("hr", "s2", "s1"),
        classes="yours",
        split="by place: blocks or halves",
        licence="yours",
        where="your own rasters and labels",
    )

    path: Path | None = None
    """TOML file of scenes; otherwise `rasters` and `labels` are one scene."""
    rasters: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Files, globs or folders by modality."""
    labels: str | None = None
    """Polygons in any vector format, or a raster of class codes."""
    label_column: str | None = None
    """Column of the polygons that holds the class; not needed where all polygons are one class."""
    classes: Classes | None = None
    """Of polygons: the column's values that are classes, others are ignored; not given: all values, sorted. Of
    rasters: names of the codes 0..k-1. Or {value = class name}."""
    unlabelled: str = UNKNOWN
    """What lies outside all polygons: "ignore", or a class."""
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the files of a modality are read: fields of `geo.options.ReadOptions`; "" stands for all others."""
    split_by: Literal["blocks", "west-east", "north-south"] = "blocks"
    """blocks: scattered blocks validate and test. west-east: the eastern half tests, some western blocks validate."""
    block: Annotated[int, Field(ge=1)] = 4
    """Side of a block in windows."""
    val_share: Share = 0.2
    test_share: Share = 0.2
    """Of the labelled blocks."""
    seed: int = 0
    """Of the choice of blocks."""
    bbox: tuple[float, float, float, float] | None = None
    """xmin, ymin, xmax, ymax: labels outside are ignored."""
    bbox_crs: str | None = None
    aoi: Path | None = None
    """Polygons outside of which labels are ignored."""

    @staticmethod
    def detect(path: Path) -> bool:
        return path.suffix == ".toml" and path.is_file() and "scene" in config.load_toml(path)

    def available(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for scene in self.scenes() for name in scene.rasters))

    def scenes(self) -> list[Scene]:
        """What is given, with paths made whole. Raises UsageError where something is lacking."""
        if self.path is None:
            tables, base = [self.rasters | ({} if self.labels is None else {"labels": self.labels})], Path()
        else:
            if self.rasters or self.labels is not None:
                raise UsageError(f"{self.path} names rasters and labels already", fix="Leave out --labels.")
            tables, base = config.load_toml(self.path).get("scene", []), self.path.parent
        scenes = [_scene(table, base, self.read) for table in tables]
        if not scenes:
            raise SkysenseError(f"{self.path or '--data'}: no scene", fix=f"Expected {self.looked_for}.")
        names = Counter(scene.name for scene in scenes)
        if max(names.values()) > 1:
            raise UsageError(f"two scenes are called {names.most_common(1)[0][0]}", fix="Give each a name.")
        return scenes

    def open(self, split: PartName, modalities: Mapping[str, Modality]) -> "ScenesSplit":
        """The windows of one part that have a label; without labels, all that show something train.

        Raises SkysenseError or UsageError where rasters, labels and modalities do not fit together, or where the
        labelled area is too small to be split.
        """
        opened = [_open_scene(scene, modalities) for scene in self.scenes()]
        lacking = set(modalities) - {name for scene in opened for name in scene.stacks}
        if lacking:
            raise UsageError(f"no scene has {', '.join(sorted(lacking))}", fix=f"Known: {', '.join(self.available())}.")
        window = modalities[finest(modalities)].window
        named = [(scene.labels, scene.grid) for scene in opened if scene.labels is not None]
        if named and len(named) < len(opened):
            lonely = next(scene.name for scene in opened if scene.labels is None)
            raise UsageError(f"{lonely}: a scene without labels beside others with", fix="Give all scenes labels.")
        truths: list[Truth | None] = [None] * len(opened)
        legend = Legend(classes=(), codes={})
        notes: tuple[str, ...] = ()
        if named:
            legend, labels, notes = open_labels(
                named, column=self.label_column, classes=self.classes, unlabelled=self.unlabelled
            )
            areas = [self._area(scene.grid) for scene in opened]
            truths = [Truth(labels=one, area=area) for one, area in zip(labels, areas, strict=True)]
        found = [
            block
            for scene, truth in zip(opened, truths, strict=True)
            for block in self._blocks(scene, truth, window)
            if block.dense or block.once
        ]
        if not found:
            raise SkysenseError("no pixel of the scenes has a label", fix="Check --bbox, --aoi and the labels.")
        if named:
            parts, shared = blocks.deal(found, val_share=self.val_share, test_share=self.test_share, seed=self.seed)
            few = f"{len(found)} labelled blocks of {self.block * window} pixels are too few"
            fix = "Smaller blocks give more of them: --set data.block=1"
        else:
            parts, shared = {"train": [block for block in found if block.part in (None, "train")]}, 0
            few, fix = "without labels all that is shown trains", "--labels FILE"
        if not parts.get(split):
            raise SkysenseError(f"the {split} part is empty: {few}", fix=fix)
        counts = ", ".join(f"{len(dealt)} {name}" for name, dealt in parts.items())
        if shared:
            counts += f"; {shared} left out: another part shows their ground"
        return ScenesSplit(
            scenes={scene.name: (scene, truth) for scene, truth in zip(opened, truths, strict=True)},
            modalities=dict(modalities),
            windows=tuple(
                (block.scene, p) for block in parts[split] for p in (block.dense if split == "train" else block.once)
            ),
            classes=legend.classes,
            notes=(*(note for scene in opened for note in scene.notes), *notes, f"blocks in space: {counts}"),
        )

    def _area(self, grid: GeoBox) -> gpd.GeoDataFrame | None:
        """Where labels count, in the CRS of a scene."""
        given = [vector.load_aoi(self.bbox, crs_of(grid), bbox_crs=self.bbox_crs)] if self.bbox else []
        given += [vector.load_aoi(self.aoi, crs_of(grid))] if self.aoi else []
        return gpd.GeoDataFrame(geometry=[shapely.intersection_all(given)], crs=crs_of(grid).proj) if given else None

    def _blocks(self, scene: "OpenScene", truth: Truth | None, window: int) -> Iterator[Block]:
        """A scene cut into blocks, halves first where it is split so; without labels all that is shown counts."""
        whole = Window.of(scene.grid)
        if truth is None or scene.split is not None or self.split_by == "blocks":
            areas: list[tuple[Window, PartName | None]] = [(whole, scene.split)]
        else:
            first, second = blocks.halves(whole, across=self.split_by == "west-east")
            areas = [(first, "train"), (second, "test")]
        for half, part in areas:
            for area in blocks.cut(half, self.block * window):
                known = scene.shows(area) if truth is None else truth.read(area.geobox(scene.grid)) != IGNORE
                if truth is not None and self.unlabelled != UNKNOWN:  # even where there is no image, there is a label
                    known &= scene.shows(area)
                ground, _ = footprint_lonlat(area.geobox(scene.grid))
                chosen = scene.split is not None
                yield Block.of(known, window, scene=scene.name, area=area, ground=ground, part=part, chosen=chosen)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenScene:
    """A scene with its files probed."""

    name: str
    labels: str | None
    split: PartName | None
    stacks: Mapping[str, Stack]
    reference: str
    grid: GeoBox
    """Of the reference modality, at the pixel size that the model gets."""
    notes: tuple[str, ...]

    def shows(self, window: Window) -> Bool[np.ndarray, "h w"]:
        """Roughly where the reference modality has pixels at all."""
        height, width = window.height, window.width
        coarse = scaled(window.geobox(self.grid), (max(height // DECIMATION, 1), max(width // DECIMATION, 1)))
        valid = np.logical_or.reduce(self.stacks[self.reference].read(coarse, resampling="nearest").valid)
        rows, cols = (np.arange(n) * m // n for n, m in ((height, valid.shape[0]), (width, valid.shape[1])))
        return valid[np.ix_(rows, cols)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenesSplit:
    """The windows of one part."""

    scenes: Mapping[str, tuple[OpenScene, Truth | None]]
    modalities: Mapping[str, Modality]
    windows: tuple[tuple[str, Place], ...]
    """Scene and window of every sample."""
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    colours: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        name, place = self.windows[index]
        grid = self._grid(index)
        images = read_place(self.scenes[name][0].stacks, self.modalities, grid)
        footprint, lonlat = footprint_lonlat(grid)
        return Sample(
            id=f"{name}:{place.row},{place.col}",
            epochs=(images,),
            footprint=footprint,
            lonlat=lonlat,
            label=self.label(index) if self.classes else None,
        )

    def size(self, index: int) -> tuple[int, int]:
        side = self.modalities[finest(self.modalities)].window
        return side, side

    def label(self, index: int) -> ClassMap:
        """The label; pixels that a window before has shown are `IGNORE`. Raises SkysenseError where there is none."""
        name, place = self.windows[index]
        grid, truth = self._grid(index), self.scenes[name][1]
        if truth is None:
            raise SkysenseError(f"{name}: a scene without labels", fix="--labels FILE")
        codes = truth.read(grid)
        codes[: place.seen_rows] = codes[:, : place.seen_cols] = IGNORE
        return ClassMap(codes=codes, geobox=grid)

    def _grid(self, index: int) -> GeoBox:
        name, place = self.windows[index]
        height, width = self.size(index)
        window = Window(row=place.row, col=place.col, height=height, width=width)
        return window.geobox(self.scenes[name][0].grid)


def _scene(table: Mapping[str, Any], base: Path, read: Mapping[str, Mapping[str, Any]]) -> Scene:
    """One `[[scene]]` table; `read` are the options of the whole data set, which those of the scene complete."""
    fields = {key: table[key] for key in ("name", "labels", "split") if table.get(key) is not None}
    rasters = {key: value for key, value in table.items() if key not in ("name", "labels", "split", "read")}
    if not rasters:
        raise UsageError("a scene without a raster", fix="For example --data s2=FOLDER --labels FILE")
    if "labels" not in fields and (hint := did_you_mean("labels", rasters)):
        raise UsageError("a scene without labels", fix=hint.strip())
    if fields.get("split", "train") not in get_args(PartName):
        raise unknown("split", fields["split"], get_args(PartName))

    def whole(path: str) -> str:
        return str(base / path) if is_plain(path) else path

    paths = {name: (given,) if isinstance(given, str) else tuple(given) for name, given in rasters.items()}
    named = config.merge(read, table.get("read", {}))
    tables: dict[str, config.Table] = {name: {**named.get("", {}), **named.get(name, {})} for name in rasters}
    options = {name: config.build(ReadOptions, one, f"data.read.{name}") for name, one in tables.items()}
    return Scene(
        name=fields.get("name", Path(next(iter(paths.values()))[0]).stem),
        rasters={name: tuple(whole(path) for path in given) for name, given in paths.items()},
        labels=whole(fields["labels"]) if "labels" in fields else None,
        split=fields.get("split"),
        read={
            name: one if one.cloud_mask in (None, NONE) else replace(one, cloud_mask=whole(one.cloud_mask))
            for name, one in options.items()
        },
    )


def _open_scene(scene: Scene, modalities: Mapping[str, Modality]) -> OpenScene:
    reference = modalities[finest(modalities)]
    if reference.name not in scene.rasters:
        raise UsageError(
            f"scene {scene.name} has no {reference.name}, on whose grid the map lies",
            fix="Leave it out, or choose others with --modalities.",
        )
    stacks, notes = {}, []
    for name, modality in modalities.items():
        if name not in scene.rasters:
            notes.append(f"{scene.name}: no {name}; trained without it there")
            continue
        names = [band.names for band in modality.bands]
        stack = open_stack(scene.rasters[name], bands=names, unit=modality.unit, options=scene.read[name])
        if stack.level is None and modality.level in LEVELS:
            notes.append(f"{name}: the files do not say their product level; taken as {modality.level}")
        elif stack.level not in (None, modality.level):
            raise UsageError(
                f"{stack.paths[0]} is {stack.level}, and {name} is {modality.level}",
                fix=f"--set modalities.{name}.level={stack.level}",
            )
        notes += [f"{name}: {note}" for note in stack.notes]
        stacks[name] = stack
    native = stacks[reference.name].geobox
    try:
        grid, resampled = model_grid(native, reference)
    except UsageError as error:
        fix = f"--set modalities.{reference.name}.gsd={ground_gsd(native):.3g} trains a model for such pixels."
        raise UsageError(f"{scene.name}: {error.message}", fix=fix) from None
    return OpenScene(
        name=scene.name,
        labels=scene.labels,
        split=scene.split,
        stacks=stacks,
        reference=reference.name,
        grid=grid,
        notes=(*notes, *resampled),
    )
