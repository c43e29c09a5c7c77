"""The hard concrete distribution: gates in [0, 1] that are exactly 0 or 1 with positive probability.

Louizos, Welling and Kingma, 2018, arXiv:1712.01312, eq. 10-13, with the constants of CoFi (Xia et al., 2022,
arXiv:2204.00408): u ~ U(ε, 1 - ε), s = σ((log u - log(1 - u) + log α) / β), z = clip(s (r - l) + l, 0, 1).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEFT, RIGHT, BETA = -0.1, 1.1, 2.0 / 3.0
EPSILON = 1e-6
LOWEST, HIGHEST = -8.0, math.log(100.0)
"""Bounds of log α: P(z ≠ 0) within [0.0017, 0.998]. CoFi stops at log 0.01, where a gate is open 4.7 % of the time."""

_SHIFT = BETA * math.log(-LEFT / RIGHT)


def sample(key: Array, log_alpha: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Draws z in [0, 1]; gradients flow to log α where z is neither 0 nor 1."""
    u = jax.random.uniform(key, log_alpha.shape, minval=EPSILON, maxval=1.0 - EPSILON)
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / BETA)
    return _stretch(s)


def keep_probability(log_alpha: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """P(z ≠ 0) = σ(log α - β log(-l / r)).

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(keep_probability(jnp.array(4.605))), 3)
      0.998
    """
    return jax.nn.sigmoid(log_alpha - _SHIFT)


def deterministic(log_alpha: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The gate without noise, clip(σ(log α) (r - l) + l, 0, 1); 0 below log α = -2.4, 1 above 2.4."""
    return _stretch(jax.nn.sigmoid(log_alpha))


def log_alpha_of(probability: Float[Array, "*shape"] | float) -> Float[Array, "*shape"]:
    """The log α with which P(z ≠ 0) is a probability in (0, 1), kept within the bounds."""
    p = jnp.asarray(probability)
    return jnp.clip(jnp.log(p) - jnp.log1p(-p) + _SHIFT, LOWEST, HIGHEST)


def _stretch(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.clip(s * (RIGHT - LEFT) + LEFT, 0.0, 1.0)
