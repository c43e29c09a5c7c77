"""Several tasks side by side: a row for each method and sparsity, a column for each task, and the mean loss."""

from collections.abc import Sequence

from experiments.pages import text as words
from experiments.pages.data import Run, group_runs, spread
from experiments.presets import rank_of

ABOUT_TASKS = (
    "Scores of the last step; over several seeds mean ± sample standard deviation. The loss is that against the dense "
    "models of the same runs, in points, the mean over as many tasks as the brackets say."
)


def task_table(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of text; the rows are empty where there are fewer than two tasks.

    Args:
      runs: of any methods, sparsities and seeds.

    Returns:
      The header, then the dense models and the methods at each sparsity, from the lowest.
    """
    tasks: dict[str, str] = {}
    rows: dict[tuple[float, str, str], dict[str, list[Run]]] = {}
    for setting, methods in group_runs(runs).items():
        tasks.setdefault(setting.task, setting.metric)
        for name, members in methods.items():
            if name != "dense":
                rows.setdefault((setting.sparsity, setting.pattern, name), {})[setting.task] = members
    header = ("", *(f"{task} ({metric})" for task, metric in tasks.items()), "mean loss (tasks)")
    if len(tasks) < 2:
        return header, []
    whole = {task: {run.figure("seed"): run.figure("dense") for run in runs if run.task == task} for task in tasks}
    found = [("dense", *(_scores(list(whole[task].values())) for task in tasks), "")]
    for (sparsity, pattern, name), by_task in sorted(rows.items(), key=_order):
        losses = [spread([run.figure("dense") - run.figure("last") for run in by_task[task]]).mean for task in by_task]
        loss = spread(losses)
        title = f"{words.percent(sparsity)}, {name}" + (f", {pattern}" if pattern != "element" else "")
        scores = [_scores([run.figure("last") for run in by_task.get(task, [])]) for task in tasks]
        found.append((title, *scores, f"{100 * loss.mean:.1f} ({loss.n})".replace("-", "−") if loss.n else "–"))
    return header, found


def _order(row: tuple[tuple[float, str, str], dict[str, list[Run]]]) -> tuple:
    (sparsity, pattern, name), by_task = row
    run = next(iter(by_task.values()))[0]
    return sparsity, pattern, rank_of(run.method), run.kind, run.length or (0, 0), name


def _scores(values: Sequence[float]) -> str:
    found = spread(values)
    return words.score(found.mean) + (f" ± {found.deviation:.3f}" if found.n > 1 else "")
