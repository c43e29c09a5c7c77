"""A loaded model: configuration, parameters, tokenizer, predictions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.data.loader import collate, encode
from kaprune_jax.data.rows import Rows
from kaprune_jax.deploy.answers import answer
from kaprune_jax.deploy.tokenizer import load_tokenizer
from kaprune_jax.deploy.weights import fingerprint
from kaprune_jax.models.bert import BertOutput, make_apply
from kaprune_jax.models.config import BertConfig

_MULTIPLE = 16
"""Lengths are multiples of it: fewer shapes to compile for."""


class Prediction(NamedTuple):
    """What `Model.predict` returns for one row.

    Attributes:
      label: the most probable class name, the predicted score of a regression, or the answer to a question, as its
        passage has it.
      probabilities: by class name; empty for a regression or an answer.
      score: of an answer: the probability of its first token times that of its last; None of anything else.
      truncated: the row had more tokens than were read, and its end was left out.
    """

    label: str | float
    probabilities: dict[str, float]
    score: float | None = None
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
      config: sizes, head, labels and pooling.
      params: plain nested dict of float32 arrays.
      folder: where it was read from.
      details: the `kaprune` section of its configuration.
    """

    config: BertConfig
    params: Params
    folder: Path
    details: Mapping[str, Any]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files it was read from, in hexadecimal."""
        return fingerprint(self.folder)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer, as `transformers` loads it.

        Raises:
          InputError: there is none, it cannot be read, or it has ids that the model has no word embedding for.
        """
        tokenizer = load_tokenizer(self.folder)
        most = max(tokenizer.get_vocab().values(), default=0)
        if most >= self.config.vocab_size:
            raise InputError(
                f"{self.folder}: the tokenizer has id {most}, the model {self.config.vocab_size} words only"
            )
        return tokenizer

    @functools.cached_property
    def apply(self) -> Callable[..., BertOutput]:
        """`apply(params, input_ids, attention_mask, token_type_ids)`; see `kaprune_jax.models.bert.make_apply`."""
        return make_apply(self.config)

    @functools.cached_property
    def _logits(self) -> Callable[..., Any]:
        return jax.jit(lambda params, *batch: self.apply(params, *batch).logits)

    def predict(
        self,
        rows: Sequence[str | tuple[str, ...]],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        stride: int | None = None,
        logits: Callable[..., Any] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Labels and probabilities of sentences or pairs of sentences; or answers to questions, and their scores.

        Args:
          rows: texts, or pairs of texts; for a model that answers questions, pairs of question and passage.
          batch_size: rows at a time, >= 1.
          max_length: tokens that rows are cut to, long passages into windows; the model's positions by default.
          stride: tokens that two windows of a long passage share; 128, or a third of a window where that is less.
          logits: of `input_ids`, `attention_mask` and `token_type_ids` [batch, seq]; by default this model's.
          names: what errors call each row; `predict: row 0` and so on by default.

        Raises:
          InputError: the model has no head of a task, the rows are not all texts or all pairs, a size is too small, or
            names are not as many as rows.
        """
        if not self.config.num_logits:
            raise InputError(f"{self.folder}: a model without the head of a task cannot predict labels")
        if isinstance(rows, str):
            raise InputError("predict: a list of texts is needed, not one text")
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise InputError(f"predict: {name}={value}; a whole number >= 1 is needed")
        pairs = [tuple(row) if isinstance(row, tuple | list) else (row,) for row in rows]
        names = [f"predict: row {number}" for number in range(len(pairs))] if names is None else names
        if len(names) != len(pairs):
            raise InputError(f"predict: {len(names)} names for {len(pairs)} rows; a name for each is needed")
        for number, row in enumerate(pairs):
            if len(row) != len(pairs[0]) or len(row) not in (1, 2) or not all(isinstance(text, str) for text in row):
                raise InputError(
                    f"{names[number]} is {rows[number]!r}; texts throughout, or pairs of texts throughout, are needed"
                )
        pad = self.config.pad_token_id
        limit = min(max_length or self.config.max_position_embeddings, self.config.max_position_embeddings)
        logits = logits or functools.partial(self._logits, self.params)
        if self.config.head == "span":
            options: dict[str, Any] = dict(batch_size=batch_size, max_length=limit, stride=stride, pad=pad, names=names)
            answers = answer(pairs, self.tokenizer, logits, **options)
            return [Prediction(found.text, {}, found.score) for found in answers]
        if not pairs:
            return []
        if limit <= (special := self.tokenizer.num_special_tokens_to_add(pair=len(pairs[0]) == 2)):
            raise InputError(f"predict: max_length={limit}; more than the {special} special tokens of a row are needed")
        data = encode(Rows(tuple(pairs), np.zeros(len(pairs), np.int32)), self.tokenizer, max_length=limit, pad=pad)
        sizes = np.array([len(row) for row in data.input_ids])
        order, found = np.argsort(sizes, kind="stable"), np.zeros((len(pairs), self.config.num_logits), np.float32)
        for start in range(0, len(pairs), batch_size):
            piece = order[start : start + batch_size]  # rows of like length
            batch = collate(data, piece, min(-(-int(sizes[piece].max()) // _MULTIPLE) * _MULTIPLE, limit))
            columns = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
            found[piece] = np.asarray(logits(*columns))
        return [each._replace(truncated=row in data.cut) for row, each in enumerate(self._name(found))]

    def _name(self, logits: np.ndarray) -> list[Prediction]:
        if self.config.head == "regression":
            return [Prediction(float(row[0]), {}) for row in logits]
        shares = np.asarray(jax.nn.softmax(logits, axis=-1))
        return [
            Prediction(
                self.config.labels[int(row.argmax())], dict(zip(self.config.labels, map(float, row), strict=True))
            )
            for row in shares
        ]
