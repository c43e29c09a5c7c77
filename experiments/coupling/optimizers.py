"""The optimizers of coupled runs: over a store, each kind of parameter its own."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config.settings import Settings
from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.l0.gates import keep_in_bounds
from kaprune_jax.l0.lagrangian import dual_ascent
from kaprune_jax.train.optimizer import adamw

FROZEN = r".*/model/embeddings/(word|position|token_type)/embedding"
"""Paths in a store of what --train-embeddings would train."""


def gated_optimizer(settings: Settings, rate: optax.Schedule, target: str) -> optax.GradientTransformation:
    """AdamW for weights, Adam within bounds for log α, ascent for the multipliers; embeddings stay as they are."""
    assert settings.gate_learning_rate is not None
    assert settings.dual_learning_rate is not None
    gates = optax.chain(optax.adam(settings.gate_learning_rate), keep_in_bounds())
    duals = dual_ascent(settings.dual_learning_rate, kind=settings.penalty)  # pyright: ignore[reportArgumentType]
    groups: dict[Any, optax.GradientTransformation] = {
        "model": weights_optimizer(settings, rate, target),
        "gates": gates,
        "duals": duals,
        "frozen": optax.set_to_zero(),
    }
    return optax.partition(groups, lambda params: _groups(params, frozen_of(settings)))


def smaller_optimizer(
    settings: Settings, rate: optax.Schedule, target: str, *, done: int
) -> optax.GradientTransformation:
    """AdamW for the smaller model, whose count of steps starts anew after so many that are done."""
    groups: dict[Any, optax.GradientTransformation] = {
        "model": weights_optimizer(settings, lambda count: rate(count + done), target),
        "frozen": optax.set_to_zero(),
    }
    return optax.partition(groups, lambda params: _groups(params, frozen_of(settings)))


def weights_optimizer(
    settings: Settings, rate: optax.ScalarOrSchedule, target: str, *, clip: float = 1.0
) -> optax.GradientTransformation:
    """AdamW over a store behind a bound on the gradient's norm: one over what the target has, one for each other task.

    So that a task that shares little does not shorten the target's steps. A gradient whose squares overflow becomes
    NaN, which is seen, instead of zero, which is not.
    """

    def shorten(updates, state, params=None):
        squares: dict[str, Any] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
            owner = _owner(path, target)
            squares[owner] = squares.get(owner, 0.0) + jnp.sum(jnp.square(leaf))
        factors = {
            owner: jnp.minimum(1.0, clip / jnp.maximum(jnp.sqrt(sum), 1e-12)) + 0.0 * sum
            for owner, sum in squares.items()
        }
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * factors[_owner(path, target)], updates), state

    bound = optax.GradientTransformation(lambda params: optax.EmptyState(), shorten)
    return optax.chain(bound, adamw(rate, weight_decay=settings.weight_decay, clip=0.0))


def frozen_of(settings: Settings) -> str | None:
    """What no gradient reaches; with magnitude masks everything is trained, as in the main job."""
    return FROZEN if settings.method == "cofi" and not settings.train_embeddings else None


def _owner(path: tuple, target: str) -> str:
    """The task a parameter of a store belongs to; what is shared is the target's."""
    return path[1].key if path[0].key == "own" else target


def _groups(params: Params, frozen: str | None) -> Params:
    def group(path: tuple, _: Any) -> str:
        part = path[2 if path[0].key == "own" else 1].key
        if part in ("gates", "duals"):
            return part
        return "frozen" if frozen and re.fullmatch(frozen, path_string(path)) else "model"

    return jax.tree_util.tree_map_with_path(group, params)
