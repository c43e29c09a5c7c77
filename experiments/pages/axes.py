"""What the axes of a chart need: ranges, round numbers, and few enough points."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
_MOST_POINTS = 300


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about `most` points: means of neighbours; a bin with a value that is not finite stays a gap."""
    size = math.ceil(len(points) / most) if points else 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high]; where these are few, also 2 and 5 times them, or evenly spaced numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 7)]
    return ticks(low, high, 4)


def short(value: float) -> str:
    """A number for an axis or a legend."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def pad(low: float, high: float, *, share: float, log: bool = False) -> tuple[float, float]:
    """A range with that share of itself added at both ends; where it is empty, with some room around it."""
    if log:
        room = max(high / low, 1.5) ** share
        return low / room, high * room
    if high - low < 1e-9 * max(1.0, abs(high)):
        room = 0.5 if share == 0 else max(abs(high) * 0.1, 0.01)
        return low - room, high + room
    return low - (high - low) * share, high + (high - low) * share
