import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kaprune_jax.l0.finalize import count_size
from kaprune_jax.l0.gates import (
    expected_sparsity,
    init_gates,
    keep_in_bounds,
    keep_probabilities,
    sample_gates,
    sparsity_of,
    still_gates,
)
from kaprune_jax.l0.hard_concrete import HIGHEST, LOWEST
from kaprune_jax.models.bert import param_shapes
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import GATES, bert_layout

ONE_LAYER = BertConfig(10, 4, 1, 2, 3)
TWO_LAYERS = BertConfig(10, 2, 2, 2, 2)
MATRICES = ("query", "key", "value", "output", "up", "down")


def shapes_of(config):
    """[inputs, outputs] of the six matrices of each layer, from the parameters themselves."""
    layers = param_shapes(config)["encoder"]["layers"]
    return [
        {name: (layer["attention"] | layer["ffn"])[name]["kernel"].shape for name in MATRICES}
        for _, layer in sorted(layers.items())
    ]


def count(values, config, shapes):
    """Weights whose row and column are both there; `values` are booleans, all families."""
    total = 0
    size = config.hidden_size // config.num_attention_heads
    hidden = sum(map(bool, values["hidden"]))
    for number, layer in enumerate(shapes):
        wide = sum(
            bool(values["attention"][number]) and bool(values["heads"][number][column // size])
            for column in range(layer["query"][1])
        )
        units = sum(bool(values["ffn"][number]) and bool(unit) for unit in values["units"][number])
        for name in ("query", "key", "value"):
            assert layer[name] == (config.hidden_size, config.num_attention_heads * size)
            total += hidden * wide
        total += wide * hidden + hidden * units + units * hidden
    return total


def full(shapes):
    return sum(rows * columns for layer in shapes for rows, columns in layer.values())


def keep(log_alpha):
    return 1 / (1 + np.exp(-(np.asarray(log_alpha, np.float64) - 2 / 3 * np.log(0.1 / 1.1))))


def enumerate_sparsity(gates, config):
    """Σ over all 2^n configurations of probability times the fraction that is gone."""
    shapes = shapes_of(config)
    layout = {gate.name: gate.shape for gate in bert_layout(config).gates}
    chances = {name: keep(gates[name]) if name in gates else np.ones(shape) for name, shape in layout.items()}
    flat = np.concatenate([chances[name].reshape(-1) for name in layout])
    free = [place for place, chance in enumerate(flat) if chance < 1]
    ends = np.cumsum([chances[name].size for name in layout])[:-1]
    total = 0.0
    for choice in itertools.product((False, True), repeat=len(free)):
        state = np.ones(len(flat), bool)
        state[free] = choice
        chance = np.prod(np.where(state, flat, 1 - flat)[free])
        parts = {n: part.reshape(layout[n]) for n, part in zip(layout, np.split(state, ends), strict=True)}
        total += chance * count(parts, config, shapes)
    return 1 - total / full(shapes)


def random_gates(config, seed, names=GATES):
    random = np.random.default_rng(seed)
    layout = bert_layout(config)
    return {name: jnp.asarray(random.uniform(-4, 3, layout.gate(name).shape), jnp.float32) for name in names}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (ONE_LAYER, GATES),
        (TWO_LAYERS, GATES),
        (TWO_LAYERS, ("heads", "units")),
        (ONE_LAYER, ("hidden",)),
        (TWO_LAYERS, ("attention", "ffn")),
    ],
)
def test_expected_sparsity_is_that_over_all_configurations(config, names):
    gates = random_gates(config, 1, names)
    layout = bert_layout(config)
    wanted = enumerate_sparsity(gates, config)
    assert 0.1 < wanted < 1
    np.testing.assert_allclose(expected_sparsity(gates, layout), wanted, rtol=1e-5)


@pytest.mark.parametrize("config", [ONE_LAYER, TWO_LAYERS, BertConfig(10, 12, 3, 4, 7)])
def test_full_size_is_that_of_the_six_matrices(config):
    assert bert_layout(config).full_size == full(shapes_of(config))


def test_gradient_of_the_expected_sparsity():
    layout, gates, step = bert_layout(ONE_LAYER), random_gates(ONE_LAYER, 2), 1e-4
    gradient = jax.grad(expected_sparsity)(gates, layout)
    for name, value in gates.items():
        for place in np.ndindex(*value.shape):
            moved = []
            for sign in (1, -1):
                other = np.asarray(value, np.float64).copy()
                other[place] += sign * step
                moved.append(enumerate_sparsity(gates | {name: other}, ONE_LAYER))
            wanted = (moved[0] - moved[1]) / (2 * step)
            assert wanted < 0  # a gate that opens makes the model larger
            np.testing.assert_allclose(gradient[name][place], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_sparsity_of_values_counts_what_is_above_zero(seed):
    random = np.random.default_rng(seed)
    config = BertConfig(10, 12, 3, 4, 7)
    layout, shapes = bert_layout(config), shapes_of(config)
    values = {
        gate.name: (random.uniform(0.01, 1, gate.shape) * (random.random(gate.shape) < 0.7)).astype(np.float32)
        for gate in layout.gates
    }
    wanted = count(values, config, shapes)
    assert 0 < wanted < full(shapes)
    np.testing.assert_allclose(
        sparsity_of(jax.tree.map(jnp.asarray, values), layout), 1 - wanted / full(shapes), atol=1e-6
    )
    assert count_size(values, layout) == wanted


def test_new_gates_are_open_and_only_the_enabled():
    layout = bert_layout(TWO_LAYERS)
    gates = init_gates(layout)
    assert {name: value.shape for name, value in gates.items()} == {gate.name: gate.shape for gate in layout.gates}
    for value in keep_probabilities(gates).values():
        np.testing.assert_allclose(value, 0.998, atol=1e-4)
    some = init_gates(layout, enabled=("units", "heads"), keep=0.7)
    assert sorted(some) == ["heads", "units"]
    np.testing.assert_allclose(keep(some["heads"]), 0.7, rtol=1e-5)
    np.testing.assert_allclose(expected_sparsity(some, layout), 0.3, rtol=1e-5)
    assert init_gates(layout, enabled=()) == {}
    assert float(expected_sparsity({}, layout)) == 0.0
    layout.check(gates)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_a_probability_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="keep=.*probability in"):
        init_gates(bert_layout(ONE_LAYER), keep=bad)


def test_unknown_names_and_wrong_shapes_are_named():
    layout = bert_layout(ONE_LAYER)
    with pytest.raises(ValueError, match="gates 'head': allowed are attention, ffn, heads, units, hidden"):
        init_gates(layout, enabled=("heads", "head"))
    with pytest.raises(ValueError, match="gates 'layers': allowed are"):
        layout.check({"layers": jnp.zeros((1,))})
    with pytest.raises(ValueError, match=r"gates 'units': shape \(3,\); the layout has \(1, 3\)"):
        layout.check({"heads": jnp.zeros((1, 2)), "units": jnp.zeros((3,))})
    with pytest.raises(ValueError, match="gates 'layers': allowed are"):
        layout.largest_sparsity(("heads", "layers"))


def test_a_draw_has_one_key_per_family_and_the_same_values_for_it():
    gates = {name: jnp.zeros_like(value) for name, value in init_gates(bert_layout(TWO_LAYERS)).items()}
    one, two = sample_gates(jax.random.key(0), gates), sample_gates(jax.random.key(0), gates)
    assert all(np.array_equal(one[name], two[name]) for name in gates)
    assert not np.array_equal(one["heads"], one["units"])  # of one shape here
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in gates.items()}
    assert sample_gates(jax.random.key(0), {}) == {}
    assert all((value == 0.5).all() for value in still_gates(gates).values())


def test_the_largest_sparsity():
    layout = bert_layout(BertConfig(10, 12, 3, 4, 7))
    attention, ffn = 4 * 12 * 12, 2 * 12 * 7
    for enabled, wanted in [
        (("heads",), attention / (attention + ffn)),
        (("attention",), attention / (attention + ffn)),
        (("units",), ffn / (attention + ffn)),
        (("hidden",), 1.0),
        (("heads", "units"), 1.0),
        ((), 0.0),
    ]:
        assert layout.largest_sparsity(enabled) == pytest.approx(wanted, abs=1e-6)
    assert layout.largest_sparsity(("heads", "units"), closed=0.25) == pytest.approx(0.75, abs=1e-6)
    assert layout.largest_sparsity(("heads", "attention", "ffn"), closed=0.25) == pytest.approx(
        1 - (attention / 16 + ffn / 4) / (attention + ffn), abs=1e-6
    )


def test_log_alpha_stays_in_bounds():
    tx = optax.chain(optax.sgd(1.0), keep_in_bounds())
    params = {"a": jnp.asarray([0.0, 4.0, -7.5, 1.0])}
    updates, _ = tx.update({"a": jnp.asarray([-1.0, -3.0, 2.0, 20.0])}, tx.init(params), params)
    moved = optax.apply_updates(params, updates)["a"]
    np.testing.assert_allclose(moved, [1.0, HIGHEST, LOWEST, LOWEST], rtol=1e-6)
    with pytest.raises(ValueError, match="keep_in_bounds needs params"):
        tx.update({"a": jnp.zeros((4,))}, tx.init(params))
