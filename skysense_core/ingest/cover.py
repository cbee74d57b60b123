"""Which cells the imagery covers, what part each belongs to and which shard, and what labels there are."""

from collections.abc import Mapping, Sequence

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from skysense_core import modalities
from skysense_core.data.scene import FACTOR
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.grid import ground_gsd
from skysense_core.geo.labels import Labels, open_labels
from skysense_core.geo.outline import LONLAT
from skysense_core.geo.vector import load_aoi
from skysense_core.ingest.grid import Cells, Lattice, cells_over, footprints
from skysense_core.ingest.inputs import Inputs, open_inputs
from skysense_core.ingest.pack import Legend
from skysense_core.ingest.scenes import SceneWork, Shard
from skysense_core.ingest.settings import IngestConfig
from skysense_core.ingest.split import buffer_of, deal
from skysense_core.modalities import finest

COUNTED_IN = "s2"
"""The packaged modality in whose pixels `size` counts."""


def plan_scenes(given: IngestConfig) -> SceneWork:
    """Open the inputs and lay the lattice over them; nothing is written.

    Raises UsageError and SkysenseError for everything that does not fit together.
    """
    inputs = open_inputs(given.inputs, given.modalities, given.read)
    lattice = Lattice(size=given.size, stride=given.stride or given.size)
    counted_in = modalities.load(COUNTED_IN)
    sides = {name: lattice.pixels(counted_in, modality) for name, modality in inputs.modalities.items()}
    _check_sizes(inputs, lattice, sides)
    reference = finest(inputs.modalities)
    cells = _cells(given, inputs, lattice, reference)
    parts = deal(
        cells,
        block=given.split_block,
        val_share=given.val_share,
        test_share=given.test_share,
        buffer=buffer_of(given.buffer, lattice.side),
        seed=given.seed,
    )
    labels, classes, notes = _labels(given, cells, sides[reference])
    shards = []
    for zone, split, truth in zip(cells, parts, labels, strict=True):
        part_of = dict(zip(map(zone.name, range(len(zone))), split, strict=True))
        for some in zone.blocks(max(int(given.shard_size**0.5), 1)):
            names = tuple(part_of[some.name(index)] for index in range(len(some)))
            shards.append(Shard(cells=some, splits=names, labels=truth))
    stored = {name: lattice.stored(modality, sides[name]) for name, modality in inputs.modalities.items()}
    return SceneWork(
        given=given,
        inputs=inputs,
        lattice=lattice,
        sides=sides,
        reference=reference,
        shards=tuple(shards),
        legend=Legend(modalities=stored, classes=classes),
        facts=inputs.facts,
        notes=notes,
    )


def _check_sizes(inputs: Inputs, lattice: Lattice, sides: Mapping[str, int]) -> None:
    """Refuse pixels that are much finer or coarser than the modality's: they would be invented or lost."""
    for name, stack in inputs.stacks.items():
        here, wanted = ground_gsd(stack.geobox), lattice.side / sides[name]
        if max(here / wanted, wanted / here) > FACTOR * 1.001:
            raise UsageError(
                f"{name}: the files' pixels are {here:.3g} m, the modality's {wanted:.3g} m",
                fix=f"--set modalities.{name}.gsd={here:.3g} stores them as they are.",
            )


def _cells(given: IngestConfig, inputs: Inputs, lattice: Lattice, reference: str) -> list[Cells]:
    grounds = {
        name: footprints([layer.geobox for date in stack.layers for layer, _ in date])
        for name, stack in inputs.stacks.items()
    }
    areas = [load_aoi(given.aoi, LONLAT)] if given.aoi is not None else []
    areas += [load_aoi(given.bbox, LONLAT, bbox_crs=given.bbox_crs)] if given.bbox is not None else []
    cells = cells_over(grounds[reference], lattice, crs=given.crs, areas=areas)
    if not cells:
        where = "; ".join(_place(name, area) for name, area in zip(("the area",) * len(areas), areas, strict=True))
        raise SkysenseError(
            f"the area and the imagery share no ground: {where}; {_place(reference, grounds[reference])}",
            fix="Check --aoi, --bbox and --bbox-crs.",
        )
    covered = np.concatenate([zone.outlines() for zone in cells])
    for name, ground in grounds.items():
        shapely.prepare(ground)
        if not shapely.intersects(ground, covered).any():
            raise SkysenseError(
                f"{name} and {reference} share no ground: "
                f"{_place(name, ground)}; {_place(reference, grounds[reference])}",
                fix="Do the files state their right CRS? Leave out the modality, or the --aoi, that lies elsewhere.",
            )
    return cells


def _place(name: str, shape: BaseGeometry) -> str:
    west, south, east, north = shape.bounds
    return f"{name} lies at {west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N"


def _labels(
    given: IngestConfig, cells: Sequence[Cells], side: int
) -> tuple[list[Labels | None], tuple[str, ...], tuple[str, ...]]:
    """The labels of each zone, names of classes, and notes."""
    if given.labels is None:
        return [None] * len(cells), (), ()
    legend, labels, notes = open_labels(
        [(given.labels, zone.grid(side)) for zone in cells],
        column=given.label_column,
        classes=given.classes,
        unlabelled=given.unlabelled,
        parts=len(cells) > 1,
    )
    return list(labels), legend.classes, notes
