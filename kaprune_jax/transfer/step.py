"""One training step over gates and over several tasks: CoFi's, and its coupling with auxiliary tasks.

L = L_target + λ(t) L_auxiliary + constraint (Dery, Grangier and Hannun, 2023, arXiv:2311.06382), with every task's
loss that of distillation from its own teacher, and the constraint that of `kaprune_jax.l0.lagrangian`.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.distill.objective import objective
from kaprune_jax.l0.gates import expected_sparsity, sample_gates, sparsity_of, still_gates
from kaprune_jax.l0.lagrangian import penalty
from kaprune_jax.l0.layout import Gates, Layout
from kaprune_jax.prune.masks import apply_masks, mask_moments
from kaprune_jax.train.accumulate import mean_over_parts
from kaprune_jax.train.program import Run, StepInParts
from kaprune_jax.train.step import StepMetrics, TrainState, for_scores, get_masks
from kaprune_jax.transfer.coupling import Constraint, Coupling, Task
from kaprune_jax.transfer.sharing import has_own_gates, parts_of
from kaprune_jax.transfer.surgery import attittud, pcgrad


def make_coupled_step(
    tasks: Mapping[str, Task],
    target: str,
    tx: optax.GradientTransformationExtraArgs,
    *,
    constraint: Constraint | None = None,
    coupling: Coupling = Coupling(),  # noqa: B008
    frozen: str | None = None,
    accumulate: int = 1,
) -> StepInParts:
    """Builds `step(state, teachers, batches) -> (state, metrics)`: the gradient of every task, then the update.

    Jitted, with the state donated, it is one program; `kaprune_jax.train.program.CompiledStep` compiles its parts, so
    that tasks with several lengths of batches need a program for each length, and not for each pair.

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

    @functools.cache
    def gradient_of(name: str, pieces: int):
        """Loss, terms, and a gradient for each piece of the batch."""
        task = tasks[name]

        def gradient(state: TrainState, teacher: Params | None, batch: Mapping[str, Array]):
            keys = jax.random.split(jax.random.fold_in(state.key, state.step), 2)

            def loss_of(moving: Params, part: Array | None, rows: Mapping[str, Array], aim, scales=None):
                parts = parts_of(_with(moving, state.params), name)
                values, alive = None, None if task.alive is None else jnp.asarray(task.alive)
                if constraint is not None:
                    values = _open_before(sample_gates(keys[0], parts["gates"]), state.step >= constraint.begin)
                    alive = _alive_layers(values, constraint.layout)
                inputs = (rows["input_ids"], rows["attention_mask"], rows["token_type_ids"])
                dropout = jax.random.fold_in(keys[1], order.index(name))
                dropout = dropout if part is None else jax.random.fold_in(dropout, part)
                output = task.apply(parts["model"], *inputs, gates=values, dropout_key=dropout)
                further: dict[str, Any] = dict(labels=rows["labels"], projection=parts.get("projection"))
                return objective(task.objective, output, aim, mask=inputs[1], alive=alive, scales=scales, **further)

            value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
            moving = _moving(state.params, name, frozen)
            if pieces > 1:
                whole = (jnp.arange(pieces), *_cut((batch, _aim(task, teacher, batch)), pieces))
                values, grads = jax.lax.map(lambda piece: value_and_grad(moving, *piece), whole)
                return jax.tree.map(lambda leaf: leaf.mean(axis=0), values), _apart(grads, pieces)
            value, grads = mean_over_parts(
                lambda part, rows, scales: value_and_grad(moving, part, rows, _aim(task, teacher, rows), scales),
                batch,
                accumulate,
            )
            return value, [grads]

        return gradient

    @functools.cache
    def update_from(lead: str):
        """The state after a step, from what `gradient_of` gave for each task."""

        def update(state: TrainState, results: Mapping[str, Any]):
            auxiliary, old_masks = [name for name in results if name != lead], get_masks(state.opt_state)

            def whole(grads: Params) -> Params:
                """With zeros for all that it does not reach; without what masks have removed, for surgery too."""
                grads = _with(grads, jax.tree.map(jnp.zeros_like, state.params))
                return grads if old_masks is None else apply_masks(grads, old_masks)

            (loss, terms), basis = results[lead][0], [whole(grads) for grads in results[lead][1]]
            grads = mine = jax.tree.map(lambda *each: sum(each) / len(each), *basis) if basis[1:] else basis[0]
            strength = coupling.strength(state.step) / max(len(auxiliary), 1)
            for name in auxiliary:
                (other, _), (theirs,) = results[name]
                grads = jax.tree.map(
                    lambda one, other: one + strength * other, grads, _operate(coupling, mine, whole(theirs), basis)
                )
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

        return update

    def step(run: Run, state: TrainState, teachers: Mapping[str, Any], batches: Mapping[str, Any]):
        lead = target if target in batches else min(batches)
        spanned = {lead} if coupling.surgery == "attittud" and len(batches) > 1 else set()
        results = {}
        for name, batch in batches.items():
            gradient = gradient_of(name, coupling.parts if name in spanned else 1)
            results[name] = run(gradient, state._replace(opt_state=None), teachers.get(name), batch)
        return run(update_from(lead), state, results, donate=True)

    return StepInParts(step)


def _moving(params: Params, name: str, frozen: str | None) -> Params:
    """What the gradient of a task reaches of a store; None in place of other arrays."""

    def keep(path: tuple[Any, ...], leaf: Array) -> Array | None:
        reached = path[0].key == "shared" or path[1].key == name
        return leaf if reached and not (frozen and re.fullmatch(frozen, path_string(path))) else None

    return jax.tree_util.tree_map_with_path(keep, params)


def _with(some: Params, others: Params) -> Params:
    """A tree whose arrays are those of the second where the first has None."""
    return jax.tree.map(
        lambda one, other: other if one is None else one, some, others, is_leaf=lambda leaf: leaf is None
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


def _cut(rows: Any, pieces: int) -> Any:
    """Arrays [rows, ...] as [pieces, rows of each, ...]."""

    def cut(leaf: Array) -> Array:
        if leaf.shape[0] % pieces:
            raise ValueError(
                f"parts={pieces}: a batch of {leaf.shape[0]} target rows cannot be cut into so many equal parts"
            )
        return leaf.reshape((pieces, leaf.shape[0] // pieces, *leaf.shape[1:]))

    return jax.tree.map(cut, rows)


def _apart(stacked: Params, pieces: int) -> list[Params]:
    return [jax.tree.map(lambda leaf: leaf[piece], stacked) for piece in range(pieces)]  # noqa: B023


def _operate(coupling: Coupling, grads: Params, others: Params, basis: Sequence[Params]) -> Params:
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
            stacked = jax.tree.map(lambda *pieces: jnp.stack(pieces), *(piece["shared"][part] for piece in basis))
            shared[part] = attittud(stacked, mine, theirs)
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
