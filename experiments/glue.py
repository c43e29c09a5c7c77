"""The main job: `python -m experiments.glue`. Fine-tune or load a teacher, prune while distilling, evaluate, report.

Without flags it runs the built-in offline example. Exit codes: 0 done; 2 bad input; 3 the loss was not finite;
4 another process of the run has gone; 130 or 143 interrupted, with a checkpoint to go on from.
"""

import dataclasses
import sys
from pathlib import Path

from experiments.config.resolve import resolve
from experiments.config.settings import Settings, parse
from experiments.runs.command import Stop, run_command


def run(settings: Settings, should_stop: Stop) -> None:
    """Runs every method of the settings, one after the other, from one teacher."""
    if settings.study is not None:
        from experiments.grid.cells import run_study
        from experiments.grid.glue import make_kind

        return run_study(make_kind(), settings.study, settings.cell, should_stop)
    from experiments.coupling.phases import plan_cofi
    from experiments.coupling.structured import run_structured
    from experiments.pages.write import write_comparison, write_report
    from experiments.runs.augment import add_rows
    from experiments.runs.lock import take
    from experiments.runs.method import count_steps, plan
    from experiments.runs.prepare import prepare
    from experiments.runs.record import say
    from experiments.runs.results import read_result
    from experiments.runs.run import get_teacher, run_method
    from experiments.runs.summary import summary
    from kaprune_jax.train.processes import on_first

    prepared = prepare(settings)
    for dense in (True, False):
        count_steps(prepared, dense=dense)  # says so where there are too many
    for method in (name for name in settings.methods if prepared.teacher and name != "cofi"):
        plan(method, prepared, prepared.teacher)  # says what does not fit before anything is written
    if "cofi" in settings.methods:
        plan_cofi(prepared, prepared.teacher)
    assert settings.out is not None
    take(Path(settings.out))
    data = prepared.data
    what = "questions" if data.kind == "span" else "rows"
    say(f"{data.name}: {len(data.train.texts)} training {what}, {len(data.dev.texts)} dev {what}, {data.kind}")
    for note in prepared.notes:
        say(f"note: {note}")
    out, methods = Path(settings.out), settings.methods
    folders = {method: out if len(methods) == 1 else out / method for method in methods}
    teacher = dense = None
    if methods != ("dense",):
        fine_tuned = folders.get("dense", out / "teacher")  # the dense model asked for beside others is their teacher
        teacher, dense = get_teacher(prepared, fine_tuned, should_stop)
        if settings.teacher is None:
            folders = {"dense": fine_tuned} | folders
    unfinished = [method for method in methods if method != "dense" and not read_result(folders[method])]
    training = prepared._replace(augmented=None)  # where nothing is left to be trained
    if teacher and unfinished:
        training = add_rows(prepared, teacher, out, should_stop)
    results = {}
    for method, folder in folders.items():
        given = prepared if method == "dense" else training
        own = given._replace(settings=dataclasses.replace(given.settings, method=method))
        if method == "cofi":
            assert teacher is not None
            results[method] = run_structured(own, folder, should_stop, teacher=teacher, dense=dense)
        else:
            results[method] = run_method(method, own, folder, should_stop, teacher=teacher, dense=dense)
        on_first(lambda folder=folder: write_report(folder))
    if len(methods) > 1:
        on_first(lambda: write_comparison(out, list(folders.values())))
    say("")
    for method in methods:
        say(summary(method, results[method]))
    say(f"report: {out / 'report.html'}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: resolve(parse(arguments)), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
