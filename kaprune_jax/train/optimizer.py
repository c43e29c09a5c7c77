"""AdamW as BERT is fine-tuned with it, and averages of the weights it goes through."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params


def learning_rate(
    peak: float, *, steps: int, schedule: Literal["constant", "linear"] = "linear", warmup: float = 0.0
) -> optax.Schedule:
    """The rate per step: linear warm-up over a fraction of the run, then constant or linear to zero.

    Args:
      peak: highest rate, above 0.
      steps: length of the run in optimizer steps.
      schedule: "constant" after the warm-up, or "linear" down to zero at the last step.
      warmup: fraction of the steps, in [0, 1).
    """
    rise = round(warmup * steps)
    fall = peak if schedule == "constant" else 0.0
    rest = optax.linear_schedule(peak, fall, max(steps - rise, 1))
    if not rise:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), rest], [rise])


def decays(params: Params) -> Params:
    """True for leaves that weight decay acts on: kernels and embeddings, not biases and LayerNorm scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_string(path).rsplit("/", 1)[-1] in ("kernel", "embedding"), params
    )


def adamw(
    rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.01, clip: float = 1.0
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) behind a bound on the gradient's norm.

    Args:
      rate: learning rate or schedule.
      weight_decay: decoupled, on what `decays` selects.
      clip: largest global norm of the gradient; 0 for none.
    """
    optimizer = optax.adamw(rate, weight_decay=weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


class AverageState(NamedTuple):
    """State of `average_weights`.

    Attributes:
      seen: optimizer steps taken.
      average: the tree of the parameters: the mean of what they were after each step since `begin`, or, before it, what
        they are.
    """

    seen: Int[Array, ""]
    average: Params


def average_weights(begin: int) -> optax.GradientTransformation:
    """Keeps the mean of the weights from step `begin` on (Izmailov et al., 2018, arXiv:1803.05407); last in a chain.

    Weights that were removed by then are zero in the mean too.
    """

    def init(params: Params) -> AverageState:
        return AverageState(jnp.int32(0), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        seen = state.seen + 1
        share = 1.0 / jnp.maximum(seen - begin + 1, 1)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, value: old + share * (value - old), state.average, new)
        return updates, AverageState(seen, average)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
