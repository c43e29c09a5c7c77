"""Gates of a whole model: new, sampled, without noise, and how sparse they leave it.

CoFi (Xia et al., 2022, arXiv:2204.00408): for BERT the expected size is Σ_hidden,head P P (4 d_head) +
Σ_hidden,unit P P 2, where P of a head is the product of the probabilities of its attention's gate and its own, and P
of a unit likewise: `Layout.size` of the probabilities.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kaprune_jax.l0.hard_concrete import HIGHEST, LOWEST, deterministic, keep_probability, log_alpha_of, sample
from kaprune_jax.l0.layout import Gates, Layout


def init_gates(
    layout: Layout, *, enabled: Sequence[str] | None = None, keep: float = 0.998
) -> dict[str, Float[Array, "..."]]:
    """log α of every gate, all alike.

    Args:
      layout: the model's gates.
      enabled: the families to learn; the others stay open. By default all.
      keep: P(z ≠ 0) to start with, in (0, 1).

    Raises:
      ValueError: an unknown family, or a probability out of range.
    """
    if not 0.0 < keep < 1.0:
        raise ValueError(f"keep={keep!r}; a probability in (0, 1) is needed")
    names = [gate.name for gate in layout.gates] if enabled is None else list(enabled)
    return {name: jnp.full(layout.gate(name).shape, log_alpha_of(keep), jnp.float32) for name in names}


def sample_gates(key: Array, gates: Gates) -> dict[str, Float[Array, "..."]]:
    """Draws every gate from its hard concrete distribution; `gates` are log α."""
    keys = jax.random.split(key, max(len(gates), 1))
    return {name: sample(keys[number], jnp.asarray(gates[name])) for number, name in enumerate(sorted(gates))}


def still_gates(gates: Gates) -> dict[str, Float[Array, "..."]]:
    """Every gate without noise, in [0, 1], as evaluation uses them."""
    return {name: deterministic(jnp.asarray(value)) for name, value in gates.items()}


def keep_probabilities(gates: Gates) -> dict[str, Float[Array, "..."]]:
    """P(z ≠ 0) of every gate."""
    return {name: keep_probability(jnp.asarray(value)) for name, value in gates.items()}


def expected_sparsity(gates: Gates, layout: Layout) -> Float[Array, ""]:
    """The fraction of the layout's matrices that is expected to be gone, in [0, 1); differentiable in log α."""
    return jnp.maximum(0.0, 1.0 - layout.size(keep_probabilities(gates)) / layout.full_size)


def sparsity_of(values: Gates, layout: Layout) -> Float[Array, ""]:
    """The fraction that is gone where gates have these values: what is 0 is gone."""
    alive = {name: (value > 0).astype(jnp.float32) for name, value in values.items()}
    return jnp.maximum(0.0, 1.0 - layout.size(alive) / layout.full_size)


def keep_in_bounds() -> optax.GradientTransformation:
    """The last link of the gates' optimizer: log α stays where P(z ≠ 0) still moves."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("keep_in_bounds needs params in tx.update(updates, state, params)")
        return jax.tree.map(lambda u, p: jnp.clip(p + u, LOWEST, HIGHEST) - p, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
