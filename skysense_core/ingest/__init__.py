"""From scenes, or a labelled data set, to a store of aligned samples: once, fast, and never started over.

    plan (what is there, which cells, which shards) -> shards, each by one process -> index.parquet, store.toml

    .ingest/plan.json     what is made, from what; another plan is refused
    .ingest/00003.json    rows and statistics of a finished shard
    shards/00003.tar

A shard's bytes depend on the plan alone, never on the process or on what was made before. With store.toml, which is
written last, the store is complete and the folder .ingest goes.
"""

import concurrent.futures
import hashlib
import json
import logging
import multiprocessing
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from skysense_core import sources
from skysense_core.data.store import DESCRIPTION, FAILURES, INDEX, SHARDS, Description, load_description, read_index
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.paths import is_product
from skysense_core.ingest.cover import plan_scenes
from skysense_core.ingest.finish import Work, complete
from skysense_core.ingest.inputs import Failure
from skysense_core.ingest.items import with_items
from skysense_core.ingest.layout import plan_layout
from skysense_core.ingest.pack import WORK, finished, write_shard
from skysense_core.ingest.settings import IngestConfig
from skysense_core.progress import Bar

__all__ = ["Estimate", "IngestConfig", "IngestResult", "Work", "estimate", "ingest", "plan", "run"]

log = logging.getLogger(__name__)

PLAN = "plan.json"
KEPT = "interrupted; finished shards are kept: run the same command again to go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an ingest would make, at most."""

    samples: int
    images: dict[str, int]
    """Dates of all samples, by modality."""
    size: int
    """Bytes of pixels before compression."""
    shards: int
    reused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """What was made."""

    store: Path
    samples: int
    splits: dict[str, int]
    """Samples of each part; "" are those between parts, in none."""
    images: dict[str, int]
    classes: dict[str, int]
    """Labelled pixels of every class."""
    shards: int
    reused: int
    size: int
    """Bytes of the shards."""
    seconds: float
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def ingest(given: IngestConfig) -> IngestResult:
    """Make a store, or go on with one that was begun. Raises as `plan` and `run` do."""
    return run(plan(given))


def plan(given: IngestConfig) -> Work:
    """What is there and what is to be done; nothing is written but the items that a STAC API was asked for.

    Raises UsageError and SkysenseError for everything that does not fit together.
    """
    given = _recognised(given)
    return plan_layout(given) if given.data else plan_scenes(with_items(given))


def estimate(work: Work) -> Estimate:
    """What `run` would make; nothing is written."""
    samples, images, size = work.estimate()
    out, digest = work.given.out, _digest(work)
    reused = (
        sum(finished(out, number) is not None for number in range(len(work.shards))) if _stored(out) == digest else 0
    )
    return Estimate(samples=samples, images=images, size=size, shards=len(work.shards), reused=reused)


def run(work: Work) -> IngestResult:
    """Make the shards that are not there yet, and complete the store.

    Raises UsageError where there is another store, SkysenseError where nothing could be made or the disk is full, and
    Interrupted on a signal: finished shards stay then, and the same call goes on from there.
    """
    from skysense_core.runtime import interruptible  # torch, which worker processes need not load

    started = time.perf_counter()
    out, digest = work.given.out, _digest(work)
    if (out / DESCRIPTION).exists() and not work.given.overwrite and load_description(out).plan == digest:
        log.info("%s is complete already: nothing to do", out)
        return _result(work, load_description(out), reused=len(work.shards), started=started)
    with interruptible(KEPT):
        _begin(work, digest)
        missing = [number for number in range(len(work.shards)) if finished(out, number) is None]
        _make(work, missing)
        description = complete(work, digest)
    return _result(work, description, reused=len(work.shards) - len(missing), started=started)


def _recognised(given: IngestConfig) -> IngestConfig:
    """With a bare path that is a data set of a known layout as such."""
    if not given.inputs and "path" not in given.data:
        raise UsageError("nothing to ingest", fix="For example skysense ingest s2=scene.SAFE --out store/")
    bare = given.inputs.get("", ())
    paths = (bare,) if isinstance(bare, str) else bare
    data = dict(given.data)
    if len(given.inputs) == len(paths) == 1 and given.labels is None and not is_product(paths[0]):
        layout = data.get("source") or _layout(Path(paths[0]))
        if layout is not None:
            data |= {"source": layout, "path": paths[0]}
            data |= {"classes": given.classes} if given.classes is not None else {}
            return replace(given, inputs={}, data=data | ({"read": given.read} if given.read else {}))
    if data and (given.inputs or given.labels is not None):
        raise UsageError(
            f"{', '.join(data)} concern a labelled data set, which has its own imagery and labels",
            fix="Give its folder alone, or leave them out.",
        )
    return given


def _layout(path: Path) -> str | None:
    """The layout of a data set; None for imagery."""
    if not path.exists():
        return None
    try:
        return sources.detect(path)
    except UsageError:
        return None


def _digest(work: Work) -> str:
    made_from = {"skysense": version("skysense"), **work.made_from}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()


def _stored(out: Path) -> dict[str, Any]:
    """The plan of an unfinished store; an empty digest where there is none."""
    try:
        table: dict[str, Any] = json.loads((out / WORK / PLAN).read_text(encoding="utf-8"))
        return {"digest": table["digest"], "made from": table["made from"]}
    except (FileNotFoundError, ValueError, KeyError):
        return {"digest": "", "made from": {}}


def _begin(work: Work, digest: str) -> None:
    """The folder of the store, empty or with what an earlier run of the same plan has finished."""
    out, old = work.given.out, _stored(work.given.out)
    _clear(work, old, same=old["digest"] == digest)
    try:
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
        (out / WORK).mkdir(exist_ok=True)
        draft = out / WORK / f"{PLAN}.tmp"
        draft.write_text(json.dumps({"digest": digest, "made from": work.made_from}, default=str), encoding="utf-8")
        draft.replace(out / WORK / PLAN)
    except OSError as error:
        raise SkysenseError(f"{out}: cannot write there: {error.strerror}", fix="Use another --out.") from None
    for draft in [*(out / SHARDS).glob(".*"), *(out / WORK).glob("*.tmp")]:  # of a process that was killed
        draft.unlink()


def _clear(work: Work, old: Mapping[str, Any], *, same: bool) -> None:
    """Refuse what is there, or with `overwrite` delete it, unless it is an unfinished store of the same plan."""
    out = work.given.out
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    complete_one = (out / DESCRIPTION).exists()
    if not others or (same and not complete_one):
        return
    if not (old["digest"] or complete_one):
        raise UsageError(f"{out} is no store, but holds {', '.join(others[:3])}", fix="Use another --out.")
    if not work.given.overwrite:
        what = "a complete store" if complete_one else f"an unfinished store: {_differences(old['made from'], work)}"
        raise UsageError(
            f"{out} holds {what}",
            fix="Repeat the command that made it to go on, start anew with --overwrite, or use another --out.",
        )
    for path in (out / DESCRIPTION, out / INDEX, out / FAILURES):
        path.unlink(missing_ok=True)
    for folder in (out / SHARDS, out / WORK):
        shutil.rmtree(folder, ignore_errors=True)


def _differences(old: Mapping[str, Any], work: Work) -> str:
    new = json.loads(json.dumps(work.made_from, default=str))
    lines = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(line if len(line) < 200 else f"{line[:200]} ..." for line in lines) or "of another version"


def _make(work: Work, missing: Sequence[int]) -> None:
    """Make shards, here or in processes of their own."""
    jobs = min(work.given.jobs, len(missing))
    total = sum(work.count(number) for number in missing)
    with Bar(total=total, desc="ingest", unit="sample") as bar:
        if jobs <= 1:
            for number in missing:
                _make_one(work, number)
                bar.update(work.count(number))
            return
        for number in _elsewhere(work, missing, jobs):
            bar.update(work.count(number))


def _elsewhere(work: Work, missing: Sequence[int], jobs: int) -> Iterator[int]:
    """Numbers of shards as they are finished by `jobs` processes.

    Neighbouring shards share blocks of the files, so each process sweeps a part of its own, in which it finds most of
    them in its cache; one that is done takes from the end of the longest part.
    """
    context = multiprocessing.get_context("spawn")
    parts = [deque(part.tolist()) for part in np.array_split(np.array(missing), jobs)]
    waiting: dict[concurrent.futures.Future[int], int] = {}
    with ExitStack() as stack:
        pools = [concurrent.futures.ProcessPoolExecutor(1, context, _start, (work,)) for _ in parts]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)

        def give(worker: int) -> None:
            longest = max(parts, key=len)
            if parts[worker] or longest:
                number = parts[worker].popleft() if parts[worker] else longest.pop()
                waiting[pools[worker].submit(_make_elsewhere, number)] = worker

        for worker in range(jobs):
            give(worker)
        try:
            while waiting:
                done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    worker = waiting.pop(future)
                    yield future.result()
                    give(worker)
        except BrokenProcessPool:
            raise SkysenseError(
                "a process was killed, perhaps for its memory",
                fix="Use fewer --jobs; finished shards are kept: the same command goes on.",
            ) from None


_elsewhere_work: list[Work] = []
"""Of a worker process."""


def _start(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process decides
    _elsewhere_work.append(work)


def _make_elsewhere(number: int) -> int:
    _make_one(_elsewhere_work[0], number)
    return number


def _make_one(work: Work, number: int) -> None:
    failures: list[Failure] = []
    write_shard(work.given.out, number, work.samples(number, failures), failures, work.legend)


def _result(work: Work, description: Description, *, reused: int, started: float) -> IngestResult:
    out, table = work.given.out, read_index(work.given.out)
    parts: Mapping[str, int] = dict(zip(*np.unique(table["split"].to_numpy(), return_counts=True), strict=True))
    counts = np.array([row or [0] * len(description.classes) for row in table["label_counts"].to_pylist()]).sum(axis=0)
    failures = out / FAILURES
    lines = failures.read_text(encoding="utf-8").splitlines() if failures.exists() else []
    return IngestResult(
        store=out,
        samples=len(table),
        splits={str(name): int(count) for name, count in parts.items()},
        images={name: facts.images for name, facts in description.facts.items()},
        classes={name: int(count) for name, count in zip(description.classes, counts, strict=False)},
        shards=len(work.shards),
        reused=reused,
        size=sum(path.stat().st_size for path in (out / SHARDS).iterdir()),
        seconds=time.perf_counter() - started,
        failures=tuple(Failure(**json.loads(line)) for line in lines),
        notes=work.notes,
    )
