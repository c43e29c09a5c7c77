from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kaprune_jax as kp

MASK = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
IDS = jnp.array([0, 2], jnp.int32)


class Out(NamedTuple):
    hidden_states: tuple
    attention_scores: tuple
    logits: object


def outputs(seed, *, layers=2, width=4, heads=2, classes=3):
    keys = iter(jax.random.split(jax.random.key(seed), 3 * layers + 3))
    return Out(
        tuple(jax.random.normal(next(keys), (2, 4, width)) for _ in range(layers + 1)),
        tuple(jax.random.normal(next(keys), (2, heads, 4, 4)) for _ in range(layers)),
        jax.random.normal(next(keys), (2, classes)),
    )


def test_sparsebert_is_the_plain_sum_of_its_terms():
    student, teacher = outputs(0), outputs(1)
    total, terms = kp.objective(kp.sparsebert_loss(), student, teacher, mask=MASK, labels=IDS)
    states = [kp.hidden_loss(s, t, MASK) for s, t in zip(student.hidden_states, teacher.hidden_states, strict=True)]
    scores = [
        kp.attention_loss(s, t, MASK) for s, t in zip(student.attention_scores, teacher.attention_scores, strict=True)
    ]
    logits = kp.soft_cross_entropy(student.logits, teacher.logits).mean()
    assert sorted(terms) == ["attention", "embeddings", "hidden", "logits"]
    np.testing.assert_allclose(total, sum(states) + sum(scores) + logits, rtol=1e-6)


def test_weights_scale_terms_and_zero_removes_them():
    config = kp.DistillConfig(embeddings=0.0, hidden=0.5, attention=2.0, logits=0.0, labels=3.0)
    total, terms = kp.objective(config, outputs(0), outputs(1), mask=MASK, labels=IDS)
    assert sorted(terms) == ["attention", "hidden", "labels"]
    np.testing.assert_allclose(total, 0.5 * terms["hidden"] + 2 * terms["attention"] + 3 * terms["labels"], rtol=1e-6)


def test_presets():
    assert not kp.hard_labels_loss().needs_teacher
    _, terms = kp.objective(kp.hard_labels_loss(), outputs(0), None, mask=MASK, labels=IDS)
    assert list(terms) == ["labels"]
    _, terms = kp.objective(kp.logits_loss(), outputs(0), outputs(1), mask=MASK, labels=IDS)
    assert list(terms) == ["logits"]
    with pytest.raises(ValueError, match="no teacher"):
        kp.objective(kp.sparsebert_loss(), outputs(0), None, mask=MASK, labels=IDS)
    with pytest.raises(ValueError, match="no labels"):
        kp.objective(kp.hard_labels_loss(), outputs(0), None, mask=MASK)
    without, _ = kp.objective(kp.sparsebert_loss(), outputs(0), outputs(1), mask=MASK)
    labelled, _ = kp.objective(kp.sparsebert_loss(), outputs(0), outputs(1), mask=MASK, labels=IDS)
    assert without == labelled  # classes are distilled without gold labels


def test_the_same_outputs_leave_only_the_entropy_of_the_logits():
    out = outputs(0)
    total, terms = kp.objective(kp.sparsebert_loss(), out, out, mask=MASK, labels=IDS)
    shares = jax.nn.softmax(out.logits)
    np.testing.assert_allclose(total, -(shares * jnp.log(shares)).sum(axis=-1).mean(), rtol=1e-5)
    assert terms["hidden"] == terms["attention"] == terms["embeddings"] == 0.0


def test_depths_differ_by_a_layer_map():
    student, teacher = outputs(0, layers=2), outputs(1, layers=4)
    config = kp.DistillConfig(embeddings=0.0, attention=0.0, logits=0.0)
    total, _ = kp.objective(config, student, teacher, mask=MASK, labels=IDS)
    wanted = sum(kp.hidden_loss(student.hidden_states[i], teacher.hidden_states[2 * i], MASK) for i in (1, 2))
    np.testing.assert_allclose(total, wanted, rtol=1e-6)


def test_widths_differ_by_a_learned_projection():
    student, teacher = outputs(0, width=4), outputs(1, width=6)
    config = kp.DistillConfig(attention=0.0, projection=True)
    with pytest.raises(ValueError, match="student width 4, teacher width 6"):
        kp.objective(config, student, teacher, mask=MASK, labels=IDS)
    projection = kp.init_projection(4, 6, jax.random.key(0))

    def loss(projection):
        return kp.objective(config, student, teacher, mask=MASK, labels=IDS, projection=projection)[0]

    gradient = jax.grad(loss)(projection)
    assert all(float(jnp.abs(leaf).sum()) > 0 for leaf in jax.tree.leaves(gradient))
    identity = kp.init_projection(4, 4, jax.random.key(0))
    np.testing.assert_array_equal(identity["kernel"], np.eye(4))


def test_head_counts_must_agree():
    with pytest.raises(ValueError, match="student has 2 heads, teacher 4"):
        kp.objective(kp.sparsebert_loss(), outputs(0), outputs(1, heads=4), mask=MASK, labels=IDS)


def test_a_regression_learns_the_gold_score_or_the_teachers():
    student, teacher = outputs(0, classes=1), outputs(1, classes=1)
    gold = jnp.array([1.0, 4.0])
    config = kp.DistillConfig(embeddings=0.0, hidden=0.0, attention=0.0)
    total, _ = kp.objective(config, student, teacher, mask=MASK, labels=gold)
    np.testing.assert_allclose(total, jnp.square(student.logits[:, 0] - gold).mean(), rtol=1e-6)
    config = kp.logits_loss()
    total, _ = kp.objective(config, student, teacher, mask=MASK, labels=gold)
    np.testing.assert_allclose(total, jnp.square(student.logits - teacher.logits).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "bad", [dict(hidden=-1.0), dict(logits=float("nan")), dict(temperature=0.0), dict(regression_target="x")]
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        kp.DistillConfig(**bad)
