"""What a command leaves behind in the process that called it."""

import signal

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
