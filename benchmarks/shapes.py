"""What the benchmarks of the training step have in common: flags, sizes, the batch, how steps are timed."""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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
    "bert-large": Shape(24, 1024, 16, 4096),
    "1b": Shape(24, 1792, 28, 7168),
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


def make_parser(about: str, *, shape: str, rounds: int) -> argparse.ArgumentParser:
    """The flags that these benchmarks share, with a benchmark's own defaults."""
    parser = argparse.ArgumentParser(
        description=about.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default=shape, help="encoder sizes")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--length", type=int, default=80, help="tokens per row")
    parser.add_argument("--rounds", type=int, default=rounds, help="timed steps of each kind")
    return parser


def make_config(shape: Shape) -> Any:
    """The encoder of a shape with a head of two classes."""
    from kaprune_jax.models.config import BertConfig

    return BertConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.positions,
        head="classification",
        labels=tuple(map(str, range(shape.classes))),
    )


def make_parts(config: Any) -> dict[str, Any]:
    """A task's parameters in a store: an untrained encoder with every gate, multipliers and a projection."""
    import jax

    import kaprune_jax as kp
    from kaprune_jax.models.bert import init_params

    return {
        "model": init_params(config, jax.random.key(0)),
        "gates": kp.init_gates(kp.bert_layout(config)),
        "duals": kp.init_duals(),
        "projection": kp.init_projection(config.hidden_size, config.hidden_size, jax.random.key(3)),
    }


def timed(step: Callable[..., Any], state: Any, *inputs: Any) -> Callable[[], float]:
    """A function that takes one step, from the state that the one before has left, and returns its seconds."""
    import jax

    def take() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = step(state, *inputs)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return take
