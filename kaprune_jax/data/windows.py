"""Questions and passages as rows of tokens: a long passage is cut into overlapping windows.

Each window is a row of its own, the question before its piece of the passage. A window that does not hold the whole
answer learns to point at the first token, [CLS] (Devlin et al., 2019, arXiv:1810.04805, section 4.3).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from kaprune_jax._errors import InputError
from kaprune_jax.data.loader import Encoded
from kaprune_jax.data.rows import Rows

_AT_ONCE = 512  # questions a call of the tokenizer, whose lists of numbers take thirty times the room of the arrays
_MOST = 1000  # windows of one passage: every question about it needs them all


class Windows(NamedTuple):
    """Tokenised questions with pieces of their passages.

    Attributes:
      encoded: a row for each window, those of a question beside each other; `labels` are the places of the first and
        last token of the answer, 0 and 0 where the window does not hold all of it.
      question: the row of the task that each window is of.
      offsets: of each window [tokens, 2]: where a token of the passage begins and ends in it, in characters; -1 and -1
        for other tokens.
    """

    encoded: Encoded
    question: Int32[np.ndarray, " windows"]
    offsets: tuple[Int32[np.ndarray, "tokens 2"], ...]


def default_stride(max_length: int) -> int:
    """Tokens that two windows share: 128, BERT's, or a third of a window where that is less."""
    return min(128, max_length // 3)


def cut(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """First token and end of each window of a passage.

    Any piece of up to `stride` + 1 tokens lies in at least one window whole.

    Args:
      tokens: of the passage, >= 1.
      room: for tokens of the passage in a window, >= 1.
      stride: tokens that two windows share, in [0, room).

    Example:
      >>> cut(10, 6, 2)
      [(0, 6), (4, 10)]
    """
    starts = range(0, max(tokens - room, 0) + room - stride, room - stride)
    return [(start, min(start + room, tokens)) for start in starts]


def encode_windows(rows: Rows, tokenizer: Any, *, max_length: int, stride: int, pad: int = 0) -> Windows:
    """Tokenises questions with their passages once, cut into windows of at most `max_length` tokens.

    Args:
      rows: questions and passages, named, with the place of an answer as labels.
      tokenizer: a fast one of `transformers`, which tells where in the text a token is from.
      max_length: tokens of a window, question and special tokens included.
      stride: tokens of the passage that two windows share.
      pad: the id that fills up.

    Raises:
      InputError: a tokenizer that does not tell; a stride that is no smaller than what a window holds of a passage;
        a question so long that no more than `stride` tokens of the passage fit beside it; a passage or an answer
        without any token, or a passage of more than 1000 windows.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if not 0 <= stride < max_length - special - 1:
        raise InputError(
            f"stride {stride}: windows of {max_length} tokens hold up to {max_length - special - 1} of a passage, so a "
            f"stride from 0 to {max(max_length - special - 2, 0)} is allowed"
        )
    ids, types, labels, question, offsets, lost = [], [], [], [], [], set()
    for first in range(0, len(rows.texts), _AT_ONCE):
        piece = rows.texts[first : first + _AT_ONCE]
        columns = ([question for question, _ in piece], [passage for _, passage in piece])
        options: dict[str, Any] = dict(return_token_type_ids=True, return_attention_mask=False, verbose=False)
        encodings = tokenizer(*columns, truncation=False, padding=False, **options).encodings
        if encodings is None:
            raise InputError(
                f"tokenizer: a {type(tokenizer).__name__} does not tell places in the text; a fast one does"
            )
        for number, encoding in enumerate(encodings, first):
            row_ids, row_types = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
            ours = np.array([part == 1 for part in encoding.sequence_ids])
            where = np.where(ours[:, None], np.array(encoding.offsets, np.int32), np.int32(-1))
            begin, tokens = int(ours.argmax()), int(ours.sum())
            spans = _spans(rows.names[number], tokens, max_length - len(ours) + tokens, stride, max_length)
            answer = _answer(rows, number, where)
            held = False
            for start, end in spans:
                kept = np.r_[:begin, begin + start : begin + end, begin + tokens : len(ours)]
                ids.append(row_ids[kept])
                types.append(row_types[kept])
                offsets.append(where[kept])
                question.append(number)
                inside = begin + start <= answer[0] and answer[1] < begin + end
                labels.append((answer[0] - start, answer[1] - start) if inside else (0, 0))
                held |= inside
            if not held:
                lost.add(number)
    encoded = Encoded(tuple(ids), tuple(types), np.array(labels, np.int32), frozenset(lost), max_length, pad)
    return Windows(encoded, np.array(question, np.int32), tuple(offsets))


def _spans(name: str, tokens: int, room: int, stride: int, max_length: int) -> list[tuple[int, int]]:
    """The windows of a passage, after a check that there can be some."""
    if room <= stride:
        raise InputError(
            f"{name}: the question leaves room for {max(room, 0)} tokens of the passage in a window of {max_length}; "
            f"more than the stride, {stride}, are needed"
        )
    if not tokens:
        raise InputError(f"{name}: the tokenizer finds no token in the passage; some text is needed")
    if tokens > room + (_MOST - 1) * (room - stride):
        raise InputError(f"{name}: the passage has {tokens} tokens, more than {_MOST} windows hold; cut it up")
    return cut(tokens, room, stride)


def _answer(rows: Rows, number: int, where: Int32[np.ndarray, "tokens 2"]) -> tuple[int, int]:
    """The places of the first and last token that have a part of the answer, in the row before it is cut."""
    begin, end = rows.labels[number]
    having = np.flatnonzero((where[:, 0] < end) & (where[:, 1] > begin))
    if not having.size:
        text = rows.texts[number][1][begin:end]
        raise InputError(f"{rows.names[number]}: the tokenizer finds no token in the answer {text!r}")
    return int(having[0]), int(having[-1])
