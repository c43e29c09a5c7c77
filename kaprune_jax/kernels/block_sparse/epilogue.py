"""What happens to a product before it is written: + bias, activation, + residual, cast, in this order, in float32."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Literal["gelu", "gelu_tanh", "relu"]


class Epilogue(NamedTuple):
    """What is done to a product, features-major.

    Attributes:
      bias: [outputs, 1], or None.
      activation: or None.
      residual: [outputs, tokens], or None.
    """

    bias: Any = None
    activation: Activation | None = None
    residual: Any = None


def finish(
    product: Float[Array, "outputs tokens"],
    bias: Float[Array, "outputs #tokens"] | None,
    activation: Activation | None,
    residual: Float[Array, "outputs tokens"] | None,
    *,
    erf: Callable[[Array], Array] = jax.lax.erf,
) -> Float[Array, "outputs tokens"]:
    """act(product + bias) + residual, in the product's type.

    Written out rather than taken from `jax.nn`, whose GELU and ReLU have primitives that no TPU or GPU kernel takes.
    """
    if bias is not None:
        product = product + bias.astype(product.dtype)
    if activation == "gelu":
        product = 0.5 * product * (1.0 + erf(product * 0.5**0.5))
    elif activation == "gelu_tanh":
        inner = (2.0 / jnp.pi) ** 0.5 * (product + 0.044715 * product * product * product)
        product = 0.5 * product * (1.0 + jnp.tanh(inner))
    elif activation == "relu":
        product = jnp.maximum(product, 0.0)
    return product if residual is None else product + residual.astype(product.dtype)


def erf_by_exp(x: Array) -> Array:
    """erf to 1.5e-7 from one exponential (Abramowitz and Stegun, 1964, 7.1.26), where there is no such primitive."""
    t = 1.0 / (1.0 + 0.3275911 * jnp.abs(x))
    sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    value = 1.0 - sum * jnp.exp(-x * x)
    return jnp.where(x < 0.0, -value, value)


def check_activation(activation: str | None) -> None:
    """Raises ValueError for a name that is not known."""
    if activation is not None and activation not in get_args(Activation):
        raise ValueError(f"activation={activation!r}; allowed: None, {', '.join(get_args(Activation))}")
