"""A model as a graph of named tensors, for torch.export and ONNX.

Batch and number of dates stay free. Height and width are those of the windows that it is made for, or with `step` any
multiple of it. The graph computes in float32 and holds no machine's paths.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from skysense_core.data.batch import Batch, Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import Modality
from skysense_core.model.skysense import SkySense

DESCRIPTION = "model.toml"
"""Name of the description inside of a file."""
OUTPUT = "logits"
STEPS = 36
"""Side in steps of what a graph of any size is traced on: none of its maps is as large as a pooled one, nor one window,
so that no shape is taken for fixed."""
LARGEST = 2**10
"""Side in steps of the largest square that such a graph takes."""
MOST = 2**31
"""Bytes that an ONNX file can hold."""
TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node")
"""What torch notes of where a node comes from."""

Tensors = dict[str, Shaped[Tensor, "..."]]


def input_names(encoder: SkySense, *, fuse: bool) -> tuple[str, ...]:
    """The tensors that a graph takes: `hr_pixels` and `hr_valid`, days where the model knows dates, and the place.

    `X_pixels` (b, t, c, h, w), float32, in the modality's unit; `X_valid` (b, t, h, w), bool; `X_day_of_year` and
    `X_dated` (b, t), int64 and bool; `lonlat` (b, 2), float32 degrees, and `located` (b), bool.
    """
    names: list[str] = []
    for name in encoder.modalities:
        parts = ["pixels", "valid"]
        dated = encoder.spec.dates_on == "all" or name in encoder.spec.dates_on
        if fuse and encoder.dates is not None and dated:
            parts += ["day_of_year", "dated"]
        names += [f"{name}_{part}" for part in parts]
    return (*names, "lonlat", "located") if fuse and encoder.prototypes is not None else tuple(names)


def tensors_of(batch: Batch, names: Iterable[str]) -> Tensors:
    """The tensors of a batch that a graph takes."""
    flat: Tensors = {"lonlat": batch.lonlat, "located": batch.located}
    for name, series in batch.epochs[0].items():
        flat |= {f"{name}_{part}": getattr(series, part) for part in ("pixels", "valid", "day_of_year", "dated")}
    return {name: flat[name] for name in names}


def batch_of(tensors: Tensors, modalities: Iterable[str]) -> Batch:
    """The batch that tensors stand for; dates and places that a graph does not take are unknown."""
    images: dict[str, Series] = {}
    for name in modalities:
        pixels = tensors[f"{name}_pixels"]
        none = pixels.new_zeros(pixels.shape[:2], dtype=torch.bool)
        images[name] = Series(
            pixels=pixels,
            valid=tensors[f"{name}_valid"],
            day_of_year=tensors.get(f"{name}_day_of_year", none.long()),
            dated=tensors.get(f"{name}_dated", none),
        )
    lonlat = tensors.get("lonlat", pixels.new_zeros(pixels.shape[0], 2))
    located = tensors.get("located", none[:, 0])
    return Batch(ids=(), epochs=(images,), lonlat=lonlat, located=located)


class Graph(nn.Module):
    """A model that takes a dictionary of tensors instead of a Batch."""

    def __init__(self, model: nn.Module, modalities: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self.modalities = tuple(modalities)

    def forward(self, tensors: Tensors) -> Float[Tensor, "b ..."]:
        return self.model(batch_of(tensors, self.modalities))


def example(modalities: Mapping[str, Modality], sides: Mapping[str, int], *, b: int, t: int, seed: int) -> Batch:
    """A batch of noise with the statistics of the modalities: dates, places and holes; t dates where there are any."""
    generator = torch.Generator().manual_seed(seed)
    images = {}
    for name, one in modalities.items():
        dates, side, c = (t if one.dates > 1 else 1), sides[name], len(one.bands)
        noise = torch.randn(b, dates, c, side, side, generator=generator)
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (one.mean, one.std))
        images[name] = Series(
            pixels=mean + std * noise,
            valid=torch.rand(b, dates, side, side, generator=generator) > 0.1,
            day_of_year=torch.randint(1, 366, (b, dates), generator=generator),
            dated=torch.rand(b, dates, generator=generator) > 0.2,
        )
    lonlat = torch.rand(b, 2, generator=generator) * 160 - 80
    return Batch(ids=(), epochs=(images,), lonlat=lonlat, located=torch.ones(b, dtype=torch.bool))


def trace(
    model: nn.Module, sides: Mapping[str, int], step: int | None = None
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """The program of a dense model, for windows with these sides by modality, and the names of its inputs.

    With `step`, for a model of one modality: for squares of any multiple of so many pixels.

    Raises SkysenseError where torch cannot make one of it.
    """
    encoder: SkySense = model.encoder  # type: ignore[assignment]
    names = input_names(encoder, fuse=bool(getattr(model, "fuse", True)))
    if step is not None:
        sides = dict.fromkeys(sides, STEPS * step)
    tensors = tensors_of(example(encoder.modalities, sides, b=2, t=2, seed=0), names)
    batch = torch.export.Dim("batch", min=1)
    dates = {
        name: torch.export.Dim(f"{name}_dates", min=1) for name, one in encoder.modalities.items() if one.dates > 1
    }
    free = {name: {0: batch} | ({1: dates[m]} if (m := modality_of(name)) in dates else {}) for name in names}
    if step is not None:
        side = step * torch.export.Dim("side", min=1, max=LARGEST)
        for name in free:
            if name.endswith(("_pixels", "_valid")):
                free[name] |= {tensors[name].ndim - 2: side, tensors[name].ndim - 1: side}
    with torch.no_grad():
        try:
            program = torch.export.export(
                Graph(model, encoder.modalities), (tensors,), dynamic_shapes=(free,), strict=False
            )
        except Exception as error:  # whatever torch finds that it cannot follow
            lines = str(error).splitlines() or [type(error).__name__]
            raise SkysenseError(f"torch.export cannot follow this model: {lines[0]}") from error
    for node in program.graph.nodes:
        for key in TRACES:
            node.meta.pop(key, None)
    return program, names


def modality_of(tensor: str) -> str:
    """`s2` of `s2_pixels` and `s2_day_of_year`."""
    name, _, part = tensor.rpartition("_")
    return name.removesuffix("_day_of") if part == "year" else name


def write_torch(program: torch.export.ExportedProgram, path: Path, description: str) -> None:
    """A `.pt2` of torch.export with the description among its extra files; nothing in it is a pickle."""
    program.example_inputs = None
    program._guards_code = []
    torch.export.save(program, path, extra_files={DESCRIPTION: description})


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, names: tuple[str, ...], metadata: Mapping[str, str]
) -> None:
    """An ONNX file with metadata. Raises UsageError where libraries are missing or the model is too large."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size >= MOST:
        raise UsageError(
            f"{size / 2**30:.1f} GiB of weights: an ONNX file holds at most 2", fix="Use --format torch-export."
        )
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise UsageError("--format onnx needs onnxscript", fix="pip install 'skysense[export]'") from None
    with torch.no_grad():  # with gradients, attention would be taken apart in another way, which has no ONNX form
        made: Any = torch.onnx.export(
            program, dynamo=True, input_names=list(names), output_names=[OUTPUT], verbose=False
        )
    made.model.metadata_props.update(metadata)
    made.save(str(path), external_data=False)
