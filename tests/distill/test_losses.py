import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import kaprune_jax as kp


def test_kl_is_teacher_over_student_times_temperature_squared(rng):
    student, teacher = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    wanted = 4.0 * rel_entr(softmax(teacher / 2, -1), softmax(student / 2, -1)).sum(-1)
    np.testing.assert_allclose(kp.kl_loss(student, teacher, temperature=2.0), wanted, rtol=1e-5)
    assert not np.allclose(kp.kl_loss(student, teacher), kp.kl_loss(teacher, student))


def test_soft_cross_entropy_sums_over_classes(rng):
    student, teacher = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    wanted = -(softmax(teacher / 2, -1) * log_softmax(student / 2, -1)).sum(-1)
    np.testing.assert_allclose(kp.soft_cross_entropy(student, teacher, temperature=2.0), wanted, rtol=1e-5)


def test_soft_cross_entropy_has_the_gradient_of_kl_over_temperature_squared(rng):
    student, teacher = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    soft = jax.grad(lambda x: kp.soft_cross_entropy(x, teacher, temperature=3.0).sum())(student)
    kl = jax.grad(lambda x: kp.kl_loss(x, teacher, temperature=3.0).sum())(student)
    np.testing.assert_allclose(soft, kl / 9, rtol=1e-4, atol=1e-7)


def ragged(rng, *shape):
    lengths = np.array([5, 2, 3])
    mask = jnp.asarray(np.arange(5)[None] < lengths[:, None], jnp.int32)
    return jnp.asarray(rng.normal(size=shape), jnp.float32), mask, lengths


def test_hidden_loss_is_the_mean_over_real_tokens(rng):
    student, mask, lengths = ragged(rng, 3, 5, 4)
    teacher = jnp.asarray(rng.normal(size=student.shape), jnp.float32)
    parts = [((student - teacher)[row, :length] ** 2).reshape(-1) for row, length in enumerate(lengths)]
    np.testing.assert_allclose(kp.hidden_loss(student, teacher, mask), np.concatenate(parts).mean(), rtol=1e-6)


def test_attention_loss_is_the_mean_over_pairs_of_real_tokens(rng):
    student, mask, lengths = ragged(rng, 3, 2, 5, 5)
    teacher = jnp.asarray(rng.normal(size=student.shape), jnp.float32)
    parts = [((student - teacher)[row, :, :n, :n] ** 2).reshape(-1) for row, n in enumerate(lengths)]
    np.testing.assert_allclose(kp.attention_loss(student, teacher, mask), np.concatenate(parts).mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", [kp.hidden_loss, kp.attention_loss])
def test_padding_has_no_effect_on_value_or_gradient(loss, rng):
    shape = (3, 5, 4) if loss is kp.hidden_loss else (3, 2, 5, 5)
    student, mask, lengths = ragged(rng, *shape)
    teacher = jnp.asarray(rng.normal(size=student.shape), jnp.float32)
    other = np.array(student)
    for row, length in enumerate(lengths):
        if loss is kp.hidden_loss:
            other[row, length:] = 1e3
        else:
            other[row, :, length:] = 1e3
            other[row, :, :, length:] = -1e3
    value, gradient = jax.value_and_grad(loss)(student, teacher, mask)
    value2, gradient2 = jax.value_and_grad(loss)(jnp.asarray(other), teacher, mask)
    np.testing.assert_allclose(value, value2, rtol=1e-6)
    real = np.asarray(mask, bool)
    if loss is kp.hidden_loss:
        assert not np.any(np.asarray(gradient)[~real])
    np.testing.assert_allclose(np.abs(gradient).sum(), np.abs(gradient2).sum(), rtol=1e-5)


def test_nothing_real_gives_zero_not_nan():
    zeros = jnp.zeros((1, 3), jnp.int32)
    assert kp.hidden_loss(jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2)), zeros) == 0.0
    assert kp.attention_loss(jnp.ones((1, 2, 3, 3)), jnp.zeros((1, 2, 3, 3)), zeros) == 0.0
    none = jnp.zeros((1, 0, 3, 3))  # a layer whose heads are all gone
    assert kp.attention_loss(none, none, jnp.ones((1, 3), jnp.int32)) == 0.0


def test_label_loss_is_cross_entropy_or_squared_error(rng):
    logits = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    ids = jnp.array([0, 2, 1, 1], jnp.int32)
    np.testing.assert_allclose(kp.label_loss(logits, ids), -log_softmax(logits, -1)[np.arange(4), ids], rtol=1e-5)
    scores = jnp.array([0.5, 1.0, -2.0, 3.0])
    np.testing.assert_allclose(kp.label_loss(logits[:, :1], scores), (logits[:, 0] - scores) ** 2, rtol=1e-6)
