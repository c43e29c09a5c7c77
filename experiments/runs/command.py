"""What every training command does around its work: signals, processes, exit codes, one line for what went wrong."""

import dataclasses
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from experiments.config.settings import Settings
from experiments.runs.lock import release
from kaprune_jax._errors import InputError, one_line

S = TypeVar("S", bound=Settings)

ASKED_EVERY = 10
"""Steps after which several processes agree whether to stop."""


class Stop:
    """Remembers that a signal asked to stop; a second one ends the program at once."""

    def __init__(self):
        self.signal: int | None = None
        self._steps = 0
        self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}

    def end(self) -> None:
        """Gives the signals back to who had them: in a notebook the next cell can be interrupted again."""
        for name, handler in self._before.items():
            signal.signal(name, handler or signal.SIG_DFL)  # None of one that was not set in Python

    def _ask(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def __call__(self) -> bool:
        """Whether to stop; of several processes one that was asked is enough, and all of them stop at the same step."""
        from kaprune_jax.train.processes import agree, several

        if not several():
            return self.signal is not None
        self._steps += 1
        return self._steps % ASKED_EVERY == 0 and agree(self.signal is not None)


_SMALLER = (
    "the device has too little memory; what takes less: --accumulate N, --remat, or in another --out a smaller "
    "--batch-size or --max-length"
)


def run_command(read: Callable[[], S], run: Callable[[S, Stop], None], arguments: list[str] | None) -> int:
    """Runs a command and returns its exit code.

    Args:
      read: gives the resolved settings, or raises `InputError`.
      run: does the work, asking after every step whether to stop.
      arguments: those given; None for the program's.

    Returns:
      0 done; 2 bad input, or too little memory on the device; 3 the loss was not finite; 4 another process of the run
      has gone; 130 or 143 interrupted.
    """
    try:
        settings = read()
        _join(settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from kaprune_jax.train.loop import Diverged, Interrupted
    from kaprune_jax.train.processes import Agreed, is_first, several

    stop = Stop()
    given = [flag for flag in (arguments if arguments is not None else sys.argv[1:]) if flag != "--resume"]
    if settings.study is None:  # which goes on by itself
        given += ["--resume"] if "--out" in " ".join(given) else ["--out", str(settings.out), "--resume"]
    again = f"to go on: python -m {settings.MODULE} {shlex.join(given)}"
    known = True  # to every process, each of which then ends by itself
    try:
        run(settings, stop)
        return 0
    except Diverged as error:
        code, line = 3, f"error: {error}; {_checkpoint(error.checkpoint)}"
    except Interrupted as error:
        code, line = 128 + (stop.signal or signal.SIGINT), f"{error}; {again}"
    except InputError as error:
        code, line, known = 2, f"error: {error}", isinstance(error, Agreed)
    except OSError as error:
        code, line, known = 2, f"error: {one_line(error)}", False
    except Exception as error:
        if several():
            code, line, known = *_of_several(error, again), False
        elif _is_out_of_memory(error):
            code, line = 2, f"error: {_SMALLER}; {again}, with one of the first two"
        else:
            raise
    finally:
        release()
        stop.end()
    if known and not is_first():
        return code
    print(line, file=sys.stderr, flush=True)
    if several() and not known:
        os._exit(code)  # at once, so that the others, who wait for this one, learn of it
    return code


def _join(settings: Settings) -> None:
    """Meets the other processes of the run, which must have been given the same flags.

    Raises:
      InputError: they do not come, or have other flags.
    """
    if settings.distributed is None:
        return
    from kaprune_jax.train.processes import check_same, join

    try:
        join(settings.distributed)
    except InputError as error:
        raise InputError(f"--{error}") from None
    flags = dataclasses.asdict(dataclasses.replace(settings, distributed=None))
    check_same({f"--{name.replace('_', '-')}": value for name, value in flags.items()})


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the device has no room for a program or its arrays."""
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _of_several(error: Exception, again: str) -> tuple[int, str]:
    """Exit code and line for what goes wrong in one process of several: as a rule, that another one has gone."""
    import jax

    where = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        reason = (str(error).splitlines() or [""])[0][:300]
        return 4, f"error: {where}: another process has gone or cannot be reached ({reason}); {again}"
    return 1, f"{traceback.format_exc()}error: {where}: {error}"


def _checkpoint(newest: Path | None) -> str:
    """Names the checkpoint that a run which did not stay finite has left."""
    if newest is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {newest} (step {newest.name}); a lower --learning-rate may help"
