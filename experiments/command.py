"""What every training command does around its work: signals, exit codes, one line for what went wrong."""

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from experiments.lock import release
from experiments.settings import Settings
from kaprune_jax._errors import InputError

S = TypeVar("S", bound=Settings)


class Stop:
    """Remembers that a signal asked to stop; a second one ends the program at once."""

    def __init__(self):
        self.signal: int | None = None
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def __call__(self) -> bool:
        return self.signal is not None


def run_command(read: Callable[[], S], run: Callable[[S, Stop], None], arguments: list[str] | None) -> int:
    """Runs a command and returns its exit code.

    Args:
      read: gives the resolved settings, or raises `InputError`.
      run: does the work, asking after every step whether to stop.
      arguments: those given; None for the program's.

    Returns:
      0 done; 2 bad input; 3 the loss was not finite; 130 or 143 interrupted.
    """
    try:
        settings = read()
        stop = Stop()
        from kaprune_jax.train.loop import Diverged, Interrupted

        try:
            run(settings, stop)
        except Diverged as error:
            print(f"error: {error}; {_checkpoint(error.checkpoint)}", file=sys.stderr)
            return 3
        except Interrupted as error:
            given = [flag for flag in (arguments if arguments is not None else sys.argv[1:]) if flag != "--resume"]
            if "--out" not in " ".join(given):
                given += ["--out", str(settings.out)]
            print(f"{error}; to go on: python -m {settings.MODULE} {shlex.join(given)} --resume", file=sys.stderr)
            return 128 + (stop.signal or signal.SIGINT)
        finally:
            release()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _checkpoint(newest: Path | None) -> str:
    """Names the checkpoint that a run which did not stay finite has left."""
    if newest is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {newest} (step {newest.name}); a lower --learning-rate may help"
