import itertools
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import kaprune_jax as kp
from kaprune_jax.models import bert
from kaprune_jax.models.bert import BertOutput, init_params, make_apply, make_fill, param_shapes
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layers import dropout, gelu, position_bits

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = BertConfig(60, 32, 2, 4, 64, 40, labels=("no", "yes"), head="classification")


def run(model, expected) -> BertOutput:
    batch = [jnp.asarray(expected[name]) for name in ("input_ids", "attention_mask", "token_type_ids")]
    return jax.jit(model.apply)(model.params, *batch)


@pytest.mark.parametrize("name", ["classifier", "encoder", "mlm", "span"])
@pytest.mark.parametrize("graph_mode", [True, False])
def test_agrees_with_pytorch(name, graph_mode):
    expected = np.load(FIXTURES / "bert" / "expected.npz")
    model = kp.load(FIXTURES / "bert" / name)
    bert.split_config.cache_clear()
    with flax.nnx.set_graph_mode(graph_mode):
        output = run(model, expected)
    bert.split_config.cache_clear()
    real = expected["attention_mask"].astype(bool)
    for ours, theirs in zip(output.hidden_states, expected[f"{name}/hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=1e-4)
    pairs = np.broadcast_to(real[:, None, :, None] & real[:, None, None, :], output.attention_scores[0].shape)
    for ours, theirs in zip(output.attention_scores, expected[f"{name}/attention_scores"], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[pairs], theirs[pairs], atol=1e-4)
    if name == "encoder":
        assert output.logits is None
    else:
        logits, wanted = np.asarray(output.logits), expected[f"{name}/logits"]
        by_token = name in ("mlm", "span")
        np.testing.assert_allclose(
            logits[real] if by_token else logits, wanted[real] if by_token else wanted, atol=1e-4
        )  # fmt: skip


def test_agrees_with_pytorch_on_a_real_encoder(shared):
    expected = np.load(FIXTURES / "minilm_expected.npz")
    model = kp.load(shared / "models" / "minilm-l6-h384-uncased")
    assert model.config.pooling == "mean"
    for row, (first, second) in enumerate(zip(expected["text_a"], expected["text_b"], strict=True)):
        ids = model.tokenizer(*[str(text) for text in (first, second) if text])["input_ids"]
        assert ids == expected["input_ids"][row][: len(ids)].tolist()
        assert expected["attention_mask"][row].sum() == len(ids)
    output = run(model, expected)
    real = expected["attention_mask"].astype(bool)
    for ours, theirs in zip(output.hidden_states, expected["hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[..., :16][real], theirs[real], atol=1e-3)
    pairs = real[:, None, :, None] & real[:, None, None, :]
    for place, layer in enumerate(expected["layers"]):
        ours = np.asarray(output.attention_scores[layer])[:, expected["heads"]]
        where = np.broadcast_to(pairs, ours.shape)
        np.testing.assert_allclose(ours[where], expected["attention_scores"][place][where], atol=1e-3)


@pytest.mark.parametrize("changes", [{"pooling": "cls"}, {"pooling": "mean"}, {"head": "span", "labels": ()}])
def test_padding_has_no_effect(changes, getkey):
    config = SMALL.replace(**changes)
    params, apply = init_params(config, getkey()), make_apply(config)
    ids = jax.random.randint(getkey(), (2, 6), 5, 60)
    short = apply(params, ids)
    padded = jnp.pad(ids, ((0, 0), (0, 4)), constant_values=7)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), (0, 4)))
    long = apply(params, padded, mask)
    logits = long.logits[:, :6] if config.head == "span" else long.logits
    np.testing.assert_allclose(short.logits, logits, atol=1e-5)
    np.testing.assert_allclose(short.hidden_states[-1], long.hidden_states[-1][:, :6], atol=1e-5)
    np.testing.assert_allclose(short.attention_scores[0], long.attention_scores[0][:, :, :6, :6], atol=1e-5)


def test_outputs_have_the_promised_shapes(getkey):
    shapes = {"classification": (2, 2), "regression": (2, 1), "span": (2, 6, 2), "masked-lm": (2, 6, 60), "none": None}
    for head, shape in shapes.items():
        config = SMALL.replace(head=head, labels=("no", "yes") if head == "classification" else ())
        output = make_apply(config)(init_params(config, getkey()), jnp.ones((2, 6), jnp.int32))
        assert [state.shape for state in output.hidden_states] == [(2, 6, 32)] * 3
        assert [score.shape for score in output.attention_scores] == [(2, 4, 6, 6)] * 2
        assert (None if output.logits is None else output.logits.shape) == shape


def test_shapes_are_known_without_values(getkey):
    params, shapes = init_params(SMALL, getkey()), param_shapes(SMALL)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_dropout_acts_only_with_a_key_and_follows_it(getkey):
    params, apply = init_params(SMALL, getkey()), make_apply(SMALL)
    ids = jnp.ones((2, 6), jnp.int32)
    one, two = getkey(), getkey()
    np.testing.assert_array_equal(apply(params, ids).logits, apply(params, ids).logits)
    first = apply(params, ids, dropout_key=one).logits
    np.testing.assert_array_equal(first, apply(params, ids, dropout_key=one).logits)
    assert not np.array_equal(first, apply(params, ids, dropout_key=two).logits)


def test_dropout_keeps_the_mean_and_the_rate(getkey):
    values = dropout(jnp.ones((400, 500)), 0.1, flax.nnx.Rngs(dropout=getkey()))
    assert float((values == 0).mean()) == pytest.approx(0.1, abs=0.003)
    assert float(values.mean()) == pytest.approx(1.0, abs=0.004)
    assert set(np.unique(values).tolist()) == {0.0, np.float32(1 / 0.9)}


def test_dropout_bits_are_even_and_independent(getkey):
    keys = [getkey() for _ in range(4)]
    streams = [np.asarray(position_bits(key, (200_000,))) for key in keys]
    for bits in streams:
        counts = np.bincount(bits >> 24, minlength=256)
        assert chisquare(counts).pvalue > 1e-4
        uniform = bits / 2**32
        for lag in (1, 2, 64, 384, 4096):
            assert abs(np.corrcoef(uniform[:-lag], uniform[lag:])[0, 1]) < 0.012
    for one, two in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.012
        assert np.mean(one == two) < 1e-4


def test_gelu_and_its_gradient_are_exact():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    wanted = jax.vmap(jax.grad(lambda v: jax.nn.gelu(v, approximate=False)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), wanted, atol=1e-6)


def test_runs_under_strict_promotion_and_in_bfloat16(getkey):
    params = init_params(SMALL, getkey())
    ids = jnp.ones((2, 6), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        full = make_apply(SMALL)(params, ids)
    half = make_apply(SMALL, dtype="bfloat16")(params, ids)  # flax's LayerNorm promotes bfloat16 by itself
    assert half.hidden_states[0].dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32
    np.testing.assert_allclose(half.logits, full.logits, atol=0.03)


def test_filling_in_one_place_is_the_masked_lm_there(getkey, rng):
    config = SMALL.replace(head="masked-lm", labels=())
    params = init_params(config, getkey())
    ids = rng.integers(0, config.vocab_size, (3, 8))
    mask = np.ones((3, 8), np.int32)
    mask[1, 5:] = 0
    places = np.array([0, 4, 7])
    whole = np.asarray(make_apply(config)(params, jnp.asarray(ids), jnp.asarray(mask)).logits)
    filled = np.asarray(make_fill(config)(params, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(places)))
    np.testing.assert_allclose(filled, whole[np.arange(3), places], atol=1e-5)
