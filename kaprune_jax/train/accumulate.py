"""Gradients of a batch, a part of its rows at a time: less memory, the same mean."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scales = Mapping[str, Float[Array, ""]]
"""By loss term, what a part's mean over its own tokens is multiplied with."""


def mean_over_parts(
    function: Callable[[Any, Mapping[str, Any], Scales | None], Any], batch: Mapping[str, Any], parts: int
) -> Any:
    """The mean of a function over the parts of a batch, one after the other.

    Args:
      function: of the part's number (None for the only one), its rows, and `scales` for the loss terms.
      batch: arrays [rows, ...] with an "attention_mask"; row r goes to part r mod `parts`, so that every device of a
        mesh has a share of each.
      parts: a divisor of the rows.

    Raises:
      ValueError: the rows cannot be divided so.
    """
    if parts == 1:
        return function(None, batch, None)
    rows = len(batch["attention_mask"])
    if rows % parts:
        raise ValueError(f"accumulate={parts}: a batch of {rows} rows cannot be cut into so many equal parts")
    pieces = {name: _cut(leaf, parts) for name, leaf in batch.items()}
    scales = _scales(pieces["attention_mask"])

    def add(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*item)), None

    items = (jnp.arange(parts), pieces, scales)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], items))
    first = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, first, items)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def _cut(leaf: Array, parts: int) -> Array:
    return jnp.moveaxis(jnp.reshape(leaf, (leaf.shape[0] // parts, parts, *leaf.shape[1:])), 1, 0)


def _scales(masks: Array) -> dict[str, Array]:
    """How much more a part's tokens, or pairs of tokens, are than its share of the batch's."""
    lengths = masks.astype(jnp.float32).sum(axis=2)
    tokens, pairs = lengths.sum(axis=1), jnp.square(lengths).sum(axis=1)
    by_token, by_pair = (count / jnp.maximum(count.mean(), 1.0) for count in (tokens, pairs))
    return {"embeddings": by_token, "hidden": by_token, "attention": by_pair}
