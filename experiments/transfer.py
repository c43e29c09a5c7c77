"""Coupled pruning: `python -m experiments.transfer`. A task with little data is pruned with the help of another.

How, what and when (Dery, Grangier and Hannun, 2023, arXiv:2311.06382) are `--coupling`, `--share` and `--when`. Without
flags it runs the built-in offline example, with and without coupling. Exit codes are those of `experiments.glue`.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command import Stop, run_command
from experiments.transfer_settings import COUPLINGS, TransferSettings, coupled_phases, couplings, parse, resolve

ShouldStop = Callable[[], bool]


def run(settings: TransferSettings, should_stop: Stop) -> None:
    """Runs every coupling of the settings, one after the other; or ranks, or runs a study."""
    if settings.study is not None:
        from experiments.study import run_study

        return run_study(settings, should_stop)
    from experiments.auxiliary import LENGTHS, get_auxiliaries, prepare_auxiliaries
    from experiments.prepare import prepare
    from experiments.ranking import rank
    from experiments.record import say
    from experiments.report import write_comparison, write_report
    from experiments.source import load_task
    from experiments.summary import summary

    check_folder(settings)
    prepared = prepare(settings, data=load_task(settings), **LENGTHS)
    assert settings.out is not None
    out, wanted = Path(settings.out), couplings(settings)
    others = prepare_auxiliaries(settings, prepared) if settings.rank or wanted != ("none",) else []
    check(settings, prepared)  # says what does not fit before anything is written
    data = prepared.data
    say(f"target {data.name}: {len(data.train.texts)} training rows, {len(data.dev.texts)} dev rows, {data.kind}")
    for other in others:
        say(f"auxiliary {other.data.name}: {len(other.data.train.texts)} training rows")
    for note in prepared.notes:
        say(f"note: {note}")
    if settings.rank:
        return rank(settings, prepared, others, out, should_stop)
    auxiliaries = get_auxiliaries(settings, others, out, should_stop)
    results = {}
    for coupling in wanted:
        own = prepared._replace(settings=dataclasses.replace(settings_of(prepared), coupling=coupling))
        folder = out if len(wanted) == 1 else out / coupling
        results[coupling] = run_coupling(own, auxiliaries, others, folder, out, should_stop)
        write_report(folder)
    if len(wanted) > 1:
        write_comparison(out, [out / coupling for coupling in wanted])
    say("")
    for coupling in wanted:
        say(summary(f"{settings.method}, coupling {coupling}", results[coupling]))
    say(f"report: {out / 'report.html'}")


def settings_of(prepared: Any) -> TransferSettings:
    """The settings as they were made here."""
    assert isinstance(prepared.settings, TransferSettings)
    return prepared.settings


def check(settings: TransferSettings, prepared: Any) -> None:
    """What only the model can say of the flags.

    Raises:
      InputError: more layers shared than there are, or a batch that surgery cannot divide.
    """
    from experiments.coupled import phases, plan_cofi
    from experiments.method import plan
    from experiments.voting import voted_parts
    from kaprune_jax._errors import InputError

    layers = prepared.start.config.num_hidden_layers
    if settings.share_depth is not None and settings.share_depth > layers:
        raise InputError(f"--share-depth {settings.share_depth}: the model has {layers} layers")
    size = prepared.settings.batch_size
    if "surgery" in couplings(settings) and settings.surgery == "attittud" and size % settings.surgery_parts:
        raise InputError(
            f"--surgery-parts {settings.surgery_parts}: a batch of {size} target rows cannot be cut into so many equal "
            "parts"
        )
    if settings.method == "cofi":
        plan_cofi(prepared, prepared.teacher)
    else:
        phases(settings, plan("sparsebert", prepared, prepared.teacher).steps)
    if settings.init_from is not None:
        voted_parts(settings, prepared)


def check_folder(settings: TransferSettings) -> None:
    """Whether the run folder can be made, or, with --resume, gone on with.

    Raises:
      InputError: it holds something else, cannot be written, or there is nothing to resume.
    """
    from experiments.prepare import check_out
    from kaprune_jax._errors import InputError

    assert settings.out is not None
    out, wanted = Path(settings.out), couplings(settings)
    if not settings.resume:
        return check_out(settings)
    if not out.is_dir() or not any(out.rglob("config.json")):
        raise InputError(f"--resume: {out} is no run folder: there is nothing to go on with")
    inside = [name for name in COUPLINGS if (out / name / "env.json").is_file()]
    if (out / "config.json").is_file() and len(wanted) > 1:
        raise InputError(f"--resume: {out} is a run of one coupling; --coupling {settings.coupling} names several")
    if inside and (len(wanted) == 1 or not set(inside) <= set(wanted)):
        raise InputError(f"--resume: {out} holds runs of {', '.join(inside)}; --coupling is {settings.coupling}")


class Beginning(NamedTuple):
    """Where a coupled run of the target begins.

    Attributes:
      prepared: the target, its start changed where an auxiliary task was trained before it.
      parts: weights and gates to start from, or None.
    """

    prepared: Any
    parts: Any


def run_coupling(
    prepared: Any, auxiliaries: list, others: list, folder: Path, out: Path, should_stop: ShouldStop
) -> dict[str, Any]:
    """One coupling, from the teacher to the result."""
    from experiments.joint import run_joint
    from experiments.record import say
    from experiments.structured import run_structured
    from experiments.voting import voted_parts

    settings = settings_of(prepared)
    coupled = [] if settings.coupling == "none" else auxiliaries
    if coupled and settings.share == "nothing" and not settings.tie:
        say("note: nothing is shared, so the target is trained as if it were alone")
        coupled = []
    when = coupled_phases(settings) if coupled else ()
    beginning = Beginning(prepared, None)
    if coupled and settings.coupling == "sequential":
        beginning = begin_sequential(prepared, coupled, others, folder, should_stop)
        coupled, when = ([*coupled], ("after",)) if "after" in when else ([], ())
    if settings.init_from is not None and beginning.parts is None:
        beginning = Beginning(beginning.prepared, voted_parts(settings, beginning.prepared))
    prepared = beginning.prepared
    teacher, dense = get_target_teacher(prepared, coupled, when, folder, out, should_stop)
    options: dict[str, Any] = dict(
        teacher=teacher,
        dense=dense,
        auxiliaries=coupled,
        share=settings.share if coupled else "nothing",
        depth=settings.share_depth if coupled else None,
        when=when,
        first=beginning.parts,
    )
    if settings.method == "cofi":
        return run_structured(prepared, folder, should_stop, **options)
    return run_joint("sparsebert", prepared, folder, should_stop, **options)


def get_target_teacher(
    prepared: Any, coupled: list, when: tuple[str, ...], folder: Path, out: Path, should_stop: ShouldStop
):
    """The target's teacher: given, or fine-tuned; jointly with the auxiliary tasks where "before" is coupled so."""
    from experiments.joint import run_joint
    from experiments.run import check_teacher, get_teacher
    from experiments.settings import teacher_settings
    from kaprune_jax.deploy.folder import load
    from kaprune_jax.transfer.sharing import shares_weights

    settings = settings_of(prepared)
    alone = prepared._replace(settings=dataclasses.replace(teacher_settings(settings), allow_weak_teacher=True))
    if prepared.teacher is not None:
        return get_teacher(alone, folder, should_stop)
    if settings.coupling in ("joint", "surgery") and "before" in when and shares_weights(settings.share):
        place = folder / "teacher"
        joint = prepared._replace(settings=dataclasses.replace(settings, method="dense"))
        result = run_joint(
            "dense",
            joint,
            place,
            should_stop,
            teacher=None,
            dense=None,
            auxiliaries=coupled,
            share="weights",
            depth=settings.share_depth,
            when=("before", "prune", "after"),
        )
        check_teacher(alone, result["dense"], place)
        return load(place), result["dense"]
    place = folder / "teacher" if settings.coupling == "sequential" else out / "teacher"
    return get_teacher(alone, place, should_stop)


def begin_sequential(
    prepared: Any, auxiliaries: list, others: list, folder: Path, should_stop: ShouldStop
) -> Beginning:
    """Trains on the auxiliary tasks first, one after the other, in the phases asked for.

    "before": the target's start, and so its teacher, is the encoder fine-tuned on them (STILT, Phang et al., 2018,
    arXiv:1811.01088). "prune": gates or masks are learned on them first. What goes on to the target is what is shared.
    """
    from experiments.auxiliary import fine_tune
    from experiments.sequential import carry_over, prune_first
    from kaprune_jax.transfer.sharing import shares_weights

    settings, when = settings_of(prepared), coupled_phases(settings_of(prepared))
    parts = None
    for number, (auxiliary, other) in enumerate(zip(auxiliaries, others, strict=True)):
        if "before" in when and shares_weights(settings.share):
            if number:  # goes on from what the one before has left
                other = other._replace(start=carry_over(other.start, prepared.start, depth=settings.share_depth))
                place = folder / f"teacher-{auxiliary.name}"
                auxiliary = auxiliary._replace(teacher=fine_tune(other, place, should_stop))
            start = carry_over(prepared.start, auxiliary.teacher, depth=settings.share_depth)
            prepared = prepared._replace(start=start)
            other = other._replace(start=carry_over(other.start, start, depth=settings.share_depth))
        if "prune" in when:
            place = folder / f"first-{auxiliary.name}"
            parts = prune_first(settings, other, auxiliary, prepared, place, should_stop, first=parts)
    return Beginning(prepared, parts)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: resolve(parse(arguments)), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
