import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaprune_jax.deploy.shrink import materialize
from kaprune_jax.l0.finalize import count_size, finalize
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layers import layer_norm
from kaprune_jax.models.layout import GATES, bert_layout

CLS = BertConfig(30, 16, 2, 4, 24, 12, head="classification", labels=("a", "b", "c"))
CONFIGS = {"cls": CLS, "mean": CLS.replace(pooling="mean")}
LAYOUT = bert_layout(CLS)
APPLY = {name: jax.jit(make_apply(config)) for name, config in CONFIGS.items()}


def batch(seq=6):
    random = np.random.default_rng(0)
    mask = (np.arange(seq)[None] < np.array([[6], [3], [5]])).astype(np.int32)
    ids = random.integers(1, 30, (3, seq)).astype(np.int32)
    return jnp.asarray(ids * mask), jnp.asarray(mask), jnp.asarray(random.integers(0, 2, (3, seq)), jnp.int32)


@functools.cache
def random_params(config, seed=0):
    """Weights, biases, scales and embeddings all far from what they start as."""
    random = np.random.default_rng(seed)
    params = init_params(config, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), params)


def open_gates():
    return {gate.name: np.ones(gate.shape, np.float32) for gate in LAYOUT.gates}


def without(**closed):
    """All open but for the places named."""
    values = open_gates()
    for name, places in closed.items():
        values[name][places] = 0.0
    return values


def fractional(seed=0):
    random = np.random.default_rng(seed)
    return {gate.name: random.uniform(0.1, 1, gate.shape).astype(np.float32) for gate in LAYOUT.gates}


def mixed():
    values = fractional(1)
    values["heads"][0, 1:] = 0
    values["units"][1, ::2] = 0
    values["hidden"][3:7] = 0
    values["ffn"][0], values["units"][0] = 0, 0
    return values


HAND_MADE = {
    "a layer": without(attention=1, heads=1, ffn=1, units=1),
    "the first layer": without(attention=0, ffn=0),
    "every attention": without(attention=slice(None)),
    "every feed-forward network": without(ffn=slice(None)),
    "all heads but one": without(heads=(slice(None), slice(1, None)), attention=slice(1, None)),
    "hidden dimensions": without(hidden=slice(2, 11)),
    "all layers": without(attention=slice(None), ffn=slice(None)),
    "nothing": open_gates(),
    "fractions": fractional(),
    "some": mixed(),
    "one hidden dimension": without(hidden=slice(1, None)),
}


def check_same(values, pooling):
    config = CONFIGS[pooling]
    params = random_params(config)
    smaller = materialize(params, values, config)
    gated = APPLY[pooling](params, *batch(), gates=jax.tree.map(jnp.asarray, values))
    shrunk = jax.jit(make_apply(smaller.config))(smaller.params, *batch())
    np.testing.assert_allclose(gated.logits, shrunk.logits, atol=1e-5, rtol=1e-5)
    hidden = np.flatnonzero(values["hidden"])
    for whole, part in zip(gated.hidden_states, shrunk.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(whole)[..., hidden], part, atol=1e-5, rtol=1e-5)
        assert not np.delete(np.asarray(whole), hidden, axis=-1).any()
    return np.asarray(gated.logits)


@pytest.mark.parametrize(
    ("sparsity", "pooling"),
    [*((sparsity, "cls") for sparsity in (0.0, 0.3, 0.6, 0.8, 0.9, 0.95)), (0.3, "mean"), (0.9, "mean")],
)
def test_the_gated_and_the_shrunk_model_agree(sparsity, pooling):
    random = np.random.default_rng(int(100 * sparsity))
    log_alpha = {gate.name: random.normal(0.5, 1, gate.shape).astype(np.float32) for gate in LAYOUT.gates}
    values = finalize(log_alpha, LAYOUT, sparsity)
    assert count_size(values, LAYOUT) <= (1 - sparsity) * LAYOUT.full_size + 1e-6
    logits = check_same(values, pooling)
    assert np.ptp(logits[:, 0]) > 1e-3  # the model still looks at its input


@pytest.mark.parametrize(
    ("gone", "pooling"), [*((gone, "cls") for gone in HAND_MADE), ("some", "mean"), ("all layers", "mean")]
)
def test_they_agree_with_these_gone(gone, pooling):
    check_same(HAND_MADE[gone], pooling)


def test_gates_matter():
    params = random_params(CLS)
    whole = np.asarray(APPLY["cls"](params, *batch()).logits)
    for name in GATES:
        values = {name: jnp.asarray(fractional()[name])}
        assert np.abs(np.asarray(APPLY["cls"](params, *batch(), gates=values).logits) - whole).max() > 1e-3, name


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_open_gates_are_no_gates(pooling):
    params = random_params(CONFIGS[pooling])
    gated = APPLY[pooling](params, *batch(), gates=jax.tree.map(jnp.asarray, open_gates()))
    plain = APPLY[pooling](params, *batch())
    for one, two in zip(gated.hidden_states, plain.hidden_states, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_allclose(gated.logits, plain.logits, atol=1e-5)
    some = {name: jnp.asarray(value) for name, value in open_gates().items() if name in ("heads", "hidden")}
    np.testing.assert_allclose(APPLY[pooling](params, *batch(), gates=some).logits, plain.logits, atol=1e-5)


@pytest.mark.parametrize("fraction", [False, True])
def test_the_norm_is_that_of_the_open_dimensions(fraction, rng):
    norm = layer_norm(CLS, "float32", nnx.Rngs(0))
    scale, bias = rng.normal(1, 0.3, 16), rng.normal(0, 0.5, 16)
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    norm.bias[...] = jnp.asarray(bias, jnp.float32)
    there = np.arange(16) % 3 > 0
    hidden = there * (rng.uniform(0.1, 0.9, 16) if fraction else 1.0)
    x = rng.normal(2, 3, (2, 5, 16))
    kept = x[..., there]
    normed = (kept - kept.mean(-1, keepdims=True)) / np.sqrt(kept.var(-1, keepdims=True) + CLS.layer_norm_eps)
    wanted = np.zeros_like(x)
    wanted[..., there] = normed * scale[there] + bias[there]
    result = norm(jnp.asarray(x, jnp.float32), jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    assert not np.asarray(norm(jnp.asarray(x, jnp.float32), jnp.zeros(16))).any()  # and no NaN


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_has_no_effect_under_gates(pooling):
    params, gates = random_params(CONFIGS[pooling]), jax.tree.map(jnp.asarray, mixed())
    ids, mask, types = batch()
    other = jnp.where(mask == 1, ids, 17)
    longer = [jnp.pad(array, ((0, 0), (0, 4)), constant_values=value) for array, value in ((other, 9), (mask, 0))]
    short = APPLY[pooling](params, ids, mask, types, gates=gates)
    long = APPLY[pooling](params, *longer, jnp.pad(types, ((0, 0), (0, 4))), gates=gates)
    np.testing.assert_allclose(short.logits, long.logits, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_gate_gets_a_gradient(pooling):
    params, gates = random_params(CONFIGS[pooling]), jax.tree.map(jnp.asarray, fractional(2))

    def loss(gates):
        return jnp.square(APPLY[pooling](params, *batch(), gates=gates).logits).sum()

    gradient = jax.jit(jax.grad(loss))(gates)
    assert sorted(gradient) == sorted(GATES)
    for name, value in gradient.items():
        assert np.isfinite(value).all(), name
        assert (np.abs(np.asarray(value)) > 0).all(), name
    step, place = 1e-2, (1, 2)
    moved = [loss(gates | {"heads": gates["heads"].at[place].add(sign * step)}) for sign in (1, -1)]
    np.testing.assert_allclose(gradient["heads"][place], (moved[0] - moved[1]) / (2 * step), rtol=0.02, atol=1e-3)
