"""The training step: student and teacher forward, loss, gradient, optimizer, masks, in one jitted function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from kaprune_jax._typing import Masks, Params
from kaprune_jax.distill.objective import DistillConfig, Outputs, objective
from kaprune_jax.prune.masks import apply_masks, mask_moments
from kaprune_jax.train.accumulate import Scales, mean_over_parts
from kaprune_jax.train.turns import jit_whole

Apply = Callable[..., Outputs]
PROJECTION = "projection"


class TrainState(NamedTuple):
    """All that changes from step to step.

    Attributes:
      step: optimizer steps taken.
      params: the student's parameters, with those of the projection under "projection" where there is one.
      opt_state: the optimizer's state; with `magnitude_pruning` in the chain it holds the masks.
      key: random key of the run; each step folds its number in.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: Array


class StepMetrics(NamedTuple):
    """What a step reports, left on the device until it is logged.

    Attributes:
      loss: the weighted sum.
      terms: each loss term, unweighted.
      asked: the sparsity the masks were last made for, in [0, 1).
      delivered: the fraction of prunable weights they remove; with gates, what would be gone if they closed now.
      expected: with gates, the sparsity they are expected to give; else None.
      grad_square: squared norm of the gradient before it is clipped: one that is not finite leaves zeros behind. The
        norm itself would change how the step is compiled, and with it the last bits.
    """

    loss: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    asked: Float[Array, ""]
    delivered: Float[Array, ""]
    expected: Float[Array, ""] | None = None
    grad_square: Float[Array, ""] | None = None


def init_state(params: Params, tx: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step; params are copied, since the step gives its input's memory away."""
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return TrainState(jnp.int32(0), params, tx.init(params), key)


def get_masks(opt_state: Any) -> Masks | None:
    """The masks that `magnitude_pruning` keeps in an optimizer state; None without it."""
    return optax.tree.get(opt_state, "masks")


def for_scores(opt_state: Any, grads: Params) -> dict[str, Params]:
    """What `magnitude_pruning` in a chain is handed beside the updates: gradients, where its scores look at them."""
    return {} if optax.tree.get(opt_state, "importance") is None else {"grads": grads}


def split_projection(params: Params) -> tuple[Params, Params | None]:
    """The model's own parameters, and those of the projection if there is one."""
    return {name: part for name, part in params.items() if name != PROJECTION}, params.get(PROJECTION)


def make_train_step(
    apply: Apply,
    tx: optax.GradientTransformationExtraArgs,
    config: DistillConfig,
    *,
    teacher: Apply | None = None,
    accumulate: int = 1,
) -> Callable[[TrainState, Params | None, Mapping[str, Array]], tuple[TrainState, StepMetrics]]:
    """Builds `step(state, teacher_params, batch) -> (state, metrics)`, to be jitted with the state donated.

    Args:
      apply: the student: `apply(params, input_ids, attention_mask, token_type_ids, dropout_key=key)`.
      tx: the optimizer, `magnitude_pruning` last in its chain where something is pruned.
      config: the objective.
      teacher: the teacher's forward pass, called without a dropout key, so in evaluation mode; its parameters are an
        argument of the step. None where no term needs it.
      accumulate: parts of a batch that are worked on one after the other, a divisor of its rows; the loss is that of
        the whole batch, dropout is drawn anew in each part.
    """

    def step(state: TrainState, teacher_params: Params | None, batch: Mapping[str, Array]):
        def gradient(part: Array | None, rows: Mapping[str, Array], scales: Scales | None):
            inputs = (rows["input_ids"], rows["attention_mask"], rows["token_type_ids"])
            target = teacher(teacher_params, *inputs) if teacher is not None and config.needs_teacher else None
            key = jax.random.fold_in(state.key, state.step)
            key = key if part is None else jax.random.fold_in(key, part)

            def loss_of(params: Params):
                model, projection = split_projection(params)
                output = apply(model, *inputs, dropout_key=key)
                further: dict[str, Any] = dict(labels=rows["labels"], projection=projection, scales=scales)
                return objective(config, output, target, mask=inputs[1], **further)

            return jax.value_and_grad(loss_of, has_aux=True)(state.params)

        old_masks = get_masks(state.opt_state)
        (loss, terms), grads = mean_over_parts(gradient, batch, accumulate)
        if old_masks is not None:
            grads = apply_masks(grads, old_masks)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **for_scores(state.opt_state, grads))
        params = optax.apply_updates(state.params, updates)
        asked = delivered = jnp.float32(0.0)
        masks = get_masks(opt_state)
        if masks is not None:
            asked, delivered = optax.tree.get(opt_state, "asked"), optax.tree.get(opt_state, "delivered")
            gone = optax.tree.get(opt_state, "updated")
            opt_state = jax.lax.cond(gone, lambda s: mask_moments(s, masks), lambda s: s, opt_state)
        metrics = StepMetrics(loss, terms, asked, delivered, grad_square=optax.tree.norm(grads, squared=True))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return step


def make_predict(apply: Apply, *, mesh: Mesh | None = None) -> Callable[[Params, Mapping[str, Array]], Array]:
    """Builds the jitted evaluation pass: parameters and a batch to logits, on a mesh whole on every device."""

    def predict(params: Params, batch: Mapping[str, Array]) -> Array:
        return apply(
            split_projection(params)[0], batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        ).logits

    return jit_whole(predict, mesh)
