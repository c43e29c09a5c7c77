"""Masks that keep exactly the k largest, by counting rather than sorting.

The k-th largest value is found by bisection on the bit pattern of the scores: floats of one sign order as their
integers do, so 32 passes that only count settle it exactly. That is faster than a sort on a CPU, needs no gather,
and works on sharded arrays, whose counts are sums over shards.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kaprune_jax._typing import Masks, Params
from kaprune_jax.prune.patterns import Pattern, parse_pattern

_LOWEST = -(2**31)


def _keys(scores: Float[Array, "..."], alive: Bool[Array, "..."] | None) -> Int[Array, "..."]:
    """int32 keys in the order of the scores; what is not alive comes below everything."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    bits = jnp.where(bits == _LOWEST, 0, bits)  # minus zero is zero
    keys = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
    return keys if alive is None else jnp.where(alive, keys, jnp.int32(_LOWEST))


def _select(keys: Sequence[Int[Array, "groups *_"]], keep: Array) -> list[Bool[Array, "groups *_"]]:
    """Marks the `keep` largest keys of each group; ties go to the lower index, in the order of the arrays.

    Several arrays (with one group each) are ranked together. Where keys are divided over devices, only counts travel.
    """
    groups = keys[0].shape[0]

    def beside(bound: Array, key: Array) -> Array:
        return bound.reshape((groups,) + (1,) * (key.ndim - 1))

    def count(marked: Sequence[Array]) -> Array:
        return sum(jnp.sum(mask, axis=tuple(range(1, mask.ndim)), dtype=jnp.int32) for mask in marked)  # pyright: ignore[reportReturnType]

    def halve(_, bounds):
        low, high = bounds  # at least `keep` keys are >= low; fewer are >= high
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = count([key >= beside(middle, key) for key in keys]) >= keep
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = (jnp.full((groups,), _LOWEST, jnp.int32), jnp.full((groups,), 2**31 - 1, jnp.int32))
    threshold, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    above = [key > beside(threshold, key) for key in keys]
    equal = [key == beside(threshold, key) for key in keys]
    room = keep - count(above)

    def first_ties(masks):
        places, total = [], 0
        for mask in masks:
            places.append(_positions(mask.shape[1:])[None] + total)
            total += mask.size // groups

        def before(end):
            return [mask & (place < beside(end, mask)) for mask, place in zip(masks, places, strict=True)]

        def halve(_, bounds):
            low, high = bounds  # before `low` there are no more ties than room
            middle = low + (high - low + 1) // 2
            fits = count(before(middle)) <= room
            return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

        bounds = (jnp.zeros((groups,), jnp.int32), jnp.full((groups,), total, jnp.int32))
        return before(jax.lax.fori_loop(0, 32, halve, bounds)[0])

    chosen = jax.lax.cond(jnp.all(count(equal) == room), lambda masks: masks, first_ties, equal)
    return [one | other for one, other in zip(above, chosen, strict=True)]


def _positions(shape: tuple[int, ...]) -> Int[Array, "..."]:
    """The row-major index of every element."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    parts = [jax.lax.broadcasted_iota(jnp.int32, shape, axis) * stride for axis, stride in enumerate(strides)]
    return functools.reduce(jnp.add, parts, jnp.zeros(shape, jnp.int32))


def choose_pieces(form: Pattern, keys: Int[Array, "groups *_"], keep: Array) -> Bool[Array, "groups *_"]:
    """Marks the pieces of one matrix to keep, of the largest keys: `keep` of each group, or balanced, `keep` in all.

    Balanced, every group keeps floor(keep / groups), and what is left over goes to those whose next piece is largest.
    """
    if not form.balanced:
        return _select([keys], keep)[0]
    groups = keys.shape[0]
    each = keep // groups
    sure, possible = (_select([keys], each + more)[0] for more in (0, 1))
    rest = jnp.where(possible & ~sure, keys, jnp.int32(_LOWEST))[None]
    (chosen,) = _select([rest], keep - each * groups)
    return sure | (chosen[0] & possible)


def topk_mask(scores: Float[Array, "..."], sparsity: float, *, pattern: str = "element") -> Bool[Array, "..."]:
    """Keeps exactly floor(n (1 - sparsity)) pieces, those of the largest scores; ties go to the lower index.

    Args:
      scores: what is ranked, with its sign: pieces of several weights by the sum of their scores. For magnitude
        pruning give `jnp.abs(weights)`.
      sparsity: fraction of pieces removed, in [0, 1). For "N:M" exactly N of M are kept and it must be 1 - N/M.
      pattern: "element", "block-RxC" (R inputs by C outputs), "block-RxC-balanced" (as many in every stripe of C
        outputs, give or take one), "N:M" (along the inputs, the first axis).

    Returns:
      a boolean mask of the shape of `scores`, True where kept.

    Raises:
      ValueError: the sparsity is out of range or the pattern does not divide the array.

    Example:
      >>> import jax.numpy as jnp
      >>> topk_mask(jnp.array([3.0, 1.0, 2.0, 0.0]), 0.5).tolist()
      [True, False, True, False]
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r}; a fraction in [0, 1) is needed")
    form = parse_pattern(pattern)
    form.check(scores.shape, "scores")
    if form.sparsity is not None and abs(form.sparsity - sparsity) > 1e-9:
        raise ValueError(f"sparsity={sparsity!r}; pattern {pattern} removes exactly {form.sparsity}")
    kept = jnp.int32(form.kept(scores.shape, sparsity))
    return form.spread(choose_pieces(form, _keys(form.sums(scores), None), kept), scores.shape)


def apply_masks(params: Params, masks: Masks) -> Params:
    """Zeroes what is removed; leaves whose mask is None pass through."""
    return jax.tree.map(
        lambda param, mask: param if mask is None else jnp.where(mask, param, jnp.zeros_like(param)),
        params,
        masks,
        is_leaf=lambda leaf: leaf is None,
    )


def sparsity(masks: Masks) -> float:
    """Fraction of the prunable weights that is removed, counted from the masks."""
    leaves = jax.tree.leaves(masks)
    if any(leaf.dtype != bool for leaf in leaves):
        raise ValueError(
            "masks must be boolean; for zeros in weights, give kp.sparsity(jax.tree.map(jnp.bool_, params))"
        )
    total = sum(leaf.size for leaf in leaves)
    return 1.0 - sum(int(jnp.sum(leaf, dtype=jnp.int32)) for leaf in leaves) / total if total else 0.0


def mask_moments(opt_state: Params, masks: Masks) -> Params:
    """Zeroes the optimizer's moments of removed weights.

    Every part of the state that has the structure and shapes of the parameters (Adam's mu and nu, a momentum
    trace) is masked. Feed the optimizer masked gradients too, and the moments stay zero.
    """
    structure = jax.tree.structure(masks, is_leaf=lambda leaf: leaf is None)
    shapes = [None if mask is None else mask.shape for mask in jax.tree.leaves(masks, is_leaf=lambda x: x is None)]

    def like_params(part) -> bool:
        if part is masks or jax.tree.structure(part) != structure:
            return False
        leaves = jax.tree.leaves(part)
        return all(shape is None or leaf.shape == shape for leaf, shape in zip(leaves, shapes, strict=True))

    return jax.tree.map(
        lambda part: apply_masks(part, masks) if like_params(part) else part, opt_state, is_leaf=like_params
    )
