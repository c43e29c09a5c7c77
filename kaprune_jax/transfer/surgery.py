"""Auxiliary gradients filtered by what they do to the target task.

PCGrad (Yu et al., 2020, arXiv:2001.06782), in one direction only: the target's gradient is never changed. ATTITTUD
(Dery, Dauphin and Grangier, 2021, arXiv:2108.11346): the auxiliary gradient is split by a subspace V of target
gradients into a part inside V that agrees with the target, one inside V that opposes it, and one outside V; each
has its own factor.

Sums run over whole trees in float32. Both functions are pure and may be jitted.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kaprune_jax._typing import Params
from kaprune_jax.transfer.voting import first_difference, named_shapes

# Directions whose squared length is below this fraction of the longest one's count as linearly dependent: a float32
# Gram matrix is exact to about 1e-7 of its largest eigenvalue.
_CUTOFF = 1e-5


def pcgrad(target: Params, auxiliary: Params) -> Params:
    """Removes from the auxiliary gradient what opposes the target's: a - min(0, <a, t> / ||t||²) t.

    There is one inner product over the whole tree. An auxiliary gradient that does not oppose the target, or whose
    target gradient is zero, comes back unchanged.

    Args:
      target: gradient of the target task, a pytree of floating-point arrays.
      auxiliary: gradient of the auxiliary task, of the same structure and shapes.

    Returns:
      a tree with the types of `auxiliary`, whose inner product with `target` is, up to rounding, not negative.

    Raises:
      ValueError: the trees are empty or differ; the message names the first leaf that does.

    Example:
      >>> import jax.numpy as jnp
      >>> pcgrad({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-2.0, 3.0])})["w"].tolist()
      [0.0, 3.0]
    """
    _check("target", named_shapes(target), named_shapes(auxiliary))
    unit = _rescale(target)
    square = _inner(unit, unit)
    weight = -jnp.minimum(0.0, _inner(unit, auxiliary) / jnp.where(square == 0.0, 1.0, square))
    return jax.tree.map(lambda a, t: (_f32(a) + weight * t).astype(a.dtype), auxiliary, unit)


def attittud(
    basis: Params,
    target: Params,
    auxiliary: Params,
    *,
    agreeing: float | Array = 1.0,
    opposing: float | Array = 0.0,
    outside: float | Array = 1.0,
) -> Params:
    """Scales three parts of the auxiliary gradient: agreeing·P₊a + opposing·P₋a + outside·(a - P₊a - P₋a).

    P₊ and P₋ project on those directions of V in which <q, a> and <q, t> have equal and opposite signs; where either
    is zero the direction agrees. The split depends on the orthonormal basis q of V: it is that of the principal
    directions of the target gradients (the right singular vectors of `basis` as a matrix of k rows), which are
    unique up to sign where the singular values differ, and the sign does not matter. The result so depends on the
    rows of `basis` neither by their order nor by their signs. Linearly dependent rows and zero rows do no harm:
    directions shorter than 0.3 % of the longest (singular values) count as outside V.

    With `basis` the target gradient itself (k = 1) and the default factors this is `pcgrad`.

    Args:
      basis: gradients of k random parts of the target batch, or random combinations of per-example gradients: the
        tree of `target` with a leading axis k on every leaf.
      target: mean gradient of the target batch.
      auxiliary: gradient of the auxiliary task, of the structure and shapes of `target`.
      agreeing: factor of the part inside V that lowers the target's loss.
      opposing: factor of the part inside V that raises it.
      outside: factor of the part that, as far as V tells, leaves the target's loss alone.

    Returns:
      a tree with the types of `auxiliary`.

    Raises:
      ValueError: the trees are empty or differ, the message naming the first leaf that does, or the leading axes of
        `basis` are not one k of at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> target = jnp.array([1.0, 0.5, 0.0])
      >>> basis = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> attittud({"w": basis}, {"w": target}, {"w": jnp.array([-3.0, 4.0, 5.0])})["w"].tolist()
      [0.0, 4.0, 5.0]
    """
    shapes = named_shapes(basis)
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) > 1 or sizes & {(), (0,)}:
        raise ValueError(f"basis: leading axes {sorted(sizes)}; every leaf needs the same one, of at least 1")
    _check("target", named_shapes(target), named_shapes(auxiliary))
    _check("basis", {name: shape[1:] for name, shape in shapes.items()}, named_shapes(auxiliary))

    rows = _rescale(basis)
    squares, vectors = jnp.linalg.eigh(_inner(rows, rows, batched=2))
    # Written so that NaN is kept, and seen in the result.
    kept = ~(squares <= _CUTOFF * squares[-1])
    # The orthonormal direction i is Σ_j mix[j, i] rows_j; it is never built.
    mix = vectors * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, squares, 1.0)), 0.0)[None, :]
    ours = jnp.matmul(_inner(rows, target, batched=1), mix, precision="highest")
    theirs = jnp.matmul(_inner(rows, auxiliary, batched=1), mix, precision="highest")
    agrees = jnp.sign(ours) * jnp.sign(theirs) >= 0.0
    change = (jnp.where(agrees, agreeing, opposing) - outside) * theirs
    weights = jnp.matmul(mix, change, precision="highest")

    def scale(leaf: Array, row: Array) -> Array:
        inside = jnp.tensordot(weights, row, axes=1, precision="highest")
        return (outside * _f32(leaf) + inside).astype(leaf.dtype)

    return jax.tree.map(scale, auxiliary, rows)


def _f32(leaf: Array) -> Float[Array, "..."]:
    return jnp.asarray(leaf, jnp.float32)


def _rescale(tree: Params) -> Params:
    """The tree in float32, divided by its largest absolute value, so that squares neither vanish nor overflow."""
    leaves = [jnp.max(jnp.abs(_f32(leaf)), initial=0.0) for leaf in jax.tree.leaves(tree)]
    largest = reduce(jnp.maximum, leaves)
    divisor = jnp.where(largest == 0.0, 1.0, largest)
    return jax.tree.map(lambda leaf: _f32(leaf) / divisor, tree)


def _inner(first: Params, second: Params, *, batched: int = 0) -> Float[Array, "..."]:
    """The inner product over the whole tree; of the first `batched` trees the leaves have a leading axis, kept."""

    def one(a: Array, b: Array) -> Array:
        axes = (tuple(range(batched >= 1, a.ndim)), tuple(range(batched >= 2, b.ndim)))
        return jnp.tensordot(a, b, axes=axes, precision="highest")

    products = jax.tree.map(lambda a, b: one(_f32(a), _f32(b)), first, second)
    return reduce(jnp.add, jax.tree.leaves(products))


def _check(name: str, shapes: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    if not wanted:
        raise ValueError("auxiliary: the tree has no leaves")
    if difference := first_difference(shapes, wanted):
        raise ValueError(f"{name} and auxiliary differ: {difference}")
