"""Runs, studies and reports on top of `kaprune_jax`; each is `python -m experiments.NAME`."""

import os

from experiments.runs.memory import keep_memory

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it only gives tokenizers here; PyTorch is not missed
# Before JAX starts its threads, hence here.
keep_memory()
