"""Times variants of one computation: checked first, then in turn, in an order drawn anew in each round."""

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kaprune_jax._errors import InputError


class Variant(NamedTuple):
    """One way to compute something.

    Attributes:
      name: "packed".
      call: computes it and waits for it.
      expected: what `call` has to give; None where another computation is timed, such as a smaller dense model.
      tolerance: of the largest difference, as a fraction of the largest value of `expected`.
      costs: what it counts up to, parts that run one after the other; empty where nobody counted.
      about: a dictionary of more to record, such as seconds of compilation; or None.
    """

    name: str
    call: Callable[[], Any]
    expected: np.ndarray | None = None
    tolerance: float = 1e-4
    costs: Sequence[Any] = ()
    about: Any = None


class Timing(NamedTuple):
    """What was measured of a variant.

    Attributes:
      seconds: of each call.
      ratios: for each round, median seconds of the first variant by this one's.
    """

    seconds: list[float]
    ratios: list[float]

    def summary(self) -> dict[str, float]:
        """Median, p10, p90, least and number of the seconds; median, p10 and p90 of the ratios."""
        low, high = np.percentile(self.seconds, [10, 90])
        ratio_low, ratio_high = np.percentile(self.ratios, [10, 90])
        return {
            "median": statistics.median(self.seconds),
            "p10": float(low),
            "p90": float(high),
            "min": min(self.seconds),
            "n": len(self.seconds),
            "speedup": statistics.median(self.ratios),
            "speedup_p10": float(ratio_low),
            "speedup_p90": float(ratio_high),
        }


def check(variant: Variant) -> float:
    """The largest difference from what is expected, as a fraction of its largest value; 0 where nothing is expected.

    Raises:
      InputError: beyond the tolerance, or not finite: such a variant is not timed.
    """
    found = np.asarray(variant.call(), np.float64)
    if variant.expected is None:
        return 0.0
    if found.shape != variant.expected.shape:
        raise InputError(f"{variant.name}: gives shape {found.shape}; {variant.expected.shape} is expected")
    error = float(np.abs(found - variant.expected).max() / max(np.abs(variant.expected).max(), 1e-30))
    if not error <= variant.tolerance:
        raise InputError(
            f"{variant.name}: differs by {error:.1e} of the largest value; {variant.tolerance:g} is allowed"
        )
    return error


def measure(
    variants: Sequence[Variant], *, rounds: int, warmup: int = 3, seconds: float = 2.0, seed: int = 0
) -> tuple[dict[str, Timing], float | None]:
    """Seconds of every variant, and what share of the processor others had meanwhile.

    Args:
      variants: the first is what the others are compared with.
      rounds: most rounds; fewer where each variant has had `seconds` in at least 10.
      warmup: calls of each before.
      seconds: enough of each.
      seed: of the order.

    Returns:
      timings by name, and the share in [0, 1], None where this system does not tell.
    """
    for variant in variants:
        for _ in range(warmup):
            variant.call()
    order, generator = list(variants), random.Random(seed)
    samples: dict[str, list[list[float]]] = {variant.name: [] for variant in variants}
    before = _busy()
    for number in range(rounds):
        generator.shuffle(order)
        for variant in order:
            samples[variant.name].append([_time(variant.call) for _ in range(2)])
        if number >= 9 and all(sum(map(sum, found)) >= seconds for found in samples.values()):
            break
    after = _busy()
    first = [statistics.median(pair) for pair in samples[variants[0].name]]
    timings = {
        name: Timing(
            [value for pair in pairs for value in pair],
            [base / statistics.median(pair) for base, pair in zip(first, pairs, strict=True)],
        )
        for name, pairs in samples.items()
    }
    return timings, _others(before, after)


def _time(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _busy() -> tuple[float, float, float] | None:
    """Seconds: of the clock, of this process on all processors, and of everything on all processors."""
    try:
        fields = [int(part) for part in Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    idle = fields[3] + fields[4]
    own = os.times()
    return time.perf_counter(), own.user + own.system, (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _others(before: tuple | None, after: tuple | None) -> float | None:
    """The share of all processors that others had between two moments."""
    if before is None or after is None:
        return None
    clock, own, all = (later - earlier for earlier, later in zip(before, after, strict=True))
    return min(1.0, max(0.0, (all - own) / (clock * (os.cpu_count() or 1))))
