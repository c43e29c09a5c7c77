"""Methods against each other, paired by seed."""

from collections.abc import Sequence

from experiments.pages import text as words
from experiments.pages.data import Run, Setting, group_runs, spread


def comparisons(runs: Sequence[Run]) -> list[str]:
    """For each setting with several methods, the first against each other one of its length, paired by seed.

    And its lengths, the shortest against each longer one.
    """
    found = []
    for setting, methods in group_runs(runs).items():
        (_, own), *others = methods.items()
        kind, length = own[0].kind, own[0].length
        as_long = {members[0].length: name for name, members in methods.items() if members[0].kind == kind}
        for name, members in others:
            beside = as_long.get(length if members[0].kind == kind else members[0].length)
            if beside is not None:
                found += _against(setting, beside, methods[beside], name, members)
    return found


def _against(setting: Setting, first: str, own: Sequence[Run], name: str, members: Sequence[Run]) -> list[str]:
    """A line, where they have a seed in common."""
    seeds = {run.figure("seed"): run.figure("pruned") for run in members}
    gaps = [run.figure("pruned") - seeds[seed] for run in own if (seed := run.figure("seed")) in seeds]
    gap = spread(gaps)
    if not gap.n:
        return []
    deviation = f" ± {100 * gap.deviation:.1f}" if gap.n > 1 else ""
    shared = f"{gap.n} shared seeds, ahead in {sum(value > 0 for value in gaps)}" if gap.n > 1 else "one shared seed"
    difference = f"{words.points(gap.mean)}{deviation} points of {setting.metric} ({shared})"
    return [f"{words.name_setting(setting)}: {first} against {name}, {difference}."]
