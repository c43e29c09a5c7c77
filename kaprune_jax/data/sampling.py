"""Parts of a task's training rows, drawn by a seed."""

from types import MappingProxyType

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import Rows, TaskData, _fingerprint


def hold_out(data: TaskData, count: int, *, seed: int = 0) -> TaskData:
    """The task with so many of its training rows in the place of dev, and no longer in train.

    For choosing settings: dev is then not looked at. Rows whose texts occur again stay in train together or are held
    out together, and two rows of every class stay in train; apart from that they are drawn at random, the same for the
    same seed.

    Args:
      data: the task.
      count: rows to hold out; a text that occurs again may bring some more along.
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
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(_plain(row), []).append(index)
    held: list[int] = []
    taken: set[int] = set()
    for index in order.tolist():
        group = alike[_plain(rows[index])]
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
    train, dev = (Rows(tuple(rows[index] for index in part), labels[part]) for part in (rest, chosen))
    new = _fingerprint(data.labels, train, dev)
    return data._replace(train=train, dev=dev, fingerprint=new, dev_groups=MappingProxyType({}))


def _plain(row: tuple[str, ...]) -> tuple[str, ...]:
    """Texts without what duplicates may differ in: case and runs of white space."""
    return tuple(" ".join(text.casefold().split()) for text in row)
