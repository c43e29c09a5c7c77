"""Auxiliary tasks: their rows, their starts, their teachers."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.config.resolve import resolve
from experiments.config.settings import Settings
from experiments.config.transfer_settings import TransferSettings, starts_after
from experiments.coupling.common import Auxiliary, carry_over
from experiments.runs.prepare import Prepared, prepare
from experiments.runs.record import say
from experiments.runs.run import run_method
from experiments.runs.source import load_task
from kaprune_jax._errors import InputError
from kaprune_jax._tree import select
from kaprune_jax.data.glue import load_files
from kaprune_jax.data.rows import TaskData
from kaprune_jax.data.sampling import limit_train, pick
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.model import Model
from kaprune_jax.transfer.sharing import HEADS

SHARED = (
    "data_dir source model batch_size schedule teacher_schedule warmup weight_decay lengths length_multiple dtype "
    "pooling evaluations log_every checkpoint_minutes allow_weak_teacher mesh accumulate remat"
).split()
"""The target's settings that an auxiliary task has too."""


def prepare_auxiliaries(settings: TransferSettings, target: Prepared) -> list[Prepared]:
    """Loads the auxiliary tasks, each with a start of its own head on the target's encoder.

    Raises:
      InputError: a task cannot be read, has too few rows, or is the target's data again.
    """
    found = []
    for number, part in enumerate(settings.auxiliary.split(",")):
        name, _, file = part.partition("=")
        own = _settings_of(dataclasses.replace(settings, batch_size=target.settings.batch_size), name, file)
        data = _load_file(settings, name, file) if file else load_task(own)
        if settings.auxiliary_rows is not None:
            data = limit_train(data, settings.auxiliary_rows, seed=own.seed)
        if data.fingerprint == target.data.fingerprint:
            raise InputError(f"--auxiliary {part}: has the same rows as the target")
        if settings.auxiliary_teacher is not None:
            own = dataclasses.replace(own, teacher=settings.auxiliary_teacher.split(",")[number])
        try:
            prepared = prepare(own, data=data)
        except InputError as error:
            raise InputError(re.sub(r"^--teacher ", "--auxiliary-teacher ", str(error))) from None
        given = prepared.teacher
        if given is not None and settings.method == "sparsebert" and _form(given) != _form(prepared.start):
            raise InputError(
                f"--auxiliary-teacher: the one of {name} has {_form(given)}; sparsebert compares layer by layer with "
                f"{_form(prepared.start)}"
            )
        if given is not None and starts_after(settings) and _shapes(given) != _shapes(prepared.start):
            raise InputError(
                f"--auxiliary-teacher: the encoder of the one of {name} is not of the shape of --model "
                f"{settings.model}; the target cannot start from it"
            )
        started = settings.start == "auxiliary" and starts_after(settings)
        if given is not None and started and given.config.pooling != prepared.start.config.pooling:
            raise InputError(
                f"--auxiliary-teacher: the one of {name} pools by {given.config.pooling}, the target by "
                f"{prepared.start.config.pooling}, and starts from it; give --pooling {given.config.pooling}"
            )
        if len(data.train.texts) < (target.settings.batch_size or 1):
            raise InputError(
                f"--auxiliary {part}: {len(data.train.texts)} training rows, fewer than a batch of "
                f"{target.settings.batch_size}"
            )
        found.append(prepared)
    return found


def are_chained(settings: TransferSettings, others: list[Prepared]) -> bool:
    """Whether several auxiliary tasks are learned one after the other before the target starts from what they leave."""
    return len(others) > 1 and starts_after(settings)


def get_auxiliaries(
    settings: TransferSettings,
    others: list[Prepared],
    out: Path,
    should_stop: Callable[[], bool],
    *,
    chained: bool,
) -> list[Auxiliary]:
    """The auxiliary tasks with their teachers, which are fine-tuned into `out` unless they are given.

    Args:
      settings: of the run.
      others: the tasks.
      out: the folder.
      should_stop: asked after every step.
      chained: each teacher but the first is fine-tuned from the encoder, or the shared layers, of the one before it,
        so that the last has learned from all tasks; only the first can be given then.
    """
    sizes = np.array([len(each.data.train.texts) for each in others], float) ** (1.0 / settings.auxiliary_mixing)
    found: list[Auxiliary] = []
    for prepared, share in zip(others, (sizes / sizes.sum()).tolist(), strict=True):
        name, own, place = prepared.data.name, prepared, out / f"teacher-{prepared.data.name}"
        if chained and found:
            if prepared.teacher is not None:
                say(f"note: the given teacher of {name} is not used: it is fine-tuned after the tasks before it")
            start = carry_over(prepared.start, found[-1].teacher, depth=settings.share_depth)
            own, place = prepared._replace(start=start, teacher=None), out / f"teacher-{name}-after-others"
        teacher = own.teacher or fine_tune(own, place, should_stop)
        found.append(Auxiliary(name, prepared.start, teacher, prepared.train, share, prepared.data.fingerprint))
    return found


def fine_tune(prepared: Prepared, folder: Path, should_stop: Callable[[], bool]) -> Model:
    """The start of a task fine-tuned on it, into a run folder."""
    run_method("dense", prepared, folder, should_stop)
    return load(folder)


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    encoder = {name: part for name, part in model.params.items() if name not in HEADS}
    return {path: leaf.shape for path, leaf in select(encoder, lambda *_: True)}


def _form(model: Model) -> str:
    config = model.config
    return f"{config.num_hidden_layers} layers of {config.num_attention_heads} heads, {config.hidden_size} wide"


def _settings_of(settings: TransferSettings, name: str, file: str) -> Settings:
    """The main job's settings for an auxiliary task, its own presets where the target's flags say nothing."""
    own = {field: getattr(settings, field) for field in SHARED}
    own |= {"resume": settings.resume, "out": settings.out, "seed": settings.auxiliary_seed}
    if file:
        own |= {"train_file": file, "dev_file": file, "data_dir": None, "source": "folder"}
    else:
        folder = settings.auxiliary_dir or settings.data_dir
        own |= {"task": name, "data_dir": None if name.startswith("micro-") else folder}
    own |= {"teacher_steps": settings.auxiliary_teacher_steps, "max_length": settings.max_length}
    try:
        return dataclasses.replace(resolve(Settings(method="dense", **own)), task=name)
    except InputError as error:
        raise InputError(f"--auxiliary {name}: {error}") from None


def _load_file(settings: TransferSettings, name: str, file: str) -> TaskData:
    """An own file, a tenth of whose rows, drawn by the seed, tell how good its teacher is."""
    columns = settings.auxiliary_text.split(",")
    data = load_files(file, file, text=columns, label=settings.auxiliary_label, name=name)
    order = np.random.default_rng([settings.auxiliary_seed or 0, 11]).permutation(len(data.train.texts))
    held = min(1000, len(order) // 10)
    if held < 1:
        raise InputError(f"--auxiliary {name}={file}: {len(order)} rows; at least 10 are needed")
    dev, train = (pick(data.train, np.sort(part)) for part in (order[:held], order[held:]))
    return data._replace(train=train, dev=dev)
