"""The machine: device, precision, seeds, memory, signals, and which of several processes this is.

Nothing else in the project asks torch about hardware.
"""

import contextlib
import ctypes
import mmap
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from skysense_core.errors import Interrupted, UsageError, unknown

PRECISIONS = ("auto", "bf16", "fp32")
STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PAGE_OUT = 21
"""Linux's MADV_PAGEOUT."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""The C library's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
KEPT = 2**30
"""Bytes up to which the C library keeps freed memory."""
PEAKS = {"H200": 989.0, "H100 80GB HBM3": 989.0, "H100 PCIe": 756.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""TFLOP/s of GPUs by a part of their name."""


def choose_device(name: str = "auto") -> torch.device:
    """The device of a `--device` value: auto, cpu, cuda, cuda:1, mps. Raises UsageError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not available here: {reason}", fix="Use --device cpu or auto.") from None
    return device


def choose_workers(given: int | None, device: torch.device) -> int:
    """Loader processes: as given, else none beside a model on the CPU and this process's share of cores otherwise."""
    if given is not None:
        return given
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if device.type == "cpu" else min(max((os.cpu_count() or 1) // here - 1, 0), 8)


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0..world-1; process 0 alone writes."""
    return dist.get_rank() if world() > 1 else 0


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What a GPU could do per second with dense matrices in bfloat16, by its maker's data sheet; None: not known."""
    if device.type != "cuda" or not uses_bfloat16(device, precision):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAKS.items() if part in name), None)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is done by the hardware (and not emulated, which would be slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def uses_bfloat16(device: torch.device, precision: str) -> bool:
    """What a `--precision` value means: auto (bf16 where the hardware has it), bf16 or fp32.

    Raises UsageError for another one.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    return precision == "bf16" or (precision == "auto" and has_bfloat16(device))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a `--precision` value."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bfloat16(device, precision))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads on the CPU; 0 leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generator(*key: int) -> np.random.Generator:
    """A numpy generator that depends on nothing but the key, e.g. (seed, epoch, sample index)."""
    return np.random.default_rng(key)


def seed_step(*key: int) -> None:
    """Seed torch from a key, e.g. (seed, step): a resumed run draws what the uninterrupted one would have drawn."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory() -> int:
    """Bytes of memory that this process holds now; what the C library only keeps is given back first."""
    _tell_glibc("malloc_trim", 0)
    return _status("VmRSS")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def working_memory(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes that `work` takes at its peak, on the GPU or of this process, beyond what is held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    before = resident_memory()
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")  # forgets the peak so far
    work()
    return max(_status("VmHWM") - before, 0)


def keep_freed_memory() -> None:
    """Let the C library keep what freed arrays leave for the next ones, for the rest of this process.

    By itself glibc hands every array of more than 32 MB back to Linux, which clears the pages again for the next one: a
    fifth of the time of small models on a CPU. Other C libraries have no such setting.
    """
    _tell_glibc("mallopt", TRIM_THRESHOLD, KEPT)
    _tell_glibc("mallopt", MMAP_THRESHOLD, KEPT)


def give_back(address: int, size: int) -> None:
    """Tell Linux that mapped memory is done with for now; what lies in a file is read from there if needed again."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = (address + size - start) // mmap.PAGESIZE
    if sys.platform == "linux" and pages > 0:
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        advise(start, pages * mmap.PAGESIZE, PAGE_OUT)  # a hint: a kernel that does not know it changes nothing


def _tell_glibc(name: str, *numbers: int) -> None:
    """Call a function that only glibc has; elsewhere nothing is told."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*numbers)


def _status(field: str) -> int:
    """A line of Linux's account of this process, in bytes; elsewhere the peak so far stands for all of them."""
    if not STATUS.exists():
        return peak_memory()
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@contextlib.contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Within, SIGTERM and SIGINT raise Interrupted (exit codes 143 and 130).

    `message` says what is kept and how to resume.
    """

    def stop(number: int, _frame: object) -> None:
        raise Interrupted(number, message)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within, a first SIGTERM or SIGINT is only noted in the list, for work that saves at its next consistent point.

    A second one raises Interrupted where it strikes, but not in one of several processes: a scheduler signals them, and
    so does torchrun, which kills those that take too long.
    """
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if noted and world() > 1:
            return
        if noted:
            raise Interrupted(number, "stopped at once by a second signal; what was saved before it is kept")
        noted.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
