"""The flags of `python -m experiments.transfer`, besides those of the main job."""

import dataclasses
import math
import os
import re
from typing import ClassVar

from experiments.config.checks import asks_questions, check_phases
from experiments.config.flags import flag
from experiments.config.flags import parse as parse_flags
from experiments.config.resolve import only_a_study, with_lengths
from experiments.config.resolve import resolve as resolve_main
from experiments.config.settings import AROUND, TEACHER, Settings
from experiments.presets import GIVEN_TASKS, MICRO_TASKS, RECIPES, Recipe
from kaprune_jax._errors import InputError
from kaprune_jax.transfer.sharing import SHARE, Share, shares_gates, shares_weights

COUPLINGS = ("none", "sequential", "joint", "surgery")
PHASES = ("before", "prune", "after")
TASKS = tuple(name for name in GIVEN_TASKS if name != "squad")
LENGTHS = {"lengths": 2, "length_multiple": 16}
"""A gradient is compiled for each length and task; programs are kept from run to run of a study."""
JOINT_TEACHER = (
    *TEACHER,
    *"coupling auxiliary auxiliary_dir auxiliary_text auxiliary_label auxiliary_seed auxiliary_rows".split(),
    *"auxiliary_teacher_steps auxiliary_teacher auxiliary_weight auxiliary_schedule auxiliary_mixing".split(),
    *"surgery surgery_on surgery_parts share_depth start".split(),
)
"""The settings that a target's teacher follows from where it is trained jointly with the auxiliary tasks."""


@dataclasses.dataclass(frozen=True)
class TransferSettings(Settings):
    """Every setting of a coupled run."""

    MODULE: ClassVar[str] = "experiments.transfer"
    SPARSITY: ClassVar[float] = 0.9

    task: str = flag(f"{', '.join(TASKS)}; built in: {', '.join(MICRO_TASKS)}", "micro-rte")
    method: str | None = flag("cofi (gates) or sparsebert (masks)", "cofi")
    recipe: Recipe = flag("", "best", choices=RECIPES)  # flags without help are for experiments.glue
    student: str = flag("", Settings.student)
    stride: int | None = flag("", None)
    augment: int | None = flag("", None)
    no_augment: bool = flag("", False)
    augment_file: str | None = flag("", None)
    out: str | None = flag("run folder, must not hold another run [runs/TASK-AUXILIARY-METHOD-SPARSITY-sSEED]", None)
    sparsity: float | None = flag("fraction of encoder-matrix weights removed, in [0, 1) [0.9; 1 - N/M for N:M]", None)
    before: float = flag("fraction of the run before anything is removed, in [0, 1)", Settings.before)
    after: float = flag("fraction of the run in which what is left is fine-tuned, in [0, 1)", Settings.after)
    auxiliary: str = flag(
        "auxiliary tasks, comma-separated: names as for --task, from the same folder or source, or NAME=FILE",
        "micro-nli",
    )
    auxiliary_dir: str | None = flag("folder of auxiliary GLUE tasks [--data-dir]", None)
    auxiliary_text: str = flag("text column of auxiliary files, or two, separated by a comma", "sentence")
    auxiliary_label: str = flag("label column of auxiliary files", "label")
    auxiliary_seed: int | None = flag("of the auxiliary tasks' rows, order and teachers [--seed]", None)
    auxiliary_rows: int | None = flag("use so many rows of each auxiliary task, drawn by the seed [all]", None)
    auxiliary_teacher_steps: int | None = flag("optimizer steps while they are fine-tuned, >= 1 [by task]", None)
    auxiliary_teacher: str | None = flag(
        "their teachers, comma-separated run or model folders [fine-tuned first]", None
    )
    coupling: str = flag(
        f"how: {', '.join(COUPLINGS)}; several, comma-separated, run one after the other", "none,joint"
    )
    surgery: str = flag("what surgery does to the auxiliary gradient", "pcgrad", choices=("pcgrad", "attittud"))
    surgery_on: str = flag("what surgery acts on", "both", choices=("weights", "gates", "both"))
    surgery_parts: int = flag("attittud: parts of the target batch whose gradients span its space, >= 1", 4)
    share: Share = flag("what is common to the tasks; with sparsebert gates are masks", "both", choices=SHARE)
    share_depth: int | None = flag("share in the first so many layers only, >= 1 [all]", None)
    when: str = flag("phases in which tasks are coupled, of before, prune, after", "before,prune,after")
    start: str = flag(
        "what the target starts from with joint and surgery: the pre-trained encoder, or as with sequential the one "
        "fine-tuned on the auxiliary tasks",
        "pretrained",
        choices=("pretrained", "auxiliary"),
    )
    auxiliary_weight: float = flag("of the auxiliary loss, >= 0", 1.0)
    auxiliary_schedule: str = flag(
        "of that weight until the end of pruning", "constant", choices=("constant", "fade-in", "fade-out")
    )
    auxiliary_mixing: float = flag(
        "several auxiliary tasks are drawn in proportion to rows^(1/T): T >= 1, 1 by size, large T alike", 1.0
    )
    tie: float = flag("pull between the tasks' own gates, times their mean squared distance in log alpha, >= 0", 0.0)
    init_from: str | None = flag("earlier runs with gates, comma-separated, whose masks vote on the first gates", None)
    vote_rate: float = flag("weight of that vote against --gate-start, in [0, 1]", 0.5)
    rank: bool = flag("only score the auxiliary candidates, and none, for this target", False)


def parse(arguments: list[str] | None = None) -> TransferSettings:
    """Reads the flags.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    return parse_flags(
        TransferSettings,
        arguments,
        prog="python -m experiments.transfer",
        description="Prune an encoder for a task with little data, coupled with an auxiliary task. Without flags: the "
        "built-in offline example, micro-nli for micro-rte, with and without coupling.",
        recipes=("best",),
    )


def resolve(settings: TransferSettings) -> TransferSettings:
    """The settings with every default filled in, checked.

    Raises:
      InputError: a value that is not allowed, naming flag, value and what is.
    """
    if settings.study is not None:
        return only_a_study(settings)
    if settings.method not in ("cofi", "sparsebert"):
        raise InputError(f"--method {settings.method}: allowed here: cofi, sparsebert")
    if settings.recipe != "best":
        raise InputError(f"--recipe {settings.recipe}: that of one task alone, for experiments.glue")
    if settings.student != Settings.student:
        raise InputError(f"--student {settings.student}: of one task alone, for experiments.glue")
    if settings.augment is not None:
        raise InputError(f"--augment {settings.augment}: augmented rows are for experiments.glue")
    _several("coupling", settings.coupling, COUPLINGS)
    _several("when", settings.when, PHASES)
    names = auxiliary_names(settings)
    if asks_questions(settings):
        what = f"--train-file {settings.train_file}" if settings.train_file else f"--task {settings.task}"
        raise InputError(f"{what}: answering questions is not coupled with other tasks; use experiments.glue")
    if "squad" in settings.auxiliary.split(","):
        raise InputError(f"--auxiliary {settings.auxiliary}: squad is for experiments.glue; another task is needed")
    resolved = resolve_main(dataclasses.replace(with_lengths(settings, LENGTHS), no_augment=True))
    if resolved.task in names:
        raise InputError(f"--auxiliary {settings.auxiliary}: {resolved.task} is the target; another task is needed")
    if settings.train_file is not None and settings.train_file in _files(settings):
        raise InputError(f"--auxiliary {settings.auxiliary}: {settings.train_file} is the target's own file")
    ranges = {
        "auxiliary_seed": (0, 2**31 - 1, "a whole number in [0, 2147483647]"),
        "auxiliary_teacher_steps": (1, math.inf, "a whole number >= 1"),
        "auxiliary_rows": (1, math.inf, "a whole number >= 1"),
        "surgery_parts": (1, math.inf, "a whole number >= 1"),
        "share_depth": (1, math.inf, "a whole number >= 1"),
        "auxiliary_weight": (0.0, 1e9, "a number >= 0"),
        "auxiliary_mixing": (1.0, 1e9, "a number >= 1"),
        "tie": (0.0, 1e9, "a number >= 0"),
        "vote_rate": (0.0, 1.0, "a fraction in [0, 1]"),
    }
    for name, (low, high, allowed) in ranges.items():
        value = getattr(resolved, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} {value}: {allowed} is needed")
    if resolved.auxiliary_teacher is not None and len(resolved.auxiliary_teacher.split(",")) != len(names):
        raise InputError(
            f"--auxiliary-teacher {resolved.auxiliary_teacher}: one for each of {', '.join(names)} is needed, in order"
        )
    if resolved.start == "auxiliary" and not ("before" in coupled_phases(resolved) and shares_weights(resolved.share)):
        raise InputError(
            f"--start auxiliary: weights go over before pruning; --when {resolved.when} and --share {resolved.share} "
            "leave that out"
        )
    masks = resolved.method == "sparsebert"
    if masks:
        check_phases(resolved)
    if resolved.coupling != "none":
        _check_acts(resolved, masks)
    if masks and resolved.scope == "global" and resolved.coupling != "none":
        raise InputError("--scope global ranks the copies of both tasks together; use matrix")
    if masks and resolved.share_depth is not None and "sequential" in couplings(resolved):
        raise InputError(f"--share-depth {resolved.share_depth}: not with sparsebert one task after the other")
    if resolved.tie and (masks or shares_gates(resolved.share)):
        raise InputError(f"--tie {resolved.tie}: for gates of their own; use --method cofi, --share weights or nothing")
    if "surgery" in couplings(resolved) and masks and resolved.surgery_on == "gates":
        raise InputError("--surgery-on gates: masks have no gradients; with --method sparsebert use weights or both")
    if "surgery" in couplings(resolved) and resolved.surgery == "attittud" and resolved.accumulate > 1:
        raise InputError(
            f"--accumulate {resolved.accumulate}: attittud cuts a batch into parts of its own (--surgery-parts)"
        )
    idle = {"gates": ("weights", "nothing"), "weights": ("gates", "nothing"), "both": ("nothing",)}
    if "surgery" in couplings(resolved) and resolved.share in idle[resolved.surgery_on]:
        raise InputError(
            f"--surgery-on {resolved.surgery_on}: with --share {resolved.share} there is nothing to filter"
        )
    if resolved.init_from is not None and "sequential" in couplings(resolved):
        raise InputError(f"--init-from {resolved.init_from}: sequential coupling has first gates of its own")
    if resolved.init_from is not None and resolved.method != "cofi":
        raise InputError(f"--init-from {resolved.init_from}: votes on gates, so only with --method cofi")
    if resolved.auxiliary_seed is None:
        resolved = dataclasses.replace(resolved, auxiliary_seed=resolved.seed)
    if settings.out is None:
        stem = f"{resolved.task}-{'+'.join(names)}-{resolved.method}-{resolved.sparsity:g}-s{resolved.seed}"
        resolved = dataclasses.replace(resolved, out=os.path.join("runs", stem))
    return resolved


def _check_acts(settings: TransferSettings, masks: bool) -> None:
    """Whether the coupling does something in the phases asked for.

    Raises:
      InputError: it does nothing there.
    """
    when, where = coupled_phases(settings), f"--when {settings.when}"
    one_by_one = "sequential" in couplings(settings)  # masks of joint training rank the copies of both all along
    if settings.share == "gates" and "prune" not in when and (one_by_one or not masks):
        raise InputError(f"{where}: with --share gates nothing is shared there; gates are learned in prune")
    if settings.share_depth is not None and when == ("after",) and not masks:
        raise InputError(f"{where}: with --share-depth nothing is shared there, as the smaller layers are one model's")
    if settings.tie and "prune" not in when:
        raise InputError(f"{where}: --tie {settings.tie} acts on gates, which are learned in prune")
    together = [name for name in couplings(settings) if name in ("joint", "surgery")]
    if together and when == ("after",) and settings.auxiliary_schedule == "fade-out":
        raise InputError(f"{where}: --auxiliary-schedule fade-out has ended there; use constant or fade-in")


def auxiliary_names(settings: TransferSettings) -> tuple[str, ...]:
    """The names of the auxiliary tasks.

    Raises:
      InputError: none, an empty one, or one named twice.
    """
    names = tuple(part.split("=", 1)[0] for part in settings.auxiliary.split(","))
    if not all(re.fullmatch(r"[A-Za-z0-9._+-]+", name) for name in names) or len(set(names)) < len(names):
        raise InputError(
            f"--auxiliary {settings.auxiliary!r}: task names or NAME=FILE, each once, comma-separated; a name has "
            "letters, digits, and . _ + -"
        )
    return names


def couplings(settings: TransferSettings) -> tuple[str, ...]:
    """The couplings to run, in order."""
    return tuple(settings.coupling.split(","))


def coupled_phases(settings: TransferSettings) -> tuple[str, ...]:
    """The phases in which tasks are coupled."""
    return tuple(settings.when.split(","))


def couples_teacher(settings: TransferSettings) -> bool:
    """Whether auxiliary tasks take part in what the target's teacher is: its start, or its training."""
    return settings.coupling != "none" and "before" in coupled_phases(settings) and shares_weights(settings.share)


def starts_after(settings: TransferSettings) -> bool:
    """Whether the target's training, in one of the couplings, starts from the encoder of an auxiliary teacher."""
    return couples_teacher(settings) and ("sequential" in couplings(settings) or settings.start == "auxiliary")


def takes_turns(settings: Settings) -> bool:
    """Whether the auxiliary tasks are trained on the smaller model before the target is: sequentially, and its weights.

    Settings of one task alone have none.
    """
    return (
        isinstance(settings, TransferSettings)
        and settings.coupling == "sequential"
        and "after" in coupled_phases(settings)
        and shares_weights(settings.share)
        and settings.share_depth is None
    )


def joint_teacher_settings(settings: TransferSettings) -> TransferSettings:
    """The settings of a jointly trained teacher: those of pruning at their defaults, as `teacher_settings` has them."""
    kept = {name: getattr(settings, name) for name in (*JOINT_TEACHER, *AROUND, "no_augment")}
    return dataclasses.replace(TransferSettings(), **kept | {"method": "dense", "share": "weights"})


def _files(settings: TransferSettings) -> list[str]:
    return [part.split("=", 1)[1] for part in settings.auxiliary.split(",") if "=" in part]


def _several(name: str, text: str, allowed: tuple[str, ...]) -> None:
    parts = text.split(",")
    if not set(parts) <= set(allowed) or len(set(parts)) < len(parts):
        raise InputError(f"--{name} {text!r}: some of {', '.join(allowed)} are needed, each once, comma-separated")
