"""Products of bfloat16 factors, summed in float32."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.products import DTYPES, product_of, rounded_product

SMALL = BertConfig(50, 32, 2, 4, 64, head="classification", labels=("no", "yes"))


def rounded(x) -> np.ndarray:
    """The values of bfloat16, in float64."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.fixture(params=[1, 8], ids=["one device", "several"])
def devices(request, monkeypatch) -> int:
    """How many devices there seem to be."""
    monkeypatch.setattr("jax.device_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize("shapes", [((3, 5, 48), (48, 7)), ((2, 3, 5, 16), (2, 3, 16, 9)), ((5, 16), (16, 4))])
@pytest.mark.usefixtures("devices")
def test_factors_are_rounded_and_sums_are_not(rng, shapes):
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    outcome, back = jax.vjp(rounded_product, x, y)
    gradient = jnp.asarray(rng.normal(size=outcome.shape), jnp.float32)
    for_x, for_y = back(gradient)
    exact = rounded(x) @ rounded(y)
    np.testing.assert_allclose(outcome, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(x, np.float64) @ np.asarray(y, np.float64) - exact).max() > 1e-3
    np.testing.assert_allclose(for_x, rounded(gradient) @ rounded(y).swapaxes(-1, -2), rtol=1e-5, atol=1e-5)
    rows = tuple(range(x.ndim - 2)) if y.ndim == 2 else ()
    expected = (rounded(x).swapaxes(-1, -2) @ rounded(gradient)).sum(axis=rows)
    np.testing.assert_allclose(for_y, expected, rtol=1e-5, atol=1e-5)
    assert {outcome.dtype, for_x.dtype, for_y.dtype} == {jnp.dtype(jnp.float32)}


@pytest.mark.usefixtures("devices")
def test_bfloat16_in_gives_bfloat16(rng):
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((3, 5, 48), (48, 7)))
    outcome, back = jax.vjp(rounded_product, x, y)
    for_x, for_y = back(outcome)
    assert {outcome.dtype, for_x.dtype, for_y.dtype} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(outcome.astype(jnp.float32), rounded(x) @ rounded(y), rtol=2**-8, atol=1e-2)


def test_cpus_multiply_bfloat16_into_float32(devices):
    x, y = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((16, 4), jnp.bfloat16)
    for factors in ((x, y), (x.astype(jnp.float32), y.astype(jnp.float32))):
        lowered = jax.jit(lambda x, y: rounded_product(x, y)).lower(*factors).as_text()
        wide = "(tensor<8x16xbf16>, tensor<16x4xbf16>) -> tensor<8x4xf32>" in lowered
        assert wide == (devices == 1 or factors[0].dtype == jnp.float32)


def test_a_transpose_is_written_out_before_its_product(devices):
    x, y = jnp.ones((8, 16)), jnp.ones((16, 4))
    backward = jax.jit(jax.grad(lambda y: rounded_product(x, y).sum())).lower(y).as_text()
    assert ("LayoutConstraint" in backward) == (devices == 1)


def test_accelerators_sum_bfloat16_by_themselves(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 1)
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    x, y = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((16, 4), jnp.bfloat16)
    lowered = jax.jit(jax.grad(lambda y: rounded_product(x, y)[0, 0])).lower(y).as_text()
    assert "f32" not in lowered
    assert "LayoutConstraint" not in lowered


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_of_each_type_is_near_float32(getkey, dtype):
    params, ids = init_params(SMALL, getkey()), jnp.arange(24).reshape(2, 12)
    whole, near = (make_apply(SMALL, dtype=name)(params, ids) for name in ("float32", dtype))
    assert near.hidden_states[0].dtype == (jnp.bfloat16 if dtype == "bfloat16" else jnp.float32)
    np.testing.assert_allclose(near.hidden_states[-1], whole.hidden_states[-1], atol=0.1)
    same = bool((near.hidden_states[-1] == whole.hidden_states[-1]).all())
    assert same == (dtype == "float32")


def test_float32_is_the_plain_product():
    assert product_of("float32") is jnp.matmul
