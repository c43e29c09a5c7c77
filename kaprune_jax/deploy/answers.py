"""Answers of a question-answering model to new questions, as pieces of the passages given with them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax.data.loader import collate
from kaprune_jax.data.rows import Rows
from kaprune_jax.data.spans import Answer, find_answers
from kaprune_jax.data.windows import default_stride, encode_windows

_MULTIPLE = 16  # lengths are multiples of it: fewer shapes to compile for


def answer(
    pairs: Sequence[tuple[str, ...]],
    tokenizer: Any,
    logits: Callable[..., Any],
    *,
    batch_size: int,
    max_length: int,
    pad: int,
    stride: int | None = None,
    names: Sequence[str],
) -> list[Answer]:
    """The answer to each question, from its passage, which may be longer than the model reads at once.

    Args:
      pairs: questions and passages.
      tokenizer: the model's.
      logits: of `input_ids`, `attention_mask` and `token_type_ids` [batch, seq]: [batch, seq, 2].
      batch_size: windows at a time, >= 1.
      max_length: tokens of a window.
      pad: the id that fills up.
      stride: tokens that two windows share; by default as `default_stride` has it.
      names: what errors call each row.

    Raises:
      InputError: a row is no pair, has a blank text, or a question that leaves no room for its passage.
    """
    for number, row in enumerate(pairs):
        if len(row) != 2 or not all(text.strip() for text in row):
            raise InputError(f"{names[number]} is {row!r}; a question and a passage, (question, passage), are needed")
    passages = [passage for _, passage in pairs]
    whole = np.array([(0, len(passage)) for passage in passages], np.int32).reshape(-1, 2)  # nothing is known of it
    rows = Rows(tuple((question, passage) for question, passage in pairs), whole, names=tuple(names))
    if not pairs:
        return []
    stride = default_stride(max_length) if stride is None else stride
    windows = encode_windows(rows, tokenizer, max_length=max_length, stride=stride, pad=pad)
    count = len(windows.question)
    values = np.full((count, max_length, 2), -np.inf, np.float32)
    for start in range(0, count, batch_size):
        piece = np.arange(start, min(start + batch_size, count))
        longest = max(len(windows.encoded.input_ids[row]) for row in piece)
        length = min(-(-longest // _MULTIPLE) * _MULTIPLE, max_length)
        batch = collate(windows.encoded, piece, length)
        found = logits(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        values[piece, :length] = np.asarray(found)
    return find_answers(windows, values, passages)
