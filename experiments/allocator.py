"""Keeps freed memory in the process on Linux.

XLA:CPU allocates the temporaries of a step anew each time, about a gigabyte at MiniLM size, and glibc by default maps
and unmaps pages for each: a fifth of the step's time. Told to keep them, it reuses the same pages.
`benchmarks/train_step.py --no-keep-memory` shows the difference.
"""

import ctypes
import os
import sys

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
