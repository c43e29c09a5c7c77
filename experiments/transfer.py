"""Coupled pruning: `python -m experiments.transfer`. A task with little data is pruned with the help of another.

How, what and when (Dery, Grangier and Hannun, 2023, arXiv:2311.06382) are `--coupling`, `--share` and `--when`. Without
flags it runs the built-in offline example, with and without coupling. Exit codes are those of `experiments.glue`.
"""

import dataclasses
import sys
from pathlib import Path

from experiments.config.transfer_settings import COUPLINGS, TransferSettings, couplings, parse, resolve
from experiments.runs.command import Stop, run_command


def run(settings: TransferSettings, should_stop: Stop) -> None:
    """Runs every coupling of the settings, one after the other; or ranks, or runs a study."""
    if settings.study is not None:
        from experiments.grid.cells import run_study
        from experiments.grid.transfer import make_kind

        return run_study(make_kind(), settings.study, settings.cell, should_stop)
    from experiments.coupling.auxiliary import are_chained, get_auxiliaries, prepare_auxiliaries
    from experiments.coupling.common import settings_of
    from experiments.coupling.course import check_model, run_coupling
    from experiments.coupling.ranking import rank
    from experiments.pages.write import write_comparison, write_report
    from experiments.runs.lock import take
    from experiments.runs.prepare import prepare
    from experiments.runs.record import say
    from experiments.runs.source import load_task
    from experiments.runs.summary import summary
    from kaprune_jax.train.processes import on_first

    on_first(lambda: check_folder(settings))
    prepared = prepare(settings, data=load_task(settings))
    assert settings.out is not None
    out, wanted = Path(settings.out), couplings(settings)
    others = prepare_auxiliaries(settings, prepared) if settings.rank or wanted != ("none",) else []
    check_model(settings, prepared)  # says what does not fit before anything is written
    take(out)
    data = prepared.data
    say(f"target {data.name}: {len(data.train.texts)} training rows, {len(data.dev.texts)} dev rows, {data.kind}")
    for other in others:
        say(f"auxiliary {other.data.name}: {len(other.data.train.texts)} training rows")
    for note in prepared.notes:
        say(f"note: {note}")
    if settings.rank:
        return rank(settings, prepared, others, out, should_stop)
    targets = {
        each: prepared._replace(settings=dataclasses.replace(prepared.settings, coupling=each)) for each in wanted
    }
    chained = {each: are_chained(settings_of(target), others) for each, target in targets.items()}
    kinds = {chained[each] for each in wanted if each != "none"}
    teachers = {kind: get_auxiliaries(settings, others, out, should_stop, chained=kind) for kind in sorted(kinds)}
    results = {}
    for coupling, target in targets.items():
        auxiliaries = teachers.get(chained[coupling], [])
        folder = out if len(wanted) == 1 else out / coupling
        results[coupling] = run_coupling(target, auxiliaries, others, folder, out / "teacher", should_stop)
        on_first(lambda folder=folder: write_report(folder))
    if len(wanted) > 1:
        on_first(lambda: write_comparison(out, [out / coupling for coupling in wanted]))
    say("")
    for coupling in wanted:
        say(summary(f"{settings.method}, coupling {coupling}", results[coupling]))
    say(f"report: {out / 'report.html'}")


def check_folder(settings: TransferSettings) -> None:
    """Whether the run folder can be made, or, with --resume, gone on with.

    Raises:
      InputError: it holds something else, cannot be written, or there is nothing to resume.
    """
    from experiments.runs.folders import check_out, is_only_begun
    from experiments.runs.lock import check_free
    from kaprune_jax._errors import InputError

    assert settings.out is not None
    out, wanted = Path(settings.out), couplings(settings)
    if not settings.resume:
        return check_out(settings)
    check_free(out)
    if not out.is_dir() or not (any(out.rglob("config.json")) or is_only_begun(out)):
        raise InputError(f"--resume: {out} is no run folder: there is nothing to go on with")
    inside = [name for name in COUPLINGS if (out / name / "env.json").is_file()]
    if (out / "config.json").is_file() and len(wanted) > 1:
        raise InputError(f"--resume: {out} is a run of one coupling; --coupling {settings.coupling} names several")
    if inside and (len(wanted) == 1 or not set(inside) <= set(wanted)):
        raise InputError(f"--resume: {out} holds runs of {', '.join(inside)}; --coupling is {settings.coupling}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: resolve(parse(arguments)), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
