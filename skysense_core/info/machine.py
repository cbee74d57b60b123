"""The machine: what computes here, and what is installed."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from skysense_core.geo.quicklook import gdal_version

_EXTRA = re.compile(r"extra == ['\"]([\w-]+)['\"]")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a model can run on."""

    name: str
    memory: int
    """Bytes in all."""
    free: int
    bf16: bool
    """Whether `--precision auto` means bf16 on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """What `skysense info --machine` says."""

    skysense: str
    python: str
    torch: str
    gdal: str
    system: str
    cores: int
    """That this process may use."""
    threads: int
    """With which torch computes."""
    devices: dict[str, Device]
    """By the value of `--device`; the first is what auto chooses."""
    extras: dict[str, tuple[str, ...]]
    """Optional parts of the package, with what each lacks here; complete where nothing."""


def look_around() -> MachineInfo:
    """The machine that this process runs on."""
    import torch  # takes seconds, and what else `info` looks at needs none of it

    return MachineInfo(
        skysense=version("skysense"),
        python=platform.python_version(),
        torch=torch.__version__,
        gdal=gdal_version(),
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        devices=_devices(),
        extras=_extras(),
    )


def _devices() -> dict[str, Device]:
    import torch

    from skysense_core import runtime

    found = {}
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
        bf16 = runtime.has_bfloat16(device)
        found[str(device)] = Device(name=name, memory=memory, free=runtime.free_memory(device), bf16=bf16)
    cpu = torch.device("cpu")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    name, free = platform.processor() or platform.machine(), runtime.free_memory(cpu)
    return found | {"cpu": Device(name=name, memory=memory, free=free, bf16=runtime.has_bfloat16(cpu))}


def _extras() -> dict[str, tuple[str, ...]]:
    lacking: dict[str, list[str]] = {name: [] for name in metadata("skysense").get_all("Provides-Extra") or ()}
    for line in requires("skysense") or ():
        extra, name = _EXTRA.search(line), _NAME.match(line)
        if extra is None or name is None or name[0] == "skysense":
            continue
        try:
            version(name[0])
        except PackageNotFoundError:
            lacking[extra[1]].append(name[0])
    return {name: tuple(packages) for name, packages in lacking.items()}
