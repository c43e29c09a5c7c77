"""The page of several runs: methods side by side, over seeds; and where each method removed weights."""

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments.pages import text as words
from experiments.pages.charts import Line, Mark, Point, line_chart
from experiments.pages.colours import colours_of
from experiments.pages.curves import by_sparsity, by_steps
from experiments.pages.data import Run, Setting, group_runs, number, spread
from experiments.pages.html import bullets, page, paragraphs, section, table
from experiments.pages.mask_pictures import kinds
from experiments.pages.tasks import ABOUT_TASKS, task_table
from experiments.pages.versus import comparisons


def comparison(runs: Sequence[Run], folder: Path) -> dict[str, str]:
    """Files of several runs by name: the page, and scores against sparsity, or against steps, where there are several.

    Args:
      runs: what `read_run` gives, at least one.
      folder: where the page will lie; links to the runs' own reports start there.
    """
    groups = group_runs(runs)
    tasks = list(dict.fromkeys(setting.task for setting in groups))
    methods = {run.name for run in runs}
    title = f"{', '.join(tasks)}: {len(methods)} method{'s' * (len(methods) > 1)} in {len(runs)} runs"
    pruned = {setting: inner for setting, inner in groups.items() if set(inner) != {"dense"}} or groups
    by_share, by_length = by_sparsity(pruned), by_steps(pruned)
    curves = [
        f"<h3>{escape(words.name_setting(key))}</h3>{_overlay(key, inner)}"
        for key, inner in pruned.items()
        if any(run.records for members in inner.values() for run in members)  # a table of figures has none
    ]
    body = (
        f'<header><p class="over">comparison</p><h1>{escape(title)}</h1>'
        f"{bullets(comparisons(runs))}{paragraphs(words.caveats(runs), 'notice')}</header>\n"
        + section("Tasks side by side", *_tasks(runs))
        + section("Methods", *(_table(task, runs) for task in tasks), paragraphs(words.below_table(runs), "note"))
        + section("Score against step", *curves)
        + section("Score against sparsity", *(chart.figure() for chart in by_share.values()))
        + section("Score against length of training", *(chart.figure() for chart in by_length.values()))
        + section("What each method removed where", _where(pruned))
        + section("Runs", _list(runs, folder))
    )
    charts = by_share | by_length
    return {"report.html": page(title, body, "broad")} | {name: chart.file() for name, chart in charts.items()}


def _table(task: str, runs: Sequence[Run]) -> str:
    """What matters most first, for narrow screens; the task and metric stand above."""
    names = ["method", "asked", "pruned", "dense", "last", "encoder sparsity", "overall sparsity", "seeds"]
    order = [words.HEADER.index(name) for name in (*names, *(h for h in words.HEADER[2:] if h not in names))]
    members = [run for run in runs if run.task == task]
    metrics = ", ".join(dict.fromkeys(run.metric for run in members))
    rows = [[row[i] for i in order] for row in words.table_rows(members)]
    return f"<h3>{escape(task)} ({escape(metrics)})</h3>" + table([words.HEADER[i] for i in order], rows)


def _tasks(runs: Sequence[Run]) -> list[str]:
    header, rows = task_table(runs)
    return [table(header, rows), paragraphs([ABOUT_TASKS], "note")] if rows else []


def _overlay(setting: Setting, methods: dict[str, list[Run]]) -> str:
    lines: list[Line] = []
    colours = colours_of(methods)
    for method, members in methods.items():
        curves = [_curve(run) for run in members]
        mean = mean_curve(curves)
        if len(curves) > 1:
            names = ["" if mean else f"{method}, each seed", *[""] * len(curves)]
            lines += [Line(name, curve, f"{colours[method]} faint") for name, curve in zip(names, curves, strict=False)]
        name = f"{method}, mean of {len(curves)}" if len(curves) > 1 else method
        lines.append(Line(name, mean, colours[method], dots=True))
    dense = spread([run.figure("dense") for members in methods.values() for run in members])
    marks = [Mark(None, dense.mean, f"dense {words.score(dense.mean)}")] if dense.n else []
    title = f"{setting.metric} against step, {words.name_setting(setting)}"
    return line_chart(lines, title=title, y_label=setting.metric, marks=marks, ceiling=1.0)


def _curve(run: Run) -> list[Point]:
    return [(number(r, "step"), number(r, "score")) for r in run.select("eval", run.phase)]


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean at each step at which every curve has a finite value; empty where there is no such step."""
    values = [{x: y for x, y in curve if math.isfinite(y)} for curve in curves]
    shared = set.intersection(*(set(value) for value in values)) if values else set()
    return [(x, sum(value[x] for value in values) / len(values)) for x in sorted(shared)]


def _where(groups: dict[Setting, dict[str, list[Run]]]) -> str:
    parts, even = [], []
    rankings: dict[str, dict[str, None]] = {}
    for run in (run for methods in groups.values() for members in methods.values() for run in members):
        if text := words.about_ranking(run):
            rankings.setdefault(text, {})[run.name] = None
    for setting, methods in groups.items():
        found: dict[str, dict[str, list[float]]] = {}
        for method, members in methods.items():
            for run in members:
                per_matrix = run.result.get("per_matrix")
                per_matrix = per_matrix if isinstance(per_matrix, dict) else {}
                for kind, values in kinds({path: number(value) for path, value in per_matrix.items()}).items():
                    found.setdefault(method, {}).setdefault(kind, []).extend(values)
        shares = [value for kinds_of in found.values() for values in kinds_of.values() for value in values]
        if shares and max(shares) - min(shares) < 5e-4:
            even.append(f"{words.name_setting(setting)}: {words.percent(spread(shares).mean)} of every matrix.")
            continue
        columns = list(dict.fromkeys(kind for values in found.values() for kind in values))
        rows = [
            (method, *(words.percent(spread(values.get(kind, [])).mean) for kind in columns))
            for method, values in found.items()
        ]
        if rows:
            parts.append(f"<h3>{escape(words.name_setting(setting))}</h3>{table(('method', *columns), rows)}")
    text = "<p>Weights removed, mean over layers and seeds, by kind of matrix.</p>" if parts else ""
    one = len(rankings) == 1
    ranked = [text if one else f"{', '.join(names)}: {text}" for text, names in rankings.items()]
    return (paragraphs(ranked) if one else bullets(ranked)) + text + "".join(parts) + bullets(even)


def _list(runs: Sequence[Run], folder: Path) -> str:
    items = []
    for run in runs:
        name = link_to(run, f"{run.task}, {run.name}, seed {words.count(run.figure('seed'))}", folder)
        command = f'<pre class="command">{escape(run.command)}</pre>' if run.command else ""
        items.append(f"<li>{name}: {escape(_short(run))}{command}</li>")
    return f'<ul class="runs">{"".join(items)}</ul>'


def link_to(run: Run, name: str, folder: Path) -> str:
    """A name that leads to a run's own report, where it has one, from a page in a folder."""
    own = run.folder.resolve()
    if not (own / "report.html").is_file() or own == folder.resolve():
        return escape(name)
    place = Path(os.path.relpath(own / "report.html", folder.resolve())).as_posix()
    return f'<a href="{escape(place)}">{escape(name)}</a>'


def _short(run: Run) -> str:
    if run.method == "dense":
        return f"{run.metric} {words.score(run.figure('dense'))}"
    change = f"{words.score(run.figure('dense'))} → {words.score(run.figure('pruned'))}"
    return f"{run.metric} {change}, {words.percent(run.figure('sparsity', 'encoder'))} of the encoder's weights removed"
