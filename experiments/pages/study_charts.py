"""The two pictures of a study: scores against target rows, and what each coupling gains over pruning alone."""

from collections.abc import Mapping, Sequence

from experiments.pages import text as words
from experiments.pages.charts import Chart, Line, draw_lines, name_of_file
from experiments.pages.data import Setting
from experiments.pages.dots import Dot, draw_dots
from experiments.pages.pairs import Mean, Row, alone, gap, mean_of
from experiments.pages.pooled import Pooled, Setup


def study_charts(
    groups: Mapping[Setting, Sequence[Row]], colours: Mapping[str, str]
) -> dict[Setting, dict[str, Chart]]:
    """The charts of each setting by the name of a file of their own, `scores-...` and `gains-...`, each name once."""
    found: dict[Setting, dict[str, Chart]] = {}
    taken: set[str] = set()
    for setting, rows in groups.items():
        asked = f"{100 * setting.sparsity:.6g}" if setting.sparsity >= 0 else "none"
        place = name_of_file(f"{setting.task} {setting.metric} {setting.pattern} {asked}", taken)
        charts = {"scores": scores(setting, rows, colours), "gains": gains(setting, rows, colours)}
        found[setting] = {f"{name}-{place}.svg": chart for name, chart in charts.items() if chart is not None}
    return found


def pooled_charts(pools: Mapping[Setup, Sequence[Pooled]], colours: Mapping[str, str]) -> dict[Setup, dict[str, Chart]]:
    """The chart of each setup over all sparsities by the name of a file of its own, `gains-...-all.svg`."""
    found: dict[Setup, dict[str, Chart]] = {}
    taken: set[str] = set()
    for setup, pooled in pools.items():
        place = name_of_file(f"{setup.task} {setup.metric} {setup.pattern} all", taken)
        chart = pooled_gains(setup, pooled, colours)
        found[setup] = {f"gains-{place}.svg": chart} if chart is not None else {}
    return found


def drawn_names(rows: Sequence[Row]) -> list[str]:
    """Names that have several numbers of rows, which a line can be drawn of; all names where none has."""
    names = [row.name for row in rows]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1] or list(dict.fromkeys(names))


def scores(setting: Setting, rows: Sequence[Row], colours: Mapping[str, str]) -> Chart | None:
    """Means of the last step against rows of the target; with one number of rows one below the other."""
    counts = sorted({row.rows for row in rows})
    label = f"{setting.metric}, last step, mean ± standard error over seeds"
    if len(counts) == 1:
        means = [(row.name, mean_of([*row.scores.values()]), colours[row.name]) for row in rows]
        dots = [Dot(name, f"{words.four(m.mean)}, n = {m.n}", m.mean, m.error, style) for name, m, style in means]
        return draw_dots(dots, title=f"{setting.metric}, {words.name_setting(setting)}", label=label)
    dense: dict[float, Mean] = {}
    for row in rows:
        if row.name.endswith(", alone"):
            dense.setdefault(row.rows, mean_of([*row.dense.values()]))
    means = [(count, dense[count].mean) for count in counts if count in dense]
    lines = [Line("dense teacher of the runs alone", means, "dashed")] if dense else []
    names = drawn_names(rows)
    for number, name in enumerate(names):
        own = [row for row in rows if row.name == name]
        values = [mean_of([*row.scores.values()]) for row in own]
        points = [(row.rows, value.mean) for row, value in zip(own, values, strict=True)]
        shift = 6.0 * (number - (len(names) - 1) / 2)
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
    several = len({row.rows for row in rows}) > 1
    gaps = [(row, gap(row, base)) for row in rows if (base := alone(row, rows)) is not None]
    dots = _dots([(row.name, row.rows if several else -1.0, found.difference) for row, found in gaps], colours)
    return draw_dots(
        dots,
        title=f"{setting.metric} of the last step against the runs alone, {words.name_setting(setting)}",
        label="points over pruning alone, mean ± standard error",
        zero=True,
    )


def pooled_gains(setup: Setup, pools: Sequence[Pooled], colours: Mapping[str, str]) -> Chart | None:
    """Differences to the runs alone, the mean over sparsities of each seed, in points."""
    dots = _dots([(each.name, each.rows, each.gap.difference) for each in pools], colours)
    return draw_dots(
        dots,
        title=f"{setup.metric} of the last step against the runs alone, {setup}",
        label="points over pruning alone, mean over sparsities ± standard error over seeds",
        zero=True,
    )


def _dots(differences: Sequence[tuple[str, float, Mean]], colours: Mapping[str, str]) -> list[Dot]:
    """A dot for each name and number of rows. Names are METHOD, COUPLING; without METHOD where there is one only."""
    methods = {name.partition(", ")[0] for name, _, _ in differences}
    dots = []
    for name, rows, found in differences:
        shown = name.partition(", ")[2] if len(methods) == 1 else name
        shown = f"{words.count(rows)} rows: {shown}" if rows >= 0 else shown
        if found.n:
            dots.append(Dot(shown, found.in_points(), 100 * found.mean, 100 * found.error, colours[name]))
    return dots
