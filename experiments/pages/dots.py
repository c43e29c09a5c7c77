"""Values with error bars, one below the other on a common scale, as inline SVG. No script."""

import math
import textwrap
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from experiments.pages.axes import pad, short, ticks
from experiments.pages.charts import Chart, Frame, text_at

_LETTER = 6.7
"""About as many pixels as a letter is wide."""


class Dot(NamedTuple):
    """A value with half the width of its bar (none where it is not finite), a name, what is said of it, a CSS class."""

    name: str
    says: str
    value: float
    error: float
    style: str


def draw_dots(dots: Sequence[Dot], *, title: str, label: str, zero: bool = False) -> Chart | None:
    """A chart, or None where there is nothing to draw. Names are beside the bars, or above them where there is no room.

    Args:
      dots: from top to bottom; those whose value is not finite are left out.
      title: read out by screen readers.
      label: under the axis.
      zero: the scale has zero, and an upright line there: the values are differences.
    """
    dots = [dot for dot in dots if math.isfinite(dot.value)]
    if not dots:
        return None
    errors = [dot.error if math.isfinite(dot.error) else 0.0 for dot in dots]
    ends = [dot.value + sign * error for dot, error in zip(dots, errors, strict=True) for sign in (-1, 1)]
    x = pad(min([*ends, 0.0] if zero else ends), max([*ends, 0.0] if zero else ends), share=0.1)
    left = 30.0 + _LETTER * (max(len(dot.name) for dot in dots) + max(len(dot.says) for dot in dots))
    forms = []
    for width in (720, 360):
        beside = width > 500 and left <= 0.74 * width
        names = [[dot.name] if beside else textwrap.wrap(dot.name, int((width - 20) / _LETTER)) for dot in dots]
        step = 24 if beside else 38 + 15 * max(map(len, names))
        frame = Frame(width, step * len(dots) + 52, int(left) if beside else 10, 18, x, (0, 1), False)
        forms.append((frame, _draw(frame, list(zip(dots, names, errors, strict=True)), step, title, label, zero)))
    return Chart(forms[0], forms[1], [])


def _draw(
    frame: Frame, dots: Sequence[tuple[Dot, list[str], float]], step: int, title: str, label: str, zero: bool
) -> str:
    middle = min((frame.left + frame.width - frame.right) / 2, frame.width - 4 - _LETTER * len(label) / 2)
    parts = [f"<title>{escape(title)}</title>", text_at(middle, frame.height - 7, label, "middle")]
    for value in ticks(*frame.x, count=5):
        parts.append(f'<path class="grid" d="M{frame.to_x(value):.1f} 4V{frame.floor}"/>')
        parts.append(text_at(frame.to_x(value), frame.floor + 17, short(value), "middle"))
    if zero:
        parts.append(f'<path class="axis" d="M{frame.to_x(0.0):.1f} 4V{frame.floor}"/>')
    for number, (dot, name, error) in enumerate(dots):
        x, y = frame.to_x(dot.value), step * (number + 1) - 8
        ends = frame.to_x(dot.value - error), frame.to_x(dot.value + error)
        bar = f'<path class="line" d="M{ends[0]:.1f} {y}H{ends[1]:.1f}"/>' if error else ""
        if frame.left > 10:  # beside the bars
            parts.append(text_at(10, y + 4, dot.name, "start"))
            parts.append(text_at(frame.left - 12, y + 4, dot.says, "end"))
        else:
            lines = [*name, dot.says]
            parts += [text_at(10, y - 11 - 15 * up, line, "start") for up, line in enumerate(reversed(lines))]
        parts.append(f'<g class="{dot.style}">{bar}<circle class="dot" cx="{x:.1f}" cy="{y}" r="5"/></g>')
    return "".join(parts)
