import dataclasses

import jax
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.train.accumulate import mean_over_parts
from kaprune_jax.train.step import init_state, make_train_step

CONFIG = BertConfig(
    50, 16, 2, 2, 32, 16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, head="classification",
    labels=("a", "b"),
)  # fmt: skip


def batch_of(seed, rows=12, length=8):
    random = np.random.default_rng(seed)
    mask = (np.arange(length)[None] < random.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return {
        "input_ids": random.integers(0, 50, (rows, length)).astype(np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros((rows, length), np.int32),
        "labels": random.integers(0, 2, rows).astype(np.int32),
    }


def after(loss, *, config=CONFIG, batch=None, **options):
    """Loss, terms and parameters after a step of plain gradient descent."""
    apply = make_apply(config, remat=options.pop("remat", False))
    step = make_train_step(apply, optax.sgd(0.5), loss, teacher=make_apply(config), **options)
    state = init_state(init_params(config, jax.random.key(0)), optax.sgd(0.5), jax.random.key(2))
    state, metrics = jax.jit(step)(state, init_params(config, jax.random.key(1)), batch or batch_of(0))
    return metrics.loss, metrics.terms, state.params


def close(one, two, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), one, two)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_of_a_batch_have_its_own_loss_and_gradient(parts):
    loss = dataclasses.replace(kp.sparsebert_loss(), labels=1.0)  # all terms; rows of one to eight tokens
    close(after(loss), after(loss, accumulate=parts), 2e-6)


def test_parts_of_a_batch_of_answers_have_its_own_loss_and_gradient():
    batch = batch_of(0)
    ends = batch["attention_mask"].sum(axis=1, keepdims=True)
    batch["labels"] = (np.random.default_rng(1).random((12, 2)) * ends).astype(np.int32)  # places of real tokens
    options = dict(config=CONFIG.replace(head="span", labels=()), batch=batch)
    loss = dataclasses.replace(kp.sparsebert_loss(), labels=1.0)
    close(after(loss, **options), after(loss, **options, accumulate=3), 2e-6)


def test_rows_that_cannot_be_cut_are_named():
    with pytest.raises(ValueError, match="accumulate=5: a batch of 12 rows cannot be cut"):
        mean_over_parts(lambda *_: 0.0, batch_of(0), 5)


def test_recomputed_layers_give_the_same_gradient_with_dropout_too():
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    close(after(kp.sparsebert_loss(), config=config), after(kp.sparsebert_loss(), config=config, remat=True), 1e-6)


def test_every_layer_is_computed_again_in_the_backward_pass():
    """What that saves only accelerators show: XLA's CPU compiler merges the second computation with the first."""

    def program(remat):
        step = make_train_step(make_apply(CONFIG, remat=remat), optax.sgd(0.5), kp.hard_labels_loss())
        state = init_state(init_params(CONFIG, jax.random.key(0)), optax.sgd(0.5), jax.random.key(2))
        return str(jax.make_jaxpr(step)(state, None, batch_of(0)))

    recomputed = program(True).count("remat2[") + program(True).count("checkpoint[")
    assert recomputed == CONFIG.num_hidden_layers
    assert "checkpoint[" not in program(False)
