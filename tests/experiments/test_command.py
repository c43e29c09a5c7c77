"""What a command leaves behind in the process that called it."""

import signal

import jax

from experiments.config.settings import Settings
from experiments.runs.command import run_command


def test_signals_are_given_back_to_who_had_them():
    """A notebook calls commands, and wants to interrupt its other cells too."""
    before = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    within = []

    def work(settings, stop):
        within.extend(signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM))

    assert run_command(Settings, work, []) == 0
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == before
    assert not set(within) & set(before)


def test_too_little_memory_is_one_line(capsys):
    def work(settings, stop):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8.1GiB.")

    assert run_command(lambda: Settings(out="there"), work, ["--task", "rte"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in ("error: the device has too little memory", "--accumulate N", "--task rte --out there --resume"):
        assert part in said
