import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaprune_jax.l0.hard_concrete import (
    HIGHEST,
    LOWEST,
    deterministic,
    keep_probability,
    log_alpha_of,
    sample,
)

LEFT, RIGHT, BETA = -0.1, 1.1, 2 / 3  # the paper's, not the module's
DRAWS = 100_000


def logistic(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def gate(log_alpha, u):
    """The equations, in float64."""
    s = logistic((np.log(u) - np.log1p(-u) + log_alpha) / BETA)
    return np.clip(s * (RIGHT - LEFT) + LEFT, 0, 1)


def chances(log_alpha):
    """P(z = 0) and P(z = 1): log u - log(1 - u) is logistic, and z = 0 where it is at most β log(1/11) - log α."""
    edge = BETA * np.log(-LEFT / RIGHT)
    return logistic(edge - log_alpha), 1 - logistic(-edge - log_alpha)


@pytest.mark.parametrize("log_alpha", [-6.0, -2.4, -1.0, 0.0, 1.5, 4.6])
def test_draws_follow_the_distribution(log_alpha):
    z = np.asarray(sample(jax.random.key(3), jnp.full((DRAWS,), log_alpha)), np.float64)
    assert z.min() >= 0
    assert z.max() <= 1
    middles = gate(log_alpha, (np.arange(1_000_000) + 0.5) / 1_000_000)  # midpoint rule over u
    assert abs(z.mean() - middles.mean()) < 4 * middles.std() / np.sqrt(DRAWS)
    for share, chance in zip(((z == 0).mean(), (z == 1).mean()), chances(log_alpha), strict=True):
        assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / DRAWS)


def test_draws_differ_by_place_and_key():
    first, second = (np.asarray(sample(jax.random.key(key), jnp.zeros((50,)))) for key in (0, 1))
    assert len(set(first.tolist())) > 20  # zeros and ones come several times
    assert not np.array_equal(first, second)


def test_keep_probability_is_one_minus_the_chance_of_zero():
    log_alpha = np.linspace(LOWEST, HIGHEST, 50)
    np.testing.assert_allclose(
        keep_probability(jnp.asarray(log_alpha, jnp.float32)), 1 - chances(log_alpha)[0], rtol=1e-5
    )


def test_log_alpha_of_inverts_keep_probability():
    p = np.linspace(0.002, 0.997, 200).astype(np.float32)
    np.testing.assert_allclose(keep_probability(log_alpha_of(jnp.asarray(p))), p, rtol=1e-5)
    log_alpha = np.linspace(LOWEST + 0.01, HIGHEST - 0.01, 200).astype(np.float32)
    # p near 1 leaves float32 only a few digits of 1 - p.
    np.testing.assert_allclose(log_alpha_of(keep_probability(jnp.asarray(log_alpha))), log_alpha, atol=2e-4)
    assert float(log_alpha_of(1e-9)) == pytest.approx(LOWEST)
    assert float(log_alpha_of(0.9999)) == pytest.approx(HIGHEST)


def test_without_noise_zero_below_and_one_above():
    edge = np.log(1 / 11)
    assert edge == pytest.approx(-2.398, abs=1e-3)
    below = jnp.asarray([-8.0, -4.0, edge - 1e-3], jnp.float32)
    above = jnp.asarray([edge + 1e-3, -1.0, 0.0, 1.0, -edge - 1e-3], jnp.float32)
    assert np.asarray(deterministic(below)).tolist() == [0.0, 0.0, 0.0]
    assert np.asarray(deterministic(-below)).tolist() == [1.0, 1.0, 1.0]
    middle = np.asarray(deterministic(above))
    assert (middle > 0).all()
    assert (middle < 1).all()
    np.testing.assert_allclose(middle, 1.2 * logistic(above) - 0.1, atol=1e-6)


def test_gradient_is_that_of_finite_differences_and_zero_where_clipped():
    key, step = jax.random.key(5), 1e-2
    log_alpha = jnp.asarray(np.random.default_rng(1).uniform(-5, 5, 2000), jnp.float32)
    gradient = np.asarray(jax.grad(lambda x: sample(key, x).sum())(log_alpha))
    low, z, high = (np.asarray(sample(key, log_alpha + move), np.float64) for move in (-step, 0, step))
    inside = (low > 0) & (high < 1)
    clipped = (z == 0) | (z == 1)
    assert inside.sum() > 200
    assert min((z == 0).sum(), (z == 1).sum()) > 200
    # (0.45 · third derivative) · step² plus float32 rounding over 2 · step
    np.testing.assert_allclose(gradient[inside], ((high - low) / (2 * step))[inside], atol=5e-4)
    assert (gradient[inside] > 0).all()
    assert not gradient[clipped].any()


def test_strict_types():
    with jax.numpy_dtype_promotion("strict"):
        z = sample(jax.random.key(0), jnp.zeros((3, 2)))
        assert z.dtype == keep_probability(z).dtype == deterministic(z).dtype == jnp.float32
