"""Tells runs apart that were trained for other numbers of steps than those beside them."""

from collections.abc import Sequence

from experiments.pages.data import Run

_ALIKE = 1.25
"""Steps differ by seed where augmented rows count; from so many times as many on, it is another length."""


def tell_lengths(runs: Sequence[Run]) -> list[Run]:
    """The same runs; where those of one task and pattern were trained for several lengths, all of them say for which.

    So that a mean is taken over seeds, never over lengths, methods are compared at the same length, a curve is that of
    one, and scores can be drawn against steps. Couplings differ in length by what they are, so each has its own.
    """
    like: dict[tuple[str, ...], list[float]] = {}
    for run in (run for run in runs if run.method != "dense"):
        like.setdefault(_key(run), []).append(run.figure("steps"))
    lengths = {key: found for key, steps in like.items() if len(found := _lengths(steps)) > 1}

    def length_of(run: Run) -> tuple[int, int] | None:
        steps = run.figure("steps") if run.method != "dense" else 0.0
        return next((found for found in lengths.get(_key(run), ()) if found[0] <= steps <= found[1]), None)

    return [run._replace(length=length_of(run)) for run in runs]


def _key(run: Run) -> tuple[str, ...]:
    return run.task, run.metric, run.pattern, run.kind if "coupling" in run.config else ""


def _lengths(steps: Sequence[float]) -> list[tuple[int, int]]:
    """The fewest and the most steps of each length."""
    found: list[tuple[int, int]] = []
    for value in sorted(round(value) for value in steps if value > 0):
        if found and value < _ALIKE * found[-1][0]:
            found[-1] = found[-1][0], value
        else:
            found.append((value, value))
    return found
