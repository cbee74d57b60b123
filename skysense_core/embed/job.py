"""An embedding that is ready to start: a prediction whose scores are features."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from geopandas import GeoDataFrame
from jaxtyping import Float
from odc.geo.geobox import GeoBox
from shapely import box, union_all
from shapely.geometry.base import BaseGeometry

from skysense_core import runtime
from skysense_core.checkpoint import LoadedModel, load_bare
from skysense_core.data.batch import collate
from skysense_core.data.scene import open_stacks
from skysense_core.description import Description
from skysense_core.embed.features import (
    FUSED_MM,
    FeatureValues,
    Projection,
    PrototypeMap,
    choose,
    prototypes_of,
    regions_of,
)
from skysense_core.embed.settings import SHARED, EmbedConfig
from skysense_core.errors import SkysenseError, UsageError, unknown
from skysense_core.geo.cog import Product
from skysense_core.geo.grid import crs_of, ground_gsd
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.vector import load_polygons
from skysense_core.geo.windows import pixels_of
from skysense_core.geo.zonal import CELLS, EMBEDDING, squares, write_means
from skysense_core.inference import observations
from skysense_core.merge.raster import Part
from skysense_core.modalities import Modality, finest
from skysense_core.model.skysense import SkySense
from skysense_core.predict.job import Job, describe
from skysense_core.predict.products import Arrays, Encode
from skysense_core.predict.settings import PredictConfig
from skysense_core.predict.shards import Plan, grid_table

SAMPLE, PER_WINDOW = 32, 1024
"""Windows, and cells of each at most, that scales and principal components are fitted to."""
MARGIN = 0.1
"""Share of a channel's range in the sample that is added at both ends before it is cut into steps."""
STEPS, NODATA = 254, -128.0


class EmbedJob(Job):
    """An embedding that is ready to start; the fit to a sample of its windows is done, where one is needed."""

    block: ClassVar[int] = 128

    def __init__(self, given: EmbedConfig) -> None:
        self.given = given
        self.fit: dict[str, Any] = {}
        settings = PredictConfig(**{name: getattr(given, name) for name in SHARED})
        described, notes = describe(settings)
        on = runtime.choose_device(given.device)
        described, encoder = load_bare(described.folder, on)
        modalities = _given(given.inputs, described.modalities)
        if given.prototypes:
            prototypes_of(encoder)
        self.level = choose(encoder, modalities, FUSED_MM if given.prototypes else given.features)
        if given.pca is not None and given.pca > self.level.channels:
            raise UsageError(
                f"--pca {given.pca}: {self.level.name} has {self.level.channels} channels",
                fix=f"Take at most {self.level.channels}.",
            )
        self.frame: GeoDataFrame | None = None
        if given.polygons is not None:
            self.frame = load_polygons(given.polygons, column=None, crs=None)
            stack = open_stacks(given.inputs, modalities, given.read)[finest(modalities)]
            region = _around(self.frame, given.polygons, stack.geobox, modalities[finest(modalities)], self.level.cell)
            settings = replace(settings, region=region, bbox=region.bounds, bbox_crs=str(stack.geobox.crs))
        names = tuple(f"{self.level.name} {number}" for number in range(1, self.level.channels + 1))
        super().__init__(
            settings, as_model(described, encoder, modalities, FeatureValues(level=self.level, classes=names))
        )
        absent = [name for name in described.modalities if name not in modalities]
        self.notes += [*notes, *(f"{name} is not given: embedded without it" for name in absent)]
        if abs(self.level.cell / self.level.stride - 1) > 1e-6:
            self.notes.append(f"cells of {self.level.stride:.4g} pixels are resampled to {self.level.cell}")

    @property
    def main(self) -> str:
        """Name of the product."""
        return "classes" if self.given.prototypes else "features"

    def pool(self, draft: Path, out: Path) -> list[str]:
        """Write the means over polygons or squares; returns notes."""
        given, frame = self.given, self.frame
        notes, what, cell = [], "polygons", self.level.cell
        if frame is None:
            assert given.grid is not None
            side, what = max(round(given.grid / cell), 1), "squares"
            frame = squares(self.plan.target, side)
            if side * cell != given.grid:
                notes.append(f"--grid {given.grid}: rounded to {side * cell}, whole cells of the features")
        absent, small = write_means(draft, frame, out, self._tags())
        if absent:
            notes.append(f"{absent} of {len(frame)} {what} show no valid pixel and are left out")
        if small:
            notes.append(f"{small} polygons hold no centre of a feature pixel and take the one under them (cells = 0)")
        return notes

    def shard_plan(self) -> Plan:
        """What the bytes of the result depend on."""
        plan = super().shard_plan()
        return replace(plan, made_by={**plan.made_by, "fit": self.fit})

    def _sizes(self, old: Plan | None) -> tuple[int, tuple[int, int]]:
        given, model = self.given, self.model
        if given.prototypes:
            nearest = self._prototypes()
            self.model = replace(model, task=nearest, classes=nearest.classes)
        elif given.pca is not None or self._stored == "int8":
            self.fit = self._fit(old)
            if given.pca is not None:
                arrays = {name: np.array(self.fit[name]) for name in ("mean", "components", "shares")}
                names = tuple(f"{self.level.name} PC {number}" for number in range(1, given.pca + 1))
                task = FeatureValues(level=self.level, classes=names, projection=Projection(**arrays))
                self.model = replace(model, task=task, classes=names)
        return super()._sizes(old)

    @property
    def _stored(self) -> str:
        return "float32" if self.given.pooled else self.given.dtype

    def _column(self) -> int:
        return super()._column() + 4 * len(self.model.classes) * self.block

    def _prototypes(self) -> PrototypeMap:
        encoder, plan = self.model.model, self.plan
        assert isinstance(encoder, SkySense)
        windows = plan.lattice.windows(plan.region)
        boxes = (pixels_of(plan.scene.grid, plan.scene.cell, window).geobox(plan.scene.grid) for window in windows)
        places = torch.tensor([footprint_lonlat(one)[1] for one in boxes])
        prototypes = prototypes_of(encoder)
        regions = regions_of(prototypes, places)
        return PrototypeMap.of(self.level, regions, prototypes.prototypes.shape[1])

    def _fit(self, old: Plan | None) -> dict[str, Any]:
        """Scale and offset of each channel and the principal components; those of before, if they are of the same."""
        said = [self.scores_from(), grid_table(self.plan.target), self.level.name, self.given.pca]
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        if old is not None and old.made_by.get("fit", {}).get("key") == key:
            return dict(old.made_by["fit"])
        sample, found = self._sample(), {}
        if self.given.pca is not None:
            if len(sample) <= self.given.pca:
                raise SkysenseError(
                    f"--pca {self.given.pca}: the scene has only {len(sample)} feature pixels to fit it to",
                    fix="Take fewer components, or finer --features.",
                )
            projection = Projection.fit(sample, self.given.pca)
            sample = (sample - projection.mean) @ projection.components.T
            found = {name: getattr(projection, name).tolist() for name in ("mean", "components", "shares")}
        low, high = sample.min(axis=0).astype(float), sample.max(axis=0).astype(float)
        scale = np.maximum((high - low) * (1 + 2 * MARGIN) / STEPS, 1e-6)
        return {"key": key, "scale": scale.tolist(), "offset": ((low + high) / 2).tolist(), **found}

    def _sample(self) -> Float[np.ndarray, "n d"]:
        """Features of some windows drawn from all over the region, always the same ones."""
        plan, rows, score = self.plan, [], self._score()
        windows, draw = plan.lattice.windows(plan.region), runtime.generator(0)
        for number in draw.permutation(len(windows)).tolist():
            sample = plan.scene.read(windows[number])
            if sample is None:
                continue
            batch = collate([sample]).to(self.device)
            seen = observations(batch, plan.scene.reference, plan.scene.cell)[0] > 0
            cells = score(batch)[0][:, seen].T.cpu().numpy()
            if len(cells):
                rows.append(cells[draw.permutation(len(cells))[:PER_WINDOW]])
            if len(rows) == SAMPLE:
                break
        if not rows:
            raise SkysenseError(f"{', '.join(self.config.inputs)}: no valid pixel: nothing to embed")
        return np.concatenate(rows)

    def _products(self) -> dict[str, Product]:
        task, stored = self.model.task, self._stored
        if isinstance(task, PrototypeMap):
            product = Product(
                kind="classes",
                bands=("nearest prototype",),
                dtype=np.min_scalar_type(task.nodata).name,
                nodata=float(task.nodata),
                classes=task.classes,
                colours=task.output.colours,
                tags=self._tags(),
                block=self.block,
            )
            return {self.main: product}
        product = Product(
            kind="continuous",
            bands=task.classes,
            dtype=stored,
            nodata=NODATA if stored == "int8" else np.nan,
            tags=self._tags(),
            block=self.block,
        )
        if stored == "int8":
            product = replace(product, scale=tuple(self.fit["scale"]), offset=tuple(self.fit["offset"]))
        return {self.main: product}

    def _encoder(self) -> Encode:
        if self.given.prototypes:
            return super()._encoder()
        if self._stored != "int8":
            most = float(np.finfo(self._stored).max)

            def values(part: Part) -> Arrays:
                limited = part.scores.clamp(-most, most).masked_fill(~part.valid, torch.nan)
                return {self.main: limited.cpu().numpy()}

            return values
        scaling = torch.tensor(self.products[self.main].scaling, device=self.device).T[:, :, None, None]

        def steps(part: Part) -> Arrays:
            counted = ((part.scores - scaling[1]) / scaling[0]).round().clamp(-STEPS // 2, STEPS // 2)
            return {self.main: counted.to(torch.int8).masked_fill(~part.valid, int(NODATA)).cpu().numpy()}

        return steps

    def _tags(self) -> dict[str, str]:
        said = {**super()._tags(), "FEATURES": self.level.name, "CELL": f"{self.level.cell} px"}
        if self.given.pca is not None:
            texts = {name: json.dumps(self.fit[name]) for name in ("mean", "components", "shares")}
            said |= {f"PCA_{name.upper()}": text for name, text in texts.items()}
        return said


def _given(inputs: Sequence[str], modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    """The modalities that the inputs name; all where one names none, which is for the reader to judge.

    Raises UsageError for a name that is none of them.
    """
    named = [item.partition("=")[0] for item in inputs if "=" in item and not Path(item).exists()]
    for name in named:
        if name.isidentifier() and name not in modalities:
            raise unknown("modality", name, modalities)
    whole = len(named) < len(inputs) or not modalities.keys() >= set(named)
    return {name: one for name, one in modalities.items() if whole or name in named}


def as_model(
    described: Description, encoder: SkySense, modalities: Mapping[str, Modality], task: FeatureValues
) -> LoadedModel:
    """An encoder and what is wanted of it as a model that the engine takes."""
    said = {one.name: getattr(described, one.name) for one in fields(Description)}
    return LoadedModel(**{**said, "modalities": dict(modalities), "classes": task.classes}, model=encoder, task=task)


def _around(frame: GeoDataFrame, path: Path, scene: GeoBox, modality: Modality, cell: int) -> BaseGeometry:
    """The surroundings of the polygons in the scene that hold every feature pixel that they touch.

    Raises UsageError where all of them lie outside, and where a column would be lost.
    """
    for name in (CELLS, EMBEDDING):
        if name in frame.columns:
            raise UsageError(f"{path} has a column {name!r}, as the result has", fix="Rename it.")
    shapes = frame.geometry.to_crs(crs_of(scene).proj)
    inside = shapes[shapes.intersects(scene.extent.geom)]
    if inside.empty:
        where = ", ".join(f"{edge:.7g}" for edge in shapes.total_bounds)
        raise UsageError(
            f"{path}: all polygons lie outside the scene: {where}; the scene is "
            f"{', '.join(f'{edge:.7g}' for edge in scene.boundingbox)} in {scene.crs}",
            fix="Do both files state their right CRS?",
        )
    margin = 2 * cell * abs(scene.affine.determinant) ** 0.5 * max(modality.gsd / ground_gsd(scene), 1.0)
    left, bottom, right, top = inside.bounds.to_numpy().T
    return union_all(box(left - margin, bottom - margin, right + margin, top + margin)) & scene.extent.geom
