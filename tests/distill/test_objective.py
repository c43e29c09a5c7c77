import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kaprune_jax as kp
from kaprune_jax.distill.objective import cofi_loss

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
    later = outputs(1)._replace(
        attention_scores=(outputs(1).attention_scores[0], outputs(1, heads=1).attention_scores[1])
    )
    with pytest.raises(ValueError, match="student has 2 heads, teacher 1"):
        kp.objective(kp.sparsebert_loss(), outputs(0), later, mask=MASK, labels=IDS)


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


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def kl(student, teacher, temperature):
    one, two = softmax(np.asarray(teacher) / temperature), softmax(np.asarray(student) / temperature)
    return temperature**2 * (one * np.log(one / two)).sum(-1).mean()


def errors(student, teacher, projection, layers):
    """Mean squared errors over real tokens, [teacher layers, student layers]."""
    real = np.asarray(MASK, bool)
    kernel, bias = (np.asarray(projection[name], np.float64) for name in ("kernel", "bias"))
    projected = [np.asarray(state, np.float64)[real] @ kernel + bias for state in student.hidden_states[1:]]
    targets = [np.asarray(teacher.hidden_states[layer], np.float64)[real] for layer in layers]
    return np.array([[np.square(state - target).mean() for state in projected] for target in targets])


def nearest_case():
    student, teacher = outputs(0, layers=4, width=4), outputs(1, layers=6, width=6, heads=3)
    projection = kp.init_projection(4, 6, jax.random.key(3))
    projection["bias"] = projection["bias"] + 0.3
    return student, teacher, projection


@pytest.mark.parametrize("layer_map", ["nearest", "nearest-ordered"])
@pytest.mark.parametrize("alive", [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0), None])
def test_nearest_layers_through_a_projection(layer_map, alive):
    student, teacher, projection = nearest_case()
    far = errors(student, teacher, projection, (2, 3, 5, 6))  # the quarters of 6 layers
    there = np.flatnonzero((1, 1, 1, 1) if alive is None else alive)
    maps = [
        choice
        for choice in itertools.product(there.tolist(), repeat=4)
        if layer_map == "nearest" or list(choice) == sorted(choice)
    ]
    hidden = min((sum(far[row, layer] for row, layer in enumerate(choice)) for choice in maps), default=0.0)
    config = kp.DistillConfig(
        embeddings=0.0, hidden=0.9, attention=0.0, logits=0.1, temperature=2.0, layer_map=layer_map,
        divergence="kl", projection=True,
    )  # fmt: skip
    total, terms = kp.objective(
        config, student, teacher, mask=MASK, labels=IDS, projection=projection,
        alive=None if alive is None else jnp.asarray(alive, bool),
    )  # fmt: skip
    np.testing.assert_allclose(terms["hidden"], hidden, rtol=1e-5)
    np.testing.assert_allclose(terms["logits"], kl(student.logits, teacher.logits, 2.0), rtol=1e-5)
    np.testing.assert_allclose(total, 0.9 * hidden + 0.1 * terms["logits"], rtol=1e-5)


def test_the_presets_of_cofi():
    student, teacher, projection = nearest_case()
    total, terms = kp.objective(cofi_loss(), student, teacher, mask=MASK, labels=IDS, projection=projection)
    assert sorted(terms) == ["hidden", "logits"]
    assert cofi_loss().layer_map == "nearest-ordered"
    np.testing.assert_allclose(total, 0.9 * terms["hidden"] + 0.1 * terms["logits"], rtol=1e-6)
    np.testing.assert_allclose(terms["logits"], kl(student.logits, teacher.logits, 2.0), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_divergences_differ_by_entropy_and_their_gradients_by_the_temperature(temperature):
    student, teacher = outputs(0), outputs(1)

    def loss(logits, divergence):
        config = kp.DistillConfig(
            embeddings=0.0, hidden=0.0, attention=0.0, temperature=temperature, divergence=divergence
        )
        return kp.objective(config, student._replace(logits=logits), teacher, mask=MASK, labels=IDS)[0]

    np.testing.assert_allclose(loss(student.logits, "kl"), kl(student.logits, teacher.logits, temperature), rtol=1e-5)
    one, two = (jax.grad(loss)(student.logits, name) for name in ("kl", "cross-entropy"))
    np.testing.assert_allclose(one, temperature**2 * two, rtol=1e-4, atol=1e-7)


def test_only_chosen_layers_get_a_gradient_and_the_choice_itself_none():
    student, teacher, projection = nearest_case()
    config = kp.DistillConfig(embeddings=0.0, attention=0.0, logits=0.0, layer_map="nearest", projection=True)
    far = errors(student, teacher, projection, (2, 3, 5, 6))
    alive = np.array([True, False, True, True])
    chosen = np.where(alive, far, np.inf).argmin(1)

    def loss(states, projection):
        changed = student._replace(hidden_states=(student.hidden_states[0], *states))
        return kp.objective(
            config, changed, teacher, mask=MASK, labels=IDS, projection=projection, alive=jnp.asarray(alive)
        )[0]

    def fixed(states, projection):
        total = 0.0
        for layer, place in zip((2, 3, 5, 6), chosen.tolist(), strict=True):
            projected = states[place] @ projection["kernel"] + projection["bias"][None, None]
            total += kp.hidden_loss(projected, teacher.hidden_states[layer], MASK)
        return total

    states = student.hidden_states[1:]
    one, two = (jax.grad(f, argnums=(0, 1))(states, projection) for f in (loss, fixed))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for place, gradient in enumerate(one[0]):
        assert bool(np.any(gradient)) == (place in chosen)
    assert len(set(chosen.tolist())) < 3  # some living layer is not chosen


def test_without_a_surviving_layer_there_is_no_gradient():
    student, teacher, projection = nearest_case()
    config = kp.DistillConfig(embeddings=0.0, attention=0.0, logits=0.0, layer_map="nearest-ordered", projection=True)

    def loss(projection):
        return kp.objective(
            config, student, teacher, mask=MASK, projection=projection, alive=jnp.zeros(4, bool)
        )[0]  # fmt: skip

    value, gradient = jax.value_and_grad(loss)(projection)
    assert value == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("bad", [dict(divergence="js"), dict(layer_map="nearest")])
def test_settings_of_the_nearest_map_are_checked(bad):
    with pytest.raises(ValueError, match="allowed: cross-entropy, kl|attention=1.0 must be 0"):
        kp.DistillConfig(**bad)


def test_the_fixed_map_compares_equal_depths_as_long_as_they_survive(rng):
    def states(count):
        return tuple(jnp.asarray(rng.normal(size=(2, 3, 4)).astype(np.float32)) for _ in range(count))

    class Output(NamedTuple):
        hidden_states: tuple
        attention_scores: tuple = ()
        logits: object = None

    student, teacher = Output(states(7)), Output(states(7))
    config = kp.DistillConfig(embeddings=0.0, attention=0.0, logits=0.0, layer_map="fixed")
    alive = jnp.array([True, True, False, True, True, True])
    total, _ = kp.objective(config, student, teacher, mask=jnp.ones((2, 3), jnp.int32), alive=alive)
    errors = [
        np.mean((np.asarray(a) - np.asarray(b)) ** 2)
        for a, b in zip(student.hidden_states, teacher.hidden_states, strict=True)
    ]
    np.testing.assert_allclose(
        total, errors[2] + errors[5] + errors[6], rtol=1e-5
    )  # layers 2, 3, 5, 6; the third is gone


PLACES = jnp.array([[1, 2], [0, 1]], jnp.int32)


def over_real_tokens(values, temperature=1.0):
    """The probabilities of start and end over the real tokens of each row, in float64."""
    for row, mask in zip(np.asarray(values, np.float64), np.asarray(MASK, bool), strict=True):
        for part in (0, 1):
            yield softmax(row[mask, part] / temperature)


def spans(seed):
    return outputs(seed)._replace(logits=3 * jax.random.normal(jax.random.key(100 + seed), (2, 4, 2)))


def test_answers_are_learned_over_real_tokens_start_and_end_alike():
    student, teacher = spans(0), spans(1)
    total, terms = kp.objective(kp.hard_labels_loss(), student, None, mask=MASK, labels=PLACES)
    shares = list(over_real_tokens(student.logits))
    wanted = -np.mean([np.log(share[place]) for share, place in zip(shares, PLACES.reshape(-1), strict=True)])
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    for temperature, divergence in ((1.0, "cross-entropy"), (2.0, "cross-entropy"), (1.0, "kl"), (2.0, "kl")):
        config = kp.DistillConfig(
            embeddings=0.0, hidden=0.0, attention=0.0, temperature=temperature, divergence=divergence
        )
        _, terms = kp.objective(config, student, teacher, mask=MASK, labels=PLACES)
        ours, theirs = (list(over_real_tokens(out.logits, temperature)) for out in (student, teacher))
        if divergence == "kl":
            each = [temperature**2 * (p * np.log(p / q)).sum() for p, q in zip(theirs, ours, strict=True)]
        else:
            each = [-(p * np.log(q)).sum() for p, q in zip(theirs, ours, strict=True)]
        np.testing.assert_allclose(terms["logits"], np.mean(each), rtol=1e-5)
        without, _ = kp.objective(config, student, teacher, mask=MASK)
        assert without == terms["logits"]


@pytest.mark.parametrize("config", [kp.sparsebert_loss(), kp.logits_loss(), kp.hard_labels_loss(), cofi_loss()])
def test_what_pads_answers_has_neither_loss_nor_gradient(config):
    student, teacher = spans(0), spans(1)
    projection = kp.init_projection(4, 4, jax.random.key(0))

    def loss(logits, theirs):
        return kp.objective(
            config, student._replace(logits=logits), teacher._replace(logits=theirs), mask=MASK, labels=PLACES,
            projection=projection,
        )[0]  # fmt: skip

    padding = jnp.where(MASK[..., None] == 0, 1e4, 0.0)
    first, gradient = jax.value_and_grad(loss)(student.logits, teacher.logits)
    second, other = jax.value_and_grad(loss)(student.logits + padding, teacher.logits - padding)
    assert first == second
    np.testing.assert_array_equal(gradient, other)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[np.asarray(MASK) == 0].any()
    assert np.asarray(gradient)[np.asarray(MASK) == 1].all()


def test_answers_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        total, _ = kp.objective(
            kp.DistillConfig(labels=1.0), spans(0), spans(1), mask=MASK.astype(jnp.int32), labels=PLACES
        )
    assert total.dtype == jnp.float32
