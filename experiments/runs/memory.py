"""The memory of this process: kept between steps on Linux, and its peak per run.

XLA:CPU allocates the temporaries of a step anew each time, about a gigabyte at MiniLM size, and glibc by default maps
and unmaps pages for each. Told to keep them, it reuses the same pages.
`benchmarks/train_step.py --malloc default` shows the difference.
"""

import ctypes
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # from glibc's malloc.h


def keep_memory() -> bool:
    """Tells glibc to use one arena, never to map single allocations, never to give memory back; says if it did.

    Nothing happens on other systems or C libraries, or where KAPRUNE_KEEP_MEMORY=0 is set.
    """
    if not sys.platform.startswith("linux") or os.environ.get("KAPRUNE_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])


def restart_peak() -> None:
    """Lets `peak_bytes` count from now, where the system can (Linux), without what earlier runs have freed."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # not in every C library
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak memory in bytes: of an accelerator since the process began; else of the process since `restart_peak`.

    Where the system cannot start the count anew, since the process began.
    """
    import jax

    device = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if device and "peak_bytes_in_use" in device:
        return int(device["peak_bytes_in_use"])
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
