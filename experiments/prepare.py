"""Reads and checks everything a run needs, before anything is written."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.settings import Settings
from experiments.source import load_task
from kaprune_jax._errors import InputError
from kaprune_jax._tree import select
from kaprune_jax.data.loader import Encoded, TrainBatches, encode
from kaprune_jax.data.rows import TaskData
from kaprune_jax.deploy.folder import Model, load, load_start
from kaprune_jax.models.bert import PRUNABLE, param_shapes
from kaprune_jax.prune.patterns import parse_pattern


class Prepared(NamedTuple):
    """What a run works with.

    Attributes:
      settings: resolved settings.
      data: the task.
      start: the pre-trained encoder with the task's head.
      teacher: the given teacher, or None if it is to be fine-tuned.
      train: endless training batches.
      dev: tokenised evaluation rows.
      tokenizer: the start's.
      notes: lines for a person: pooling, dropped heads, truncated rows.
    """

    settings: Settings
    data: TaskData
    start: Model
    teacher: Model | None
    train: TrainBatches
    dev: Encoded
    tokenizer: Any
    notes: tuple[str, ...]


def prepare(settings: Settings) -> Prepared:
    """Loads data, start and teacher.

    Raises:
      InputError: whatever a person can correct; nothing has been written then.
    """
    check_out(settings)
    data = load_task(settings)
    head = "regression" if data.kind == "regression" else "classification"
    start, notes = load_start(
        settings.model,
        head=head,
        labels=data.labels,
        key=jax.random.key(settings.seed),
        pooling=None if settings.pooling == "auto" else settings.pooling,  # pyright: ignore[reportArgumentType]
        head_bias=float(data.train.labels.mean()) if head == "regression" else 0.0,
    )
    form = parse_pattern(settings.pattern)
    for path, leaf in select(start.params, PRUNABLE):
        try:
            form.check(leaf.shape, path)
        except ValueError as error:
            raise InputError(f"--pattern: {error}") from None
    teacher = load_teacher(settings, data, start)
    models = [start] if teacher is None else [start, teacher]
    limit = min(settings.max_length or 512, *(model.config.max_position_embeddings for model in models))
    for model in models:
        if len(start.tokenizer) > model.config.vocab_size:
            raise InputError(
                f"{model.folder}: the tokenizer has {len(start.tokenizer)} tokens, the model {model.config.vocab_size}"
            )
    train, dev = (
        encode(rows, start.tokenizer, max_length=limit, pad=start.config.pad_token_id)
        for rows in (data.train, data.dev)
    )
    notes = list(notes)
    if train.truncated or dev.truncated:
        notes.append(
            f"truncated to {limit} tokens: {train.truncated} of {len(train.input_ids)} training rows, "
            f"{dev.truncated} of {len(dev.input_ids)} dev rows"
        )
    assert settings.batch_size is not None
    batches = TrainBatches(train, batch_size=settings.batch_size, seed=settings.seed)
    if batches.batch_size < settings.batch_size:
        notes.append(f"batch size {batches.batch_size}: there are no more training rows")
    return Prepared(settings, data, start, teacher, batches, dev, start.tokenizer, tuple(notes))


def load_teacher(settings: Settings, data: TaskData, start: Model) -> Model | None:
    """The teacher that --teacher names, checked to fit task and student.

    Raises:
      InputError: it has no head for this task's labels, or another vocabulary.
    """
    if settings.teacher is None:
        return None
    inside = Path(settings.teacher) / "teacher"  # a run's own teacher, rather than what it pruned
    teacher = load(inside if inside.is_dir() else settings.teacher)
    head = "regression" if data.kind == "regression" else "classification"
    if (teacher.config.head, teacher.config.labels) != (head, data.labels):
        has = ", ".join(teacher.config.labels) or f"head {teacher.config.head}"
        wants = ", ".join(data.labels) or "head regression"
        raise InputError(f"--teacher {settings.teacher}: it predicts {has}; task {data.name} needs {wants}")
    if teacher.tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise InputError(
            f"--teacher {settings.teacher}: its vocabulary is not that of --model {settings.model}; both read one batch"
        )
    shapes = (param_shapes(teacher.config), param_shapes(start.config))
    if "prune-finetuned" in settings.methods and shapes[0] != shapes[1]:
        raise InputError(
            f"--teacher {settings.teacher}: prune-finetuned prunes the teacher, which must have the shape of "
            f"--model {settings.model}; give that one's fine-tuned model, or another method"
        )
    if "sparsebert" in settings.methods and teacher.config.num_hidden_layers < start.config.num_hidden_layers:
        raise InputError(
            f"--teacher {settings.teacher}: {teacher.config.num_hidden_layers} layers, fewer than the student's "
            f"{start.config.num_hidden_layers}"
        )
    return teacher


def check_out(settings: Settings) -> None:
    """Whether the run folder can be made, or, with --resume, gone on with.

    Raises:
      InputError: it holds something, cannot be written, or there is nothing to resume.
    """
    assert settings.out is not None
    out = Path(settings.out)
    if settings.resume:
        started = [*out.glob("metrics.jsonl"), *out.glob("*/metrics.jsonl"), *out.glob("*/ckpt"), *out.glob("ckpt")]
        if not started:
            raise InputError(f"--resume: {out} is no run folder: there is nothing to go on with")
        if (out / "metrics.jsonl").is_file() != (len(settings.methods) == 1) and (out / "config.json").is_file():
            raise InputError(f"--resume: {out} is a run of one method; --method {settings.method} names several")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists already; give another folder, or --resume to go on with the run in it")
    parent = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise InputError(f"--out {out}: no permission to write in {parent}")
