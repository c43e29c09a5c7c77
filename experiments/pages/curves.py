"""Scores of several runs against sparsity, and against the length of the training."""

import math
from collections.abc import Mapping

from experiments.pages import text as words
from experiments.pages.charts import Chart, Line, Mark, Point, draw_lines, name_of_file
from experiments.pages.colours import colours_of
from experiments.pages.data import Run, Setting, spread
from experiments.pages.published import published

Groups = Mapping[Setting, Mapping[str, list[Run]]]
"""What `group_runs` gives."""


def by_sparsity(groups: Groups) -> dict[str, Chart]:
    """A chart for each task, metric and pattern of which there are several sparsities, by the name of its file."""
    found: dict[tuple[str, str, str], dict[str, list[Point]]] = {}
    dense: dict[tuple[str, str, str], list[Run]] = {}
    for setting, methods in groups.items():
        for name, members in methods.items():
            dense.setdefault(setting[:3], []).extend(members)
            point = _mean(members, "sparsity", "encoder"), _mean(members, "pruned")
            found.setdefault(setting[:3], {}).setdefault(name, []).append(point)
    charts: dict[str, Chart] = {}
    taken: set[str] = set()
    for (task, metric, pattern), lines in found.items():
        chart = draw_lines(
            _lines(lines),
            title=f"{metric} of the pruned model against sparsity, {task}, {pattern}",
            x_label="sparsity of the encoder's matrices",
            y_label=f"{metric}, {task}, {pattern}",
            marks=_level(dense[task, metric, pattern])
            + [Mark(each.sparsity, each.score, f"{each.paper}, BERT-base") for each in published(task, metric)],
            ceiling=1.0,
            room=0.05,
        )
        if chart is not None and any(len(points) > 1 for points in lines.values()):
            charts[f"{name_of_file(f'sparsity {task} {metric} {pattern}', taken)}.svg"] = chart
    return charts


def by_steps(groups: Groups) -> dict[str, Chart]:
    """A chart for each setting in which a kind of run has several lengths, by the name of its file.

    Args:
      groups: of runs that `tell_lengths` has told apart.
    """
    charts: dict[str, Chart] = {}
    taken: set[str] = set()
    for setting, methods in groups.items():
        lines: dict[str, list[Point]] = {}
        for members in methods.values():
            lines.setdefault(members[0].kind, []).append((_mean(members, "steps"), _mean(members, "pruned")))
        asked = words.percent(setting.sparsity)
        chart = draw_lines(
            _lines(lines),
            title=f"{setting.metric} of the pruned model against steps, {words.name_setting(setting)}",
            x_label="steps of training",
            y_label=f"{setting.metric}, {setting.task}, {asked} removed, {setting.pattern}",
            marks=_level([run for members in methods.values() for run in members]),
            ceiling=1.0,
            log_x=True,
        )
        if chart is not None and any(len(points) > 1 for points in lines.values()):
            text = f"steps {setting.task} {setting.metric} {setting.pattern} {100 * setting.sparsity:.6g}"
            charts[f"{name_of_file(text, taken)}.svg"] = chart
    return charts


def _mean(members: list[Run], *keys: str) -> float:
    return spread([run.figure(*keys) for run in members]).mean


def _lines(found: Mapping[str, list[Point]]) -> list[Line]:
    colours = colours_of(found)
    return [Line(name, sorted(points), colours[name], dots=True) for name, points in found.items()]


def _level(members: list[Run]) -> list[Mark]:
    """The dense models of runs, as a level line."""
    whole = _mean(members, "dense")
    return [Mark(None, whole, f"dense {words.score(whole)}")] if math.isfinite(whole) else []
