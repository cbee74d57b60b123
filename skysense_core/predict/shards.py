"""Never start over: the region of a prediction is cut into shards, and what is finished stays on disk.

    .map.tif.shards/plan.json            what is predicted, from what, by which model, with which settings
    .map.tif.shards/0007/classes.tif     a finished shard: one file per product; its folder is named when it is complete

Shards are rectangles of whole blocks of the map. A shard's pixels depend on the plan alone, never on which process
computed it or what was computed before, so any process that has the same plan may compute any of them.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from jaxtyping import Num
from odc.geo.geobox import GeoBox

from skysense_core import config
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.cog import BLOCK, FULL, Product, RowWriter, scratch_beside, warp, write_cog
from skysense_core.geo.grid import differ
from skysense_core.geo.mosaic import write_vrt
from skysense_core.geo.objects import ObjectWriter, of_rows
from skysense_core.geo.polygons import sieve
from skysense_core.geo.windows import Window

PLAN = "plan.json"
JOINING = "joining"
MAPS = ("classes", "features", "values", "scores")
ROWS = 2048
"""Rows of a shard; more where a window is larger, for a window may not reach over three shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the bytes of a prediction depend on: two runs with equal plans give equal files."""

    made_by: dict[str, Any]
    """Inputs and their state, model, settings of the engine."""
    grid: dict[str, Any]
    """The grid of the predicted region, as `grid_table` writes it."""
    target: dict[str, Any]
    """The grid of the map; where it is another one the result is warped onto it."""
    products: dict[str, dict[str, Any]]
    """The fields of each `Product` by its name."""
    shard: tuple[int, int]
    """Most rows and columns of a shard."""
    sieve_pixels: int = 0
    """Patches of the map of fewer pixels take the class around them."""

    def product(self, name: str) -> Product:
        """A product by its name."""
        return config.build(Product, self.products[name], name)

    @property
    def shards(self) -> list["Shard"]:
        """The region in strips from left to right, each cut from top to bottom."""
        (height, width), (rows, cols) = self.grid["shape"], self.shard
        windows = [
            Window(row=row, col=col, height=min(rows, height - row), width=min(cols, width - col))
            for col in range(0, width, cols)
            for row in range(0, height, rows)
        ]
        return [Shard(number=number, window=window) for number, window in enumerate(windows)]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Plan") -> str:
        """How another plan differs, for people."""
        old, new = ({**plan.made_by, **asdict(plan), "made_by": None} for plan in (self, other))
        said = {key: tuple(json.dumps(plan.get(key), sort_keys=True) for plan in (old, new)) for key in (*old, *new)}
        lines = [f"{key} was {one}, is {two}" for key, (one, two) in said.items() if one != two]
        return "; ".join(line if len(line) < 300 else f"{line[:300]} ..." for line in lines)


def grid_table(grid: GeoBox) -> dict[str, Any]:
    """A grid as JSON."""
    return {"shape": list(grid.shape), "affine": list(grid.affine[:6]), "crs": str(grid.crs)}


def grid_of(table: Mapping[str, Any]) -> GeoBox:
    """The grid that `grid_table` has written."""
    return GeoBox(tuple(table["shape"]), Affine(*table["affine"]), table["crs"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A rectangle of the predicted region, in its pixels."""

    number: int
    window: Window

    @property
    def name(self) -> str:
        return f"{self.number:05}"


def shard_rows(window: int, block: int = BLOCK, cell: int = 1) -> int:
    """Rows of a shard for windows of this side: whole blocks. `cell`: pixels of the scene along one of the map."""
    return math.ceil(max(ROWS / cell, window) / block) * block


def cuts(shards: Collection[Shard]) -> tuple[int, ...]:
    """The rows at which shards end and others begin, ascending."""
    return tuple(sorted({shard.window.row for shard in shards})[1:])


def runs(shards: Collection[Shard]) -> list[list[Shard]]:
    """Shards that follow each other in one strip together: one sweep computes them without a window twice."""
    ordered = sorted(shards, key=lambda shard: shard.number)
    apart = groupby(enumerate(ordered), key=lambda item: (item[1].window.col, item[1].number - item[0]))
    return [[shard for _, shard in group] for _, group in apart]


def over(run: list[Shard]) -> Window:
    """The rectangle of consecutive shards of one strip."""
    first, last = run[0].window, run[-1].window
    return replace(first, height=last.row_stop - first.row)


class Shards:
    """The shards of one plan, in the folder beside its output."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out = out
        self.folder = folder_of(out)
        self.plan = plan
        self.shards = plan.shards

    @classmethod
    def begin(cls, out: Path, plan: Plan, *, overwrite: bool) -> "Shards":
        """The shards of this plan beside `out`, with those that an earlier run with the same plan has finished.

        Raises UsageError where the folder holds shards of another plan, naming what differs; with `overwrite` they are
        deleted. Raises SkysenseError where the folder cannot be written.
        """
        store, old = cls(out, plan), stored_plan(out)
        if old is not None and old.digest != plan.digest:
            if Shards(out, old).finished() and not overwrite:
                raise UsageError(
                    f"{store.folder} holds finished parts of another prediction: {old.differences(plan)}",
                    fix="Repeat the command that made them to go on, or start anew with --overwrite.",
                )
            store.remove()
        try:
            store.folder.mkdir(exist_ok=True)
            draft = store.folder / f"{PLAN}.{os.getpid()}"
            draft.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
            draft.replace(store.folder / PLAN)
        except OSError as error:
            raise SkysenseError(
                f"{out.parent}: cannot write there: {error.strerror}", fix="Use another --out."
            ) from None
        return store

    def finished(self) -> list[Shard]:
        """The shards that are there."""
        return [shard for shard in self.shards if (self.folder / shard.name).is_dir()]

    def missing(self) -> list[Shard]:
        """The shards that are not."""
        return [shard for shard in self.shards if not (self.folder / shard.name).is_dir()]

    def refuse_missing(self) -> None:
        """Raises SkysenseError where a shard is missing."""
        if self.missing():
            raise SkysenseError(
                f"{self.out}: {len(self.missing())} of {len(self.shards)} shards are not finished",
                fix="Run the same skysense command again to compute them.",
            )

    @contextlib.contextmanager
    def drafts(self) -> Iterator[dict[str, Path]]:
        """Within, every product as a virtual raster over the shards, on the predicted grid.

        Raises SkysenseError where a shard is missing.
        """
        self.refuse_missing()
        grid, drafts = grid_of(self.plan.grid), {}
        # Among the shards: what a killed process leaves there goes with them.
        with scratch_beside(self.folder / self.out.name) as scratch:
            for name in self.plan.products:
                parts = [(self.folder / shard.name / f"{name}.tif", shard.window) for shard in self.shards]
                drafts[name] = write_vrt(parts, grid, self.plan.product(name), scratch / f"{name}.shards")
            yield drafts

    @contextlib.contextmanager
    def joined(self, options: Mapping[str, str]) -> Iterator[dict[str, Path]]:
        """Within, every product as one COG on the grid of the map, to be published; the folder of the shards stays.

        `options`: creation options of GDAL's COG driver. Raises SkysenseError where a shard is missing and where GDAL
        cannot write.
        """
        grid, target = grid_of(self.plan.grid), grid_of(self.plan.target)
        finished = {}
        with self.drafts() as drafts:
            for name, draft in drafts.items():
                product = self.plan.product(name)
                sieved = self.plan.sieve_pixels > 1 and product.kind == "classes"
                if sieved or differ(grid, target):
                    draft = warp(draft, target, product)
                if sieved:
                    sieve(draft, self.plan.sieve_pixels)
                finished[name] = write_cog(draft, product, options)
            yield finished

    def remove(self) -> None:
        """Delete everything, the plan last: a folder that is half deleted is still known for what it is."""
        if self.folder.exists():
            for item in self.folder.iterdir():
                if item.name != PLAN:
                    shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)
            shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def joining(self) -> Iterator[bool]:
        """Within, True for one process alone of all that come at once: the one that joins the shards."""
        try:
            (self.folder / JOINING).mkdir()
        except (FileExistsError, FileNotFoundError):  # another one joins, or has joined and removed the shards
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / JOINING).rmdir()


class ShardWriter:
    """Takes the finished rows of consecutive shards of one strip, in order, and lets each appear when it is complete.

    A context manager: what is not complete at its end is deleted.
    """

    def __init__(self, store: Shards, run: list[Shard]) -> None:
        self.store = store
        self.left = list(run)
        self.grid = grid_of(store.plan.grid)
        self.products = {name: store.plan.product(name) for name in store.plan.products}
        self._row = run[0].window.row
        self._draft: Path | None = None
        self._writers: dict[str, RowWriter | ObjectWriter] = {}

    def take(self, item: tuple[Window, Mapping[str, Num[np.ndarray, "..."]]]) -> None:
        """`write` of a pair."""
        self.write(*item)

    def write(self, window: Window, arrays: Mapping[str, Num[np.ndarray, "..."]]) -> None:
        """The next rows of every product; `window` is their place in the region."""
        row = window.row
        while row < window.row_stop:
            shard = self.left[0]
            if self._draft is None:
                self._begin(shard)
            assert row == self._row, f"rows {self._row}-{row} were never given"
            stop = min(window.row_stop, shard.window.row_stop)
            place = Window(row=row - shard.window.row, col=0, height=stop - row, width=window.width)
            for name, rows in arrays.items():
                writer = self._writers[name]
                if isinstance(writer, ObjectWriter):
                    writer.write(of_rows(rows, (window.row, window.row_stop), row, stop))
                else:
                    writer.write(place, rows[:, row - window.row : stop - window.row])
            if stop == shard.window.row_stop:
                self._finish(shard)
            row = self._row = stop

    def _begin(self, shard: Shard) -> None:
        try:
            self._draft = Path(tempfile.mkdtemp(prefix=f"{shard.name}.", suffix=".tmp", dir=self.store.folder))
        except OSError as error:
            raise SkysenseError(f"{self.store.folder}: {error.strerror}", fix=FULL) from None
        ground = shard.window.geobox(self.grid)
        for name, product in self.products.items():
            if product.kind == "objects":
                self._writers[name] = ObjectWriter(self._draft / f"{name}.npy")
            else:
                self._writers[name] = RowWriter(self._draft / f"{name}.tif", ground, product)

    def _finish(self, shard: Shard) -> None:
        assert self._draft is not None
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        try:
            self._draft.rename(self.store.folder / shard.name)
        except OSError:
            # Another process with the same plan was faster; its bytes are the same.
            if not (self.store.folder / shard.name).is_dir():
                raise
            shutil.rmtree(self._draft)
        self._draft = None
        self.left.pop(0)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self._writers.values():
            with contextlib.suppress(SkysenseError):  # of a file that is deleted here
                writer.close(whole=False)
        if self._draft is not None:
            shutil.rmtree(self._draft, ignore_errors=True)


def folder_of(out: Path) -> Path:
    """Where the shards of an output lie."""
    return out.with_name(f".{out.name}.shards")


def path_of(out: Path, product: str) -> Path:
    """Where a product is published: the map (of classes or features) as `out`, others beside it."""
    return out if product in MAPS else out.with_name(f"{out.stem}_{product}.tif")


def stored_plan(out: Path) -> Plan | None:
    """The plan of the shards beside an output; None where there are none.

    Raises SkysenseError where it cannot be read.
    """
    path = folder_of(out) / PLAN
    try:
        return config.build(Plan, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UsageError) as error:
        raise SkysenseError(f"{path}: cannot be read: {error}", fix=f"Delete {path.parent} to start anew.") from None


def of_array(index: int, count: int, shards: list[Shard]) -> list[Shard]:
    """The shards of worker `index` of `count` (from 1): consecutive ones, so that few windows are computed twice."""
    first, stop = (round(len(shards) * part / count) for part in (index - 1, index))
    return shards[first:stop]
