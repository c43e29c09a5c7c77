"""How the asked sparsity rises over a run.

The cubic form is equation 1 of Zhu and Gupta, 2017, arXiv:1710.01878, used by SparseBERT (arXiv:2104.08682):
s(t) = s_f - (s_f - s_i) (1 - (t - begin) / (end - begin))^3.
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np

Rise = Literal["cubic", "linear", "one-shot"]


@dataclasses.dataclass(frozen=True)
class PruningSchedule:
    """Sparsity as a function of the optimizer step, rising from `initial` after `begin` to `final` at `end`.

    Attributes:
      final: fraction of weights removed from `end` on, in [0, 1).
      begin: last step without pruning; steps count from 1.
      end: first step at which `final` holds. It must lie inside the run.
      initial: fraction removed at `begin`, in [0, final].
      shape: "cubic" (fast first, slow at the end), "linear", or "one-shot" (all at `end`).
    """

    final: int | float
    begin: int
    end: int
    initial: int | float = 0.0
    shape: Rise = "cubic"

    def __post_init__(self):
        if not (math.isfinite(self.final) and 0.0 <= self.final < 1.0):
            raise ValueError(f"final={self.final!r}; a fraction in [0, 1) is needed")
        if not (math.isfinite(self.initial) and 0.0 <= self.initial <= self.final):
            raise ValueError(f"initial={self.initial!r}; a fraction in [0, final={self.final}] is needed")
        if self.begin < 0 or self.end <= self.begin:
            raise ValueError(f"begin={self.begin}, end={self.end}; 0 <= begin < end is needed")
        if self.shape not in get_args(Rise):
            raise ValueError(f"shape={self.shape!r}; allowed: {', '.join(get_args(Rise))}")

    def __call__(self, step: int | float) -> float:
        """The fraction to be removed at a step (a number on the host, in float64)."""
        if step >= self.end:
            return float(self.final)
        if step <= self.begin or self.shape == "one-shot":
            return float(self.initial)
        rest = 1.0 - (step - self.begin) / (self.end - self.begin)
        return self.final - (self.final - self.initial) * (rest**3 if self.shape == "cubic" else rest)

    def updates(
        self, *, every: int | np.integer | None = None, count: int | np.integer | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The steps at which masks are updated, ascending, and the sparsity of each.

        Exactly one of the two is given. The last update is at `end` and has `final`, whatever they are.

        Args:
          every: steps between two updates, >= 1.
          count: number of updates K, >= 1, spread evenly; update k has the sparsity of k/K of the way, and falls on
            the first step at or after that point. Where there are fewer steps than updates, the later ones win.

        Returns:
          int32 steps and float64 sparsities, of equal length.
        """
        if (every is None) == (count is None):
            raise ValueError("give either every= or updates=")
        given = every if every is not None else count
        if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
            raise ValueError(f"{'every' if every is not None else 'updates'}={given!r}; a whole number >= 1 is needed")
        span = self.end - self.begin
        if self.shape == "one-shot":
            points = [float(self.end)]
        elif every is not None:
            points = [*map(float, range(self.begin + every, self.end, every)), float(self.end)]
        else:
            points = [self.begin + span * k / given for k in range(1, given)] + [float(self.end)]
        by_step = {math.ceil(point - 1e-9): self(point) for point in points}
        return np.array(list(by_step), np.int32), np.array(list(by_step.values()), np.float64)


def cubic(final: int | float, *, begin: int = 0, end: int, initial: int | float = 0.0) -> PruningSchedule:
    """Cubic schedule: most is removed early, when there is most to spare.

    Args:
      final: fraction of weights removed at the end, in [0, 1).
      begin: last optimizer step without pruning.
      end: optimizer step at which `final` is reached; training goes on at that sparsity.
      initial: fraction removed at once, in [0, final].

    Example:
      >>> round(cubic(0.95, begin=0, end=100)(50), 6)
      0.83125
    """
    return PruningSchedule(final, begin, end, initial, "cubic")


def linear(final: int | float, *, begin: int = 0, end: int, initial: int | float = 0.0) -> PruningSchedule:
    """Sparsity rising in a straight line; arguments as for `cubic`."""
    return PruningSchedule(final, begin, end, initial, "linear")


def one_shot(final: int | float, *, at: int = 1) -> PruningSchedule:
    """Everything removed in one update, with optimizer step `at` (>= 1)."""
    return PruningSchedule(final, at - 1, at, 0.0, "one-shot")
