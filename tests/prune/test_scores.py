"""Scores that look at gradients, and weights that come back, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax.prune.masks import straight_through


def make(scores="magnitude", *, regrow=False, sparsity=0.5, end=3, rate=0.1, **more):
    pruning = kp.magnitude_pruning(
        kp.linear(sparsity, end=end), every=1, prunable="w", scores=scores, regrow=regrow, **more
    )
    return optax.chain(optax.sgd(rate), pruning)


def run(tx, weights, gradients):
    """Weights and masks after each of the steps."""
    params = {"w": jnp.asarray(weights), "b": jnp.zeros(2)}
    state, seen = tx.init(params), []
    for gradient in gradients:
        grads = {"w": jnp.asarray(gradient), "b": jnp.ones(2)}
        updates, state = tx.update(grads, state, params, grads=grads)
        params = optax.apply_updates(params, updates)
        seen.append((np.asarray(params["w"]), np.asarray(optax.tree.get(state, "masks")["w"])))
    return seen, state


@pytest.mark.parametrize("scores", ["movement", "sensitivity"])
def test_what_is_kept_has_the_largest_scores(scores, rng):
    weights, gradients = rng.normal(size=24).astype(np.float32), rng.normal(size=(3, 24)).astype(np.float32)
    seen, _ = run(make(scores), weights, gradients)
    alive, importance, w = np.ones(24, bool), np.zeros(24), weights.astype(np.float64)
    for number, gradient in enumerate(gradients):
        step = -w * gradient
        importance = importance + step if scores == "movement" else 0.98 * importance + 0.02 * np.abs(step)
        keep = 24 - 4 * (number + 1)
        alive &= np.isin(np.arange(24), np.argsort(np.where(alive, -importance, np.inf))[:keep])
        w = np.where(alive, w - 0.1 * gradient, 0.0)
        np.testing.assert_array_equal(seen[number][1], alive)
        np.testing.assert_allclose(seen[number][0], w, rtol=1e-5)


def test_movement_keeps_small_weights_that_grow_and_drops_large_ones_that_shrink():
    seen, _ = run(make("movement", sparsity=0.5, end=1), [0.1, 5.0], [[-1.0, 1.0]])
    assert seen[-1][1].tolist() == [True, False]


def test_scores_without_gradients_are_said_to_need_them():
    tx = kp.magnitude_pruning(kp.one_shot(0.5), prunable="w", scores="movement")
    params = {"w": jnp.ones(4)}
    with pytest.raises(ValueError, match="scores='movement' needs grads"):
        tx.update(params, tx.init(params), params)


def test_a_weight_comes_back_until_the_end_of_the_schedule():
    tx = make(regrow=True, sparsity=0.5, end=2, rate=1.0)
    seen, state = run(tx, [1.0, 2.0, 3.0, 4.0], [[-5.0, 0.0, 0.0, 0.0], [0.0] * 4, [-9.0] * 4])
    assert seen[0][1].tolist() == [False, True, True, True]
    assert seen[0][0].tolist() == [6.0, 2.0, 3.0, 4.0]  # removed from the forward pass, and still there
    assert seen[1][1].tolist() == [True, False, False, True]
    assert seen[1][0].tolist() == [6.0, 0.0, 0.0, 4.0]  # gone for good
    assert seen[2][1].tolist() == [True, False, False, True]
    assert seen[2][0].tolist() == [15.0, 0.0, 0.0, 13.0]
    assert bool(optax.tree.get(state, "settled"))


@pytest.mark.parametrize("pattern", ["element", "block-2x4", "block-2x4-balanced", "2:4"])
@pytest.mark.parametrize("scores", ["magnitude", "sensitivity"])
def test_counts_are_exact_with_regrowth(pattern, scores, rng):
    weights = rng.normal(size=(8, 8)).astype(np.float32)
    tx = make(scores, regrow=True, pattern=pattern, end=3, rate=0.5)
    seen, _ = run(tx, weights, rng.normal(size=(5, 8, 8)).astype(np.float32))
    assert seen[-1][1].sum() == 32
    assert not seen[-1][0][~seen[-1][1]].any()
    np.testing.assert_array_equal(seen[-1][1], seen[2][1])


def test_straight_through_is_zero_forward_and_open_backward():
    params, masks = {"w": jnp.array([2.0, 3.0]), "b": jnp.array([1.0])}, {"w": jnp.array([True, False]), "b": None}

    def loss(params):
        params = straight_through(params, masks)
        return jnp.sum(params["w"] * jnp.array([5.0, 7.0])) + jnp.sum(params["b"] ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    assert value == 11.0
    assert grads["w"].tolist() == [5.0, 7.0]
    assert grads["b"].tolist() == [2.0]
