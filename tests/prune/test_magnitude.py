import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax.prune.patterns import keep_count

PRUNABLE = r"encoder/.*/kernel"


def tree(getkey):
    return {
        "encoder": {
            0: {"kernel": jax.random.normal(getkey(), (16, 24)), "bias": jnp.zeros(24)},
            1: {"kernel": jax.random.normal(getkey(), (24, 8)).round(1), "bias": jnp.zeros(8)},
        },
        "head": {"kernel": jax.random.normal(getkey(), (8, 2))},
    }


def train(tx, params, steps):
    """Random gradients; gives the parameters and masks after every step, from one trace."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, key):
        grads = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for number in range(steps):
        params, state = step(params, state, jax.random.key(number))
        seen.append((params, optax.tree.get(state, "masks")))
    return seen, state


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [("element", 0.95), ("element", 0.0), ("block-4x8", 0.7), ("block-4x8-balanced", 0.7), ("2:4", 0.5)],
)
def test_exact_counts_zeros_and_no_regrowth(pattern, sparsity, scope, getkey):
    if pattern in ("2:4", "block-4x8-balanced") and scope == "global":
        with pytest.raises(ValueError, match="scope=global"):
            kp.magnitude_pruning(kp.cubic(sparsity, end=10), pattern=pattern, scope=scope)
        return
    tx = optax.chain(
        optax.adamw(0.01), kp.magnitude_pruning(kp.cubic(sparsity, end=12), updates=5, pattern=pattern, scope=scope)
    )
    seen, state = train(tx, tree(getkey), 20)
    before = None
    for params, masks in seen:
        kernels = [params["encoder"][i]["kernel"] for i in range(2)]
        kept = [masks["encoder"][i]["kernel"] for i in range(2)]
        for kernel, mask in zip(kernels, kept, strict=True):
            assert not np.any(np.asarray(kernel)[~np.asarray(mask)])
        if before is not None:
            assert all(not np.any(np.asarray(new) & ~np.asarray(old)) for new, old in zip(kept, before, strict=True))
        before = kept
    unit = 32 if "block" in pattern else 1
    sizes = [16 * 24, 24 * 8]
    counts = [int(mask.sum()) for mask in before]
    if "balanced" in pattern:
        stripes = [
            np.asarray(mask).reshape(-1, 4, mask.shape[1] // 8, 8).any(axis=(1, 3)).sum(axis=0) for mask in before
        ]
        assert all(stripe.max() - stripe.min() <= 1 for stripe in stripes)
    if pattern == "2:4":
        assert counts == [size // 2 for size in sizes]
    elif scope == "matrix":
        assert counts == [unit * keep_count(size // unit, sparsity) for size in sizes]
    else:
        assert sum(counts) == unit * keep_count(sum(sizes) // unit, sparsity)
    assert optax.tree.get(state, "delivered") == pytest.approx(1 - sum(counts) / sum(sizes), abs=1e-6)
    assert optax.tree.get(state, "asked") == pytest.approx(sparsity)


def test_keeps_the_largest_of_each_matrix_or_of_all(getkey):
    params = {"a": jnp.array([1.0, 2.0, 3.0, 4.0]), "b": jnp.array([10.0, 20.0, 30.0, 0.5])}
    zero = jax.tree.map(jnp.zeros_like, params)
    for scope, wanted in (("matrix", ([0, 0, 3, 4], [0, 20, 30, 0])), ("global", ([0, 0, 0, 4], [10, 20, 30, 0]))):
        tx = kp.magnitude_pruning(kp.one_shot(0.5), prunable="a|b", scope=scope)
        updates, _ = tx.update(zero, tx.init(params), params)
        pruned = optax.apply_updates(params, updates)
        assert (pruned["a"].tolist(), pruned["b"].tolist()) == wanted


def test_a_live_weight_at_zero_does_not_bring_back_a_removed_one():
    params = {"w": jnp.array([0.0, 5.0, 1.0, 0.0])}
    tx = kp.magnitude_pruning(kp.linear(0.5, end=2), every=1, prunable="w")
    state = tx.init(params)
    _, state = tx.update({"w": jnp.zeros(4)}, state, params)
    assert state.masks["w"].tolist() == [True, True, True, False]
    _, state = tx.update({"w": jnp.zeros(4)}, state, {"w": jnp.array([0.0, 5.0, 0.0, 9.0])})
    assert state.masks["w"].tolist() == [True, True, False, False]


def test_masks_change_only_at_the_steps_of_the_schedule(getkey):
    tx = optax.chain(optax.sgd(0.1), kp.magnitude_pruning(kp.cubic(0.9, begin=4, end=10), every=3))
    seen, _ = train(tx, tree(getkey), 14)
    kept = [kp.sparsity(masks) for _, masks in seen]
    changes = [number + 1 for number in range(1, 14) if kept[number] != kept[number - 1]]
    assert kept[:6] == [0.0] * 6
    assert changes == [7, 10]


def test_works_on_any_tree_and_predicate():
    params = [jnp.arange(6.0).reshape(2, 3), {"x": jnp.ones(2)}]
    tx = kp.magnitude_pruning(kp.one_shot(0.5), prunable=lambda path, leaf: leaf.ndim == 2)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert optax.apply_updates(params, updates)[0].tolist() == [[0.0, 0.0, 0.0], [3.0, 4.0, 5.0]]
    assert state.masks[1]["x"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prunable="nothing"), "matches no parameter"),
        (dict(pattern="block-5x5"), "does not divide encoder/0/kernel"),
    ],
)
def test_a_setting_that_does_not_fit_the_parameters_is_named(arguments, message, getkey):
    with pytest.raises(ValueError, match=message):
        kp.magnitude_pruning(kp.cubic(0.5, end=10), **arguments).init(tree(getkey))


def test_two_of_four_must_end_at_one_half():
    with pytest.raises(ValueError, match=r"removes exactly 0\.5"):
        kp.magnitude_pruning(kp.cubic(0.95, end=10), pattern="2:4")


def test_the_update_needs_params():
    tx = kp.magnitude_pruning(kp.one_shot(0.5), prunable="w")
    params = {"w": jnp.ones(4)}
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))


def test_matrices_that_are_alike_have_one_mask_from_the_sum_of_their_magnitudes(rng):
    first, second = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    params = {"own": {"a": {"w": jnp.array(first)}, "b": {"w": jnp.array(second)}}}
    tx = kp.magnitude_pruning(kp.one_shot(0.5), prunable=".*/w", alike="own/[^/]+/")
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    masks = optax.tree.get(state, "masks")["own"]
    sums = np.abs(first) + np.abs(second)
    expected = sums >= np.sort(sums.reshape(-1))[12]
    np.testing.assert_array_equal(masks["a"]["w"], expected)
    np.testing.assert_array_equal(masks["b"]["w"], expected)
