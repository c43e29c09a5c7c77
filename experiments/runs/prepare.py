"""Reads and checks everything a run needs, before anything is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config.settings import Settings
from experiments.runs.augment_file import augmented_file, make_header, read_rows, rows_digest
from experiments.runs.folders import check_out, check_place
from experiments.runs.source import load_task
from kaprune_jax._errors import InputError
from kaprune_jax._tree import select
from kaprune_jax.data.augment import Augmented, eligible_words
from kaprune_jax.data.loader import Encoded, TrainBatches, encode
from kaprune_jax.data.rows import TaskData
from kaprune_jax.data.windows import Windows, default_stride, encode_windows
from kaprune_jax.deploy.candidates import candidates
from kaprune_jax.deploy.folder import load, load_start
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import PRUNABLE, BertOutput, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.prune.patterns import parse_pattern
from kaprune_jax.train.processes import check_same, on_all, on_first
from kaprune_jax.train.sharding import default_mesh, make_mesh, mesh_text, on_mesh, row_devices

UNKNOWN = 0.05
"""Share of tokens without a word of the vocabulary from which on a note says so."""


class Prepared(NamedTuple):
    """What a run works with.

    Attributes:
      settings: resolved settings, with the pooling, length and batch size that data and model came to.
      data: the task.
      start: the pre-trained encoder with the task's head.
      teacher: the given teacher, or None if it is to be fine-tuned.
      train: endless training batches.
      dev: tokenised evaluation rows.
      tokenizer: the start's.
      notes: lines for a person: pooling, dropped heads, truncated rows.
      proposer: the model that gives candidates for --augment; None without.
      augmented: the new rows of --augment, once they are there.
      windows: for questions, what `dev` is of the passages.
      mesh: the devices of --mesh; None for the first alone.
    """

    settings: Settings
    data: TaskData
    start: Model
    teacher: Model | None
    train: TrainBatches
    dev: Encoded
    tokenizer: Any
    notes: tuple[str, ...]
    proposer: Model | None = None
    augmented: Augmented | None = None
    mesh: Mesh | None = None
    windows: Windows | None = None


def prepare(settings: Settings, *, data: TaskData | None = None) -> Prepared:
    """Loads data, start and teacher.

    Args:
      settings: resolved.
      data: the task, where it has been loaded; the run folder is then not looked at.

    Raises:
      InputError: whatever a person can correct; nothing has been written then.
    """
    if data is None:
        on_first(lambda: check_out(settings))
    found = on_all(lambda: _read(settings, data))
    read = {"rows": found.data.fingerprint, "a --model": found.start.fingerprint}
    read |= {"a --teacher": found.teacher.fingerprint} if found.teacher else {}
    read |= {"augmented rows": rows_digest(found.augmented)} if found.augmented else {}
    check_same({f"{what} with SHA-256": digest for what, digest in read.items()})
    return found


def _read(settings: Settings, data: TaskData | None) -> Prepared:
    """What is there to be read, by one process."""
    data = load_task(settings) if data is None else data
    start, notes = load_start(
        settings.model,
        head=data.kind,
        labels=data.labels,
        key=jax.random.key(settings.seed),
        pooling=None if settings.pooling == "auto" else settings.pooling,  # pyright: ignore[reportArgumentType]
        head_bias=float(data.train.labels.mean()) if data.kind == "regression" else 0.0,
    )
    form = parse_pattern(settings.pattern)
    for path, leaf in select(start.params, PRUNABLE):
        try:
            form.check(leaf.shape, path)
        except ValueError as error:
            raise InputError(f"--pattern: {error}") from None
    teacher, teacher_notes = load_teacher(settings, data, start)
    models = [start] if teacher is None else [start, teacher]
    assert settings.max_length is not None
    limit = min(settings.max_length, *(model.config.max_position_embeddings for model in models))
    for model in models:
        if len(start.tokenizer) > model.config.vocab_size:
            raise InputError(
                f"{model.folder}: the tokenizer has {len(start.tokenizer)} tokens, the model {model.config.vocab_size}"
            )
    windows, stride = None, None
    if data.kind == "span":
        stride = default_stride(limit) if settings.stride is None else settings.stride
        train, windows = _cut(data, start, limit, stride)
        dev = windows.encoded
        notes = (*notes, _describe_windows(data, train, dev, limit, stride))
    else:
        train, dev = (
            encode(rows, start.tokenizer, max_length=limit, pad=start.config.pad_token_id)
            for rows in (data.train, data.dev)
        )
    proposer = None if settings.augment is None else _find_proposer(settings, start)
    augmented = None if proposer is None else _find_augmented(settings, data, proposer)
    notes = [*notes, *teacher_notes]
    if augmented is not None:
        notes.append(f"{len(augmented.texts)} augmented rows from {augmented_file(settings)}")
    if (train.truncated or dev.truncated) and windows is None:
        notes.append(
            f"truncated to {limit} tokens: {train.truncated} of {len(train.input_ids)} training rows, "
            f"{dev.truncated} of {len(dev.input_ids)} dev rows"
        )
    if note := _describe_unknown(settings.model, start, train):
        notes.append(note)
    assert settings.batch_size is not None
    batches = make_batches(settings, train)
    if batches.batch_size < settings.batch_size:
        notes.append(f"batch size {batches.batch_size}: there are no more training rows")
    settings = dataclasses.replace(
        settings, pooling=start.config.pooling, max_length=limit, stride=stride, batch_size=batches.batch_size
    )
    mesh = find_mesh(settings, batches.batch_size)
    return Prepared(
        settings, data, start, teacher, batches, dev, start.tokenizer, tuple(notes), proposer, augmented, mesh,
        windows,
    )  # fmt: skip


def _cut(data: TaskData, start: Model, limit: int, stride: int) -> tuple[Encoded, Windows]:
    """Training questions and dev questions in windows.

    Raises:
      InputError: they do not fit.
    """
    options: dict[str, Any] = dict(max_length=limit, stride=stride, pad=start.config.pad_token_id)
    if (most := limit - start.tokenizer.num_special_tokens_to_add(pair=True) - 2) < stride:
        raise InputError(
            f"--stride {stride}: windows have {limit} tokens (--max-length and the model's positions), so up to "
            f"{max(most, 0)} can be shared"
        )
    train, dev = (encode_windows(rows, start.tokenizer, **options) for rows in (data.train, data.dev))
    return train.encoded, dev


def _describe_windows(data: TaskData, train: Encoded, dev: Encoded, limit: int, stride: int) -> str:
    parts = [
        f"{len(rows.texts)} {name} questions in {len(made.input_ids)}"
        + (f" ({made.truncated} of the answers in none of them whole)" if made.truncated else "")
        for name, rows, made in (("training", data.train, train), ("dev", data.dev, dev))
    ]
    return f"windows of up to {limit} tokens, {stride} shared: {', '.join(parts)}"


def _describe_unknown(name: str, start: Model, train: Encoded) -> str | None:
    """How much of the training rows the model has no words for, where that is a lot."""
    found = np.concatenate([np.asarray(row) for row in train.input_ids])
    share = float(np.mean(found == start.tokenizer.unk_token_id))
    if share < UNKNOWN:
        return None
    advice = "mini knows its built-in tasks only, give another --model" if name == "mini" else "another --model may do"
    return f"{share:.0%} of the tokens of the training rows are words unknown to {name}: {advice}"


def make_batches(settings: Settings, train: Encoded) -> TrainBatches:
    """Training batches of the size, and of the lengths, that the settings say."""
    assert settings.batch_size is not None
    return TrainBatches(train, batch_size=settings.batch_size, seed=settings.seed, **lengths_of(settings))


def lengths_of(settings: Settings) -> dict[str, int]:
    """What the settings say of the lengths of batches, as training and evaluation batches take it."""
    assert settings.lengths is not None
    assert settings.length_multiple is not None
    return {"shapes": settings.lengths, "multiple": settings.length_multiple}


def find_mesh(settings: Settings, rows: int) -> Mesh:
    """The devices of --mesh, or by default all that divide the rows of a batch.

    Raises:
      InputError: there are not so many, or the rows cannot be divided over them, or into the parts of --accumulate.
    """
    try:
        mesh = make_mesh(settings.mesh or default_mesh(rows // settings.accumulate))
    except InputError as error:
        raise InputError(f"--mesh: {error}") from None
    parts = row_devices(mesh)
    if rows % settings.accumulate:
        raise InputError(f"--accumulate {settings.accumulate}: no divisor of the {rows} rows of --batch-size")
    if rows % (parts * settings.accumulate):
        more = f" times --accumulate {settings.accumulate}" if settings.accumulate > 1 else ""
        raise InputError(
            f"--batch-size {rows}: not a multiple of the {parts} devices that --mesh {mesh_text(mesh.shape)} divides "
            f"rows over{more}"
        )
    return mesh


def _find_proposer(settings: Settings, start: Model) -> Model:
    """The checkpoint as it is, with the masked-LM head that the start of a task has lost; else the start."""
    try:
        model = load(settings.model)
    except InputError:  # a head of another kind, which a start does without
        return start
    return model if model.config.head == "masked-lm" else start


def _find_augmented(settings: Settings, data: TaskData, proposer: Model) -> Augmented | None:
    """The augmented rows that are there already.

    Raises:
      InputError: they do not belong to this run, or none can be made.
    """
    if not any(eligible_words(text) for row in data.train.texts for text in row):
        raise InputError(f"--augment {settings.augment}: no word of the training rows can be replaced by another")
    if (file := augmented_file(settings)).exists():
        return read_rows(file, make_header(settings, data, proposer), data.train.texts)
    candidates(proposer)  # says whether it has any
    check_place(file, f"--augment-file {file}")
    return None


def make_forward(prepared: Prepared, config: BertConfig, *, dropout: float | None = None) -> Callable[..., BertOutput]:
    """The forward pass of a model in a run: its dropout, type of activations, devices, what it computes again."""
    settings = prepared.settings
    if dropout is not None:
        config = config.replace(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    apply = make_apply(config, dtype=settings.dtype, remat=settings.remat)
    return apply if prepared.mesh is None else on_mesh(apply, prepared.mesh)


def load_teacher(settings: Settings, data: TaskData, start: Model) -> tuple[Model | None, tuple[str, ...]]:
    """The teacher that --teacher names, checked to fit task and student; and lines for a person.

    Raises:
      InputError: it has no head for this task's labels, or another vocabulary.
    """
    if settings.teacher is None:
        return None, ()
    inside = [Path(settings.teacher) / name for name in ("teacher", "dense")]  # rather than what a run pruned
    try:
        teacher = load(next((folder for folder in inside if folder.is_dir()), settings.teacher))
    except InputError as error:
        raise InputError(f"--teacher {settings.teacher}: {error}") from None
    notes = ()
    if pruned := teacher.details.get("sparsity"):
        if (Path(settings.teacher) / "result.json").is_file():
            raise InputError(
                f"--teacher {settings.teacher}: this run pruned its model ({pruned:.0%}) and the dense one is not in "
                "its folder; name that one's folder, or RUN/model if the pruned one is meant"
            )
        notes = (f"--teacher {settings.teacher} is itself pruned, {pruned:.0%}",)
    if teacher.config.labels != data.labels and _same_classes(teacher.config.labels, data.labels):
        was, taken = ", ".join(teacher.config.labels), ", ".join(data.labels)
        notes += (f"--teacher {settings.teacher} calls its classes {was}; taken as {taken}",)
        teacher = dataclasses.replace(teacher, config=teacher.config.replace(labels=data.labels))
    if (teacher.config.head, teacher.config.labels) != (data.kind, data.labels):
        has = ", ".join(teacher.config.labels) or f"head {teacher.config.head}"
        wants = ", ".join(data.labels) or f"head {data.kind}"
        raise InputError(f"--teacher {settings.teacher}: it predicts {has}; task {data.name} needs {wants}")
    if teacher.tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise InputError(
            f"--teacher {settings.teacher}: its vocabulary is not that of --model {settings.model}; both read one batch"
        )
    return teacher, notes


def _same_classes(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether class names mean the same: equal but for case, or LABEL_0, LABEL_1, ..., which stock scripts write."""
    unnamed = theirs == tuple(f"LABEL_{number}" for number in range(len(ours)))
    return unnamed or [name.casefold() for name in theirs] == [name.casefold() for name in ours]
