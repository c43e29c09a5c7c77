"""Magnitude pruning as an optax transformation, and the same with scores that look at gradients.

SparseBERT (Xu et al., 2021, arXiv:2104.08682), section 3: masks are taken from |w| while the model trains; what is
gone stays gone. With the schedule of Zhu and Gupta (2017, arXiv:1710.01878). Sensitivity: Molchanov et al. (2019,
arXiv:1906.10771), equation 8 without the square.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from kaprune_jax._tree import path_string, select
from kaprune_jax._typing import Masks, Params, Predicate
from kaprune_jax.prune.masks import _keys, _select, choose_pieces
from kaprune_jax.prune.patterns import Pattern, parse_pattern
from kaprune_jax.prune.schedules import PruningSchedule

Scores = Literal["magnitude", "sensitivity"]
SCORES: tuple[Scores, ...] = get_args(Scores)
_MEMORY = 0.98  # of the mean of sensitivities: some fifty steps


class MagnitudePruningState(NamedTuple):
    """State of `magnitude_pruning`.

    Attributes:
      count: optimizer steps taken.
      masks: the tree of the parameters; boolean leaves, True where kept, None where a leaf is never pruned.
      asked: the sparsity the last mask update was made for, in [0, 1).
      delivered: the fraction of prunable weights removed, counted from the masks at that update.
      updated: whether the last step changed the masks.
      importance: what was gathered from gradients for the scores; None for magnitudes.
    """

    count: Int[Array, ""]
    masks: Masks
    asked: Float[Array, ""]
    delivered: Float[Array, ""]
    updated: Bool[Array, ""]
    importance: Params | None = None


def magnitude_pruning(
    schedule: PruningSchedule,
    *,
    every: int | np.integer | None = None,
    updates: int | np.integer | None = None,
    prunable: str | Predicate = r"encoder/.*/kernel",
    pattern: str = "element",
    scope: Literal["matrix", "global"] = "matrix",
    alike: str | None = None,
    scores: Scores = "magnitude",
) -> optax.GradientTransformationExtraArgs:
    """Prunes the smallest weights while training goes on; to be placed last in an `optax.chain`.

    The update it returns is `where(mask, update, -param)`, so `optax.apply_updates` leaves exact zeros. Masks are
    made from the weights before the update, at the steps of the schedule only, behind `lax.cond`. A removed weight
    never comes back, but its gradient still reaches an optimizer before this one in the chain: to keep moments and
    gradient norms of the surviving weights alone, give `tx.update` the gradients through `apply_masks(grads, masks)`
    and put its new state through `mask_moments(state, masks)`, as `kaprune_jax.train.step` does. The counts are
    integers computed on the host: exactly floor(n (1 - s)) pieces stay.

    Args:
      schedule: `cubic`, `linear` or `one_shot`.
      every: steps between mask updates; with neither this nor `updates`, 50.
      updates: number of mask updates, spread evenly over the schedule (SparseBERT: 100).
      prunable: which parameters: a regular expression on the whole path, or a function of path and array.
      pattern: "element", "block-RxC", "block-RxC-balanced" or "N:M".
      scope: "matrix": every matrix keeps its own floor(n (1 - s)); "global": all are ranked together.
      alike: matrices whose paths are the same once what this regular expression matches is taken out have one mask,
        made from the sums of their scores: several tasks' copies of a model, say. By default each has its own.
      scores: what the smallest of are removed: "magnitude", |w|; or "sensitivity", a running mean of |w ∂L/∂w|, about
        what the loss would change by without the weight, which needs `tx.update(..., grads=gradients)`.

    Raises:
      ValueError: scores are unknown; (at update) gradients are missing; (at init) the pattern matches no parameter or
        does not divide a matrix, or it is N:M and the schedule does not end at 1 - N/M or the scope is global.

    Example:
      >>> import jax.numpy as jnp, kaprune_jax as kp, optax
      >>> tx = optax.chain(optax.sgd(0.1), kp.magnitude_pruning(kp.one_shot(0.5, at=1), prunable="w"))
      >>> params = {"w": jnp.array([4.0, 1.0, 3.0, 2.0]), "b": jnp.zeros(2)}
      >>> updates, state = tx.update({"w": jnp.zeros(4), "b": jnp.zeros(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [4.0, 0.0, 3.0, 0.0]
    """
    form = parse_pattern(pattern)
    if form.sparsity is not None and abs(form.sparsity - schedule.final) > 1e-9:
        raise ValueError(f"pattern {pattern} removes exactly {form.sparsity}; the schedule ends at {schedule.final}")
    if (form.kind == "n:m" or form.balanced) and scope == "global":
        raise ValueError(f"pattern {pattern} is per group; scope=global is for element and block-RxC")
    if scope not in ("matrix", "global"):
        raise ValueError(f"scope={scope!r}; allowed: matrix, global")
    if scores not in SCORES:
        raise ValueError(f"scores={scores!r}; allowed: {', '.join(SCORES)}")
    due_steps, sparsities = schedule.updates(every=50 if every is None and updates is None else every, count=updates)

    def init(params) -> Any:
        chosen = dict(select(params, prunable))
        for path, leaf in chosen.items():
            form.check(leaf.shape, path)
        masks = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.ones(leaf.shape, bool) if path_string(path) in chosen else None, params
        )
        state = MagnitudePruningState(jnp.int32(0), masks, jnp.float32(0.0), jnp.float32(0.0), jnp.bool_(False))
        if scores != "magnitude":
            state = state._replace(importance=_of_prunable(jnp.zeros_like, masks, params))
        return state

    def update(updates, state, params=None, *, grads=None, **_) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("magnitude_pruning needs params in tx.update(updates, state, params)")
        importance = state.importance
        if importance is not None:
            if grads is None:
                raise ValueError(f"scores={scores!r} needs grads=gradients in tx.update")
            importance = _of_prunable(_gather, state.masks, importance, params, grads)
        count = state.count + 1
        index = jnp.clip(jnp.searchsorted(jnp.asarray(due_steps), count), 0, len(due_steps) - 1)
        due = jnp.asarray(due_steps)[index] == count

        def prune(masks, *_):
            found = _of_prunable(jnp.abs, masks, params) if importance is None else importance
            found = found if alike is None else _summed(found, masks, alike)
            masks = _update_masks(found, masks, form, sparsities, index, scope)
            return masks, jnp.asarray(sparsities, jnp.float32)[index], _removed(masks)

        masks, asked, delivered = jax.lax.cond(
            due, prune, lambda *unchanged: unchanged, state.masks, state.asked, state.delivered
        )

        def remove(update, mask, param):
            return update if mask is None else jnp.where(mask, update, -param)

        masked = jax.tree.map(remove, updates, masks, params, is_leaf=lambda leaf: leaf is None)
        return masked, MagnitudePruningState(count, masks, asked, delivered, due, importance)

    return optax.GradientTransformationExtraArgs(init, update)


def _gather(importance: Array, param: Array, grad: Array) -> Array:
    """The sensitivities of one matrix, with those of another gradient."""
    return _MEMORY * importance + (1.0 - _MEMORY) * jnp.abs(param * grad)


def _of_prunable(function: Callable[..., Array], masks: Masks, *trees: Params) -> Params:
    """A function of every prunable leaf; None elsewhere."""
    return jax.tree.map(
        lambda mask, *leaves: None if mask is None else function(*leaves), masks, *trees, is_leaf=lambda x: x is None
    )


def _summed(scores: Params, masks: Masks, alike: str) -> Params:
    """The scores of prunable matrices, summed over those that are to have one mask."""
    paths, structure = jax.tree_util.tree_flatten_with_path(masks, is_leaf=lambda leaf: leaf is None)
    names = [re.sub(alike, "", path_string(path)) for path, _ in paths]
    leaves = structure.flatten_up_to(scores)
    sums: dict[str, Array] = {}
    for name, leaf in zip(names, leaves, strict=True):
        if leaf is not None:
            sums[name] = sums[name] + leaf if name in sums else leaf
    return jax.tree.unflatten(structure, [sums.get(name) for name in names])


def _removed(masks: Masks) -> Float[Array, ""]:
    """Fraction of the prunable weights that the masks remove."""
    leaves = jax.tree.leaves(masks)
    kept = jnp.sum(jnp.stack([jnp.sum(leaf, dtype=jnp.int32) for leaf in leaves]))
    return 1.0 - kept.astype(jnp.float32) / sum(leaf.size for leaf in leaves)


def _update_masks(
    scores: Params, masks: Masks, form: Pattern, sparsities: np.ndarray, index: Array, scope: str
) -> Masks:
    """New masks, inside the old ones, with the counts of the update at `index`."""

    def keys_of(score, mask):
        return _keys(form.sums(score), form.split(mask))

    def counts(shape) -> Array:
        return jnp.asarray([form.kept(shape, value) for value in sparsities], jnp.int32)[index]

    paths, structure = jax.tree_util.tree_flatten_with_path(masks, is_leaf=lambda leaf: leaf is None)
    leaves = [leaf for _, leaf in paths]
    found = structure.flatten_up_to(scores)
    places = [place for place, mask in enumerate(leaves) if mask is not None]
    if scope == "global":
        pieces = sum(form.pieces(leaves[place].shape)[1] for place in places)
        keys = [keys_of(found[place], leaves[place]) for place in places]
        selected = _select(keys, counts((pieces * form.rows * form.columns,)))
    else:
        # Matrices of one name and shape share one compiled loop over them, six in all rather than six for each layer.
        # Others of that shape may be divided over devices another way.
        selected = [jnp.empty(0)] * len(places)
        alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for number, place in enumerate(places):
            path, leaf = paths[place]
            alike.setdefault((path_string(path[-2:]), leaf.shape), []).append(number)
        for (_, shape), numbers in alike.items():
            keys = jnp.stack([keys_of(found[places[number]], leaves[places[number]]) for number in numbers])
            keep = counts(shape)
            chosen = jax.lax.map(lambda key, keep=keep: choose_pieces(form, key, keep), keys)
            for number, mask in zip(numbers, chosen, strict=True):
                selected[number] = mask
    for place, mask in zip(places, selected, strict=True):
        leaves[place] = form.spread(mask, leaves[place].shape)
    return jax.tree.unflatten(structure, leaves)
