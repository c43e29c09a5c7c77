"""Strict numeric settings for every test, keys, and a small model."""

import os
import tempfile
from pathlib import Path

# Before the package: within it, the hook that checks shapes would compile their sources instead of reading bytecode.
import flax.nnx  # noqa: F401
import jax
import numpy as np
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
import sklearn.metrics  # noqa: F401
import transformers  # noqa: F401

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same small programs: compiled once, for all workers of a session and the programs they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="kaprune-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
# And they run them for a few steps: code that is made fast matters more here than fast code.
_flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later ones have no second way of fusing, and end at a flag they do not know
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_flags, os.environ.get("XLA_FLAGS", "")]).strip()
for _name, _value in {
    "jax_num_cpu_devices": 8,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def find_shared() -> Path | None:
    """The folder with real data and models, if it is here; one that KAPRUNE_SHARED names must be."""
    named = os.environ.get("KAPRUNE_SHARED")
    place = Path(named or Path(__file__).parents[2] / "shared")
    if named and not place.is_dir():
        pytest.fail(f"KAPRUNE_SHARED={named}: no such folder")
    return place if place.is_dir() else None


@pytest.fixture
def shared() -> Path:
    """The folder with real data and models; the test is skipped where it is missing."""
    place = find_shared()
    if place is None:
        pytest.skip("no real data here: set KAPRUNE_SHARED to a folder with data/ and models/")
    return place


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Drops the programs of a file when its tests are done: Linux lets a process map 65,530 pieces of code, no more."""
    yield
    jax.clear_caches()


@pytest.fixture
def getkey():
    """New random keys, the same in every run of a test."""
    numbers = iter(range(1000))
    return lambda: jax.random.key(next(numbers))


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded numpy generator, for oracles."""
    return np.random.default_rng(0)
