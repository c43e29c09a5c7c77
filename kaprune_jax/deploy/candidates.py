"""Words that a pre-trained encoder would put in another's place: the candidates of data augmentation.

As in TinyBERT (Jiao et al., 2020, arXiv:1909.10351, algorithm 1), with the model's own input embeddings in the place of
GloVe's.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kaprune_jax._errors import InputError
from kaprune_jax.data.augment import Propose, Word, is_candidate
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import make_fill

_FEWEST = 3  # below so many the masked language model has no opinion, and the embeddings are asked
_MULTIPLE = 32  # sequence lengths: few shapes, few compilations
_WORDS = 512  # rows of the table of similarities at a time
_TEXTS = 8192  # masked texts tokenised at a time


def candidates(model: Model, *, count: int = 15, batch_size: int = 64) -> Propose:
    """Proposes by the masked-LM head where the model has one, else by input embeddings.

    With the head: the word is masked in its text, a word of several pieces by one mask; of the `count` most probable
    tokens those are taken that are whole words, not stop words and not the word itself. Where fewer than three remain,
    and where there is no head or no mask token: the `count` words of the vocabulary with the most similar input
    embedding (cosine; a word of several pieces has their mean). Words unknown to the tokenizer have none.

    Args:
      model: any encoder with a tokenizer.
      count: candidates at most, at least 1.
      batch_size: texts in one forward pass.

    Raises:
      InputError: the vocabulary has no whole words.
      ValueError: `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}; a whole number >= 1 is needed")
    vocabulary = _Vocabulary(model)

    def by_embedding(words: Sequence[Word]) -> list[tuple[str, ...]]:
        different = list(dict.fromkeys(word.word for word in words))
        found = dict(zip(different, vocabulary.neighbours(different, count), strict=True))
        return [found[word.word] for word in words]

    def by_masked_lm(words: Sequence[Word]) -> list[tuple[str, ...]]:
        fill, found = _most_probable(model), []
        for start in range(0, len(words), _TEXTS):
            found += _fill_in(model, vocabulary, fill, words[start : start + _TEXTS], count, batch_size)
        few = [index for index, others in enumerate(found) if len(others) < min(_FEWEST, count)]
        for index, others in zip(few, by_embedding([words[index] for index in few]), strict=True):
            found[index] = others
        return found

    has_head = model.config.head == "masked-lm" and model.tokenizer.mask_token_id is not None
    return by_masked_lm if has_head else by_embedding


class _Vocabulary:
    """The tokens of a model that are whole words: what the tokenizer makes of the word is that token alone."""

    def __init__(self, model: Model):
        self.tokenizer: Any = model.tokenizer
        # Pieces that begin a word are marked in some tokenizers: "▁film", "Ġfilm".
        surface = {index: token.lstrip("▁Ġ") for token, index in sorted(self.tokenizer.get_vocab().items())}
        likely = {index: word for index, word in surface.items() if is_candidate(word)}
        pieces = self.pieces(list(likely.values()))
        self.words = {index: word for index, word in sorted(likely.items()) if pieces[word] == [index]}
        if not self.words:
            raise InputError(f"{model.folder}: its vocabulary has no whole words to replace others with")
        self.vectors = np.asarray(model.params["embeddings"]["word"]["embedding"])
        table = self.vectors[list(self.words)]
        self.table = jnp.asarray(table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12))
        self.ids = np.array(list(self.words))

    def pieces(self, words: Sequence[str]) -> dict[str, list[int]]:
        """What the tokenizer makes of words."""
        if not words:
            return {}
        return dict(zip(words, self.tokenizer(list(words), add_special_tokens=False)["input_ids"], strict=True))

    def choose(self, word: str, pieces: Sequence[int], ids: Sequence[int], count: int) -> tuple[str, ...]:
        """The words among some tokens, in their order, without `word` itself."""
        found = (self.words[index] for index in ids if index in self.words and [index] != pieces)
        return tuple(other for other in found if other.lower() != word.lower())[:count]

    def neighbours(self, words: Sequence[str], count: int) -> list[tuple[str, ...]]:
        """For each word the `count` words with the most similar input embedding; none for unknown words."""
        pieces, unknown = self.pieces(words), self.tokenizer.unk_token_id
        known = [word for word in words if pieces[word] and unknown not in pieces[word]]
        most = min(count + 2, len(self.words))  # the word itself, and it in another case, may be among them
        found: dict[str, tuple[str, ...]] = {}
        for start in range(0, len(known), _WORDS):
            part = known[start : start + _WORDS]
            means = np.zeros((_WORDS, self.vectors.shape[1]), self.vectors.dtype)
            means[: len(part)] = [self.vectors[pieces[word]].mean(axis=0) for word in part]
            nearest = self.ids[np.asarray(_nearest(means, self.table, most=most))].tolist()
            for word, others in zip(part, nearest, strict=False):
                found[word] = self.choose(word, pieces[word], others, count)
        return [found.get(word, ()) for word in words]


@functools.partial(jax.jit, static_argnames="most")
def _nearest(
    vectors: Float[Array, "words hidden"], table: Float[Array, "vocab hidden"], *, most: int
) -> Int[Array, "words most"]:
    """The rows of a normalised table that are nearest to each vector by cosine."""
    return jax.lax.top_k(vectors @ table.T, most)[1]


def _fill_in(
    model: Model, vocabulary: _Vocabulary, fill: Any, words: Sequence[Word], count: int, batch_size: int
) -> list[tuple[str, ...]]:
    tokenizer, limit = model.tokenizer, model.config.max_position_embeddings
    mask = tokenizer.mask_token
    texts = [f"{word.text[: word.start]}{mask}{word.text[word.end :]}" for word in words]
    encoded = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    pieces = vocabulary.pieces(list({word.word for word in words}))
    places = [_place(ids, tokenizer.mask_token_id, word, mask) for ids, word in zip(encoded, words, strict=True)]
    found: list[tuple[str, ...]] = [()] * len(words)
    order = sorted((index for index, place in enumerate(places) if place), key=lambda index: len(encoded[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        length = min(limit, -(-len(encoded[rows[-1]]) // _MULTIPLE) * _MULTIPLE)
        ids, real = np.full((batch_size, length), model.config.pad_token_id, np.int32), np.zeros((batch_size, length))
        real[:, 0] = 1  # rows that only fill up see their first token
        at = np.zeros(batch_size, np.int32)
        for row, index in enumerate(rows):
            tokens = encoded[index]
            ids[row, : len(tokens)], real[row, : len(tokens)], at[row] = tokens, 1, places[index]
        best = np.asarray(fill(model.params, ids, real, at, min(count, len(tokenizer)))).tolist()
        for index, tokens in zip(rows, best, strict=False):
            word = words[index].word
            found[index] = vocabulary.choose(word, pieces[word], tokens, count)
    return found


def _place(ids: Sequence[int], mask_id: int, word: Word, mask: str) -> int:
    """Where the mask of a word is; 0 if it was truncated away. The text may have masks of its own before it."""
    own = [place for place, token in enumerate(ids) if token == mask_id]
    before = word.text[: word.start].count(mask)
    return own[before] if before < len(own) else 0


def _most_probable(model: Model) -> Any:
    fill = make_fill(model.config)

    @functools.partial(jax.jit, static_argnums=4)
    def best(params: Any, ids: Array, mask: Float[Array, "batch seq"], places: Array, count: int) -> Array:
        return jax.lax.top_k(fill(params, ids, mask, places), count)[1]

    return best
