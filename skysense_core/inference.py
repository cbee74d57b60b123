"""The engine: any model over any scene, window by window, with memory that does not grow with the scene.

Reader threads run ahead of the model, batches cross the ends of rows, scores are merged on the device, and what is
final leaves at once. It knows tasks and models only as a function from a batch to scores.
"""

import itertools
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from affine import Affine
from geopandas import GeoDataFrame
from jaxtyping import Float, UInt8
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry
from torch import Tensor, device

from skysense_core.data.batch import Batch, Series, collate
from skysense_core.data.scene import Scene, model_grid
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.cog import BLOCK
from skysense_core.geo.grid import crs_of, differ
from skysense_core.geo.raster import Stack, open_stack
from skysense_core.geo.vector import load_aoi, load_polygons
from skysense_core.geo.windows import Lattice, Window, cells_of, lattice_for, window_over
from skysense_core.merge import Merger
from skysense_core.modalities import Modality, align_of, finest
from skysense_core.progress import Bar
from skysense_core.types import Sample

T = TypeVar("T")
Score: TypeAlias = Callable[[Batch], Float[Tensor, "b k h w"]]
"""A batch on the device becomes probabilities on the reference modality's grid."""


STRIP_BYTES = 256 * 2**20
"""Most memory of the scores of one strip; wider scenes are cut into strips."""
WIDEST = 4096
"""Most pixels by which a strip is wide."""
MARGIN = 4
"""Pixels around the part of a scene that is warped to another grid, so that its edge is interpolated as the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is predicted, and the grid on which the map lies."""

    scene: Scene
    lattice: Lattice
    region: Window
    """The part of the scene's cells that is predicted."""
    target: GeoBox
    """The grid of the map."""
    notes: tuple[str, ...]

    @property
    def warped(self) -> bool:
        """Whether the map's grid is another one than the predicted part's."""
        predicted = self.region.geobox(self.scene.cells)
        return differ(predicted, self.target)

    def batch_size(self, on: device) -> int:
        """Windows per forward pass, by their size in pixels."""
        scene, cpu = self.scene, on.type == "cpu"
        dates = min(len(scene.stacks[scene.reference].days), scene.modalities[scene.reference].dates)
        pixels = (self.lattice.window * scene.cell) ** 2 * dates
        return min(max((2**20 if cpu else 2**22) // pixels, 1), 32 if cpu else 128)


def plan_sweep(
    stacks: Mapping[str, Stack],
    modalities: Mapping[str, Modality],
    *,
    window: int | None = None,
    shared: int | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    bbox_crs: str | None = None,
    aoi: Path | None = None,
    region: BaseGeometry | None = None,
    like: Path | None = None,
    cell: int | None = None,
    later: Sequence[Mapping[str, Stack]] = (),
    whole: bool = False,
) -> Plan:
    """What to predict of a scene: all of it, or what lies in a box or in polygons, on its own grid or that of `like`.

    `region` is a polygon in the scene's CRS; what lies outside becomes nodata. With a `cell` the result has a pixel
    for every square of so many pixels of the model's grid, a part of `align_of`, and `like` has no effect. With
    `whole` that square is a window, and windows lie side by side.
    `later` are the epochs that the first is compared with.

    `window` and `shared`: side of a window and pixels that neighbours share, where they are not to be the model's.
    The lattice is always that of the whole scene, so a part gets the same pixels. Raises UsageError where the
    scene's pixel size does not suit the model and where box, polygons or grid lie outside the scene.
    """
    reference = finest(modalities)
    modality, native = modalities[reference], stacks[reference].geobox
    working, notes = model_grid(native, modality)
    align = align_of({name: modalities[name] for name in stacks})
    lattice = lattice_for(working, window or modality.window, align=align, shared=shared)
    if window not in (None, lattice.window):
        notes.append(f"--window {window}: rounded to {lattice.window}, whole tokens of the model")
    if shared not in (None, lattice.window - lattice.stride):
        notes.append(f"--overlap {shared}: rounded to {lattice.window - lattice.stride}, whole tokens of the model")
    cell = lattice.window if whole else cell
    grid, target = working, native if like is None else open_stack([like], bands=None).geobox
    if cell is not None:
        grid = target = cells_of(working, cell)
        shared = 0 if whole else (lattice.window - lattice.stride) // cell
        lattice = lattice_for(grid, lattice.window // cell, align=max(align // cell, 1), shared=shared)
    if window_over(native, target).empty:
        raise UsageError(f"--like {like} lies outside the scene: {_extent(target)}; the scene is {_extent(native)}")
    for name, source in (("the box", bbox), ("--aoi", aoi)):
        if source is not None:
            target = _cropped(target, native, name, source, bbox_crs)
    area = None if aoi is None else load_polygons(aoi, column=None, crs=working.crs)
    if region is not None:
        area = GeoDataFrame(geometry=[region], crs=crs_of(working).proj)
    scene = Scene(
        stacks=stacks,
        modalities=modalities,
        reference=reference,
        grid=working,
        area=area,
        cell=cell or 1,
        later=tuple(later),
    )
    plan = Plan(scene=scene, lattice=lattice, region=window_over(grid, target), target=target, notes=tuple(notes))
    return replace(plan, region=window_over(grid, target, margin=MARGIN)) if plan.warped else plan


def _cropped(
    target: GeoBox, native: GeoBox, name: str, source: Path | tuple[float, float, float, float], crs: str | None
) -> GeoBox:
    """The whole pixels of the map's grid that cover a box or polygons."""
    try:
        known = native.crs if crs is None else CRS(crs)
    except CRSError:
        raise UsageError(f"--bbox-crs {crs}: no such CRS", fix="For example --bbox-crs EPSG:4326") from None
    left, bottom, right, top = load_aoi(source, crs_of(target), bbox_crs=known).bounds
    box = GeoBox((1, 1), Affine(right - left, 0, left, 0, bottom - top, top), target.crs)
    if window_over(native, box).empty or window_over(target, box).empty:
        raise UsageError(
            f"{name} lies outside the scene: {_extent(box)}; the scene is {_extent(native)}",
            fix=None
            if crs or isinstance(source, Path)
            else "--bbox-crs says what its numbers are: EPSG:4326 for degrees.",
        )
    return window_over(target, box).geobox(target)


def _extent(box: GeoBox) -> str:
    return f"{', '.join(f'{edge:.7g}' for edge in box.boundingbox)} in {box.crs}"


def strip_width(column: int, width: int, scores: int = STRIP_BYTES, *, block: int = BLOCK, cell: int = 1) -> int:
    """Pixels by which the strips of a region of `width` pixels are wide: whole blocks, as `scores` bytes allow.

    `column`: bytes that a column of a strip takes. `cell`: pixels of the scene that a pixel is wide.
    """
    most = max(min(scores // (column * block), WIDEST // (cell * block)), 1)
    blocks = math.ceil(width / block)
    return math.ceil(blocks / math.ceil(blocks / most)) * block


def sweep(
    scene: Scene,
    lattice: Lattice,
    strips: Iterable[Window],
    score: Score,
    merger: Callable[[Window], Merger],
    *,
    on: device,
    batch_size: int,
    readers: int,
    meter: "Meter",
    cuts: Sequence[int] = (),
    padded: bool = False,
) -> Generator[Any, None, None]:
    """Predict the strips of a scene one after another; yields the merger's finished parts in order, top to bottom.

    The windows are the lattice's whatever the strips are: strips, batch size and readers change nothing but speed and
    memory. Batches cross the ends of rows of windows, but not the `cuts` (rows of the scene, ascending): windows
    astride a cut make batches of their own, so a sweep that begins there computes the same numbers to the last bit.
    `padded` repeats a sample where a batch is short, for compiled models. A part holds until the next one is asked
    for. Raises SkysenseError naming the window that cannot be read.
    """

    def between(item: tuple[Window, Sample]) -> tuple[int, int]:
        inner = lattice.inner(item[0])
        return bisect_right(cuts, inner.row), bisect_right(cuts, inner.row_stop - 1)

    for strip in strips:
        merged = merger(strip)
        samples = _read_ahead(scene, lattice.windows(strip), readers, depth=2 * batch_size + readers, meter=meter)
        with closing(samples):
            for _, group in itertools.groupby(samples, key=between):
                while chunk := list(itertools.islice(group, batch_size)):
                    missing = batch_size - len(chunk) if padded else 0
                    batch = collate([sample for _, sample in chunk] + [chunk[-1][1]] * missing).to(on)
                    scores = score(batch)
                    seen = observations(batch, scene.reference, scene.cell)
                    for index, (window, _) in enumerate(chunk):
                        yield from merged.ready(window)
                        merged.add(window, scores[index], seen[index])
        yield from merged.finish()


def observations(batch: Batch, reference: str, cell: int = 1) -> UInt8[Tensor, "b _ _"]:
    """Images of all modalities that show a cell of the reference, at most 254; 0 where the reference shows less than
    half of it. Of several epochs, in the one that has fewest."""
    return torch.stack([_observations(images, reference, cell) for images in batch.epochs]).amin(dim=0)


def _observations(images: Mapping[str, Series], reference: str, cell: int) -> UInt8[Tensor, "b _ _"]:
    valid = images[reference].valid
    if len(images) == cell == valid.shape[1] == 1:  # nothing to count: most scenes, at a tenth of the time
        return valid[:, 0].to(torch.uint8)
    count = valid.sum(dim=1, dtype=torch.float32)
    for name, series in images.items():
        if name != reference:
            others = series.valid.sum(dim=1, keepdim=True, dtype=torch.float32)
            count += F.interpolate(others, size=valid.shape[-2:], mode="nearest")[:, 0]
    share = F.avg_pool2d(valid.any(dim=1).to(torch.float32), cell)
    return torch.where(share >= 0.5, F.max_pool2d(count, cell).clamp(max=254), 0.0).to(torch.uint8)


def strips_of(region: Window, width: int) -> list[Window]:
    """The region in columns of at most `width` pixels; windows astride a cut are computed for both sides."""
    return [
        Window(row=region.row, col=col, height=region.height, width=min(width, region.col_stop - col))
        for col in range(region.col, region.col_stop, width)
    ]


def write_behind(items: Iterable[T], write: Callable[[T], None], depth: int = 2) -> None:
    """Write items in order on a thread of its own while the next ones are being made; at most `depth` wait.

    The first error of either side ends both: nothing is written after an item that could not be.
    """
    broken = False

    def unless_broken(item: T) -> None:
        nonlocal broken
        if not broken:
            broken = True
            write(item)
            broken = False

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as pool:
        pending: deque[Future[None]] = deque()
        for item in items:
            pending.append(pool.submit(unless_broken, item))
            if len(pending) > depth:
                pending.popleft().result()
        for future in pending:
            future.result()


class Meter:
    """Counts windows and shows them as they pass: windows/s, megapixels/s, and how long the model waited for data."""

    def __init__(self, windows: int, pixels: int, *, shown: bool = True) -> None:
        self.windows = 0
        self.skipped = 0
        self.waited = 0.0
        self._megapixels = pixels / max(windows, 1) / 1e6
        self._bar = Bar(total=windows, unit="window", shown=shown, smoothing=0.05)

    def passed(self, *, skipped: bool, waited: float) -> None:
        """One more window has been read."""
        self.windows += not skipped
        self.skipped += skipped
        self.waited += waited
        self._bar.update()
        rate = self._bar.format_dict["rate"] or 0.0
        self._bar.set_postfix_str(f"{rate * self._megapixels:.2f} Mpx/s, waited {self.waited:.0f} s", refresh=False)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _read_ahead(
    scene: Scene, windows: list[Window], readers: int, *, depth: int, meter: Meter
) -> Generator[tuple[Window, Sample], None, None]:
    """The windows that show anything, in order, at most `depth` of them read before they are wanted."""
    pending: deque[tuple[Window, Future[Sample | None]]] = deque()
    left = iter(windows)
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
        try:
            while True:
                for window in itertools.islice(left, depth - len(pending)):
                    pending.append((window, pool.submit(scene.read, window)))
                if not pending:
                    return
                window, future = pending.popleft()
                sample, waited = _wait(future, window)
                meter.passed(skipped=sample is None, waited=waited)
                if sample is not None:
                    yield window, sample
        finally:
            pool.shutdown(cancel_futures=True)


def _wait(future: Future[Sample | None], window: Window) -> tuple[Sample | None, float]:
    started = time.perf_counter()
    try:
        return future.result(), time.perf_counter() - started
    except SkysenseError as error:
        raise SkysenseError(f"{error.message} (window at {window})", fix=error.fix) from error
    except Exception as error:
        error.add_note(f"while reading the window at {window}")
        raise
