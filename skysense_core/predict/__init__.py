"""From a scene to a georeferenced map: choose the model, check the scene against it, sweep, write COGs.

The map lies on the reference modality's own grid, or on the grid of another raster (`like`). Where the scene's pixels
are not the model's, the model works on a resampled grid and its map is warped back. Finished shards stay on disk until
the map is there: what stops can go on.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from skysense_core import runtime
from skysense_core.checkpoint import LoadedModel
from skysense_core.cluster import on_cluster
from skysense_core.errors import Interrupted, SkysenseError, UsageError
from skysense_core.geo import cog
from skysense_core.geo.polygons import check_polygons_path, write_polygons
from skysense_core.mapreport import write_map_report
from skysense_core.predict import objects
from skysense_core.predict.elsewhere import compute_elsewhere
from skysense_core.predict.job import Job
from skysense_core.predict.settings import Estimate, PredictConfig
from skysense_core.predict.shards import Shard, Shards, of_array, path_of, stored_plan
from skysense_core.preview import write_preview

__all__ = ["Estimate", "Job", "PredictConfig", "PredictResult", "estimate", "finish", "predict", "prepare", "run"]

log = logging.getLogger(__name__)

Join: TypeAlias = Callable[[Job, Shards, Mapping[str, Path]], bool]
"""Makes the files of finished shards and removes these; False where another process is at it."""
KEPT = "interrupted; finished shards are kept: run the same command again to go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassArea:
    """How much of the map one class takes."""

    name: str
    square_metres: float
    share: float
    """Of all pixels with a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """What was written, and how long it took."""

    paths: tuple[Path, ...]
    """None yet, where shards are left to other processes."""
    model: str
    digest: str
    windows: int
    """That this run predicted."""
    skipped: int
    """Windows without a valid pixel."""
    shards: int
    reused: int
    """Shards that an earlier run had finished."""
    megapixels: float
    """Of the grid that the model saw."""
    seconds: float
    waited: float
    """Seconds that the model waited for data."""
    classes: tuple[ClassArea, ...]
    notes: tuple[str, ...]


def predict(given: PredictConfig, model: LoadedModel | None = None) -> PredictResult:
    """Predict a scene and write the maps; `model`, where it is loaded already, must be the one that is meant.

    Raises UsageError and SkysenseError for everything that does not fit together, before any window is read where
    that can be known, and Interrupted on a signal. Files appear complete or not at all; after an error or a signal the
    finished shards stay, and the same call goes on from there.
    """
    _outputs(given)
    return run(prepare(given, model))


def run(job: Job, outs: Mapping[str, Path] | None = None, join: Join | None = None) -> PredictResult:
    """`predict` of a job that is prepared; `join` makes other files `outs` of the finished shards than class maps."""
    started = time.perf_counter()
    given, outs, join = job.config, outs or _named(job, _outputs(job.config)), join or _join
    with runtime.interruptible(f"prediction {KEPT}"):
        store = Shards.begin(given.out, job.shard_plan(), overwrite=given.overwrite)
        reused = len(store.finished())
        wanted = store.missing()
        if given.array is not None:
            mine = {shard.number for shard in of_array(*given.array, store.shards)}
            wanted = [shard for shard in wanted if shard.number in mine]
        try:
            windows, skipped, waited = _compute(job, store, wanted)
            joined = not store.missing() and join(job, store, outs)
        except SkysenseError as error:
            raise _saying_what_is_kept(error, store) from error
    notes = list(job.notes)
    if reused:
        notes.append(f"{reused} of {len(store.shards)} shards were finished before and are reused")
    left = 0 if joined else len(store.missing())
    if left:
        notes.append(f"{left} of {len(store.shards)} shards are left to other processes")
    elif not joined:
        notes.append(f"another process joins the shards; should it have died: skysense mosaic --finish {given.out}")
    return PredictResult(
        paths=tuple(outs.values()) if joined else (),
        model=job.model.name,
        digest=job.model.digest,
        windows=windows,
        skipped=skipped,
        shards=len(store.shards),
        reused=reused,
        megapixels=job.megapixels,
        seconds=time.perf_counter() - started,
        waited=waited,
        classes=_areas(given.out, job.model.task.output.classes) if joined and "classes" in job.products else (),
        notes=tuple(notes),
    )


def estimate(given: PredictConfig, model: LoadedModel | None = None) -> Estimate:
    """What `predict` would take; nothing is written. Raises as `predict` does before its first window."""
    _outputs(given)
    return prepare(given, model).estimate()


def prepare(given: PredictConfig, model: LoadedModel | None = None) -> Job:
    """A job whose `out` is of the kind that its model makes. Raises as `predict` does before its first window."""
    if not objects.wanted(given):
        check_geotiff(given.out)
    job = Job(given, model)
    objects.check_kind(given.out, job.model.task.output)
    return job


def finish(out: Path, creation_options: Mapping[str, str]) -> tuple[Path, ...]:
    """Join the finished shards beside `out` into the maps that they were computed for; returns these.

    Raises UsageError where there are no shards, and SkysenseError where some are missing.
    """
    if out.suffix.lower() not in objects.SUFFIXES:
        check_geotiff(out)
    plan = stored_plan(out)
    if plan is None:
        raise UsageError(f"{out}: no shards of a prediction beside it", fix="Run skysense predict first.")
    store = Shards(out, plan)
    if objects.NAME in plan.products:
        with runtime.interruptible(f"joining {KEPT}"):
            objects.join(store, out)
        store.remove()
        return (out,)
    with runtime.interruptible(f"joining {KEPT}"), store.joined(creation_options) as finished:
        outs = {name: path_of(out, name) for name in finished}
        for name, copy in finished.items():
            cog.publish(copy, outs[name])
    store.remove()
    return tuple(outs.values())


def _compute(job: Job, store: Shards, wanted: list[Shard]) -> tuple[int, int, float]:
    """Here or on a cluster; returns windows predicted, windows empty, seconds waited."""
    if job.config.cluster is None or not wanted:
        return job.compute(store, wanted)
    work = functools.partial(compute_elsewhere, job.config, store.plan)

    def divide(count: int) -> list[tuple[int, ...]]:
        count = min(count, len(wanted))
        pieces = (of_array(index, count, wanted) for index in range(1, count + 1))
        return [tuple(shard.number for shard in piece) for piece in pieces]

    # Closed at once when a signal strikes: the cluster is told to stop.
    with contextlib.closing(on_cluster(job.config.cluster, divide, work)) as results:
        windows, skipped, waited = zip(*results, strict=True)
    return sum(windows), sum(skipped), sum(waited)


def _join(job: Job, store: Shards, outs: Mapping[str, Path]) -> bool:
    """Make the files of finished shards; False where another process is at it."""
    given, names = job.config, job.model.task.output.classes
    # A process that computes all alone joins whatever another one, killed since, has left.
    with store.joining() if given.array is not None else contextlib.nullcontext(True) as alone:
        if not alone:
            return False
        if objects.NAME in job.products:
            found = objects.join(store, given.out)
            counts = ", ".join(f"{count} {name}" for name, count in found.items() if count)
            job.notes.append(f"{sum(found.values())} objects" + (f": {counts}" if counts else ""))
            store.remove()
            return True
        with store.joined(given.creation_options) as finished:
            if not cog.shows_anything(next(iter(finished.values()))):
                where = ", ".join(given.inputs)
                if given.bbox is None and given.aoi is None:
                    store.remove()
                    raise SkysenseError(f"{where}: no valid pixel: nothing to predict")
                # One of many parts may well lie on the sea or beyond the clouds: its map is empty.
                log.warning("%s: no valid pixel in this part of %s", given.out, where)
            if given.polygons is not None:
                write_polygons(finished["classes"], given.polygons, names=names, confidence=finished["confidence"])
            if given.report is not None:
                _report(job, given.report, finished)
            for name, copy in finished.items():
                if name in outs:
                    cog.publish(copy, outs[name])
        if given.preview is not None:
            reference, model = job.plan.scene.reference, job.model
            write_preview(
                given.preview,
                image=job.plan.scene.stacks[reference],
                modality=model.modalities[reference],
                codes=given.out,
                classes=names,
                colours=model.task.output.colours,
            )
    store.remove()
    return True


def _report(job: Job, path: Path, finished: Mapping[str, Path]) -> None:
    reference, model, output = job.plan.scene.reference, job.model, job.model.task.output
    write_map_report(
        path,
        title=job.config.out.name,
        image=job.plan.scene.stacks[reference],
        modality=model.modalities[reference],
        codes=finished["classes"],
        confidence=finished["confidence"],
        classes=output.classes,
        colours=output.colours,
        areas=cog.class_areas(finished["classes"], len(output.classes)),
        facts=f"Model {model.name} ({model.digest[:12]}), scene {', '.join(job.config.inputs)}. Counted areas repeat "
        "the errors of the map: skysense sample and skysense area estimate them.",
    )


def _saying_what_is_kept(error: SkysenseError, store: Shards) -> SkysenseError:
    """The error, with what is there to go on from; without a finished shard nothing stays."""
    done = len(store.finished())
    if not done:
        store.remove()
        return error
    if isinstance(error, Interrupted):
        return error
    kept = f"{done} of {len(store.shards)} shards are finished and kept: run the same command again to go on."
    return type(error)(error.message, fix=kept if error.fix is None else f"{error.fix} {kept}")


def _outputs(given: PredictConfig) -> dict[str, Path]:
    """The path of every product by name, polygons, preview and report among them.

    Raises UsageError where one is no file of its kind or exists, and SkysenseError where its folder does not.
    """
    out = given.out
    if objects.wanted(given):
        check_new([out], overwrite=given.overwrite)
        return {objects.NAME: out}
    check_geotiff(out)
    wanted = {
        "classes": True,
        "confidence": given.confidence is not None,
        "probabilities": given.probabilities,
        "observations": given.observations,
    }
    outs = {name: path_of(out, name) for name, also in wanted.items() if also}
    others = {"polygons": given.polygons, "preview": given.preview, "report": given.report}
    outs |= {name: path for name, path in others.items() if path is not None}
    check_new(outs.values(), overwrite=given.overwrite)
    if given.polygons is not None:
        check_polygons_path(given.polygons)
    return outs


def _named(job: Job, outs: Mapping[str, Path]) -> dict[str, Path]:
    """The map under the name that it has among the job's products."""
    return {next(iter(job.products)) if name == "classes" else name: path for name, path in outs.items()}


def check_geotiff(out: Path) -> None:
    """Raises UsageError where a path is no name of a GeoTIFF."""
    if out.is_dir() or out.suffix.lower() not in (".tif", ".tiff"):
        raise UsageError(
            f"--out {out}: not the name of a GeoTIFF", fix="For example --out map.tif; objects: --out objects.gpkg"
        )


def check_new(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raises SkysenseError where a path has no folder and UsageError where it exists and may not be replaced."""
    for path in paths:
        if not path.parent.is_dir():
            raise SkysenseError(f"{path.parent}: no such folder", fix="Make it, or write to another one.")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists", fix="Use --overwrite to replace it.")


def _areas(path: Path, classes: tuple[str, ...]) -> tuple[ClassArea, ...]:
    areas = cog.class_areas(path, len(classes))
    total = sum(areas)
    return tuple(
        ClassArea(name=name, square_metres=area, share=area / total if total else 0.0)
        for name, area in zip(classes, areas, strict=True)
    )
