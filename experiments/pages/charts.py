"""Charts as inline SVG, lines in a wide and a narrow form, of which the style sheet shows one. No script."""

import itertools
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from experiments.pages.axes import Point, log_ticks, pad, short, thin, ticks

_MOST_DOTS = 80


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
      name: in the legend; empty for none.
      points: x and y; a y that is not finite breaks the line.
      style: CSS class, which gives the colour.
      right: read on the right axis.
      area: filled down to the axis.
      dots: a dot with a tooltip at each point.
      errors: half the height of a bar at each point; none where it is not finite.
      shift: pixels to the right, so that bars of several lines can be told apart.
    """

    name: str
    points: Sequence[Point]
    style: str
    right: bool = False
    area: bool = False
    dots: bool = False
    errors: Sequence[float] = ()
    shift: float = 0.0


class Mark(NamedTuple):
    """A labelled place: a ring at (x, y); a level line where x is None; an upright line where y is None."""

    x: float | None
    y: float | None
    label: str


class Frame(NamedTuple):
    """Size in pixels and the ranges of the axes."""

    width: int
    height: int
    left: int
    right: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    log_x: bool = False

    @property
    def floor(self) -> float:
        return self.height - 40.0

    def to_x(self, value: float) -> float:
        low, high = self.x
        if self.log_x:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def to_y(self, value: float, right: bool = False) -> float:
        low, high = (0.0, 1.0) if right else self.y
        if self.log and not right:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.floor - (value - low) / (high - low) * (self.floor - 30)


class Chart(NamedTuple):
    """A chart in two widths, with what its legend names: CSS class and text."""

    wide: tuple[Frame, str]
    narrow: tuple[Frame, str]
    legend: list[tuple[str, str]]

    def figure(self) -> str:
        """For a page, whose style sheet shows one of the two."""
        names = "".join(f'<li><span class="swatch {style}"></span>{escape(text)}</li>' for style, text in self.legend)
        drawn = "".join(
            f'<svg class="{name}" role="img" viewBox="0 0 {frame.width} {frame.height}">{parts}</svg>'
            for name, (frame, parts) in (("wide", self.wide), ("narrow", self.narrow))
        )
        legend = f'<ul class="legend">{names}</ul>' if names else ""
        return f'<figure class="chart">{legend}{drawn}</figure>'

    def file(self) -> str:
        """An SVG file of its own, the legend below, for a README or a slide."""
        frame, parts = self.wide
        names = "".join(
            f'<g class="{style}"><circle class="dot" cx="60" cy="{y}" r="5"/></g>{text_at(74, y + 4, text, "start")}'
            for y, (style, text) in zip(itertools.count(frame.height + 8, 20), self.legend, strict=False)
        )
        style = read_style("charts.css")
        size = f'width="{frame.width}" viewBox="0 0 {frame.width} {frame.height + 20 * len(self.legend) + 8}"'
        ground = '<rect width="100%" height="100%" style="fill: var(--surface)"/>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}><style>\n{style}</style>'
            f"{ground}{parts}{names}</svg>\n"
        )


def read_style(name: str) -> str:
    """A style sheet beside this file: charts.css, which charts of their own have too, or report.css for pages."""
    return Path(__file__).with_name(name).read_text("utf-8")


def draw_lines(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    right_label: str = "",
    log: bool = False,
    log_x: bool = False,
    marks: Sequence[Mark] = (),
    ceiling: float = math.inf,
    room: float = 0.0,
) -> Chart | None:
    """A chart, or None where there is nothing to draw.

    Args:
      lines: what to draw; those of the right axis are fractions in [0, 1], shown in percent.
      title: read out by screen readers.
      x_label: under the axis.
      y_label: above the left axis.
      right_label: above the right axis; empty for none.
      log: logarithmic left axis; values that are not positive are left out.
      log_x: logarithmic lower axis, on which every x is positive.
      marks: places to point out.
      ceiling: the left axis does not go beyond it.
      room: to the left and right of the points, as a share of the lower axis.
    """
    kept = []
    for line in lines:
        limit = log and not line.right
        points = [(x, y if not limit or y > 0 else math.nan) for x, y in line.points if math.isfinite(x)]
        if any(math.isfinite(y) for _, y in points):
            kept.append(line._replace(points=points if line.errors else thin(points)))
    xs = [x for line in kept for x, _ in line.points]
    xs += [mark.x for mark in marks if mark.x is not None and mark.y is not None and math.isfinite(mark.x)]
    ys = [y for line in kept if not line.right for _, y in line.points if math.isfinite(y)]
    if not ys:
        return None
    ys += [end for line in kept for x, low, high in _bars(line) for end in (low, high)]
    ys += [mark.y for mark in marks if mark.y is not None and math.isfinite(mark.y) and (mark.y > 0 or not log)]
    reach = max(abs(line.shift) + 4 * bool(line.shift) for line in kept)  # of bars, in pixels of a width of 290
    reach = min(reach, 60.0)  # the points need room too
    x_range, y_range = (
        pad(min(xs), max(xs), share=max(room or 0.05 * log_x, reach / (290 - 2 * reach)), log=log_x),
        pad(min(ys), max(ys), share=0.12, log=log),
    )
    if max(ys) <= ceiling:
        y_range = y_range[0], min(y_range[1], ceiling)
    labels = (title, x_label, y_label, right_label)
    frames = [
        Frame(width, height, 52, 50 if right_label else 18, x_range, y_range, log, log_x)
        for width, height in ((720, 320), (360, 290))
    ]
    wide, narrow = ((frame, _draw(frame, kept, marks, labels)) for frame in frames)
    names = [(f"{line.style}{' soft' if line.area else ''}", line.name) for line in kept if line.name]
    return Chart(wide, narrow, names)


def line_chart(lines: Sequence[Line], *, title: str, **options: Any) -> str:
    """What `draw_lines` draws, for a page, or a sentence where there is nothing to draw."""
    chart = draw_lines(lines, title=title, **options)
    return f'<p class="none">{escape(title)}: nothing was recorded.</p>' if chart is None else chart.figure()


def _draw(frame: Frame, lines: Sequence[Line], marks: Sequence[Mark], labels: tuple[str, ...]) -> str:
    title, x_label, y_label, right_label = labels
    edge, floor = frame.width - frame.right, frame.floor
    parts = [f"<title>{escape(title)}</title>"]
    for value in log_ticks(*frame.y) if frame.log else ticks(*frame.y):
        y = frame.to_y(value)
        parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{edge}"/>')
        parts.append(text_at(frame.left - 7, y + 4, short(value), "end"))
    own = sorted({x for line in lines for x, _ in line.points})
    own = own if len(own) <= 7 else log_ticks(*frame.x)
    for value in own if frame.log_x else ticks(*frame.x, count=4 if frame.width < 500 else 7):
        parts.append(text_at(frame.to_x(value), floor + 17, short(value), "middle"))
    parts.append(f'<path class="axis" d="M{frame.left} {floor}H{edge}"/>')
    parts.append(text_at((frame.left + edge) / 2, frame.height - 5, x_label, "middle"))
    parts.append(text_at(4, 14, y_label, "start"))
    if right_label:
        parts.append(text_at(frame.width - 4, 14, right_label, "end"))
        for value in (0.0, 0.25, 0.5, 0.75, 1.0):
            parts.append(text_at(edge + 7, frame.to_y(value, right=True) + 4, f"{value:.0%}", "start"))
    parts += [_line(frame, line) for line in lines]
    parts += [_mark(frame, mark) for mark in marks]
    return "".join(parts)


def _bars(line: Line) -> list[tuple[float, float, float]]:
    """x and the ends of the bar of each point that has one."""
    pairs = zip(line.points, line.errors, strict=False)
    return [(x, y - error, y + error) for (x, y), error in pairs if math.isfinite(y) and math.isfinite(error)]


def _line(frame: Frame, line: Line) -> str:
    runs: list[list[Point]] = [[]]
    for x, y in line.points:
        if math.isfinite(y):
            runs[-1].append((frame.to_x(x), frame.to_y(y, line.right)))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in filter(None, runs):
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
        if line.area:
            parts.append(
                f'<path class="area" d="{path}L{run[-1][0]:.1f} {frame.floor}L{run[0][0]:.1f} {frame.floor}Z"/>'
            )
        parts.append(f'<path class="line" d="{path}"/>')
        if len(run) == 1 and not line.dots:
            parts.append(f'<circle class="dot" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="3"/>')
    if line.dots and len(line.points) <= _MOST_DOTS:
        for x, y in line.points:
            if math.isfinite(y):
                place = f'cx="{frame.to_x(x):.1f}" cy="{frame.to_y(y, line.right):.1f}"'
                tip = escape(f"{line.name}, {short(x)}: {short(y)}")
                parts.append(f'<circle class="dot" {place} r="3"><title>{tip}</title></circle>')
    for x, low, high in _bars(line):
        place, ends = frame.to_x(x), (frame.to_y(low), frame.to_y(high))
        parts += [f'<path class="line" d="M{place:.1f} {ends[0]:.1f}V{ends[1]:.1f}" style="stroke-dasharray:none"/>']
        parts += [f'<path class="line" d="M{place - 4:.1f} {y:.1f}h8" style="stroke-dasharray:none"/>' for y in ends]
    moved = f' transform="translate({line.shift:g} 0)"' if line.shift else ""
    return f'<g class="{line.style}"{moved}>{"".join(parts)}</g>'


def _mark(frame: Frame, mark: Mark) -> str:
    if not all(value is None or math.isfinite(value) for value in (mark.x, mark.y)):
        return ""
    if frame.log and mark.y is not None and mark.y <= 0:
        return ""
    edge = frame.width - frame.right
    if mark.x is None and mark.y is not None:
        y = frame.to_y(mark.y)
        return f'<path class="level" d="M{frame.left} {y:.1f}H{edge}"/>' + text_at(
            frame.left + 5, y - 5 if y > 44 else y + 14, mark.label, "start", "note"
        )
    if mark.x is None or not frame.x[0] <= mark.x <= frame.x[1]:
        return ""
    x = frame.to_x(mark.x)
    room = 7.0 * len(mark.label)  # about as wide as the label is
    side, anchor = (x + 6, "start") if x + room < edge else (x - 6, "end")
    if anchor == "end" and x - room < frame.left:
        side, anchor = edge, "end"
    if mark.y is None:
        line = f'<path class="level" d="M{x:.1f} 30V{frame.floor}"/>'
        return line + text_at(side, frame.floor - 7, mark.label, anchor, "note")
    y = frame.to_y(mark.y)
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    return ring + text_at(side, y - 11 if y > 66 else y + 20, mark.label, anchor, "note strong")


def text_at(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    """A line of text in a chart; anchor is "start", "middle" or "end"."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def name_of_file(text: str, taken: set[str]) -> str:
    """A name for a file, or a part of one, numbered where it is taken already; then it is taken too."""
    place = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    numbered = (f"{place}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    free = next(name for name in numbered if name not in taken)
    taken.add(free)
    return free
