"""Labelled texts as the rest of the library takes them, and the checks between raw rows and a task.

Every source (GLUE's files, own files, the hub, TFDS) hands `RawRows` to `task_data`, so equal rows give equal tasks.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from reprlib import repr as short
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from kaprune_jax._errors import InputError

Kind = Literal["classification", "regression", "span"]
METRICS = ("accuracy", "f1", "macro_f1", "matthews_correlation", "pearson", "spearman")
"""The scores of classes and numbers; spans have their own."""

_MANY_VALUES = 20  # more distinct whole numbers than this are scores, not classes
_MOSTLY = 0.9  # share of numbers from which a label that is none is a slip rather than a class name


class RawRows(NamedTuple):
    """Rows as read, before labels mean anything.

    Attributes:
      source: file name (or data set and split) for error messages.
      texts: one or two strings a row.
      labels: the label of each row as written.
      numbers: what to call each row in an error message: its line in the file, the header being row 1.
    """

    source: str
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    numbers: tuple[int, ...]


class Rows(NamedTuple):
    """One split of a task.

    Attributes:
      texts: one or two strings a row; for spans question and passage.
      labels: class ids (int32, indices into `TaskData.labels`) or scores (float32); for spans where the first answer
        begins and ends in the passage, in characters, the end not included.
      answers: for spans every answer that counts as right; else empty.
      names: for spans what to call each row in an error message; else empty.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: Int32[np.ndarray, "rows"] | Float32[np.ndarray, "rows"] | Int32[np.ndarray, "rows 2"]
    answers: tuple[tuple[str, ...], ...] = ()
    names: tuple[str, ...] = ()


class TaskData(NamedTuple):
    """A task: what is predicted, how it is scored, and its rows.

    Attributes:
      name: the task's name.
      kind: "classification", "regression" or "span".
      labels: class names, in the order of the class ids; else empty.
      metrics: names that `metrics.score` knows; the first is the main one.
      train: training rows.
      dev: evaluation rows.
      fingerprint: SHA-256 (hex) over label names and the rows of both splits.
      dev_groups: parts of dev worth a score of their own, by name: True for the rows of the part.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Rows
    dev: Rows
    fingerprint: str
    dev_groups: Mapping[str, Bool[np.ndarray, " rows"]] = MappingProxyType({})


def label_kind(labels: tuple[str, ...]) -> Kind:
    """Whether labels read from a file are classes or scores.

    They are scores ("regression") when all are numbers and either some number is fractional or more than 20 distinct
    numbers occur. When at least nine in ten are numbers that look like scores, the remaining ones count as slips:
    the kind is regression, and reading them as scores then names the bad row.

    Args:
      labels: labels as written, of all splits together.

    Returns:
      "classification" or "regression".

    Example:
      >>> label_kind(("0", "1", "1")), label_kind(("0.5", "1", "2"))
      ('classification', 'regression')
    """
    numbers = [number for number in map(_number, labels) if number is not None]
    if not numbers or len(numbers) < _MOSTLY * len(labels):
        return "classification"
    fractional = any(not number.is_integer() for number in numbers)
    return "regression" if fractional or len(set(numbers)) > _MANY_VALUES else "classification"


def task_data(
    name: str,
    train: RawRows,
    dev: RawRows,
    *,
    kind: Kind,
    metrics: tuple[str, ...],
    labels: tuple[str, ...] = (),
    written: tuple[str, ...] = (),
) -> TaskData:
    """Turn raw rows into a task, after checking what people get wrong in data.

    White space around texts and labels is dropped. A class that only the given `labels` name, and no row has, is kept.

    Args:
      name: the task's name.
      train: raw training rows.
      dev: raw evaluation rows.
      kind: "classification" or "regression".
      metrics: names of the metrics, the main one first.
      labels: class names in the order of their ids. Without them they are read from the training rows and sorted, as
        numbers when all are numbers; whole numbers that are written in several ways ("1", "1.0") are one class then.
      written: how `labels` are written in the rows where that differs ("0", "1"); the names themselves are understood
        too.

    Returns:
      The task.

    Raises:
      InputError: an empty split; a row without text or label; a label outside `labels`; only one class, or a class
        with a single row, in train; a label in dev that train lacks; a score that is not a finite number; equal scores
        throughout train.
    """
    for split in (train, dev):
        if not split.texts:
            raise InputError(f"{split.source}: no rows; at least one row with text and label is needed")
    train, dev = _stripped(train), _stripped(dev)
    if kind == "regression":
        names: tuple[str, ...] = ()
        targets = [_scores(split) for split in (train, dev)]
        if np.all(targets[0] == targets[0][0]):
            raise InputError(
                f"{train.source}: every score is {targets[0][0]:g}; at least two different ones are needed"
            )
    else:
        if not labels:
            train, dev = _spelt_alike(train, dev)
        names = labels or _sorted_names(train.labels)
        ids = {**dict(zip(written, range(len(names)), strict=False)), **{label: i for i, label in enumerate(names)}}
        if labels:
            for split in (train, dev):
                _check_allowed(split, ids, names, written)
        _check_classes(train, dev, ids)
        targets = [np.array([ids[label] for label in split.labels], np.int32) for split in (train, dev)]
    rows = [Rows(split.texts, target) for split, target in zip((train, dev), targets, strict=True)]
    return TaskData(name, kind, names, metrics, rows[0], rows[1], fingerprint_of(names, *rows))


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _stripped(split: RawRows) -> RawRows:
    texts = tuple(tuple(text.strip() for text in row) for row in split.texts)
    labels = tuple(label.strip() for label in split.labels)
    for number, row, label in zip(split.numbers, texts, labels, strict=True):
        if not any(row):
            raise InputError(f"{split.source}, row {number}: the text is empty; some text is needed")
        if not label:
            raise InputError(f"{split.source}, row {number}: the label is empty; every row needs one")
    return split._replace(texts=texts, labels=labels)


def _spelt_alike(train: RawRows, dev: RawRows) -> tuple[RawRows, RawRows]:
    """The same rows, whole numbers that are written in several ways ("1", "1.0") in one."""
    numbers = {label: _number(label) for label in {*train.labels, *dev.labels}}
    whole = [number for number in numbers.values() if number is not None and number.is_integer()]
    if len(whole) < len(numbers) or len(set(whole)) == len(whole):
        return train, dev
    one = {label: str(int(number)) for label, number in numbers.items() if number is not None}
    first, second = (split._replace(labels=tuple(one[label] for label in split.labels)) for split in (train, dev))
    return first, second


def _sorted_names(labels: tuple[str, ...]) -> tuple[str, ...]:
    names = sorted(set(labels))
    numbers = [_number(name) for name in names]
    if all(number is not None and np.isfinite(number) for number in numbers):
        names.sort(key=float)
    return tuple(names)


def _check_allowed(split: RawRows, ids: dict[str, int], names: tuple[str, ...], written: tuple[str, ...]) -> None:
    for number, label in zip(split.numbers, split.labels, strict=True):
        if label not in ids:
            pairs = zip(written, names, strict=True) if written else ()
            allowed = ", ".join(f"{value} ({name})" for value, name in pairs) or ", ".join(names)
            raise InputError(f"{split.source}, row {number}: label {short(label)} is not one of: {allowed}")


def _check_classes(train: RawRows, dev: RawRows, ids: dict[str, int]) -> None:
    counts = Counter(ids[label] for label in train.labels)
    if len(counts) == 1:
        raise InputError(
            f"{train.source}: only one class, {short(train.labels[0])}, in all {len(train.labels)} rows; "
            "at least two are needed"
        )
    for number, label in zip(train.numbers, train.labels, strict=True):
        if counts[ids[label]] == 1:
            raise InputError(
                f"{train.source}, row {number}: label {short(label)} occurs only once in train; "
                "every class needs at least two rows"
            )
    for number, label in zip(dev.numbers, dev.labels, strict=True):
        if ids.get(label) not in counts:
            known = dict.fromkeys(sorted(set(train.labels), key=lambda label: ids[label]))
            raise InputError(
                f"{dev.source}, row {number}: label {short(label)} is never seen in {train.source}, "
                f"which has: {_listed(tuple(known))}"
            )


def _listed(names: tuple[str, ...], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _scores(split: RawRows) -> Float32[np.ndarray, "rows"]:
    scores = np.empty(len(split.labels), np.float32)
    largest = float(np.finfo(np.float32).max)
    for i, (number, label) in enumerate(zip(split.numbers, split.labels, strict=True)):
        value = _number(label)
        # A float64 beyond float32 would become infinite on assignment.
        if value is None or not abs(value) <= largest:
            raise InputError(f"{split.source}, row {number}: score {short(label)} is not a finite number")
        scores[i] = value
    return scores


def fingerprint_of(names: tuple[str, ...], train: Rows, dev: Rows) -> str:
    """SHA-256 (hex) over label names and the rows of both splits."""
    digest = hashlib.sha256()

    def add(data: bytes) -> None:  # with its length, so that no two different sequences of fields read alike
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)

    for name in names:
        add(name.encode())
    for split in (train, dev):
        add(str(len(split.texts)).encode())
        for row in split.texts:
            for text in row:
                add(text.encode())
        add(split.labels.astype(split.labels.dtype.newbyteorder("<")).tobytes())
        for answers in split.answers:
            add(str(len(answers)).encode())
            for answer in answers:
                add(answer.encode())
    return digest.hexdigest()
