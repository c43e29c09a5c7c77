"""Pre-trains the small bundled encoder by masked language modelling on text of the small world.

    python -m experiments.pretrain --out FOLDER

Devlin et al., 2019, arXiv:1810.04805, without next-sentence prediction: 15 % of the tokens are to be predicted; of these
80 % are masked, 10 % replaced by a random word, 10 % kept. AdamW, linear warm-up and decay. The same command on the same
machine gives the same bits. `--steps 0` writes the random start, the encoder that knows nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import optax

from kaprune_jax.data.world import SPECIAL, vocabulary
from kaprune_jax.data.world_text import pretraining_text
from kaprune_jax.models.bert import make_apply
from kaprune_jax.models.config import BertConfig

PAD, _, CLS, SEP, MASK = range(len(SPECIAL))
HELD_BACK_SEED = 1_000_003


class Batch(NamedTuple):
    """Token arrays [batch, length]; `weight` is 1 where `targets` is to be predicted."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    targets: np.ndarray
    weight: np.ndarray


def encode_texts(texts: tuple[str, ...], ids: dict[str, int]) -> tuple[list[int], list[int]]:
    """Token and segment numbers of one text or two, with [CLS] and [SEP]."""
    tokens, segments = [CLS], [0]
    for number, text in enumerate(texts):
        part = [*(ids[word] for word in text.split()), SEP]
        tokens += part
        segments += [number] * len(part)
    return tokens, segments


def batches(seed: int, *, size: int, length: int, fraction: float = 0.15) -> Iterator[Batch]:
    """An endless stream of masked batches, the same for the same seed; texts longer than `length` are left out.

    Args:
        seed: of the text and of the masks.
        size: rows of a batch.
        length: tokens of a row, padding included.
        fraction: of the words to predict, at least one a row.
    """
    words = vocabulary()
    ids = {word: number for number, word in enumerate(words)}
    rng = np.random.default_rng(seed)
    stream = pretraining_text(seed, **({"simple": 0} if seed >= 1000 else {}))
    while True:
        tokens = np.full((size, length), PAD, np.int32)
        segments = np.zeros((size, length), np.int32)
        row = 0
        while row < size:
            line, parts = encode_texts(next(stream), ids)
            if len(line) <= length:
                tokens[row, : len(line)], segments[row, : len(line)] = line, parts
                row += 1
        scores = np.where(tokens >= len(SPECIAL), rng.random(tokens.shape), 2.0)
        rank = scores.argsort(axis=1).argsort(axis=1)
        count = np.maximum(1, np.rint(fraction * (scores < 2).sum(axis=1, keepdims=True)))
        chosen = rank < count
        action = rng.random(tokens.shape)
        noise = rng.integers(len(SPECIAL), len(words), tokens.shape, dtype=np.int32)
        shown = np.where(chosen & (action < 0.8), MASK, np.where(chosen & (action >= 0.9), noise, tokens))
        yield Batch(shown, (tokens != PAD).astype(np.int32), segments, tokens, chosen.astype(np.float32))


def make_step(config: BertConfig, tx: optax.GradientTransformation):
    """The jitted training step and the jitted evaluation."""
    apply = make_apply(config)

    def loss_fn(params, batch: Batch):
        logits = apply(params, batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
        assert logits is not None
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        total = batch.weight.sum()
        right = (logits.argmax(-1) == batch.targets) * batch.weight
        return (loss * batch.weight).sum() / total, right.sum() / total

    @jax.jit
    def evaluate(params, batch: Batch):
        return loss_fn(params, batch)

    def step(params, state, batch: Batch):
        (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, accuracy

    return jax.jit(step, donate_argnums=(0, 1)), evaluate
