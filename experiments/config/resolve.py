"""Fills in the defaults of the main job's flags that depend on others, and checks what they come to."""

import dataclasses
import os
import re
from pathlib import Path

from experiments.config.checks import asks_questions, check, check_questions
from experiments.config.settings import BY_METHOD, S, Settings
from experiments.presets import GIVEN_TASKS, MICRO_TASKS, OWN_FILES, PRESETS, RECIPES, Preset
from kaprune_jax._errors import InputError
from kaprune_jax.prune.patterns import parse_pattern

LENGTHS = {"lengths": 4, "length_multiple": 8}
_TRAIN = re.compile(r"train(ing)?([-_](set|subset|split|data))?([-_]v\d+)?", re.IGNORECASE)


def resolve(settings: S) -> S:
    """The settings with every default filled in, checked.

    Raises:
      InputError: a value that is not allowed, naming flag, value and what is.
    """
    if settings.study is not None:
        return only_a_study(settings)
    if settings.cell is not None:
        raise InputError(f"--cell {settings.cell}: slices of a study, so only with --study FILE")
    own = settings.train_file is not None or settings.dev_file is not None
    if settings.train_file is not None and settings.dev_file is None:
        if settings.hold_out is None:
            raise InputError(
                f"--train-file {settings.train_file}: --dev-file FILE is needed too, or --hold-out N, to score on so "
                "many of its rows"
            )
        settings = dataclasses.replace(settings, dev_file=settings.train_file)  # whose rows are then not looked at
    if settings.dev_file is not None and settings.train_file is None:
        raise InputError(f"--dev-file {settings.dev_file}: --train-file FILE is needed too")
    if not own and settings.task not in (*MICRO_TASKS, *GIVEN_TASKS):
        allowed = ", ".join((*MICRO_TASKS, *GIVEN_TASKS))
        raise InputError(f"--task {settings.task!r} is unknown; allowed: {allowed}")
    if settings.recipe not in RECIPES:
        raise InputError(f"--recipe {settings.recipe}: allowed: {', '.join(RECIPES)}")
    micro = settings.task in MICRO_TASKS and not own
    questions = asks_questions(settings)
    if not own and not micro and settings.data_dir is None and settings.source == "folder":
        layout = "train-v1.1.json, dev-v1.1.json" if questions else "GLUE's layout"
        raise InputError(f"--task {settings.task} needs --data-dir FOLDER ({layout}), --source hub or --source tfds")
    if own and settings.task != Settings.task:
        raise InputError(f"--task {settings.task} and --train-file: give one of them")
    if settings.data_dir is not None and (micro or own):
        raise InputError(
            f"--data-dir {settings.data_dir}: only for GLUE tasks and squad, named by --task; this run needs no folder"
        )
    if settings.data_dir is not None and settings.source != "folder":
        raise InputError(f"--data-dir {settings.data_dir} and --source {settings.source}: give one of them")
    if settings.method is None:
        settings = dataclasses.replace(settings, method="sparsebert,hard-labels" if micro else "sparsebert")
    settings = with_lengths(settings, LENGTHS)
    preset = vars(preset_of(settings))
    missing = [field.name for field in dataclasses.fields(settings) if getattr(settings, field.name) is None]
    filled = {name: preset[name] for name in missing if name in preset and name not in BY_METHOD}
    if settings.no_augment and settings.augment is not None:
        raise InputError(f"--augment {settings.augment} and --no-augment: give one of them")
    if settings.no_augment or settings.methods == ("dense",):
        filled.pop("augment", None)  # a teacher would have to label the rows
    filled["task"] = own_name(settings.train_file or "") if own else settings.task
    try:
        pattern = parse_pattern(settings.pattern)
    except ValueError as error:
        raise InputError(f"--pattern: {error}") from None
    if settings.sparsity is None:
        filled["sparsity"] = settings.SPARSITY if pattern.sparsity is None else pattern.sparsity
    elif pattern.sparsity is not None and abs(settings.sparsity - pattern.sparsity) > 1e-9:
        raise InputError(
            f"--sparsity {settings.sparsity} does not go with --pattern {settings.pattern}, which removes exactly "
            f"{pattern.sparsity}; leave --sparsity out"
        )
    resolved = dataclasses.replace(settings, **filled)
    check(resolved)
    check_questions(resolved)
    if (pattern.kind == "n:m" or pattern.balanced) and resolved.scope == "global":
        raise InputError(
            f"--scope global does not go with --pattern {resolved.pattern}, which is per group; use matrix"
        )
    if resolved.out is None:
        name = resolved.method if len(resolved.methods) == 1 else "methods"
        paper = "-paper" if resolved.recipe == "paper" else ""
        resolved = dataclasses.replace(
            resolved,
            out=os.path.join("runs", f"{resolved.task}-{name}{paper}-{resolved.sparsity:g}-s{resolved.seed}"),
        )
    return resolved


def own_name(file: str) -> str:
    """What to call the task of an own file: its name, or, where that is train, train_set, train-v1.1, its folder's."""
    place = Path(file)
    name = place.name.split(".")[0]
    return place.absolute().parent.name if _TRAIN.fullmatch(name) else name


def only_a_study(settings: S) -> S:
    """The settings of a study, whose file has all the others."""
    for field in dataclasses.fields(settings):
        if field.name not in ("study", "cell") and getattr(settings, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise InputError(f"--{flag}: not beside --study {settings.study}; put it into the file")
    return settings


def with_lengths(settings: S, default: dict[str, int]) -> S:
    """The settings with lengths of batches where they say nothing of them."""
    return dataclasses.replace(settings, **{k: v for k, v in default.items() if getattr(settings, k) is None})


def preset_of(settings: Settings) -> Preset:
    """What the recipe says of the task."""
    if asks_questions(settings):
        return PRESETS[settings.recipe]["squad"]
    return OWN_FILES[settings.recipe] if settings.train_file else PRESETS[settings.recipe][settings.task]
