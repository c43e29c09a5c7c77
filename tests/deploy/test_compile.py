"""Compacted and packed models against the saved one, at every kind of zeros there is."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.data.world import vocabulary, write_tokenizer
from kaprune_jax.deploy.compact import compact_layer
from kaprune_jax.deploy.compile import in_parts, make_program, rows_at_once
from kaprune_jax.deploy.model import Model
from kaprune_jax.deploy.packed import make_forward, pack_model
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig

HEAD = {"head": "classification", "labels": ("a", "b", "c")}


def make(rng, *, zeros="none", density=0.1, block=(32, 128), **changes):
    """A model whose biases and norms are no ones and zeros either, with zeros of a kind."""
    config = BertConfig(len(vocabulary()), 128, 2, 4, 256, 64, **HEAD).replace(**changes)
    params = jax.tree.map(np.array, init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) * 0.2, params)
    for layer in params["encoder"]["layers"].values():
        attention, ffn = layer["attention"], layer["ffn"]
        for part in (*attention.values(), *ffn.values()):
            kernel = part["kernel"]
            if zeros == "element":
                kernel *= rng.random(kernel.shape) < density
            elif zeros == "block":
                grid = rng.random((-(-kernel.shape[0] // block[0]), -(-kernel.shape[1] // block[1]))) < density
                kernel *= np.repeat(np.repeat(grid, block[0], 0), block[1], 1)[: kernel.shape[0], : kernel.shape[1]]
            elif zeros == "all":
                kernel *= 0
        if zeros == "structures":
            attention["value"]["kernel"][:, :40] = 0  # one head and a bit: its output is its bias
            attention["output"]["kernel"][60:70] = 0
            attention["key"]["kernel"][:, 10:50] = 0
            attention["query"]["kernel"][:, 70:80] = 0
            attention["query"]["bias"][70:75] = 0
            ffn["up"]["kernel"][:, 100:200] = 0
            ffn["down"]["kernel"][150:250] = 0
        elif zeros == "heads":
            attention["output"]["kernel"][:] = 0
            ffn["down"]["kernel"][:] = 0
        elif zeros == "keys":
            attention["key"]["kernel"][:] = 0
    return config, params


def batch_of(rng, config, rows=5, seq=24):
    ids = rng.integers(1, config.vocab_size, (rows, seq)).astype(np.int32)
    lengths = rng.integers(3, seq + 1, rows)
    mask = (np.arange(seq) < lengths[:, None]).astype(np.int32)
    return tuple(map(jnp.asarray, (ids * mask, mask, (np.arange(seq) > 5).astype(np.int32) * mask)))


@pytest.mark.long
@pytest.mark.parametrize("zeros", ["none", "element", "block", "structures", "heads", "keys", "all"])
@pytest.mark.parametrize("backend", ["auto", "reference", "xla"])
def test_logits_are_those_of_the_model(rng, zeros, backend):
    config, params = make(rng, zeros=zeros)
    batch = batch_of(rng, config)
    expected = make_apply(config)(params, *batch).logits
    weights, plan = pack_model(params, config, backend=backend)
    found = jax.jit(make_forward(config))(weights, *batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert len(plan) == {"none": 8, "heads": 0, "all": 0}.get(zeros, len(plan))


@pytest.mark.parametrize(
    "changes",
    [{"pooling": "mean"}, {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"head": "regression", "labels": ()}],
    ids=str,
)
def test_every_head_and_activation(rng, changes):
    config, params = make(rng, zeros="block", density=0.4, **changes)
    batch = batch_of(rng, config)
    expected = make_apply(config)(params, *batch).logits
    weights, _ = pack_model(params, config)
    np.testing.assert_allclose(make_forward(config)(weights, *batch), expected, rtol=1e-4, atol=1e-3)


def structured(rng):
    """A model without some heads, units, hidden dimensions and one attention."""
    config, params = make(rng)
    layout = kp.bert_layout(config)
    gates = {gate.name: np.ones(gate.shape, np.float32) for gate in layout.gates}
    gates["heads"][0, 1:], gates["heads"][1], gates["attention"][1] = 0, 0, 0
    gates["units"][0, 50:], gates["hidden"][::7] = 0, 0
    return kp.materialize(params, gates, config)


def test_structured_models_run_too(rng):
    shrunk = structured(rng)
    batch = batch_of(rng, shrunk.config)
    expected = make_apply(shrunk.config)(shrunk.params, *batch).logits
    weights, plan = pack_model(shrunk.params, shrunk.config)
    assert [choice.name for choice in plan if "layers/1/attention" in choice.name] == []
    found = make_forward(shrunk.config)(weights, *batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("batch", "length", "rows"),
    [(1, 512, 1), (8, 64, 8), (8, 128, 8), (9, 128, 9), (13, 128, 7), (32, 128, 8), (128, 128, 8), (5, 512, 3)],
)
def test_a_batch_is_cut_where_caches_end(batch, length, rows):
    assert rows_at_once(batch, length) == rows


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_parts_of_a_batch_give_what_the_whole_gives(rng, rows):
    config, params = make(rng, zeros="block", density=0.3)
    batch = batch_of(rng, config)

    def function(params, *inputs):
        return make_apply(config)(params, *inputs).logits

    found = jax.jit(in_parts(function, rows))(params, *batch)
    np.testing.assert_allclose(found, function(params, *batch), rtol=1e-5, atol=1e-5)


def test_a_structured_model_with_nothing_to_skip_runs_as_it_is(rng):
    shrunk = structured(rng)
    batch = batch_of(rng, shrunk.config, rows=89)  # two parts of 45, the second filled up
    assert rows_at_once(89, 24) == 45
    program = make_program(shrunk.params, shrunk.config, batch=89, length=24)
    assert program.weights is shrunk.params
    assert {choice.path for choice in program.plan} == {"dense"}
    expected = make_apply(shrunk.config)(shrunk.params, *batch).logits
    found = jax.jit(program.function)(program.weights, *batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    packed = make_program(shrunk.params, shrunk.config, batch=89, length=24, backend="xla")
    assert {choice.path for choice in packed.plan} == {"xla"}
    np.testing.assert_allclose(packed.function(packed.weights, *batch), expected, rtol=1e-4, atol=1e-3)


def test_what_is_superfluous_is_gone(rng):
    config, params = make(rng, zeros="structures")
    layer = compact_layer(params, config, 0, act=lambda x: np.maximum(x, 0))
    # Value dimensions 0 to 39 and 60 to 69 are gone, so of four heads of 32 the second keeps 20 and the third 26.
    assert (layer.heads, layer.value_size) == (3, 32)
    # Of the queries and keys, 10 to 49 (no key) and 70 to 74 (no query) are gone.
    assert layer.query_size == 32
    assert layer.up is not None
    assert layer.up.kernel.shape == (128, 256 - 150)


def test_units_that_read_the_same_are_neighbours(rng):
    config, params = make(rng)
    ffn = params["encoder"]["layers"][0]["ffn"]
    ffn["up"]["kernel"][:64, ::2], ffn["up"]["kernel"][64:, 1::2] = 0, 0  # every second unit reads the other half
    layer = compact_layer(params, config, 0, act=lambda x: np.maximum(x, 0))
    assert layer.up is not None
    assert kp.pack(layer.up.kernel).density == 0.5
    assert kp.pack(ffn["up"]["kernel"]).density == 1.0


@pytest.fixture
def model(rng, tmp_path):
    config, params = make(rng, zeros="block", density=0.2)
    write_tokenizer(tmp_path / "tokens")
    from kaprune_jax.deploy.tokenizer import load_tokenizer

    kp.save(tmp_path / "model", params, config, tokenizer=load_tokenizer(tmp_path / "tokens"))
    return kp.load(tmp_path / "model")


@pytest.mark.parametrize("length", [21, 32])
def test_a_saved_model_compiled_predicts_the_same(model, length):
    rows = ["the robin is a bird", "a dog", "the film was great and the song was not"] * 3
    compiled = kp.compile(model, batch=4, length=length)
    for one, other in zip(compiled.predict(rows), model.predict(rows), strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert {choice.path for choice in compiled.plan} <= {"dense", "xla"}
    assert any(choice.path == "xla" for choice in compiled.plan)


def test_bfloat16_is_near(model, rng):
    batch = batch_of(rng, model.config)
    exact = kp.compile(model, batch=5, length=24).logits(*batch)
    near = kp.compile(model, batch=5, length=24, dtype="bfloat16").logits(*batch)
    assert 0 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max() + 0.1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch": 0}, InputError, "batch 0: at least 1"),
        ({"length": 65}, InputError, "length 65: from 1 to the model's 64 positions"),
        ({"length": 0}, InputError, "length 0"),
        ({"dtype": "float16"}, InputError, "'float16': allowed: float32, bfloat16"),
        ({"backend": "tpu"}, NotImplementedError, "a TPU, and this process runs on cpu"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'; allowed: auto"),
    ],
)
def test_bad_options(model, options, error, words):
    with pytest.raises(error, match=words):
        kp.compile(model, **options)


def test_bad_batches(model, rng):
    compiled = kp.compile(model, batch=2, length=16)
    with pytest.raises(InputError, match="rows of 24 tokens; it was compiled for up to 16"):
        compiled.logits(*batch_of(rng, model.config))
    with pytest.raises(InputError, match="empty batch, 0 rows"):
        compiled.logits(*(part[:0, :8] for part in batch_of(rng, model.config)))
    headless = Model(model.config.replace(head="none", labels=()), model.params, Path("x"), {})
    with pytest.raises(InputError, match="the head of a task is needed, not none"):
        kp.compile(dataclasses.replace(headless))


@pytest.mark.parametrize("zeros", ["none", "block"])
def test_a_model_that_answers_questions_has_logits_for_each_token(rng, zeros):
    config, params = make(rng, zeros=zeros, head="span", labels=(), pooling="cls")
    assert "pooler" not in params
    batch = batch_of(rng, config)
    expected = np.asarray(make_apply(config)(params, *batch).logits)
    compiled = kp.compile(Model(config, params, Path("x"), {}), batch=3, length=40)  # filled up and cut again
    found = compiled.logits(*batch)
    assert found.shape == expected.shape == (5, 24, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    whole = jax.jit(in_parts(make_forward(config), 2))(pack_model(params, config)[0], *batch)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
