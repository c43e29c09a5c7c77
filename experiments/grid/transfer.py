"""Studies of `experiments.transfer`: how tasks are coupled, over target rows, sparsities and seeds."""

from pathlib import Path
from typing import Any

from experiments.config.settings import TEACHER
from experiments.config.transfer_settings import JOINT_TEACHER, TransferSettings, couples_teacher, resolve
from experiments.grid.cells import make_once
from experiments.grid.file import Flags, Kind, ShouldStop, digest, digest_of
from kaprune_jax._errors import InputError

AUXILIARY = (
    "auxiliary auxiliary_dir auxiliary_text auxiliary_label auxiliary_rows auxiliary_seed data_dir source model dtype "
    "pooling max_length lengths length_multiple batch_size evaluations auxiliary_teacher_steps teacher_schedule warmup "
    "weight_decay accumulate"
).split()
"""The settings that the teachers of auxiliary tasks follow from."""
FIRST = "schedule allow_weak_teacher method share share_depth when auxiliary_teacher".split()
"""Those that pruning on an auxiliary task first follows from, beside these and the settings of pruning."""
_COUPLED = [*(name for name in JOINT_TEACHER if name not in (*TEACHER, "coupling")), "share", "when", "tie"]


def make_kind() -> Kind[TransferSettings]:
    """How the cells of a study of couplings are run."""
    from experiments.pages.study import write_study

    defaults: dict[str, Any] = {"allow_weak_teacher": True}
    return Kind(TransferSettings, defaults, _resolve, _run, write_study, reduce=_reduce)


def _reduce(cell: Flags) -> Flags:
    """Without coupling a cell is the same whatever it is not coupled with."""
    alone = cell.get("coupling") == "none"
    return {name: value for name, value in cell.items() if not (alone and name in _COUPLED)}


def _resolve(settings: TransferSettings) -> TransferSettings:
    resolved = resolve(settings)
    if "," in resolved.coupling:
        raise InputError(f"coupling={resolved.coupling!r}; one in each cell is needed")
    return resolved


def _run(settings: TransferSettings, folder: Path, out: Path, should_stop: ShouldStop) -> None:
    from experiments.coupling.auxiliary import are_chained, get_auxiliaries, prepare_auxiliaries
    from experiments.coupling.common import Auxiliary
    from experiments.coupling.course import begin, check_model, get_target_teacher, prune
    from experiments.coupling.sequential import PRUNING
    from experiments.pages.write import write_report
    from experiments.runs.method import count_steps
    from experiments.runs.prepare import prepare
    from experiments.runs.source import load_task

    prepared = prepare(settings, data=load_task(settings))
    check_model(settings, prepared)
    others, auxiliaries = [], []
    if settings.coupling != "none":
        others = prepare_auxiliaries(settings, prepared)
        chained = are_chained(settings, others)
        same = [*AUXILIARY, "share_depth", "auxiliary_teacher"] if chained else AUXILIARY
        place = out / "teachers" / f"{'chained' if chained else 'auxiliary'}-{digest_of(settings, same)}"

        def get(place: Path) -> list[Auxiliary]:
            return get_auxiliaries(settings, others, place, should_stop, chained=chained)

        make_once(place, get, should_stop)
        auxiliaries = get(place)
    earlier = folder
    if settings.coupling == "sequential" and settings.share != "nothing":  # is the same for every set of target rows
        names = [*AUXILIARY, *PRUNING, *FIRST]
        steps = count_steps(prepared, dense=False)
        earlier = out / "earlier" / digest({"steps": steps, "digest": digest_of(settings, names)})
        make_once(
            earlier, lambda work: begin(prepared, auxiliaries, others, work, should_stop), should_stop, light=False
        )
    beginning = begin(prepared, auxiliaries, others, earlier, should_stop)
    same = JOINT_TEACHER if couples_teacher(settings) else TEACHER
    teacher = out / "teachers" / f"target-{digest_of(settings, same)}"
    if settings.teacher is None:
        make_once(teacher, lambda work: get_target_teacher(beginning, work, should_stop), should_stop)
    prune(beginning, teacher, folder, should_stop)
    write_report(folder)
