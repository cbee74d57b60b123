"""What is asked of the machine: memory that is kept, and memory that is counted."""

import json
import platform
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")


def in_a_new_process(code: str) -> dict[str, int]:
    """What a program prints as JSON: settings of the C library last as long as the process."""
    start = "import json, resource, torch\nfrom skysense_core import runtime\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def test_kept_memory_is_not_cleared_again_for_every_array() -> None:
    """Linux clears a page when it is touched first: a fault."""
    faults = in_a_new_process("""
        def faults(rounds=20, size=2**24):  # 64 MB
            for _ in range(10):  # some C libraries need a few rounds until they find what they kept
                torch.ones(size)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(rounds):
                torch.ones(size)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        cleared = faults()
        runtime.keep_freed_memory()
        print(json.dumps({"cleared": cleared, "kept": faults()}))
    """)
    assert faults["cleared"] > 200
    assert faults["kept"] < faults["cleared"] / 10


def test_kept_memory_is_no_memory_that_is_held_or_spared() -> None:
    held = in_a_new_process("""
        cpu = torch.device("cpu")
        runtime.keep_freed_memory()
        start = runtime.resident_memory()
        torch.ones(2**26)  # 256 MB, freed and kept
        working = runtime.working_memory(cpu, lambda: torch.ones(2**25))
        print(json.dumps({"working": working, "grown": runtime.resident_memory() - start}))
    """)
    assert held["working"] == pytest.approx(2**27, rel=0.1)
    assert held["grown"] < 2**24
