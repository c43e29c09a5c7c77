import jax
import numpy as np
import pytest

from kaprune_jax.l0.finalize import alive, count_size, finalize
from kaprune_jax.l0.materialize import shrink
from kaprune_jax.models.bert import PRUNABLE, param_shapes
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import GATES, bert_layout

TINY = BertConfig(20, 8, 2, 2, 12)
MIDDLE = BertConfig(20, 48, 3, 4, 96)
MINILM = BertConfig(20, 384, 6, 12, 1536)
BASE = BertConfig(20, 768, 12, 12, 3072)
EDGE = np.log(1 / 11)  # a gate with a lower log α is zero without noise


def random_gates(config, seed, names=GATES, *, middle=0.0, spread=2.0):
    random, layout = np.random.default_rng(seed), bert_layout(config)
    return {name: random.normal(middle, spread, layout.gate(name).shape).astype(np.float32) for name in names}


def count(values, config):
    """Weights of the six matrices, from gates of all families."""
    there = {name: np.asarray(value) > 0 for name, value in values.items()}
    size, total = config.hidden_size // config.num_attention_heads, 0
    for layer in range(config.num_hidden_layers):
        heads = there["heads"][layer].sum() * there["attention"][layer]
        units = there["units"][layer].sum() * there["ffn"][layer]
        total += int(there["hidden"].sum()) * int(4 * size * heads + 2 * units)
    return total


def full(config):
    return config.num_hidden_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)


def check(values, config, sparsity):
    """What holds of every outcome with all families."""
    there = {name: value > 0 for name, value in values.items()}
    size, whole = count(values, config), full(config)
    assert size > 0
    assert count_size(values, bert_layout(config)) == size
    spare = whole * (1 - sparsity) - size
    assert spare >= -1e-6
    for name, (gate, pieces) in {"heads": ("attention", "heads"), "units": ("ffn", "units")}.items():
        np.testing.assert_array_equal(there[gate], there[pieces].any(axis=1), err_msg=name)
    for name, value in values.items():
        assert value.dtype == np.float32
        assert value.min() >= 0, name
        assert value.max() <= 1, name
    return spare, int(there["hidden"].sum())


@pytest.mark.parametrize(
    ("sparsity", "seed", "middle"), [(0.6, 0, 0.0), (0.8, 1, 1.0), (0.9, 2, -2.0), (0.95, 3, 0.0), (0.95, 4, 2.0)]
)
def test_at_least_the_asked_sparsity_and_less_than_a_unit_above_it(sparsity, seed, middle):
    values = finalize(random_gates(MINILM, seed, middle=middle), bert_layout(MINILM), sparsity)
    spare, width = check(values, MINILM, sparsity)
    assert spare < 2 * width


def test_a_whole_bert_is_met_to_the_unit():
    values = finalize(random_gates(BASE, 5), bert_layout(BASE), 0.95)
    spare, width = check(values, BASE, 0.95)
    assert spare < 2 * width


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("lowest", [None, "hidden", "attention", "heads", "units", "ffn"])
def test_no_closed_piece_would_still_fit(seed, lowest):
    """Also where one family is lowest throughout, so that it is what has to close."""
    gates = random_gates(TINY, seed)
    if lowest:
        gates[lowest] = gates[lowest] - 9
    sparsity = (0.3, 0.6, 0.85)[seed % 3]
    values = finalize(gates, bert_layout(TINY), sparsity)
    spare, _ = check(values, TINY, sparsity)
    before = count(values, TINY)
    for name in GATES:
        for place in zip(*np.nonzero(values[name] == 0), strict=True):
            opened = values[name].copy()
            opened[place] = 1
            more = count(values | {name: opened}, TINY) - before
            assert more == 0 or more > spare


def test_equal_gates_are_closed_by_their_order_and_twice_alike():
    gates = {name: np.zeros_like(value) for name, value in random_gates(TINY, 0).items()}
    one, two = (finalize(gates, bert_layout(TINY), 0.5) for _ in range(2))
    check(one, TINY, 0.5)
    for name in GATES:
        np.testing.assert_array_equal(one[name], two[name])


def test_the_same_gates_give_the_same_and_stay_as_they_are():
    gates = random_gates(MIDDLE, 6)
    before = {name: value.copy() for name, value in gates.items()}
    one, two = (finalize(gates, bert_layout(MIDDLE), 0.9) for _ in range(2))
    for name in GATES:
        np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_array_equal(gates[name], before[name])


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.4])
def test_one_family_alone_keeps_the_highest(sparsity):
    gates = random_gates(MINILM, 7, ("units",))
    layout = bert_layout(MINILM)
    values = finalize(gates, layout, sparsity)
    assert list(values) == ["units"]
    attention, unit = 6 * 4 * 384**2, 2 * 384
    kept = int((full(MINILM) * (1 - sparsity) + 1e-6 - attention) // unit)
    order = np.argsort(-gates["units"].reshape(-1), kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(values["units"].reshape(-1)), np.sort(order[:kept]))
    assert count_size(values, layout) == attention + unit * kept


def test_open_gates_have_their_value_without_noise_and_those_opened_against_it_the_value_at_the_edge():
    gates = random_gates(MINILM, 8, middle=0.5)
    for sparsity in (0.97, 0.05):
        values = finalize(gates, bert_layout(MINILM), sparsity)
        flat = np.concatenate([gates[name].reshape(-1) for name in GATES]).astype(np.float64)
        z = np.concatenate([values[name].reshape(-1) for name in GATES]).astype(np.float64)
        opened = z > 0
        expected = np.clip(1.2 / (1 + np.exp(-flat)) - 0.1, 0, 1)
        edge = 1.2 / (1 + np.exp(np.log(11) - 0.1)) - 0.1
        np.testing.assert_allclose(z[opened], np.maximum(expected, edge)[opened], atol=1e-6)
        assert (expected[opened] < edge).any() == (sparsity == 0.05)


def test_a_budget_that_no_piece_fits_is_met_by_trading_units_for_a_hidden_dimension():
    gates = random_gates(MINILM, 3, middle=2.0)
    gates["hidden"] = np.full_like(gates["hidden"], -8.0)
    layout = bert_layout(MINILM)
    values = finalize(gates, layout, 0.6)
    over = (1 - count_size(values, layout) / layout.full_size - 0.6) * layout.full_size
    assert 0 <= over < 2 * (values["hidden"] > 0).sum()


@pytest.mark.parametrize(("sparsity", "seed"), [(0.6, 9), (0.95, 10)])
def test_the_shrunk_parameters_have_that_size(sparsity, seed):
    layout = bert_layout(MINILM)
    values = finalize(random_gates(MINILM, seed), layout, sparsity)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(MINILM))
    smaller = shrink(params, values, layout)
    layers = smaller["encoder"]["layers"]
    counted = 0
    for number in range(6):
        attention, ffn = (layers[number].get(part, {}) for part in ("attention", "ffn"))
        assert bool(attention) == bool(values["attention"][number] > 0)
        assert bool(ffn) == bool(values["ffn"][number] > 0)
        for matrix in (attention | ffn).values():
            counted += matrix["kernel"].size
    assert PRUNABLE == "encoder/.*/kernel"
    assert counted == count(values, MINILM)
    assert 1 - counted / full(MINILM) >= sparsity


def test_what_is_alive():
    layout = bert_layout(TINY)
    values = {"attention": np.array([0.5, 0.0]), "heads": np.array([[1.0, 0.0], [1.0, 1.0]])}
    np.testing.assert_array_equal(alive(values, layout, "head"), [[True, False], [False, False]])
    assert alive(values, layout, "unit").all()
    assert alive(values, layout, "hidden").shape == (8,)
    assert count_size({}, layout) == full(TINY)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity=.*a fraction in"):
        finalize(random_gates(TINY, 0), bert_layout(TINY), sparsity)


def test_what_gates_cannot_reach_is_said():
    with pytest.raises(ValueError, match=r"sparsity=0.9: gates heads reach at most 0.3333"):
        finalize(random_gates(MINILM, 0, ("heads",)), bert_layout(MINILM), 0.9)
    with pytest.raises(ValueError, match=r"gates attention, heads reach at most 0.3333"):
        finalize(random_gates(MINILM, 0, ("heads", "attention")), bert_layout(MINILM), 0.34)
    with pytest.raises(ValueError, match=r"sparsity=0.999: nothing would be left"):
        finalize(random_gates(TINY, 0), bert_layout(TINY), 0.999)
    with pytest.raises(ValueError, match=r"gates 'head': allowed are attention"):
        finalize({"head": np.zeros((2, 2), np.float32)}, bert_layout(TINY), 0.5)
    with pytest.raises(ValueError, match=r"gates 'heads': shape \(2, 3\)"):
        finalize({"heads": np.zeros((2, 3), np.float32)}, bert_layout(TINY), 0.5)


def test_heads_that_stayed_open_are_not_closed_for_units_of_a_higher_log_alpha():
    gates = random_gates(MINILM, 4, middle=2.0, spread=0.1)
    gates |= {name: np.full_like(gates[name], 0.5) for name in ("attention", "ffn", "heads", "hidden")}
    values = finalize(gates, bert_layout(MINILM), 0.4)
    assert all((values[name] > 0).all() for name in ("attention", "ffn", "heads", "hidden"))
    lowest_open = gates["units"][values["units"] > 0].min()
    assert gates["units"][values["units"] == 0].max() <= lowest_open


def test_gates_that_have_all_closed_are_opened_again_by_their_log_alpha():
    gates = random_gates(MINILM, 5, middle=-6.0, spread=0.5)
    layout = bert_layout(MINILM)
    for sparsity in (0.5, 0.95):
        over = layout.full_size * (1 - sparsity) - count_size(finalize(gates, layout, sparsity), layout)
        assert 0 <= over < 2 * 384


SUBSETS = [
    ("attention", "ffn"),
    ("attention", "ffn", "heads"),
    ("attention", "ffn", "units"),
    ("ffn", "heads"),
    ("heads", "units"),
    ("heads", "units", "hidden"),
    ("attention", "ffn", "hidden"),
]


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_any_families_find_a_model_where_there_is_one_and_fill_the_budget(names, sparsity):
    layout = bert_layout(MIDDLE)
    if sparsity > 1 - layout.smallest_size(names) / layout.full_size:
        with pytest.raises(ValueError, match="nothing would be left|reach at most"):
            finalize(random_gates(MIDDLE, 0, names), layout, sparsity)
        return
    for seed in range(12):
        gates = random_gates(MIDDLE, seed, names, middle=-3.0 * (seed % 3))
        values = finalize(gates, layout, sparsity)
        spare = layout.full_size * (1 - sparsity) - count_size(values, layout)
        assert count_size(values, layout) > 0
        assert spare >= 0
        if "units" in names and "hidden" not in names:
            assert spare < 2 * 48


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_the_smallest_model_is_the_smallest_by_enumeration(names):
    small = BertConfig(20, 2, 2, 2, 3)
    layout, sizes = bert_layout(small), set()
    families = [layout.gate(name) for name in names]
    random = np.random.default_rng(0)
    for number in range(600):  # few gates open, so that the small ones occur
        values = {each.name: (random.random(each.shape) < (0.2, 0.4)[number % 2]) * 1.0 for each in families}
        sizes.add(count_size(values, layout))
    assert layout.smallest_size(names) == min(sizes - {0})


def test_a_network_that_only_fits_in_part_is_opened_with_its_units():
    layout = bert_layout(MINILM)
    gates = {"attention": np.array([1.0] + [-8.0] * 5, np.float32), "ffn": np.full(6, -3.0, np.float32)}
    gates["units"] = np.linspace(-4.0, -2.5, 6 * 1536, dtype=np.float32).reshape(6, 1536)
    values = finalize(gates, layout, 0.95)
    assert 0 <= layout.full_size * 0.05 - count_size(values, layout) < 2 * 384
    assert not values["attention"].any()
