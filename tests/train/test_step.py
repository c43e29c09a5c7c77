import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.train.optimizer import adamw
from kaprune_jax.train.step import get_masks, init_state, make_predict, make_train_step

CONFIG = BertConfig(50, 16, 2, 2, 32, 16, head="classification", labels=("a", "b"))


def batch_of(seed, length=8):
    random = np.random.default_rng(seed)
    mask = (np.arange(length)[None] < random.integers(3, length + 1, (4, 1))).astype(np.int32)
    return {
        "input_ids": random.integers(0, 50, (4, length)).astype(np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros((4, length), np.int32),
        "labels": random.integers(0, 2, 4).astype(np.int32),
    }


def setup(*, config=None, student=CONFIG, teacher_config=CONFIG, projection=False, sparsity=0.9, optimizer=None):
    tx = optax.chain(optimizer or adamw(1e-2), kp.magnitude_pruning(kp.cubic(sparsity, end=6), updates=3))
    params = init_params(CONFIG, jax.random.key(0))
    if projection:
        width = teacher_config.hidden_size
        params["projection"] = kp.init_projection(16, width, jax.random.key(5))
    teacher = init_params(teacher_config, jax.random.key(1))
    step = make_train_step(make_apply(student), tx, config or kp.sparsebert_loss(), teacher=make_apply(teacher_config))
    return step, init_state(params, tx, jax.random.key(2)), teacher


def test_one_trace_per_shape():
    step, state, teacher = setup()
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(step, n=2))
    for number in range(6):
        state, _ = jitted(state, teacher, batch_of(number, length=(8, 16)[number % 2]))
    assert int(state.step) == 6


def test_weights_and_moments_of_what_is_removed_are_zero():
    step, state, teacher = setup()
    jitted = jax.jit(step)
    for number in range(9):
        state, metrics = jitted(state, teacher, batch_of(number))
        masks = get_masks(state.opt_state)
        adam = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
        for mask, *leaves in zip(
            jax.tree.leaves(masks, is_leaf=lambda leaf: leaf is None),
            *(jax.tree.leaves(tree) for tree in (state.params, *adam)),
            strict=True,
        ):
            if mask is not None:
                assert all(not np.any(np.asarray(leaf)[~np.asarray(mask)]) for leaf in leaves)
    assert metrics.delivered == pytest.approx(kp.sparsity(masks), abs=1e-6)
    assert metrics.asked == pytest.approx(0.9)


def test_the_teacher_is_deterministic_and_gets_no_gradient():
    still = CONFIG.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    step, state, teacher = setup(student=still)  # so that only the teacher's dropout could tell two keys apart
    before = jax.tree.map(np.asarray, teacher)
    one, _ = jax.jit(step)(state, teacher, batch_of(0))
    two, _ = jax.jit(step)(state._replace(key=jax.random.key(7)), teacher, batch_of(0))
    chex.assert_trees_all_equal(one.params, two.params)
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, teacher))


def test_the_loss_is_the_objective_of_student_in_training_and_teacher_in_evaluation_mode():
    step, state, teacher = setup()
    batch = batch_of(0)
    _, metrics = jax.jit(step)(state, teacher, batch)
    apply, inputs = (
        make_apply(CONFIG),
        [jnp.asarray(batch[n]) for n in ("input_ids", "attention_mask", "token_type_ids")],
    )
    student = apply(state.params, *inputs, dropout_key=jax.random.fold_in(state.key, 0))
    loss, terms = kp.objective(
        kp.sparsebert_loss(), student, apply(teacher, *inputs), mask=inputs[1], labels=jnp.asarray(batch["labels"])
    )
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics.terms[name], term, rtol=1e-5)


def test_a_wider_and_deeper_teacher_through_a_projection():
    wide = BertConfig(50, 24, 4, 2, 48, 16, head="classification", labels=("a", "b"))
    step, state, teacher = setup(teacher_config=wide, projection=True)
    start = np.asarray(state.params["projection"]["kernel"])
    state, _ = jax.jit(step)(state, teacher, batch_of(0))
    assert not np.array_equal(start, state.params["projection"]["kernel"])
    logits = make_predict(make_apply(CONFIG))(state.params, batch_of(0))
    assert logits.shape == (4, 2)


def test_sums_over_devices_agree_with_one_device():
    # Plain gradient steps: Adam would divide by gradients near zero, whose sign is rounding.
    step, state, teacher = setup(optimizer=optax.sgd(0.1))
    batch = {name: np.concatenate([array, array]) for name, array in batch_of(0).items()}
    one, _ = jax.jit(step)(state, teacher, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    eight, _ = jax.jit(step)(
        jax.device_put(state, everywhere), jax.device_put(teacher, everywhere), jax.device_put(batch, rows)
    )
    chex.assert_trees_all_close(one.params, jax.device_get(eight.params), rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda new, old: float(jnp.max(jnp.abs(new - old))), one.params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_squared_norm_of_the_gradient_is_told_before_it_is_clipped():
    norms = []
    for weight in (1.0, 1e4, 1e30):
        step, state, teacher = setup(
            config=kp.DistillConfig(embeddings=0.0, hidden=0.0, attention=0.0, logits=0.0, labels=weight)
        )
        state, metrics = jax.jit(step)(state, teacher, batch_of(0))
        assert np.isfinite(metrics.loss)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
        norms.append(float(metrics.grad_square))
    assert norms[1] == pytest.approx(norms[0] * 1e8, rel=1e-4)
    assert norms[2] == np.inf
