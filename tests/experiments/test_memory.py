"""The peak memory that a run reports is its own."""

import sys

import pytest

from experiments.runs.memory import keep_memory, peak_bytes, restart_peak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems cannot start the count anew")
def test_what_was_freed_before_does_not_count():
    if not keep_memory():
        pytest.skip("another C library, or KAPRUNE_KEEP_MEMORY=0")
    size = 300 * 2**20
    restart_peak()
    start = peak_bytes()
    held = bytearray(size)
    assert peak_bytes() - start > 0.9 * size
    del held
    restart_peak()
    assert peak_bytes() - start < 0.1 * size
