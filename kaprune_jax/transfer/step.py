"""One training step over gates and over several tasks: CoFi's, and its coupling with auxiliary tasks.

L = L_target + λ(t) L_auxiliary + constraint (Dery, Grangier and Hannun, 2023, arXiv:2311.06382), with every task's
loss that of distillation from its own teacher, and the constraint that of `kaprune_jax.l0.lagrangian`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.distill.objective import DistillConfig, objective
from kaprune_jax.l0.gates import expected_sparsity, sample_gates, sparsity_of, still_gates
from kaprune_jax.l0.lagrangian import Penalty, penalty
from kaprune_jax.l0.layout import Gates, Layout
from kaprune_jax.prune.masks import apply_masks, mask_moments
from kaprune_jax.train.accumulate import Scales, mean_over_parts
from kaprune_jax.train.step import Apply, StepMetrics, TrainState, for_scores, get_masks
from kaprune_jax.transfer.sharing import has_own_gates, parts_of
from kaprune_jax.transfer.surgery import attittud, pcgrad

Fade = Literal["constant", "fade-in", "fade-out"]
Surgery = Literal["none", "pcgrad", "attittud"]


class Task(NamedTuple):
    """How one task is trained.

    Attributes:
      apply: the student: `apply(params, input_ids, attention_mask, token_type_ids, gates=..., dropout_key=...)`.
      objective: its loss.
      teacher: the teacher's forward pass; None where no term needs it.
      alive: which layers a student without gates has; None for all.
    """

    apply: Apply
    objective: DistillConfig
    teacher: Apply | None = None
    alive: tuple[bool, ...] | None = None


class Constraint(NamedTuple):
    """What the gates are to come to.

    Attributes:
      layout: the model's gates.
      sparsity: the sparsity asked for in the end, in [0, 1).
      begin: optimizer steps before which all gates are open: plain fine-tuning.
      warmup: steps over which the asked sparsity then rises linearly.
      kind: of the penalty.
      stiffness: of the "augmented" penalty.
    """

    layout: Layout
    sparsity: float
    begin: int
    warmup: int
    kind: Penalty = "augmented"
    stiffness: float = 10.0

    def asked(self, step: Array) -> Float[Array, ""]:
        """The sparsity of a step, counted from 0."""
        risen = (step + 1 - self.begin).astype(jnp.float32) / max(self.warmup, 1)
        return self.sparsity * jnp.clip(risen, 0.0, 1.0)


class Coupling(NamedTuple):
    """How the auxiliary tasks come in.

    Attributes:
      weight: of the auxiliary loss, >= 0.
      fade: the weight stays, rises from 0 ("fade-in"), or falls to 0 ("fade-out").
      steps: over which it rises or falls.
      surgery: what is done to the auxiliary gradient before it is added.
      filtered: what surgery acts on, of what is shared: "weights", "gates" or "both".
      parts: the target batch is cut into so many, whose gradients span the space that "attittud" looks at; their mean
        is the target's gradient, in which the parts, not their tokens, then weigh alike.
      tie: μ ‖log α_target - log α_auxiliary‖² / gates, where tasks have gates of their own; >= 0.
    """

    weight: float = 1.0
    fade: Fade = "constant"
    steps: int = 1
    surgery: Surgery = "none"
    filtered: Literal["weights", "gates", "both"] = "both"
    parts: int = 4
    tie: float = 0.0

    def strength(self, step: Array) -> Float[Array, ""]:
        """λ of a step, counted from 0."""
        share = jnp.clip(step.astype(jnp.float32) / max(self.steps - 1, 1), 0.0, 1.0)
        return self.weight * {"constant": jnp.float32(1.0), "fade-in": share, "fade-out": 1.0 - share}[self.fade]


def make_coupled_step(
    tasks: Mapping[str, Task],
    target: str,
    tx: optax.GradientTransformationExtraArgs,
    *,
    constraint: Constraint | None = None,
    coupling: Coupling = Coupling(),  # noqa: B008
    frozen: str | None = None,
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Builds `step(state, teachers, batches) -> (state, metrics)`, to be jitted with the state donated.

    `state.params` is a store (`kaprune_jax.transfer.sharing`); `teachers` and `batches` are dicts by task. A step works
    on the tasks whose batches it is given, and is traced once for each such set. Without the target's batch an
    auxiliary task is trained as if it were the target.

    Args:
      tasks: by name.
      target: the name of the task that counts.
      tx: the optimizer over the store; for masks instead of gates `magnitude_pruning` last in its chain, with a
        `prunable` that fits a store's paths, ".*encoder/.*/kernel".
      constraint: of the gates; None without gates.
      coupling: of the auxiliary tasks.
      frozen: a regular expression of paths that no gradient reaches, such as those of embeddings that stay.
      accumulate: parts of every batch that are worked on one after the other, as in `make_train_step`.

    Raises:
      ValueError: parts together with "attittud", which has its own.
    """
    if accumulate > 1 and coupling.surgery == "attittud":
        raise ValueError(f"accumulate={accumulate}: attittud cuts a batch into parts of its own (parts)")
    order = [target, *sorted(name for name in tasks if name != target)]  # the target's draws do not depend on others

    def step(state: TrainState, teachers: Mapping[str, Params], batches: Mapping[str, Mapping[str, Array]]):
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 2)
        lead = target if target in batches else min(batches)
        auxiliary = [name for name in batches if name != lead]

        def loss_of(params: Params, name: str, batch: Mapping[str, Array], aim, part=None, scales=None):
            parts, task = parts_of(_still(params, frozen), name), tasks[name]
            values, alive = None, None if task.alive is None else jnp.asarray(task.alive)
            if constraint is not None:
                values = _open_before(sample_gates(keys[0], parts["gates"]), state.step >= constraint.begin)
                alive = _alive_layers(values, constraint.layout)
            inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            dropout = jax.random.fold_in(keys[1], order.index(name))
            dropout = dropout if part is None else jax.random.fold_in(dropout, part)
            output = task.apply(parts["model"], *inputs, gates=values, dropout_key=dropout)
            return objective(
                task.objective,
                output,
                aim,
                mask=inputs[1],
                labels=batch["labels"],
                projection=parts.get("projection"),
                alive=alive,
                scales=scales,
            )

        value_and_grad, old_masks = jax.value_and_grad(loss_of, has_aux=True), get_masks(state.opt_state)

        def movable(grads: Params) -> Params:
            """Without what masks have removed, so that surgery does not look at it either."""
            return grads if old_masks is None else apply_masks(grads, old_masks)

        def gradient_of(name: str):
            def gradient(part: Array | None, rows: Mapping[str, Array], scales: Scales | None):
                aim = _aim(tasks[name], teachers.get(name), rows)
                return value_and_grad(state.params, name, rows, aim, part, scales)

            value, grads = mean_over_parts(gradient, batches[name], accumulate)
            return value, movable(grads)

        basis = None
        if auxiliary and coupling.surgery == "attittud":
            pieces = jax.tree.map(
                lambda leaf: _pieces(leaf, coupling.parts),
                (batches[lead], _aim(tasks[lead], teachers.get(lead), batches[lead])),
            )
            numbered = (*pieces, jnp.arange(coupling.parts))  # each with a dropout of its own
            (losses, terms), basis = jax.lax.map(lambda piece: value_and_grad(state.params, lead, *piece), numbered)
            basis = jax.vmap(movable)(basis)
            loss, terms, grads = jax.tree.map(lambda leaf: leaf.mean(axis=0), (losses, terms, basis))
        else:
            (loss, terms), grads = gradient_of(lead)
        strength = coupling.strength(state.step) / max(len(auxiliary), 1)
        mine = grads
        for name in auxiliary:
            (other, _), other_grads = gradient_of(name)
            other_grads = _operate(coupling, mine, other_grads, basis)
            grads = jax.tree.map(lambda one, other: one + strength * other, grads, other_grads)
            terms = terms | {"auxiliary": terms.get("auxiliary", 0.0) + other / len(auxiliary)}
            loss = loss + strength * other
        asked = delivered = jnp.float32(0.0)
        expected = None
        if constraint is not None:
            (bound, expected), bound_grads = jax.value_and_grad(_constrain, has_aux=True)(
                state.params, lead, auxiliary, constraint, coupling, state.step
            )
            grads = jax.tree.map(jnp.add, grads, bound_grads)
            terms = terms | {"constraint": bound}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **for_scores(state.opt_state, grads))
        params = optax.apply_updates(state.params, updates)
        if constraint is not None:
            asked = constraint.asked(state.step)
            delivered = sparsity_of(still_gates(parts_of(params, target)["gates"]), constraint.layout)
        masks = get_masks(opt_state)
        if masks is not None:
            asked, delivered = optax.tree.get(opt_state, "asked"), optax.tree.get(opt_state, "delivered")
            opt_state = jax.lax.cond(
                optax.tree.get(opt_state, "updated"), lambda s: mask_moments(s, masks), lambda s: s, opt_state
            )
        metrics = StepMetrics(loss, terms, asked, delivered, expected)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return step


def _still(params: Params, frozen: str | None) -> Params:
    """The parameters, with no gradient to those that are frozen."""
    if frozen is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if re.fullmatch(frozen, path_string(path)) else leaf, params
    )


def _aim(task: Task, teacher_params: Params, batch: Mapping[str, Array]):
    """What the teacher says of a batch; None where nobody asks."""
    if task.teacher is None or not task.objective.needs_teacher:
        return None
    return task.teacher(teacher_params, batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])


def _open_before(values: dict[str, Array], begun: Array) -> dict[str, Array]:
    return {name: jnp.where(begun, value, jnp.ones_like(value)) for name, value in values.items()}


def _alive_layers(values: Gates, layout: Layout) -> Array:
    """Which layers have anything left of their attention or their feed-forward network."""
    families = [axis.name for axis in layout.axes if layout.gate(axis.gates[-1]).layered]
    there = jnp.stack([jnp.any(layout.scores(values, axis) > 0, axis=-1) for axis in families])
    return jnp.any(there, axis=0)


def _pieces(leaf: Array, count: int) -> Array:
    if leaf.shape[0] % count:
        raise ValueError(
            f"parts={count}: a batch of {leaf.shape[0]} target rows cannot be cut into so many equal parts"
        )
    return leaf.reshape((count, leaf.shape[0] // count, *leaf.shape[1:]))


def _operate(coupling: Coupling, grads: Params, others: Params, basis: Params | None) -> Params:
    """The auxiliary gradient with its shared part filtered, weights and gates each by themselves."""
    if coupling.surgery == "none":
        return others
    shared = dict(others["shared"])
    for part, theirs in shared.items():
        if coupling.filtered not in ("both", {"model": "weights", "gates": "gates"}[part]):
            continue
        mine = grads["shared"][part]
        if coupling.surgery == "pcgrad":
            shared[part] = pcgrad(mine, theirs)
        else:
            assert basis is not None
            shared[part] = attittud(basis["shared"][part], mine, theirs)
    return {"shared": shared, "own": others["own"]}


def _constrain(
    params: Params, lead: str, auxiliary: Sequence[str], constraint: Constraint, coupling: Coupling, step: Array
):
    """The penalty of every set of gates that is trained, the tie between them, and the lead's expected sparsity."""
    asked, begun = constraint.asked(step), step >= constraint.begin
    mine = parts_of(params, lead)["gates"]
    total = jnp.float32(0.0)
    for name in (lead, *(name for name in auxiliary if has_own_gates(params, name))):
        parts = parts_of(params, name)
        expected = expected_sparsity(parts["gates"], constraint.layout)
        total = total + penalty(parts["duals"], expected, asked, kind=constraint.kind, stiffness=constraint.stiffness)
        if name != lead and coupling.tie:
            gaps = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), mine, parts["gates"])
            count = sum(leaf.size for leaf in jax.tree.leaves(mine))
            total = total + coupling.tie * sum(jax.tree.leaves(gaps)) / count
    return jnp.where(begun, total, 0.0), expected_sparsity(mine, constraint.layout)
