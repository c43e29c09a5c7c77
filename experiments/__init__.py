"""Runs, studies and reports on top of `kaprune_jax`; each is `python -m experiments.NAME`."""

from experiments.allocator import keep_memory

# Before JAX starts its threads, hence here.
keep_memory()
