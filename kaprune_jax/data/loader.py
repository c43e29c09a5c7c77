"""Tokenised rows in batches of few static shapes, in an order that is a pure function of seed and step.

The position in the data is the step itself: a run that goes on at step n asks for batch n and gets what it would have
got. Nothing else has to be saved.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from kaprune_jax.data.rows import Rows

Batch = dict[str, np.ndarray]
"""input_ids, attention_mask, token_type_ids: int32 [batch, seq]; labels: [batch], int32 or float32,
or [batch, 2], int32, for spans."""

_MULTIPLE = 8


class Encoded(NamedTuple):
    """Tokenised rows.

    Attributes:
      input_ids: token ids of each row, special tokens included.
      token_type_ids: 0 for the first text, 1 for the second.
      labels: class ids or scores; for spans the places of the first and last token of the answer.
      cut: the rows that were longer than the limit and lost their end; for spans, the questions of which no window
        holds the whole answer.
      limit: the longest a row can be.
      pad: the id that fills up.
    """

    input_ids: tuple[list[int] | np.ndarray, ...]
    token_type_ids: tuple[list[int] | np.ndarray, ...]
    labels: Int32[np.ndarray, "rows"] | Float32[np.ndarray, "rows"] | Int32[np.ndarray, "rows 2"]
    cut: frozenset[int]
    limit: int
    pad: int

    @property
    def truncated(self) -> int:
        """How many were cut."""
        return len(self.cut)


def encode(rows: Rows, tokenizer: Any, *, max_length: int, pad: int = 0) -> Encoded:
    """Tokenises rows once; those longer than `max_length` tokens are truncated, the longer text first, and counted."""
    columns = [list(column) for column in zip(*rows.texts, strict=True)]

    def run(texts: list[list[str]], **options: Any) -> Any:
        return tokenizer(*texts, return_token_type_ids=True, return_attention_mask=False, verbose=False, **options)

    whole = run(columns, truncation=False)
    ids, types = list(whole["input_ids"]), list(whole["token_type_ids"])
    long = [index for index, row in enumerate(ids) if len(row) > max_length]
    if long:
        short = run([[column[i] for i in long] for column in columns], truncation=True, max_length=max_length)
        for index, row, kinds in zip(long, short["input_ids"], short["token_type_ids"], strict=True):
            ids[index], types[index] = row, kinds
    return Encoded(tuple(ids), tuple(types), rows.labels, frozenset(long), max_length, pad)


def choose_lengths(
    lengths: Sequence[int], count: int, *, spare: float = 0.1, limit: int = 0, multiple: int = _MULTIPLE
) -> tuple[int, ...]:
    """Few sequence lengths, multiples of `multiple` and at most `limit`, that hold all rows with little padding.

    Each row is padded to the smallest length that holds it. For every number of lengths up to `count` the fewest
    padded tokens are found exactly, by dynamic programming; of these the fewest lengths are taken that need at most
    `spare` more tokens than `count` lengths do, since each length is a compilation.

    Example:
      >>> choose_lengths([5, 6, 7, 30, 31], 2)
      (8, 32)
    """
    need = np.bincount(np.ceil(np.asarray(lengths) / multiple).astype(int))
    top = len(need) - 1
    below = np.cumsum(need)
    best = [[(0, ()) if size == 0 else (float("inf"), ()) for size in range(top + 1)]]
    for _ in range(count):
        row = []
        for size in range(top + 1):
            options = [best[-1][size]]
            options += [
                (best[-1][lower][0] + size * (below[size] - below[lower]), (*best[-1][lower][1], size))
                for lower in range(size)
            ]
            row.append(min(options, key=lambda option: option[0]))
        best.append(row)
    enough = next(row[top] for row in best if row[top][0] <= (1 + spare) * best[-1][top][0])
    return tuple(min(int(size) * multiple, limit or top * multiple) for size in enough[1])


class TrainBatches:
    """Endless training batches, grouped by length and shuffled anew each epoch.

    A batch has rows of one length class. What does not fill a batch moves on to the next longer class, so that an
    epoch has exactly rows // batch_size batches and leaves out less than one batch, others in every epoch.
    """

    def __init__(self, data: Encoded, *, batch_size: int, seed: int, shapes: int = 4, multiple: int = _MULTIPLE):
        """Args:
        data: the rows.
        batch_size: rows per batch; smaller data sets are taken whole.
        seed: of the order.
        shapes: at most so many different lengths.
        multiple: lengths are multiples of it; large ones are the same for many samples of one task.
        """
        self.data = data
        self.batch_size = min(batch_size, len(data.input_ids))
        self.seed = seed
        sizes = np.array([len(row) for row in data.input_ids])
        self.lengths = choose_lengths(sizes.tolist(), shapes, limit=data.limit, multiple=multiple)
        self._class = np.searchsorted(self.lengths, sizes)
        self.steps_per_epoch = len(sizes) // self.batch_size
        self._epoch: tuple[int, list[tuple[int, np.ndarray]]] = (-1, [])

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._plan(epoch))
        length, rows = self._epoch[1][place]
        return collate(self.data, rows, length)

    def _plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self._class))
        left, batches = np.array([], int), []
        for index, length in enumerate(self.lengths):
            rows = np.concatenate([left, order[self._class[order] == index]])
            whole = len(rows) // self.batch_size * self.batch_size
            # What moves on is drawn at random too: the rows left over from below are not always the last.
            rows = random.permutation(rows)
            batches += [(length, piece) for piece in rows[:whole].reshape(-1, self.batch_size)]
            left = rows[whole:]
        return [batches[index] for index in random.permutation(len(batches))]


def eval_batches(
    data: Encoded, *, batch_size: int, shapes: int = 4, multiple: int = _MULTIPLE
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, in batches of few static shapes: (row numbers, batch).

    The last batch of a length is filled up with repeated rows; the row numbers tell how many are real.

    Args:
      data: the rows.
      batch_size: rows per batch; smaller data sets are taken whole.
      shapes: at most so many different lengths.
      multiple: lengths are multiples of it.
    """
    sizes = np.array([len(row) for row in data.input_ids])
    lengths = choose_lengths(sizes.tolist(), shapes, limit=data.limit, multiple=multiple)
    batch_size = min(batch_size, len(sizes))
    classes = np.searchsorted(lengths, sizes)
    for index, length in enumerate(lengths):
        rows = np.flatnonzero(classes == index)
        for start in range(0, len(rows), batch_size):
            piece = rows[start : start + batch_size]
            yield piece, collate(data, np.resize(piece, batch_size), length)


def collate(data: Encoded, rows: np.ndarray, length: int) -> Batch:
    """Some rows as arrays, padded to `length` tokens."""
    shape = (len(rows), length)
    ids = np.full(shape, data.pad, np.int32)
    mask, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for place, row in enumerate(rows):
        tokens = data.input_ids[row]
        ids[place, : len(tokens)] = tokens
        mask[place, : len(tokens)] = 1
        types[place, : len(tokens)] = data.token_type_ids[row]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": data.labels[rows]}
