"""What was tried beside the plain recipe: averages, tilted budgets, word dropout, smoothed labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kaprune_jax as kp
from kaprune_jax.models.bert import drop_words
from kaprune_jax.train.optimizer import average_weights


def test_the_average_is_the_mean_of_the_weights_after_each_step_since_it_began():
    tx = optax.chain(optax.sgd(0.1), average_weights(3))
    params, seen = {"w": jnp.array([1.0, -2.0])}, []
    state = tx.init(params)
    for step in range(1, 7):
        updates, state = tx.update({"w": jnp.array([float(step), 1.0])}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params["w"]))
        expected = seen[-1] if step < 3 else np.mean(seen[2:], axis=0)
        np.testing.assert_allclose(optax.tree.get(state, "average")["w"], expected, rtol=1e-6)


def test_a_factor_moves_the_budget_from_matrix_to_matrix():
    tx = kp.magnitude_pruning(
        kp.one_shot(0.5, at=1), prunable=".*", factor=lambda path: {"a": 0.5, "b": 1.5}[path.split("/")[0]]
    )
    params = {name: {"w": jnp.arange(1.0, 101.0).reshape(10, 10)} for name in "ab"}
    _, state = tx.update(params, tx.init(params), params)
    assert [int(state.masks[name]["w"].sum()) for name in "ab"] == [75, 25]


def test_words_are_dropped_in_training_only_and_special_tokens_never():
    seen = drop_words(lambda params, ids, mask, **named: ids, 0.3, 103, [0, 101, 102])
    ids = jnp.array([[101, *range(1000, 1098), 102]] * 50)
    assert jnp.array_equal(seen({}, ids, None), ids)
    dropped = seen({}, ids, None, dropout_key=jax.random.key(0))
    assert jnp.array_equal(dropped[:, [0, -1]], ids[:, [0, -1]])
    assert abs(float((dropped == 103)[:, 1:-1].mean()) - 0.3) < 0.03
    assert bool(((dropped == 103) | (dropped == ids)).all())


def test_smoothed_labels_are_a_mixture_with_the_uniform_distribution():
    logits, labels = jax.random.normal(jax.random.key(1), (5, 4)), jnp.array([0, 1, 2, 3, 1])
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    expected = -(target * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    np.testing.assert_allclose(kp.label_loss(logits, labels, smoothing=0.1), expected, rtol=1e-5)
