"""Bounds on what reading may cost."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from experiments.memory import peak_bytes, restart_peak


@contextlib.contextmanager
def _bounds(mebibytes: float, seconds: float) -> Iterator[None]:
    restart_peak()
    before, began = peak_bytes(), time.process_time()
    yield
    took, grown = time.process_time() - began, (peak_bytes() - before) / 2**20
    assert took < seconds
    assert grown < mebibytes


@pytest.fixture(scope="session")
def bounds() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with bounds(mebibytes, seconds):` more memory or processor time than that is a failure."""
    return _bounds
