"""The two pictures of a study: scores against target rows, and what each coupling gains over pruning alone."""

import math
import re
from collections.abc import Mapping, Sequence

from experiments.pages import text as words
from experiments.pages.charts import Chart, Line, draw_lines
from experiments.pages.data import Setting
from experiments.pages.dots import Dot, draw_dots
from experiments.pages.pairs import Mean, Row, alone, gap, mean_of


def study_charts(setting: Setting, rows: Sequence[Row], colours: Mapping[str, str]) -> dict[str, Chart]:
    """The charts of a setting by the name of a file of their own, `scores-...` and `gains-...`."""
    place = f"{setting.task} {setting.pattern} {100 * setting.sparsity:.6g}"
    place = re.sub(r"[^a-z0-9]+", "-", place.lower()).strip("-")
    found = {"scores": scores(setting, rows, colours), "gains": gains(setting, rows, colours)}
    return {f"{name}-{place}.svg": chart for name, chart in found.items() if chart is not None}


def scores(setting: Setting, rows: Sequence[Row], colours: Mapping[str, str]) -> Chart | None:
    """Means of the last step against rows of the target, of all names that have several numbers of rows.

    Where none has, all means one below the other.
    """
    counts = sorted({row.rows for row in rows})
    label = f"{setting.metric}, last step, mean ± standard error over seeds"
    if len(counts) == 1:
        means = [(row.name, mean_of([*row.scores.values()]), colours[row.name]) for row in rows]
        dots = [Dot(name, f"{_four(m.mean)}, n = {m.n}", m.mean, m.error, style) for name, m, style in means]
        return draw_dots(dots, title=f"{setting.metric}, {words.name_setting(setting)}", label=label)
    dense: dict[float, Mean] = {}
    for row in rows:
        if row.name.endswith(", alone"):
            dense.setdefault(row.rows, mean_of([*row.dense.values()]))
    means = [(count, dense[count].mean) for count in counts if count in dense]
    lines = [Line("dense teacher of the runs alone", means, "dashed")] if dense else []
    every = [[row for row in rows if row.name == name] for name in dict.fromkeys(row.name for row in rows)]
    several = [own for own in every if len(own) > 1] or every
    for number, own in enumerate(several):
        values = [mean_of([*row.scores.values()]) for row in own]
        points = [(row.rows, value.mean) for row, value in zip(own, values, strict=True)]
        name, shift = own[0].name, 6.0 * (number - (len(several) - 1) / 2)
        errors = [value.error for value in values]
        lines.append(Line(name, points, colours[name], dots=True, errors=errors, shift=shift))
    log = counts[-1] >= 4 * counts[0] > 0
    return draw_lines(
        lines,
        title=f"{setting.metric} of the last step against target rows, {words.name_setting(setting)}",
        x_label="rows of the target task" + ", log scale" * log,
        y_label=label,
        log_x=log,
        ceiling=1.0,
    )


def gains(setting: Setting, rows: Sequence[Row], colours: Mapping[str, str]) -> Chart | None:
    """Differences to the runs alone, paired by seed, in points; None where nothing is coupled."""
    dots, several = [], len({row.rows for row in rows}) > 1
    for row in rows:
        base = alone(row, rows)
        if base is None or not (found := gap(row, base)).difference.n:
            continue
        mean, error, n = found.difference
        name = f"{words.count(row.rows)} rows: " * several + (row.name.partition(", ")[2] or row.name)
        says = f"{words.points(mean)}{f' ± {100 * error:.1f}' if math.isfinite(error) else ''}, n = {n}"
        dots.append(Dot(name, says, 100 * mean, 100 * error, colours[row.name]))
    return draw_dots(
        dots,
        title=f"{setting.metric} of the last step against the runs alone, {words.name_setting(setting)}",
        label="points over pruning alone, mean ± standard error",
        zero=True,
    )


def _four(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"
