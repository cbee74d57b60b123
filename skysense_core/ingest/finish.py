"""From finished shards to a store: one index, the statistics of all pixels, what failed."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np
import shapely

from skysense_core.data.shards import FULL
from skysense_core.data.store import FAILURES, INDEX, Description, Facts, write_description, write_index
from skysense_core.errors import SkysenseError
from skysense_core.ingest.inputs import Failure
from skysense_core.ingest.layout import LayoutWork
from skysense_core.ingest.pack import WORK, Legend, Tally, finished
from skysense_core.ingest.scenes import SceneWork
from skysense_core.ingest.split import refuse_leak
from skysense_core.modalities import Modality

SHARES = np.array([0.02, 0.5, 0.98])
Work: TypeAlias = SceneWork | LayoutWork


def complete(work: Work, digest: str) -> Description:
    """From finished shards to a store. Raises SkysenseError where there is no sample or where parts overlap."""
    out, legend = work.given.out, work.legend
    tallies = {name: Tally() for name in legend.modalities}
    failures, places = list(work.failures), []
    for table in _sidecars(work):
        failures += [Failure(**one) for one in table["failures"]]
        for name, tally in tallies.items():
            tally.include(Tally.of_table(table["statistics"][name]))
        places += [(row["id"], row["split"], row["geometry"]) for row in table["rows"]]
    if not places:
        shutil.rmtree(out / WORK)
        raise _nothing(work, failures)
    if not work.given.allow_leak:
        ids, splits, shapes = zip(*places, strict=True)
        refuse_leak(ids, splits, [None if shape is None else shapely.from_wkb(shape) for shape in shapes])
    twice = _repeated([name for name, _, _ in places])
    records = (
        {**row, "id": f"{row['split']}/{row['id']}"} if row["id"] in twice else row
        for table in _sidecars(work)
        for row in table["rows"]
    )
    measured = {name: _measured(legend, name, tally, work.facts[name]) for name, tally in tallies.items()}
    description = Description(
        skysense=version("skysense"),
        plan=digest,
        size=work.size,
        samples=len(places),
        classes=legend.classes,
        colours=legend.colours,
        modalities={name: modality for name, (modality, _) in measured.items()},
        facts={name: facts for name, (_, facts) in measured.items()},
    )
    try:
        (out / FAILURES).unlink(missing_ok=True)
        if failures:
            lines = "".join(json.dumps(asdict(failure)) + "\n" for failure in dict.fromkeys(failures))
            (out / FAILURES).write_text(lines, encoding="utf-8")
        write_index(out / INDEX, records, tuple(legend.modalities))
        write_description(out, description)
    except OSError as error:
        raise SkysenseError(f"{out}: cannot be written: {error.strerror}", fix=FULL) from None
    shutil.rmtree(out / WORK)
    return description


def _sidecars(work: Work) -> Iterator[dict[str, Any]]:
    for number in range(len(work.shards)):
        table = finished(work.given.out, number)
        assert table is not None, f"shard {number} was not made"
        yield table


def _repeated(names: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _nothing(work: Work, failures: Sequence[Failure]) -> SkysenseError:
    cells = sum(work.count(number) for number in range(len(work.shards)))
    why = failures[0].error if failures else f"none shows {work.given.min_valid:.0%} of valid pixels, or a label"
    return SkysenseError(f"no sample: {cells} places were looked at: {why}", fix="A lower --min-valid takes more.")


def _measured(legend: Legend, name: str, tally: Tally, facts: Facts) -> tuple[Modality, Facts]:
    """The modality with the store's statistics, and what is known of it."""
    modality, moments = legend.modalities[name], tally.moments
    if moments is None or not moments.count:
        return modality, facts
    shares = np.array([one.percentiles(SHARES) for one in tally.histograms])
    p2, p50, p98 = (tuple(float(f"{value:.6g}") for value in column) for column in shares.T)
    flat = moments.std == 0
    notes = (
        *facts.notes,
        *(f"{band} has one value everywhere" for band, at in zip(modality.band_names, flat, strict=True) if at),
    )
    modality = modality.with_statistics(moments.mean, np.where(flat, modality.std, moments.std))
    return modality, replace(
        facts, samples=tally.samples, images=tally.images, pixels=moments.count, p2=p2, p50=p50, p98=p98, notes=notes
    )
