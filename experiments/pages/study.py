"""The finished cells of a study to `study.html`, a page that needs nothing else, and `study.md`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from experiments.pages import text as words
from experiments.pages.charts import Chart
from experiments.pages.colours import colours_of
from experiments.pages.compare import link_to
from experiments.pages.data import Run, Setting, differing_settings
from experiments.pages.html import bullets, details, page, paragraphs, section, table
from experiments.pages.markdown import markdown_table
from experiments.pages.pairs import Overlap, Row, alone, gap, in_common, mean_of, overlaps, study_rows
from experiments.pages.pooled import ABOUT_POOLED, POOLED_HEADER, Pooled, Setup, pool, pooled_table
from experiments.pages.structure_pictures import average, picture, read_structure
from experiments.pages.study_charts import drawn_names, pooled_charts, study_charts
from experiments.pages.write import write_files
from kaprune_jax.deploy.masks import Structure

HEADER = (
    "name", "rows", "seeds", "last step", "standard error", "dense teacher", "against alone, points",
    "ahead / level / behind",
)  # fmt: skip
OVERLAP_HEADER = ("runs", "and", "pairs", "heads", "units", "hidden dimensions")
_READ_AS = (
    "Scores are those of the last step, on dev: the best evaluation would be chosen on the rows it is measured on. The "
    "standard error is that of a mean over seeds, their sample standard deviation by √n; it does not hold the error "
    "that comes from the dev set being small. The dense teacher is that of the same runs: where tasks are coupled "
    "before pruning, so is it. Differences are paired: the same task, rows, sparsity and seed, with and without "
    "auxiliary task. With few seeds a standard error is rough itself: 95 % confidence takes 4.3 of them to each side "
    "with n = 3, 2.8 with n = 5."
)
_ABOUT_OVERLAP = (
    "Jaccard index of what two runs keep, kept in both by kept in either, from 0 to 1; the mean over pairs of runs "
    "with the same seed, target rows and sparsity. A name with itself at other seeds is the scale for the others."
)
_ABOUT_LEFT = (
    "A head is the stronger the more of the runs keep it; bars are the mean number of feed-forward units of each "
    "layer, the strip at the bottom is the hidden dimensions."
)


def write_study(out: Path, runs: Sequence[Run], missing: Sequence[Path] = ()) -> Path:
    """Writes `study.html` and `study.md` of the cells that have a result; those without are counted.

    The charts of the page are SVG files beside it too: `scores-TASK-METRIC-PATTERN-SPARSITY.svg`, and `gains-...`, over
    the runs without auxiliary task; `gains-TASK-METRIC-PATTERN-all.svg` is the mean over sparsities.

    Args:
      out: where to; made if it is not there.
      runs: the finished cells.
      missing: folders of the others.

    Returns:
      The path of the page.

    Raises:
      InputError: masks of a finished cell are broken, or nothing can be written; then nothing is.
    """
    structures = {run.folder: found for run in runs if (found := read_structure(run)) is not None}
    groups = study_rows(runs)
    pairs, pools = overlaps([row for rows in groups.values() for row in rows], structures), pool(groups)
    notes = _notes(groups, len(runs) + len(missing), len(missing))
    colours = colours_of(list({row.name for rows in groups.values() for row in rows}))
    charts = study_charts(groups, colours) | pooled_charts(pools, colours)
    html = _page(out, runs, missing, groups, pools, structures, pairs, notes, charts)
    texts = {"study.md": _markdown(groups, pools, pairs, notes, _commands(runs)), "study.html": html}
    write_files(out, texts | {name: chart.file() for drawn in charts.values() for name, chart in drawn.items()})
    return out / "study.html"


def _page(
    out: Path,
    runs: Sequence[Run],
    missing: Sequence[Path],
    groups: Mapping[Setting, list[Row]],
    pools: Mapping[Setup, list[Pooled]],
    structures: Mapping[Path, Structure],
    pairs: Mapping[float, list[Overlap]],
    notes: Sequence[str],
    charts: Mapping[Setting | Setup, Mapping[str, Chart]],
) -> str:
    parts = [
        section(
            words.name_setting(setting),
            "".join(chart.figure() for chart in charts[setting].values()),
            paragraphs(_not_drawn(rows), "note"),
            table(HEADER, table_rows(rows)),
            paragraphs(_without_bars(rows), "note"),
            _left(rows, structures),
        )
        for setting, rows in groups.items()
    ]
    parts += [
        section(
            str(setup),
            "".join(chart.figure() for chart in charts[setup].values()),
            paragraphs([ABOUT_POOLED]),
            table(POOLED_HEADER, pooled_table(pooled)),
        )
        for setup, pooled in pools.items()
    ]
    alike = [
        f"<h3>{escape(_asked(sparsity))}</h3>{table(OVERLAP_HEADER, overlap_rows(found))}"
        for sparsity, found in pairs.items()
    ]
    commands = "".join(f'<pre class="command">{escape(command)}</pre>' for command in _commands(runs))
    names = [
        link_to(run, f"{run.task}, {words.percent(run.figure('sparsity', 'asked'))}, "
                f"{words.count(run.figure('examples', 'train'))} rows, {run.name}, "
                f"seed {words.count(run.figure('seed'))}", out)
        for rows in groups.values() for row in rows for run in row.runs
    ]  # fmt: skip
    cells = f'<ul class="runs">{"".join(f"<li>{name}</li>" for name in names)}</ul>' if names else ""
    title = f"{', '.join(dict.fromkeys(setting.task for setting in groups)) or 'Study'}: {_plural(len(runs), 'run')}"
    body = (
        f'<header><p class="over">study</p><h1>{escape(title)}</h1>{paragraphs(notes, "notice")}'
        f"{paragraphs([_READ_AS] if runs else [])}</header>\n"
        + "".join(parts)
        + section("How alike what is left is", *(paragraphs([_ABOUT_OVERLAP]), *alike) if alike else "")
        + section(
            "How it was made",
            commands,
            details("Runs", cells),
            details("Cells without a result", bullets(folder.name for folder in missing)),
        )
    )
    return page(title, body, "broad")


def table_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A row of text for each name and number of target rows, in the columns of `HEADER`."""
    found = []
    for row in rows:
        score, dense, base = mean_of([*row.scores.values()]), mean_of([*row.dense.values()]), alone(row, rows)
        paired = gap(row, base) if base else None
        difference = wins = "–"
        if paired is not None:
            difference, wins = "no seed in common", "–"
            if paired.difference.n:
                difference = paired.difference.in_points()
                wins = f"{paired.wins} / {paired.ties} / {paired.losses}"
        error = f"± {score.error:.4f}" if score.n > 1 else "n = 1: no error bar" if score.n else "–"
        seeds = f"{score.n} ({', '.join(map(words.count, row.scores))})" if score.n else "0"
        count = words.count(row.rows) if row.rows >= 0 else "–"
        found.append((row.name, count, seeds, words.four(score.mean), error, words.four(dense.mean), difference, wins))
    return found


def overlap_rows(found: Sequence[Overlap]) -> list[tuple[str, ...]]:
    """A row of text for each two kinds of runs, in the columns of `OVERLAP_HEADER`."""
    return [
        (
            each.first,
            each.second,
            str(each.pairs),
            *(f"{each.parts[part]:.2f}" for part in ("heads", "units", "hidden")),
        )
        for each in found
    ]


def _left(rows: Sequence[Row], structures: Mapping[Path, Structure]) -> str:
    """What is left on average, for each number of target rows; folded away where there are several."""
    found: dict[float, list[str]] = {}
    for row in rows:
        kept = [structures[run.folder] for run in row.runs if run.folder in structures]
        like = [one for one in kept if [part.shape for part in one] == [part.shape for part in kept[0]]]
        if like:
            found.setdefault(row.rows, []).append(picture(average(like), row.name))
    parts = {words.count(count): f'<div class="masks">{"".join(drawn)}</div>' for count, drawn in found.items()}
    if not parts:
        return ""
    if len(parts) > 1:
        drawn = "".join(details(f"{count} rows", part) for count, part in parts.items())
    else:
        drawn = "".join(parts.values())
    return f"<h3>What is left, mean over seeds</h3>{paragraphs([_ABOUT_LEFT])}{drawn}"


def _notes(groups: Mapping[Setting, list[Row]], cells: int, missing: int) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [f"Left out, without a result yet: {missing} of {_plural(cells, 'cell')}."] if missing else []
    found += [] if cells else ["There are no cells."]
    if shared := in_common([run for each in groups.values() for row in each for run in row.runs]):
        found.append(f"All coupled runs have {', '.join(shared)}.")
    rows = [row for each in groups.values() for row in each]
    short_of = [
        run for row in rows for run in row.runs
        if run.figure("sparsity", "asked") - run.figure("sparsity", "encoder") > 0.002
    ]  # fmt: skip
    if short_of:
        found.append(f"{_plural(len(short_of), 'run')} did not reach the asked sparsity.")
    for row in rows:
        where = f"{words.name_setting(row.setting)}, {row.name}, {words.count(row.rows)} rows"
        if 0 < len(row.scores) < len(row.runs):
            found.append(
                f"{where}: {len(row.runs)} runs of {_plural(len(row.scores), 'seed')}; those of one are averaged."
            )
        if differing := differing_settings(row.runs):
            named = "; ".join(f"{name}: {', '.join(values)}" for name, values in list(differing.items())[:6])
            found.append(f"{where}: a mean over runs that differ in more than the seed ({named}).")
    if few := sum(len(row.scores) < 3 for row in rows):
        found.append(f"{few} of {len(rows)} rows of the tables have fewer than three seeds; differences may be chance.")
    return found


def _not_drawn(rows: Sequence[Row]) -> list[str]:
    drawn = drawn_names(rows)
    if len(drawn) == len({row.name for row in rows}):
        return []
    return ["The lines are those of what was run with several numbers of rows; the gains below are those of all."]


def _without_bars(rows: Iterable[Row]) -> list[str]:
    single = [f"{row.name} with {words.count(row.rows)} rows" for row in rows if len(row.scores) == 1]
    return [f"n = 1: no error bar: {'; '.join(single)}."] if single else []


def _markdown(
    groups: Mapping[Setting, list[Row]],
    pools: Mapping[Setup, list[Pooled]],
    pairs: Mapping[float, list[Overlap]],
    notes: Sequence[str],
    commands: Sequence[str],
) -> str:
    parts = ["".join(f"- {' '.join(note.split())}\n" for note in notes)]
    parts += [
        f"## {words.name_setting(setting)}\n\n{setting.metric}\n\n{markdown_table(HEADER, table_rows(rows))}"
        for setting, rows in groups.items()
    ]
    parts += [f"{_READ_AS}\n"] * bool(groups)
    parts += [
        f"## {setup}\n\n{setup.metric}\n\n{markdown_table(POOLED_HEADER, pooled_table(pooled))}"
        for setup, pooled in pools.items()
    ]
    parts += [f"{ABOUT_POOLED}\n"] * bool(pools)
    parts += [
        f"## How alike what is left is, {_asked(sparsity)}\n\n{markdown_table(OVERLAP_HEADER, overlap_rows(found))}"
        for sparsity, found in pairs.items()
    ]
    parts += [f"{_ABOUT_OVERLAP}\n"] * bool(pairs)
    parts += ["Made by\n\n" + "".join(f"    {command}\n" for command in commands)] * bool(commands)
    return "\n".join(part for part in parts if part)


def _commands(runs: Iterable[Run]) -> list[str]:
    """The commands of the runs, each once; slices of a study are one command."""
    texts = (re.sub(r"\s--cell[ =]\S+", "", " ".join(run.command.split())) for run in runs)
    return [text for text in dict.fromkeys(texts) if text]


def _asked(sparsity: float) -> str:
    return f"{words.percent(sparsity)} asked" if sparsity >= 0 else "no sparsity asked"


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
