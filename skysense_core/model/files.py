"""Files of weights: read without running any code in them, and written one tensor after the other.

A `.pth` is mapped, not copied: its numbers stay on disk until they are used.
"""

import hashlib
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from skysense_core import runtime
from skysense_core.errors import SkysenseError
from skysense_core.progress import Bar

BLOCK = 2**24
"""Bytes that are read, or numbers that are written, in one go."""
NO_CHECKSUM = 0
"""What torch records where it was told to compute none."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of tensors that models are made of, as safetensors names them."""
DAMAGED = "Download or copy it again and compare its size and checksum with those that its authors state."


def load_tensors(path: Path) -> Mapping[str, Any]:
    """What a `.safetensors` file or a `.pth` of torch holds: tensors, maybe under levels such as `model`.

    Raises SkysenseError for a file that is missing, truncated, altered, compressed (torch never does that; a small file
    could become a huge one) or that wants to run code; none of it is run.
    """
    if not path.is_file():
        raise SkysenseError(f"{path}: no such file", fix="Check the path; the weights are not fetched for you.")
    archive = path.open("rb").read(2) == b"PK"
    if archive:
        check_archive(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise unreadable(path, error) from error
    if not isinstance(found, Mapping):
        raise SkysenseError(f"{path}: holds a {type(found).__name__}, not named tensors", fix="Give a state dict.")
    return found


def check_archive(path: Path) -> None:
    """Raise SkysenseError unless a `.pth` is whole: nothing compressed, nothing overlapping, every checksum right."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [one.filename for one in records if one.compress_type != zipfile.ZIP_STORED]
            if packed or sum(one.file_size for one in records) > path.stat().st_size:
                raise SkysenseError(
                    f"{path}: its parts are compressed or overlap, so that they would take more room than the file",
                    fix="torch.save never writes such a file. Get it again from its authors.",
                )
            with Bar(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name) as bar:
                for one in records:
                    check_record(path, archive, one, bar)
    except (zipfile.BadZipFile, OSError, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
        raise SkysenseError(f"{path}: truncated or altered: {error}", fix=DAMAGED) from error


def check_record(path: Path, archive: zipfile.ZipFile, record: zipfile.ZipInfo, bar: Bar) -> None:
    """Compare the checksum of a record."""
    wanted, found = record.CRC, 0
    if wanted != NO_CHECKSUM:
        record.CRC = None  # type: ignore[assignment]  # zipfile's own check would take its time once more
        with archive.open(record) as file:
            while block := file.read(BLOCK):
                found = zlib.crc32(block, found)
                bar.update(len(block))
        if found != wanted:
            raise SkysenseError(f"{path}: altered: the checksum of {record.filename} is another", fix=DAMAGED)


def unreadable(path: Path, error: Exception) -> SkysenseError:
    """Why torch or safetensors refused a file, in one line."""
    wanted = re.search(r"(?:GLOBAL|global|class|instruction)\W+([\w.]+\.[\w.]+)", str(error))
    if "WeightsUnpickler" in str(error) or "weights_only" in str(error):
        what = f" ({wanted[1]})" if wanted else ""
        return SkysenseError(
            f"{path}: damaged, or holds code or objects beside its tensors{what}; nothing in it was run",
            fix="Only tensors are read. Ask whoever made it for its state dict, best as .safetensors.",
        )
    lines = str(error).splitlines() or [type(error).__name__]
    return SkysenseError(f"{path}: truncated, altered or no file of weights: {lines[0]}", fix=DAMAGED)


def refuse_clash(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, most: int = 5) -> None:
    """Raise SkysenseError unless both have the same names and shapes; names the first differences."""
    faults = [
        *(f"{key} is missing" for key in expected if key not in found),
        *(f"{key} is not part of the model" for key in found if key not in expected),
        *(
            f"{key} has shape {tuple(found[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in found and found[key].shape != tensor.shape
        ),
    ]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:most])
        rest = f"\n  and {len(faults) - most} more" if len(faults) > most else ""
        raise SkysenseError(
            f"{path} does not fit the model:\n{shown}{rest}",
            fix="The preset, the bands and the other settings must be those that the weights were trained with.",
        )


def fill(model: torch.nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Make a file's tensors those of the model, in the model's number format; they stay mapped from the file.

    Raises as `refuse_clash` does.
    """
    expected = model.state_dict()
    refuse_clash(path, tensors, expected)
    model.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}, assign=True)


def save_file(tensors: Mapping[str, Shaped[Tensor, "..."]], path: Path, *, mapped: bool = False) -> None:
    """Write safetensors in the order of the names, piece by piece.

    With `mapped`, for large tensors that lie in a file: a bar is shown, and each leaves the memory once it is written,
    so that they never meet there. Raises OSError where the file cannot be written.
    """
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, Bar(total=end, unit="B", unit_scale=True, desc=path.name, shown=mapped) as bar:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            rows = max(BLOCK // max(tensor[:1].numel(), 1), 1) if tensor.ndim else 1
            for piece in tensor.split(rows) if tensor.ndim else (tensor,):
                raw = piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                bar.update(file.write(raw.data))
            if mapped and tensor.is_contiguous():
                runtime.give_back(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
