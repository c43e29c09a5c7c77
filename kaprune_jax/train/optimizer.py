"""AdamW as BERT is fine-tuned with it."""

from typing import Literal

import jax
import optax

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
