"""What the benchmarks of the training step have in common: sizes, settings, the batch."""

from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """Sizes of an encoder."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int = 30522
    positions: int = 512
    types: int = 2
    classes: int = 2


SHAPES = {
    "minilm": Shape(6, 384, 12, 1536),
    "bert-base": Shape(12, 768, 12, 3072),
}
SPARSITY = 0.95
LEARNING_RATE = 3e-5


def make_batch(batch: int, length: int, vocab: int, seed: int) -> dict[str, np.ndarray]:
    """Token ids, mask and types whose rows end between ``length // 2`` and ``length`` (the first is full)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length + 1, size=batch)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, vocab, size=(batch, length)).astype(np.int32) * mask
    types = (np.arange(length) >= lengths[:, None] // 2).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
