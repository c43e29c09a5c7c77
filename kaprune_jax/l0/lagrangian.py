"""The constraint that brings the expected sparsity to the asked one, and dual ascent on its multipliers.

CoFi (arXiv:2204.00408, eq. 6, after Wang, Wohlwend and Lei, 2020, arXiv:1910.04732): λ₁ δ + λ₂ δ² with
δ = expected - asked, minimised over the gates and maximised over both λ.
"""

from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Penalty = Literal["signed", "augmented"]


def init_duals() -> dict[str, Float[Array, ""]]:
    """Both multipliers at zero."""
    return {"linear": jnp.float32(0.0), "quadratic": jnp.float32(0.0)}


def penalty(
    duals: dict[str, Float[Array, ""]],
    expected: Float[Array, ""],
    asked: Float[Array, ""],
    *,
    kind: Penalty = "augmented",
    stiffness: float = 10.0,
) -> Float[Array, ""]:
    """The term that is added to the loss.

    Args:
      duals: λ₁ ("linear") and λ₂ ("quadratic").
      expected: sparsity the gates are expected to give, in [0, 1).
      asked: the sparsity of this step.
      kind: "signed": CoFi's λ₁ δ + λ₂ δ², an equality: both multipliers have to grow before anything happens, and a
        model that is sparser than asked is driven back. "augmented": the augmented Lagrangian of the inequality
        expected >= asked (Rockafellar, 1973, Math. Programming 5): with the shortfall g = asked - expected,
        (max(0, λ₁ + ρ g)² - λ₁²) / 2ρ. Its second order acts at once and damps λ₁, which matters where a run has few
        steps; gates that are sparse enough are left to the task. λ₂ is unused.
      stiffness: ρ of "augmented", > 0.
    """
    if kind == "signed":
        delta = expected - asked
        return duals["linear"] * delta + duals["quadratic"] * jnp.square(delta)
    if kind == "augmented":
        linear = duals["linear"]
        force = jnp.maximum(0.0, linear + stiffness * (asked - expected))
        return (jnp.square(force) - jnp.square(linear)) / (2.0 * stiffness)
    raise ValueError(f"kind={kind!r}; allowed: signed, augmented")


def dual_ascent(rate: float, *, kind: Penalty = "augmented") -> optax.GradientTransformation:
    """The optimizer of the multipliers: up the gradient, by `optax.scale(-1)`.

    Args:
      rate: step size, > 0. Adam's with "signed" (CoFi: 0.01). With "augmented" that of plain ascent, whose steps
        shrink with the shortfall; up to the stiffness λ₁ stays >= 0.
    """
    inner = optax.adam(rate) if kind == "signed" else optax.sgd(rate)
    return optax.chain(inner, optax.scale(-1.0))
