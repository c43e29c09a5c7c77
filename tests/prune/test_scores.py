"""Scores that look at gradients, against numpy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp


def make(scores="magnitude", *, sparsity=0.5, end=3, rate=0.1, **more):
    pruning = kp.magnitude_pruning(kp.linear(sparsity, end=end), every=1, prunable="w", scores=scores, **more)
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


def test_what_is_kept_has_the_largest_sensitivity(rng):
    weights, gradients = rng.normal(size=24).astype(np.float32), rng.normal(size=(3, 24)).astype(np.float32)
    seen, _ = run(make("sensitivity"), weights, gradients)
    alive, importance, w = np.ones(24, bool), np.zeros(24), weights.astype(np.float64)
    for number, gradient in enumerate(gradients):
        importance = 0.98 * importance + 0.02 * np.abs(w * gradient)
        keep = 24 - 4 * (number + 1)
        alive &= np.isin(np.arange(24), np.argsort(np.where(alive, -importance, np.inf))[:keep])
        w = np.where(alive, w - 0.1 * gradient, 0.0)
        np.testing.assert_array_equal(seen[number][1], alive)
        np.testing.assert_allclose(seen[number][0], w, rtol=1e-5)


def test_scores_without_gradients_are_said_to_need_them():
    tx = kp.magnitude_pruning(kp.one_shot(0.5), prunable="w", scores="sensitivity")
    params = {"w": jnp.ones(4)}
    with pytest.raises(ValueError, match="scores='sensitivity' needs grads"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("pattern", ["element", "block-2x4", "block-2x4-balanced", "2:4"])
@pytest.mark.parametrize("scores", ["magnitude", "sensitivity"])
def test_counts_are_exact(pattern, scores, rng):
    weights = rng.normal(size=(8, 8)).astype(np.float32)
    tx = make(scores, pattern=pattern, end=3, rate=0.5)
    seen, _ = run(tx, weights, rng.normal(size=(5, 8, 8)).astype(np.float32))
    assert seen[-1][1].sum() == 32
    assert not seen[-1][0][~seen[-1][1]].any()
    np.testing.assert_array_equal(seen[-1][1], seen[2][1])
