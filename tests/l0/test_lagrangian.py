import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kaprune_jax.l0.gates import expected_sparsity, init_gates, keep_in_bounds, keep_probabilities
from kaprune_jax.l0.lagrangian import dual_ascent, init_duals, penalty
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import bert_layout

LAYOUT = bert_layout(BertConfig(10, 16, 2, 4, 24))


def duals_of(linear, quadratic=0.0):
    return {"linear": jnp.float32(linear), "quadratic": jnp.float32(quadratic)}


def value_and_slopes(duals, expected, asked, **options):
    """The value, its derivative by the expected sparsity, and those by both multipliers."""

    def of(duals, expected):
        return penalty(duals, expected, jnp.float32(asked), **options)

    value, (by_duals, by_expected) = jax.value_and_grad(of, argnums=(0, 1))(duals, jnp.float32(expected))
    return [float(x) for x in (value, by_expected, by_duals["linear"], by_duals["quadratic"])]


@pytest.mark.parametrize(("linear", "quadratic"), [(0.0, 0.0), (0.5, 2.0), (-1.5, 0.3)])
@pytest.mark.parametrize(("expected", "asked"), [(0.3, 0.8), (0.8, 0.3), (0.5, 0.5)])
def test_signed(linear, quadratic, expected, asked):
    delta = expected - asked
    wanted = [linear * delta + quadratic * delta**2, linear + 2 * quadratic * delta, delta, delta**2]
    np.testing.assert_allclose(
        value_and_slopes(duals_of(linear, quadratic), expected, asked, kind="signed"), wanted, atol=1e-6
    )


@pytest.mark.parametrize("stiffness", [2.0, 10.0])
@pytest.mark.parametrize("linear", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("expected", "asked"), [(0.3, 0.8), (0.8, 0.3), (0.52, 0.5)])
def test_augmented(linear, stiffness, expected, asked):
    shortfall = asked - expected
    if linear + stiffness * shortfall > 0:  # the plain augmented Lagrangian of an equality
        value = linear * shortfall + stiffness / 2 * shortfall**2
        slopes = [-(linear + stiffness * shortfall), shortfall]
    else:  # sparse enough: nothing pushes the gates
        value, slopes = -(linear**2) / (2 * stiffness), [0.0, -linear / stiffness]
    result = value_and_slopes(duals_of(linear, 7.0), expected, asked, stiffness=stiffness)
    np.testing.assert_allclose(result, [value, *slopes, 0.0], rtol=1e-5, atol=1e-6)


def test_no_kind_but_these():
    with pytest.raises(Exception, match="hard|signed"):
        penalty(init_duals(), jnp.float32(0.1), jnp.float32(0.5), kind="hard")


def ascend(kind, rate, expected, asked, *, steps=1, start=None, stiffness=10.0):
    """The multipliers after some steps of ascent at a sparsity that stays."""
    tx, duals = dual_ascent(rate, kind=kind), start or init_duals()
    state, path = tx.init(duals), []
    for _ in range(steps):
        slopes = jax.grad(penalty)(duals, jnp.float32(expected), jnp.float32(asked), kind=kind, stiffness=stiffness)
        updates, state = tx.update(slopes, state, duals)
        duals = optax.apply_updates(duals, updates)
        path.append({name: float(value) for name, value in duals.items()})
    return path


def test_augmented_ascends_by_the_shortfall():
    dense = ascend("augmented", 2.0, 0.3, 0.8, steps=3)
    np.testing.assert_allclose([point["linear"] for point in dense], [1.0, 2.0, 3.0], rtol=1e-5)
    assert all(point["quadratic"] == 0 for point in dense)
    sparse = ascend("augmented", 2.0, 0.8, 0.75, steps=40, start=duals_of(0.5))
    falling = [point["linear"] for point in sparse]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] < 0.5


@pytest.mark.parametrize("rate", [1.0, 5.0, 10.0])
@pytest.mark.parametrize("expected", [0.05, 0.79, 0.81, 0.99])
def test_augmented_stays_above_zero_with_rates_up_to_the_stiffness(rate, expected):
    for start in (0.0, 0.01, 0.2, 5.0):
        path = ascend("augmented", rate, expected, 0.8, steps=12, start=duals_of(start))
        assert min(point["linear"] for point in path) >= -1e-6


def test_signed_ascends_by_the_sign_of_the_gap():
    assert ascend("signed", 0.01, 0.3, 0.8)[0] == pytest.approx({"linear": -0.01, "quadratic": 0.01}, rel=1e-3)
    assert ascend("signed", 0.01, 0.8, 0.3)[0] == pytest.approx({"linear": 0.01, "quadratic": 0.01}, rel=1e-3)


@pytest.mark.parametrize("asked", [0.5, 0.8, 0.95])
def test_gates_and_multipliers_come_to_the_asked_sparsity(asked):
    random = np.random.default_rng(0)
    worth = {gate.name: jnp.asarray(random.uniform(0, 1, gate.shape), jnp.float32) for gate in LAYOUT.gates}
    params = {"gates": init_gates(LAYOUT, keep=0.9), "duals": init_duals()}
    tx = optax.partition(
        {"gates": optax.chain(optax.sgd(2.0), keep_in_bounds()), "duals": dual_ascent(0.3)},
        {"gates": "gates", "duals": "duals"},
    )

    def loss(params):
        kept = keep_probabilities(params["gates"])
        lost = sum(jnp.mean(worth[name] * (1 - kept[name])) for name in worth)
        return lost + penalty(params["duals"], expected_sparsity(params["gates"], LAYOUT), jnp.float32(asked))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), params["duals"]["linear"]

    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=3000))
    (params, _), multipliers = run(params)
    assert float(expected_sparsity(params["gates"], LAYOUT)) == pytest.approx(asked, abs=0.005)
    assert float(multipliers.min()) >= -1e-6
    assert float(multipliers[-1]) > 0
    kept = np.asarray(keep_probabilities(params["gates"])["units"]).reshape(-1)
    order = np.corrcoef(kept, np.asarray(worth["units"]).reshape(-1))[0, 1]
    assert order > 0.3  # what is worth more is kept rather
