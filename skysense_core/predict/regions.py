"""Many regions of one scene, each to a map of its own: one warm model, the next region prepared meanwhile."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.geo.grid import crs_of
from skysense_core.geo.regions import Region, read_regions
from skysense_core.predict import PredictResult, prepare, run
from skysense_core.predict.job import Job
from skysense_core.predict.settings import Estimate, PredictConfig
from skysense_core.progress import Bar

log = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
"""Beside the maps: a line for each region that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionOutcome:
    """What became of one region."""

    id: str
    path: Path
    result: PredictResult | None = None
    """None where the map was there already, or could not be made."""
    estimate: Estimate | None = None
    """Of a dry run."""
    error: str | None = None


def predict_regions(
    given: PredictConfig, source: str, *, id_column: str | None = None, keep_going: bool = False, dry_run: bool = False
) -> Iterator[RegionOutcome]:
    """Predict every region of `source`, a file of polygons or `-` for lines of stdin (`geo.regions.read_regions`).

    `{id}` in `given.out` (and in the paths of polygons, preview and report) becomes the region's. A file that exists is
    taken for finished, unless `given.overwrite`. With `keep_going` a region that fails is noted in `failures.jsonl`
    beside the maps and the next one follows. Raises what `predict` raises, and UsageError for a path without `{id}`.
    """
    for path in (given.out, given.polygons, given.preview, given.report):
        if path is not None and "{id}" not in str(path):
            raise UsageError(f"{path}: every region would have the same file", fix="Put {id} in it: out/{id}.tif")
    if given.aoi is not None or given.bbox is not None:
        raise UsageError("--regions say what is predicted: not with --bbox or --aoi")
    whole = prepare(given)
    grid = whole.plan.scene.stacks[whole.plan.scene.reference].geobox
    regions = read_regions(source, crs_of(grid), id_column=id_column, bbox_crs=given.bbox_crs)
    outs = {region.id: _path(given.out, region) for region in regions}
    for folder in {path.parent for path in outs.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    left = [region for region in regions if given.overwrite or not outs[region.id].exists()]
    failures = given.out.parent / FAILURES
    if not dry_run:
        failures.unlink(missing_ok=True)
    for region in regions:
        if region not in left:
            yield RegionOutcome(id=region.id, path=outs[region.id])

    def job_of(region: Region) -> Job:
        return Job(
            replace(
                given,
                out=outs[region.id],
                bbox=region.bounds,
                bbox_crs=str(grid.crs),
                region=region.polygon,
                polygons=None if given.polygons is None else _path(given.polygons, region),
                preview=None if given.preview is None else _path(given.preview, region),
                report=None if given.report is None else _path(given.report, region),
            ),
            whole.model,
        )

    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        ahead = pool.submit(job_of, left[0]) if left else None
        for number, region in enumerate(Bar(left, desc="regions", unit="region")):
            assert ahead is not None
            prepared, ahead = ahead, pool.submit(job_of, left[number + 1]) if number + 1 < len(left) else None
            done = RegionOutcome(id=region.id, path=outs[region.id])
            try:
                job = prepared.result()
                if dry_run:
                    yield replace(done, estimate=job.estimate())
                else:
                    yield replace(done, result=run(job))
            except Interrupted:
                raise
            except SkysenseError as error:
                if not keep_going:
                    raise type(error)(f"region {region.id}: {error.message}", fix=error.fix) from error
                log.warning("region %s: %s", region.id, error.message)
                with failures.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"id": region.id, "path": str(done.path), "error": str(error)}) + "\n")
                yield replace(done, error=error.message)


def _path(template: Path, region: Region) -> Path:
    return Path(str(template).replace("{id}", region.id))
