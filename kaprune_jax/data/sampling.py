"""Parts of a task's training rows, drawn by a seed."""

from types import MappingProxyType

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import Rows, TaskData, fingerprint_of


def limit_train(data: TaskData, count: int, *, seed: int = 0) -> TaskData:
    """Keep `count` training rows, drawn at random but the same for the same seed.

    Every class that train has keeps at least one row, so no label of dev becomes unknown; the rest are drawn without
    regard to class. The rows stay in their order, and a larger `count` with the same seed keeps all rows of a smaller
    one. Dev is not touched.

    Args:
      data: the task.
      count: number of training rows to keep; at or above their number the task is returned as it is.
      seed: seed of the draw, at least 0.

    Returns:
      The task with fewer training rows and a new fingerprint.

    Raises:
      InputError: `count` below 1 or below the number of classes in train.
    """
    present = len(np.unique(data.train.labels)) if data.kind == "classification" else 1
    if count < present:
        rule = f"at least {present} are needed, one of each class" if present > 1 else "at least 1 is needed"
        raise InputError(f"limit_train {count} for {data.name}: {rule}")
    if count >= len(data.train.texts):
        return data
    order = np.random.default_rng(seed).permutation(len(data.train.texts))
    if data.kind == "classification":
        _, first = np.unique(data.train.labels[order], return_index=True)
        order = np.concatenate([order[first], np.delete(order, first)])
    kept = np.sort(order[:count])
    train = pick(data.train, kept)
    return data._replace(train=train, fingerprint=fingerprint_of(data.labels, train, data.dev))


def hold_out(data: TaskData, count: int, *, seed: int = 0) -> TaskData:
    """The task with so many of its training rows in the place of dev, and no longer in train.

    For choosing settings: dev is then not looked at. Rows whose texts occur again, and questions about one passage,
    stay in train together or are held out together, and two rows of every class stay in train; apart from that they
    are drawn at random, the same for the same seed.

    Args:
      data: the task.
      count: rows to hold out; one whose text occurs again may bring some more along.
      seed: of the draw, at least 0.

    Returns:
      The task with other rows, its parts of dev dropped, and a new fingerprint.

    Raises:
      InputError: `count` below 1, or so large that too few rows are left to train on.
    """
    if count < 1:
        raise InputError(f"hold_out {count} for {data.name}: at least 1 is needed")
    rows, labels = data.train.texts, data.train.labels
    order = np.random.default_rng([seed, 13]).permutation(len(rows))
    kept: set[int] = set()
    if data.kind == "classification":
        for label in np.unique(labels):
            kept.update(order[labels[order] == label][:2].tolist())
    keys = [_plain(row[1:] if data.kind == "span" else row) for row in rows]
    alike: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(rows)):
        alike.setdefault(keys[index], []).append(index)
    held: list[int] = []
    taken: set[int] = set()
    for index in order.tolist():
        group = alike[keys[index]]
        if len(held) < count and index not in taken and kept.isdisjoint(group):
            held += group
            taken.update(group)
    if len(held) < count or len(held) >= len(rows):
        most = min(len(held), len(rows) - 1)
        raise InputError(
            f"hold_out {count} for {data.name}: of {len(rows)} training rows at most {most} can be held out"
        )
    chosen = np.sort(np.array(held))
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    train, dev = pick(data.train, rest), pick(data.train, chosen)
    new = fingerprint_of(data.labels, train, dev)
    return data._replace(train=train, dev=dev, fingerprint=new, dev_groups=MappingProxyType({}))


def pick(rows: Rows, chosen: np.ndarray) -> Rows:
    """Some of the rows, by their numbers."""
    texts, labels, answers, names = rows
    parts = [tuple(part[index] for index in chosen) if part else () for part in (texts, answers, names)]
    return Rows(parts[0], labels[chosen], *parts[1:])


def _plain(row: tuple[str, ...]) -> tuple[str, ...]:
    """Texts without what duplicates may differ in: case and runs of white space."""
    return tuple(" ".join(text.casefold().split()) for text in row)
