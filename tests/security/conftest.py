"""What reading may cost, and how a refusal has to sound."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from experiments.runs.memory import peak_bytes, restart_peak
from kaprune_jax._errors import InputError


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


@pytest.fixture
def refused(bounds):
    """Runs what must be refused, within 64 MiB and a few seconds; gives the line."""

    def run(read, *arguments, mebibytes=64, seconds=10) -> str:
        with bounds(mebibytes, seconds), pytest.raises(InputError) as caught:
            read(*arguments)
        said = str(caught.value)
        assert said.isprintable()
        assert len(said) < 2100
        return said

    return run
