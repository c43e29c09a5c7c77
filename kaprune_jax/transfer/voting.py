"""Keep probabilities voted by the masks of similar tasks.

Meta-Vote Pruning (arXiv:2301.11560): models already pruned for the nearest tasks vote on every gate, which starts
from the outcome rather than from "keep everything".
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params


def vote(
    masks: Sequence[Params],
    similarity: Sequence[float],
    *,
    temperature: float = 1.0,
    prior: Params,
    rate: float,
    low: float = 0.05,
    high: float = 0.95,
) -> Params:
    """P = clip((1 - rate)·prior + rate·v, low, high), v = Σ_j w_j m_j, w = softmax(similarity / temperature).

    Args:
      masks: for each source task its tree {gate name: array}, True or 1 where kept; equal names and shapes.
      similarity: for each source how near it is to the target task; more is nearer.
      temperature: divides the similarities, above 0. At 1 similarities that lie in [-1, 1] weigh almost the same;
        towards 0 the nearest source decides alone.
      prior: keep probability without any vote, in [0, 1]: one number, or a tree like a mask.
      rate: how much the vote counts, in [0, 1].
      low: the smallest probability given.
      high: the largest.

    Returns:
      a tree like a mask, of float32 keep probabilities.

    Raises:
      ValueError: no masks, another number of similarities, masks or a prior whose names or shapes differ (the first
        that does is named), or a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = [{"head": jnp.array([True, False])}, {"head": jnp.array([True, True])}]
      >>> vote(masks, [0.5, 0.5], prior=0.5, rate=0.5, high=1.0)["head"].tolist()
      [0.75, 0.5]
    """
    if len(masks) == 0:
        raise ValueError("masks: none given; at least one is needed")
    if len(similarity) != len(masks):
        raise ValueError(f"similarity: {len(similarity)} values for {len(masks)} masks; one for each is needed")
    if not np.isfinite(similarity).all():
        raise ValueError(f"similarity={list(similarity)}; finite numbers are needed")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature!r}; a finite number above 0 is needed")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate={rate!r}; a number in [0, 1] is needed")
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"low={low!r}, high={high!r}; 0 <= low <= high <= 1 is needed")
    shapes = named_shapes(masks[0])
    for index, mask in enumerate(masks):
        if difference := first_difference(shapes, named_shapes(mask)):
            raise ValueError(f"masks 0 and {index} differ: {difference}")
        for name, leaf in named_leaves(mask).items():
            if not np.isin(np.asarray(leaf), (0, 1)).all():
                raise ValueError(f"mask {index}, {name}: values other than 0 and 1; give what is kept, not scores")
    if isinstance(prior, float | int):
        number = prior
        prior = jax.tree.map(lambda _: number, masks[0])
    elif difference := first_difference(named_shapes(prior), shapes):
        raise ValueError(f"prior and masks differ: {difference}")
    for name, leaf in named_leaves(prior).items():
        values = np.asarray(leaf)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"prior, {name}: values outside [0, 1]")

    # Differences first: float32 keeps them exact enough at any temperature.
    logits = (np.asarray(similarity, np.float64) - max(similarity)) / temperature
    weights = jax.nn.softmax(jnp.asarray(logits, jnp.float32))

    def probability(start, *votes):
        kept = jnp.tensordot(weights, jnp.stack([jnp.asarray(mask, jnp.float32) for mask in votes]), axes=1)
        return jnp.clip((1.0 - rate) * jnp.asarray(start, jnp.float32) + rate * kept, low, high)

    return jax.tree.map(probability, prior, *masks)


def named_leaves(tree: Params) -> dict[str, Params]:
    """Path ("attention/heads") to leaf, in tree order."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def named_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """Path to the leaf's shape, in tree order."""
    return {name: np.shape(leaf) for name, leaf in named_leaves(tree).items()}


def first_difference(first: dict[str, tuple[int, ...]], second: dict[str, tuple[int, ...]]) -> str | None:
    """The first name whose shape is not the same in both, in words; None where all are."""
    for name in [*first, *second]:
        if first.get(name) != second.get(name):
            return f"{name} has shape {first.get(name, 'none (missing)')} and {second.get(name, 'none (missing)')}"
    return None
