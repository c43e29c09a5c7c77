"""What a study's couplings are worth over its sparsities together: a figure for each name and number of rows."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.pages import text as words
from experiments.pages.data import Setting
from experiments.pages.pairs import Gap, Row, alone, gap, mean_of

POOLED_HEADER = ("name", "rows", "sparsities", "against alone, points", "ahead / level / behind")
ABOUT_POOLED = (
    "Of each seed the mean over sparsities of its differences to the runs alone, and the mean and standard error of "
    "these over seeds. A seed's runs share rows and teachers, so several sparsities take out the noise of pruning, not "
    "that of the seed. Ahead, level and behind are counts of runs."
)


class Setup(NamedTuple):
    """A setting of whatever sparsity."""

    task: str
    metric: str
    pattern: str

    def __str__(self) -> str:
        return f"{self.task}, {self.pattern}, sparsities together"


class Pooled(NamedTuple):
    """One name at one number of target rows, over sparsities.

    Attributes:
      name: as in the tables of each sparsity.
      rows: of the target task that were trained on.
      sparsities: asked, at which the name and the runs alone have seeds in common.
      gap: over the seeds that both have at all of these, of means over sparsities; wins, ties and losses are of runs.
    """

    name: str
    rows: float
    sparsities: tuple[float, ...]
    gap: Gap


def pool(groups: Mapping[Setting, Sequence[Row]]) -> dict[Setup, list[Pooled]]:
    """What was run at several sparsities, by rows and name. Setups where nothing was are left out.

    Args:
      groups: as `study_rows` gives them.
    """
    pairs: dict[Setup, dict[tuple[float, str], list[tuple[Row, Row]]]] = {}
    for setting, rows in sorted(groups.items(), key=lambda item: item[0].sparsity):
        for row in rows:
            base = alone(row, rows)
            if base is not None and row.scores.keys() & base.scores.keys():
                own = pairs.setdefault(Setup(setting.task, setting.metric, setting.pattern), {})
                own.setdefault((row.rows, row.name), []).append((row, base))
    found = {setup: [_pool(own[key]) for key in sorted(own)] for setup, own in pairs.items()}
    kept = {setup: [each for each in pooled if each is not None] for setup, pooled in found.items()}
    return {setup: pooled for setup, pooled in kept.items() if pooled}


def pooled_table(pools: Sequence[Pooled]) -> list[tuple[str, ...]]:
    """A row of text for each, in the columns of `POOLED_HEADER`."""
    return [
        (
            each.name,
            words.count(each.rows) if each.rows >= 0 else "–",
            ", ".join(map(words.percent, each.sparsities)),
            each.gap.difference.in_points(),
            f"{each.gap.wins} / {each.gap.ties} / {each.gap.losses}",
        )
        for each in pools
    ]


def _pool(pairs: Sequence[tuple[Row, Row]]) -> Pooled | None:
    """Rows of one name beside those alone, one pair for each sparsity; None with one sparsity, or no seed in all."""
    seeds = [seed for seed in pairs[0][0].scores if all(seed in each.scores for pair in pairs for each in pair)]
    if len(pairs) < 2 or not seeds:
        return None
    means = [statistics.fmean(row.scores[seed] - base.scores[seed] for row, base in pairs) for seed in seeds]
    gaps = [gap(row._replace(scores={seed: row.scores[seed] for seed in seeds}), base) for row, base in pairs]
    counts = (sum(getattr(each, part) for each in gaps) for part in ("wins", "ties", "losses"))
    first = pairs[0][0]
    return Pooled(first.name, first.rows, tuple(row.setting.sparsity for row, _ in pairs), Gap(mean_of(means), *counts))
