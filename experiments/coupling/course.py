"""One coupling, from its beginning over the target's teacher to the pruned model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.settings import teacher_settings
from experiments.config.transfer_settings import (
    PHASES,
    TransferSettings,
    coupled_phases,
    couples_teacher,
    couplings,
    joint_teacher_settings,
    takes_turns,
)
from experiments.coupling.common import Auxiliary, settings_of
from experiments.coupling.joint import run_joint
from experiments.coupling.phases import phases, plan_cofi
from experiments.coupling.sequential import begin_sequential, start_after
from experiments.coupling.structured import run_structured
from experiments.coupling.voting import voted_parts
from experiments.runs.method import plan
from experiments.runs.prepare import Prepared
from experiments.runs.record import say
from experiments.runs.run import check_teacher, get_teacher
from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.model import Model

ShouldStop = Callable[[], bool]


class Beginning(NamedTuple):
    """Where a coupled run of the target begins.

    Attributes:
      prepared: the target, its start changed where an auxiliary task was trained before it.
      auxiliaries: the tasks that are trained beside it.
      when: in these phases.
      parts: weights and gates to start from, or None.
    """

    prepared: Prepared
    auxiliaries: list[Auxiliary]
    when: tuple[str, ...]
    parts: Params | None


def check_model(settings: TransferSettings, prepared: Prepared) -> None:
    """What only the model can say of the flags.

    Raises:
      InputError: more layers shared than there are, or a batch that surgery cannot divide.
    """
    layers = prepared.start.config.num_hidden_layers
    if settings.share_depth is not None and settings.share_depth > layers:
        raise InputError(f"--share-depth {settings.share_depth}: the model has {layers} layers")
    size = prepared.settings.batch_size
    assert size is not None  # resolved
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


def run_coupling(
    prepared: Prepared,
    auxiliaries: list[Auxiliary],
    others: list[Prepared],
    folder: Path,
    alone: Path,
    should_stop: ShouldStop,
) -> dict[str, Any]:
    """One coupling, from its beginning to its result.

    Args:
      prepared: the target.
      auxiliaries: the other tasks.
      others: their data and starts, in the same order.
      folder: the run folder.
      alone: folder of the teacher that the target has where no other task takes part in its training.
      should_stop: asked after every step.
    """
    settings = settings_of(prepared)
    beginning = begin(prepared, auxiliaries, others, folder, should_stop)
    place = folder / "teacher" if couples_teacher(settings) else alone
    return prune(beginning, place, folder, should_stop)


def begin(
    prepared: Prepared, auxiliaries: list[Auxiliary], others: list[Prepared], folder: Path, should_stop: ShouldStop
) -> Beginning:
    """Does what comes before the target is trained at all, into a folder: the run's, or one that several runs share."""
    settings = settings_of(prepared)
    if settings.coupling == "none":
        auxiliaries = []
    if auxiliaries and settings.share == "nothing" and not settings.tie:
        say("note: nothing is shared, so the target is trained as if it were alone")
        auxiliaries = []
    when, parts = coupled_phases(settings) if auxiliaries else (), None
    if auxiliaries and settings.coupling == "sequential":
        prepared, parts = begin_sequential(prepared, auxiliaries, others, folder, should_stop)
        auxiliaries, when = (auxiliaries, ("after",)) if takes_turns(settings) else ([], ())
    elif auxiliaries and settings.start == "auxiliary":
        prepared, auxiliaries = start_after(prepared, auxiliaries)
    if settings.init_from is not None and parts is None:
        parts = voted_parts(settings, prepared)
    return Beginning(prepared, auxiliaries, when, parts)


def get_target_teacher(beginning: Beginning, place: Path, should_stop: ShouldStop) -> tuple[Model, float]:
    """The target's teacher and its score: given, or fine-tuned into `place`, jointly where "before" is coupled so."""
    prepared, settings = beginning.prepared, settings_of(beginning.prepared)
    alone = prepared._replace(settings=dataclasses.replace(teacher_settings(settings), allow_weak_teacher=True))
    if prepared.teacher is not None or settings.coupling == "sequential" or not couples_teacher(settings):
        return get_teacher(alone, place, should_stop)
    result = run_joint(
        "dense",
        prepared._replace(settings=joint_teacher_settings(settings)),
        place,
        should_stop,
        teacher=None,
        dense=None,
        auxiliaries=beginning.auxiliaries,
        share="weights",
        depth=settings.share_depth,
        when=PHASES,
    )
    check_teacher(alone, result["dense"], place)
    return load(place), result["dense"]


def prune(beginning: Beginning, place: Path, folder: Path, should_stop: ShouldStop) -> dict[str, Any]:
    """Prunes the target into a run folder, its teacher in `place`, and returns the result."""
    settings, coupled = settings_of(beginning.prepared), beginning.auxiliaries
    teacher, dense = get_target_teacher(beginning, place, should_stop)
    options: dict[str, Any] = dict(
        teacher=teacher,
        dense=dense,
        auxiliaries=coupled,
        share=settings.share if coupled else "nothing",
        depth=settings.share_depth if coupled else None,
        when=beginning.when,
        first=beginning.parts,
    )
    if settings.method == "cofi":
        return run_structured(beginning.prepared, folder, should_stop, **options)
    return run_joint("sparsebert", beginning.prepared, folder, should_stop, **options)
