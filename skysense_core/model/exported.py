"""Models in a file: ONNX through onnxruntime, `.pt2` through torch.export; the same call as ours.

A file is not trusted. ONNX holds a closed set of operations. A `.pt2` can hold pickles, compiled code and names of any
function of torch, and torch runs them; so only what `graph.write_torch` writes is let through.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skysense_core.data.batch import Batch, Series
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.modalities import Modality
from skysense_core.model.files import check_archive
from skysense_core.model.graph import DESCRIPTION, Tensors, tensors_of

RECORDS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/" + re.escape(DESCRIPTION) + ")"
)
OPERATIONS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\.sym_(min|max)|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|ge|gt|le|lt|getitem)"
)
EXPRESSIONS = re.compile(r"(?:(?:Symbol|Integer|Mul|Add|Pow|FloorDiv|Mod|Max|Min)\(|'\w+'|\w+=True|-?\d+|[(), ])*")
"""Sizes as torch writes them: Mul(Integer(64), Symbol('s81', positive=True, integer=True))."""
AGAIN = "Export it again from the model folder that it was made from: skysense export FOLDER --out {}"

Run: TypeAlias = Callable[[Tensors], Tensor]


class Exported(nn.Module):
    """The graph of a file: a batch to the raw scores of the model that it was made from, in float32.

    A modality that a batch lacks is filled with images that show nothing. Raises UsageError for windows of another size
    than the graph is made for: those of `sides`, or with `step` squares of any multiple of it.
    """

    def __init__(
        self,
        run: Run,
        names: tuple[str, ...],
        sides: Mapping[str, int],
        bands: Mapping[str, int],
        step: int | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.names = names
        self.sides = dict(sides)
        self.step = step
        self.bands = dict(bands)

    def forward(self, batch: Batch) -> Float[Tensor, "b ..."]:
        images = dict(batch.epochs[0])
        for name, side in self.sides.items():
            if name not in images:
                images[name] = nothing(batch, self.bands[name], side)
            h, w = images[name].pixels.shape[-2:]
            if self.step is not None and (h != w or h % self.step):
                raise UsageError(
                    f"{name}: exported for squares of any multiple of {self.step} pixels, not for {h} x {w}",
                    fix="Cut the images to such squares, or use the model folder itself.",
                )
            if self.step is None and (h, w) != (side, side):
                raise UsageError(
                    f"{name}: exported for windows of {side} x {side} pixels, not {h} x {w}",
                    fix="Export it again with another --window, or use the model folder itself.",
                )
        return self.run(
            tensors_of(Batch(ids=(), epochs=(images,), lonlat=batch.lonlat, located=batch.located), self.names)
        )


def nothing(batch: Batch, bands: int, side: int) -> Series:
    """Images that show nothing."""
    lonlat = batch.lonlat
    flags = lonlat.new_zeros(lonlat.shape[0], 1, dtype=torch.bool)
    return Series(
        pixels=lonlat.new_zeros(lonlat.shape[0], 1, bands, side, side),
        valid=lonlat.new_zeros(lonlat.shape[0], 1, side, side, dtype=torch.bool),
        day_of_year=flags.long(),
        dated=flags,
    )


def read_description(path: Path) -> str:
    """The `model.toml` inside of a file. Raises SkysenseError where there is none or the file is damaged."""
    if not path.is_file():
        raise SkysenseError(f"{path}: no such file")
    text = _onnx_description(path) if path.suffix.lower() == ".onnx" else _torch_description(path)
    if text is None:
        raise SkysenseError(
            f"{path}: does not describe itself: it has no {DESCRIPTION}",
            fix="Only files that skysense export wrote can be used here.",
        )
    return text


def load_exported(
    path: Path, said: Mapping[str, Any], modalities: Mapping[str, Modality], device: torch.device
) -> Exported:
    """The graph of a file on a device; `said` is the `[export]` table of its description.

    Raises UsageError where a library is missing or has no such device, and SkysenseError for a damaged file and for one
    that could run code; none of it is run.
    """
    run = _onnx_graph(path, device) if path.suffix.lower() == ".onnx" else _torch_graph(path, device)
    bands = {name: len(one.bands) for name, one in modalities.items()}
    return Exported(run, tuple(said["inputs"]), said["sides"], bands, said.get("step")).eval()


def _onnx_description(path: Path) -> str | None:
    try:
        import onnx
    except ImportError:
        raise missing(path) from None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has errors of its own
        raise damaged(path, error) from error
    return next((one.value for one in model.metadata_props if one.key == DESCRIPTION), None)


def _onnx_graph(path: Path, device: torch.device) -> Run:
    try:
        import onnxruntime
    except ImportError:
        raise missing(path) from None
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type, device.type)
    if provider not in onnxruntime.get_available_providers():
        raise UsageError(
            f"{path}: this onnxruntime cannot use {device.type}", fix="Use --device cpu, or the .pt2 of the model."
        )
    sessions: dict[int, Any] = {}

    def session() -> Any:
        # Its threads are fixed when it is made, and a prediction states how many it uses.
        threads = torch.get_num_threads()
        if threads not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            sessions.clear()
            sessions[threads] = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        return sessions[threads]

    def run(tensors: Tensors) -> Tensor:
        (scores,) = session().run(None, {name: tensor.cpu().numpy() for name, tensor in tensors.items()})
        return torch.from_numpy(scores).to(device)

    try:
        session()
    except Exception as error:  # onnxruntime has errors of its own
        raise damaged(path, error) from error
    return run


def _torch_description(path: Path) -> str | None:
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        name = next((one for one in archive.namelist() if one.endswith(f"/extra/{DESCRIPTION}")), None)
        return None if name is None else archive.read(name).decode()


def _torch_graph(path: Path, device: torch.device) -> Run:
    refuse_code(path)
    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module(check_guards=False)
    except Exception as error:  # whatever a damaged file provokes
        raise damaged(path, error) from error
    return lambda tensors: module(tensors)


def refuse_code(path: Path) -> None:
    """Raise SkysenseError unless a `.pt2` holds nothing but tensors, operations on them, and their sizes."""
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for strange in (one for one in archive.namelist() if not RECORDS.fullmatch(one)):
                raise hostile(path, f"the record {strange}")
            texts = {one.split("/", 1)[1]: archive.read(one) for one in archive.namelist() if one.endswith(".json")}
            samples = [one for one in archive.infolist() if one.filename.endswith("sample_inputs/model.pt")]
        if any(one.file_size for one in samples):
            raise hostile(path, "pickled inputs")
        program = json.loads(texts["models/model.json"])
        payloads = [json.loads(text) for name, text in texts.items() if name.startswith("data/")]
    except (KeyError, ValueError) as error:
        raise damaged(path, error) from error
    if program.get("guards_code"):
        raise hostile(path, "code of guards")
    for key, value in _fields([program, *payloads]):
        text = value if isinstance(value, str) else json.dumps(value)
        if key == "target" and not OPERATIONS.fullmatch(text):
            raise hostile(path, f"the operation {text[:80]}")
        if key == "expr_str" and not EXPRESSIONS.fullmatch(text):
            raise hostile(path, f"the size {text[:80]}")
        if (key == "use_pickle" and value) or (key == "metadata" and value):
            raise hostile(path, f"{key} {text[:80]}")


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested tables with its value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def missing(path: Path) -> UsageError:
    return UsageError(f"{path} needs onnxruntime", fix="pip install 'skysense[export]'")


def damaged(path: Path, error: Exception) -> SkysenseError:
    lines = str(error).splitlines() or [type(error).__name__]
    return SkysenseError(f"{path}: truncated, altered or no such format: {lines[0]}", fix=AGAIN.format(path))


def hostile(path: Path, what: str) -> SkysenseError:
    return SkysenseError(
        f"{path}: holds {what}, which skysense never writes and which could run code; nothing in it was run",
        fix=AGAIN.format(path),
    )
