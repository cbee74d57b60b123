"""`skysense export`: a trained model as one file that runs without this package's code: torch.export or ONNX.

The file describes itself, and it is only there once it has given the numbers of the model it was made from.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
import torch

from skysense_core import config, runtime
from skysense_core.checkpoint import LoadedModel, load_model
from skysense_core.data.batch import Batch, collate
from skysense_core.data.scene import open_stacks
from skysense_core.description import EXPORTS, TOML
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.windows import Window
from skysense_core.inference import plan_sweep
from skysense_core.modalities import align_of, side_beside
from skysense_core.model.graph import example, trace, write_onnx, write_torch
from skysense_core.tasks import ObjectOutput

TOLERANCE = 1e-3
"""Largest difference of a score from the model's, in logits."""
CHIPS = 4
"""Windows of a scene that are compared."""
CPU = torch.device("cpu")

Format = Literal["torch-export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """The settings of one export."""

    model: Path
    """A run or model folder or a packaged model's name."""
    out: Path
    """The file, .pt2 or .onnx."""
    format: Format | None = None
    """Not given: by the suffix of `out`."""
    scene: tuple[str, ...] = ()
    """Imagery to compare on, as for a prediction; none: noise with the statistics of the training data."""
    window: int | None = None
    """Side of the windows in pixels of the reference modality; not given: the model's."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written, and how near it comes to the model."""

    path: Path
    format: Format
    model: str
    licence: str
    inputs: tuple[str, ...]
    """Names of the tensors that the graph takes."""
    sides: dict[str, int]
    """Height and width of the windows in pixels, by modality."""
    step: int | None
    """Any square of a multiple of so many pixels is taken; None: only windows of `sides`."""
    chips: int
    """That were compared."""
    compared_on: str
    difference: float
    """Largest of a logit."""
    bytes: int
    seconds: float


def export(given: ExportConfig) -> ExportResult:
    """Write a model as one file, run it on chips, and let it appear if it gives the model's scores within 1e-3.

    Raises UsageError for settings that do not fit the model (ONNX is for models of one modality), an existing file and
    missing libraries, and SkysenseError where the scores differ.
    """
    started = time.perf_counter()
    kind = check_out(given)
    loaded = load_model(given.model, CPU)
    if loaded.export:
        raise UsageError(f"{given.model} is exported already", fix=f"Give the folder of {loaded.name}.")
    if loaded.task.output.epochs > 1:
        raise UsageError(
            f"{loaded.name} compares {loaded.task.output.epochs} dates: exported files take the images of one",
            fix="Use skysense predict with the model itself.",
        )
    if isinstance(loaded.task.output, ObjectOutput):
        raise UsageError(f"{loaded.name} finds objects; only models of maps are exported", fix="Use skysense predict.")
    if kind == "onnx" and len(loaded.modalities) > 1:
        raise UsageError(
            f"{loaded.name} reads {', '.join(loaded.modalities)}: ONNX is for models of one modality, "
            "because in ONNX nobody says which images lie on which ground",
            fix="Use --format torch-export.",
        )
    sides = window_sides(loaded, given.window)
    with runtime.interruptible("export interrupted; nothing was written"):
        step = step_of(loaded, kind, given.window)
        program, names = trace(loaded.model, sides, step)
        text = describe(loaded, kind, names, sides, step)
        with tempfile.TemporaryDirectory(prefix=f".{given.out.stem}.", dir=given.out.parent) as folder:
            made = Path(folder) / f"model{given.out.suffix}"
            if kind == "onnx":
                write_onnx(program, made, names, metadata(loaded, text))
            else:
                write_torch(program, made, text)
            chips, difference = compare(loaded, load_model(made, CPU), given, sides, step)
            size = made.stat().st_size
            made.replace(given.out)
    return ExportResult(
        path=given.out,
        format=kind,
        model=loaded.name,
        licence=loaded.licence,
        inputs=names,
        sides=sides,
        step=step,
        chips=chips,
        compared_on=", ".join(given.scene) or "noise",
        difference=difference,
        bytes=size,
        seconds=time.perf_counter() - started,
    )


def check_out(given: ExportConfig) -> Format:
    """The format that is meant. Raises UsageError where the suffix says another one or the file exists."""
    suffixes = {kind: suffix for suffix, kind in EXPORTS.items()}
    found = EXPORTS.get(given.out.suffix.lower())
    kind = given.format or found
    if kind is None or found != kind:
        wanted = " or ".join(suffixes.values()) if kind is None else suffixes[kind]
        raise UsageError(f"--out {given.out}: the name of a model in a file ends in {wanted}")
    if not given.out.parent.is_dir():
        raise SkysenseError(f"{given.out.parent}: no such folder", fix="Make it, or write to another one.")
    if given.out.exists() and not given.overwrite:
        raise UsageError(f"{given.out} exists", fix="Use --overwrite to replace it.")
    return next(one for one in FORMATS if one == kind)


def window_sides(loaded: LoadedModel, window: int | None) -> dict[str, int]:
    """Sides of a window by modality, whole tokens of the model, as a prediction cuts them."""
    reference, align = loaded.modalities[loaded.reference], align_of(loaded.modalities)
    side = max(round((window or reference.window) / align), 1) * align
    if window not in (None, side):
        raise UsageError(f"--window {window}: no whole number of the model's tokens", fix=f"Use --window {side}.")
    return {
        name: side if one is reference else side_beside(reference, one, side) for name, one in loaded.modalities.items()
    }


def step_of(loaded: LoadedModel, kind: Format, window: int | None) -> int | None:
    """Pixels of which the sides of free windows are multiples; None where they are fixed.

    They are fixed in ONNX, which cannot pool maps of any size to a few cells; where the user chose a window; and where
    several modalities have to keep their ratio.
    """
    free = kind == "torch-export" and window is None and len(loaded.modalities) == 1
    return align_of(loaded.modalities) if free else None


def describe(
    loaded: LoadedModel, kind: Format, names: tuple[str, ...], sides: Mapping[str, int], step: int | None
) -> str:
    """The model's own `model.toml`, with a table on the graph."""
    made: dict[str, Any] = {"format": kind, "inputs": list(names), "sides": dict(sides), "torch": torch.__version__}
    if step is not None:
        made["step"] = step
    table = config.load_toml(loaded.folder / TOML) | {"export": {**made, "weights": loaded.digest}}
    for name, side in sides.items():
        table["modalities"][name]["window"] = side
    return tomli_w.dumps(table)


def metadata(loaded: LoadedModel, text: str) -> dict[str, str]:
    """What an ONNX file says of itself, for those who know nothing of skysense too."""
    output = loaded.task.output
    return {
        TOML: text,
        "name": loaded.name,
        "licence": loaded.licence,
        "classes": ", ".join(output.classes),
        "colours": ", ".join(output.colours),
        "bands": "; ".join(f"{name}: {', '.join(one.band_names)}" for name, one in loaded.modalities.items()),
    }


def compare(
    ours: LoadedModel, theirs: LoadedModel, given: ExportConfig, sides: Mapping[str, int], step: int | None
) -> tuple[int, float]:
    """How many chips were run through both, and the largest difference of a logit.

    Raises SkysenseError where it is more than the tolerance.
    """
    count, largest = 0, 0.0
    for batch in batches(ours, given, sides, step):
        with torch.inference_mode():
            expected, found = ours.model(batch), theirs.model(batch)
        difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:  # NaN is none either
            raise SkysenseError(
                f"the exported model gives other scores: they differ by up to {difference:.2g}, which is more than "
                f"{TOLERANCE:g}; nothing was written",
                fix="Use the other --format, or the model folder itself.",
            )
        count, largest = count + expected.shape[0], max(largest, difference)
    return count, largest


def batches(loaded: LoadedModel, given: ExportConfig, sides: Mapping[str, int], step: int | None) -> Iterator[Batch]:
    """Chips of several batch sizes and numbers of dates; with several modalities, once the finest alone.

    Where sides are free, noise of the smallest side and of one that is larger than the windows comes first.
    """
    for side in () if step is None else (step, sides[loaded.reference] + step):
        yield example(loaded.modalities, {loaded.reference: side}, b=1, t=2, seed=side)
    if not given.scene:
        for b, t in ((1, 1), (3, 3)):
            yield (batch := example(loaded.modalities, sides, b=b, t=t, seed=b))
    else:
        stacks = open_stacks(given.scene, loaded.modalities, {})
        plan = plan_sweep(stacks, loaded.modalities, window=sides[loaded.reference])
        windows = plan.lattice.windows(plan.region)
        samples = [sample for window in spread(windows) if (sample := plan.scene.read(window)) is not None]
        if not samples:
            raise SkysenseError(f"{', '.join(given.scene)}: nothing but nodata where it was read", fix="Give another.")
        for sample in samples:
            yield (batch := collate([sample]))
        yield collate(samples)
    if len(loaded.modalities) > 1:
        alone: dict[str, Any] = {loaded.reference: batch.epochs[0][loaded.reference]}
        yield Batch(ids=(), epochs=(alone,), lonlat=batch.lonlat, located=batch.located)


def spread(items: list[Window]) -> list[Window]:
    """At most `CHIPS` of a list, evenly spaced."""
    return items[:: max(len(items) // CHIPS, 1)][:CHIPS]
