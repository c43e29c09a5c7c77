"""What a study of coupled runs says: scores by name and target rows, differences paired by seed, overlaps of masks."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.pages import text as words
from experiments.pages.data import Run, Setting, group_runs
from kaprune_jax.deploy.masks import Structure


class Row(NamedTuple):
    """The runs of one name at one number of target rows.

    Attributes:
      setting: task, metric, pattern and asked sparsity.
      name: `Run.name`, without what all coupled runs of the study have (`in_common`).
      rows: of the target task that were trained on.
      runs: in order of their seeds.
      scores: seed to the score at the last step.
      dense: seed to the score of the dense teacher.
    """

    setting: Setting
    name: str
    rows: float
    runs: list[Run]
    scores: dict[float, float]
    dense: dict[float, float]


class Mean(NamedTuple):
    """Mean of n values and its standard error, which is NaN for one value."""

    mean: float
    error: float
    n: int

    def in_points(self) -> str:
        """In hundredths of a score, with its sign: "+1.3 ± 0.6 (n = 3)"."""
        error = f" ± {100 * self.error:.1f}" if self.n > 1 else ""
        return f"{words.points(self.mean)}{error} (n = {self.n})"


class Gap(NamedTuple):
    """Differences of scores at shared seeds, and in how many of them the first is ahead, level or behind."""

    difference: Mean
    wins: int
    ties: int
    losses: int


class Overlap(NamedTuple):
    """Mean Jaccard index of what two kinds of runs keep.

    Attributes:
      first: names and, where two tasks are compared, tasks.
      second: the same of the other one, or "itself, other seed".
      pairs: of runs that the mean is over.
      parts: "heads", "units" and "hidden" to the index.
    """

    first: str
    second: str
    pairs: int
    parts: dict[str, float]


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error (sample standard deviation by root n) of the finite ones among the values."""
    good = [value for value in values if math.isfinite(value)]
    error = statistics.stdev(good) / math.sqrt(len(good)) if len(good) > 1 else math.nan
    return Mean(statistics.fmean(good) if good else math.nan, error, len(good))


def study_rows(runs: Sequence[Run]) -> dict[Setting, list[Row]]:
    """Runs by setting, number of target rows and name. Runs of one seed that differ in something else are averaged."""
    found: dict[Setting, list[Row]] = {}
    shared = in_common(runs)
    for setting, names in group_runs(runs).items():
        rows, order = [], []
        for members in names.values():
            name = members[0].name_without(shared)
            order.append(name)
            for count in sorted({_rows_of(run) for run in members}):
                same = [run for run in members if _rows_of(run) == count]
                rows.append(Row(setting, name, count, same, _by_seed(same, "last"), _by_seed(same, "dense")))
        found[setting] = sorted(rows, key=lambda row: (row.rows, order.index(row.name)))
    return found


def in_common(runs: Sequence[Run]) -> tuple[str, ...]:
    """How all runs with auxiliary tasks are coupled otherwise than by default, where they are of several kinds."""
    parts = {run.name: run.coupling_parts for run in runs if run.config.get("coupling") not in (None, "none")}
    every = list(parts.values())
    return tuple(part for part in every[0] if all(part in each for each in every)) if len(every) > 1 else ()


def alone(row: Row, rows: Sequence[Row]) -> Row | None:
    """The runs of the same method and number of rows without an auxiliary task; none for those themselves."""
    name = f"{row.runs[0].method}, alone"
    return next((each for each in rows if each.name == name != row.name and each.rows == row.rows), None)


def gap(row: Row, base: Row) -> Gap:
    """How far the scores of a row are from those of another, over the seeds that both have."""
    shared = [seed for seed in row.scores if seed in base.scores]
    differences = [row.scores[seed] - base.scores[seed] for seed in shared]
    wins, losses = (sum(sign * value > 1e-9 for value in differences) for sign in (1, -1))
    return Gap(mean_of(differences), wins, len(differences) - wins - losses, losses)


def overlaps(rows: Sequence[Row], structures: Mapping[Path, Structure]) -> dict[float, list[Overlap]]:
    """How alike what is left is, by asked sparsity: of runs with as many target rows and the same seed.

    Compared are two names on one task, one name on two tasks and, as a scale for these, a name with itself at other
    seeds. Models of other shapes are not compared.
    """
    found: dict[float, list[Overlap]] = {}
    groups: dict[tuple[float, str, str, str], list[Run]] = {}
    for row in rows:
        kept = [run for run in row.runs if run.folder in structures]
        if kept:
            key = row.setting.sparsity, row.setting.pattern, row.setting.task, row.name
            groups.setdefault(key, []).extend(kept)
    several = len({task for _, _, task, _ in groups}) > 1
    for (one, mine), (two, others) in itertools.combinations_with_replacement(groups.items(), 2):
        if one[:2] != two[:2] or (one[2] != two[2] and one[3] != two[3]):
            continue
        pairs = _pairs(mine, others, itself=one == two)
        parts = [_compare(structures[a.folder], structures[b.folder]) for a, b in pairs]
        parts = [part for part in parts if part]
        if parts:
            means = {name: statistics.fmean(part[name] for part in parts) for name in parts[0]}
            first, second = (f"{key[2]}: {key[3]}" if several else key[3] for key in (one, two))
            second = "itself, other seed" if one == two else second
            found.setdefault(one[0], []).append(Overlap(first, second, len(parts), means))
    return found


def _pairs(mine: Sequence[Run], others: Sequence[Run], *, itself: bool) -> list[tuple[Run, Run]]:
    if itself:
        pairs = itertools.combinations(mine, 2)
        return [(a, b) for a, b in pairs if _rows_of(a) == _rows_of(b) and a.figure("seed") != b.figure("seed")]
    pairs = itertools.product(mine, others)
    return [(a, b) for a, b in pairs if _rows_of(a) == _rows_of(b) and a.figure("seed") == b.figure("seed")]


def _compare(one: Structure, two: Structure) -> dict[str, float]:
    from kaprune_jax.transfer.ranking import mask_overlap

    first, second = ({name: getattr(each, name) for name in ("heads", "units", "hidden")} for each in (one, two))
    if any(first[name].shape != second[name].shape for name in first):
        return {}
    found = mask_overlap(first, second)
    return {name: found[name] for name in first}


def _rows_of(run: Run) -> float:
    rows = run.figure("examples", "train")
    return rows if math.isfinite(rows) else -1.0


def _by_seed(runs: Sequence[Run], figure: str) -> dict[float, float]:
    values: dict[float, list[float]] = {}
    for run in runs:
        if math.isfinite(value := run.figure(figure)):
            seed = run.figure("seed")
            values.setdefault(seed if math.isfinite(seed) else -1.0, []).append(value)
    return {seed: statistics.fmean(found) for seed, found in values.items()}
