"""Every backend against one oracle in NumPy: kernels in simulators, and lowered for hardware not here."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kaprune_jax as kp
from kaprune_jax.kernels.block_sparse.api import choose_backend, ffn_features_major, matmul_features_major

KERNELS = ("tpu", "mosaic_gpu")
BACKENDS = ("reference", "xla", *KERNELS)
_erf = np.vectorize(math.erf, otypes=[np.float64])
ACTIVATIONS = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def make(rng, inputs, outputs, block, density):
    """A random matrix of a density, the number of blocks exact."""
    grid = np.zeros((-(-inputs // block[0]), -(-outputs // block[1])), bool)
    count = round(density * grid.size) if density < 1 or isinstance(density, float) else int(density)
    grid.ravel()[rng.permutation(grid.size)[:count]] = True
    mask = np.repeat(np.repeat(grid, block[0], 0), block[1], 1)[:inputs, :outputs]
    return rng.normal(size=(inputs, outputs)).astype(np.float32) * mask, mask


def rounded(array, dtype):
    return np.asarray(jnp.asarray(array, dtype), np.float64)


def oracle(x, weight, bias, activation, residual, dtype):
    """act(x W + b) + r in float64, of inputs rounded to the kernel's type."""
    product = rounded(x, dtype) @ rounded(weight, dtype)
    out = ACTIVATIONS[activation](product + (0 if bias is None else np.asarray(bias, np.float64)))
    return out if residual is None else out + rounded(residual, dtype)


def agree(out, expected, dtype):
    error = np.abs(np.asarray(out, np.float64) - expected).max()
    assert error <= (1e-5 if dtype == jnp.float32 else 2**-8) * max(np.abs(expected).max(), 1e-3)


def run(backend, x, panels, *rest, **options):
    return kp.block_matmul(x, panels, *rest, backend=backend, interpret=backend in KERNELS, **options)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        (backend, dtype)
        for backend in BACKENDS
        for dtype in (jnp.float32, jnp.bfloat16)
        if (backend, dtype) != ("mosaic_gpu", jnp.float32)
    ],
)
@pytest.mark.parametrize(
    ("block", "density"),
    [((32, 128), 0.0), ((32, 128), 1), ((32, 128), 0.03), ((32, 128), 0.2), ((32, 128), 1.0), ((16, 128), 0.2),
     ((64, 128), 0.2), ((128, 128), 0.3)],
)  # fmt: skip
def test_densities_and_blocks(rng, backend, dtype, block, density):
    weight, mask = make(rng, 256, 384, block, density)
    x, bias = rng.normal(size=(3, 20, 256)).astype(np.float32), rng.normal(size=384).astype(np.float32)
    panels = kp.pack(weight, mask, block=block, dtype=dtype)
    out = run(backend, jnp.asarray(x, dtype), panels, bias, activation="relu")
    agree(out, oracle(x, weight, bias, "relu", None, dtype), dtype)


@pytest.mark.parametrize("backend", ["reference", "xla"])
@pytest.mark.parametrize("block", [(16, 32), (32, 32), (128, 32), (7, 5)])
def test_other_blocks_run_where_no_matrix_unit_sets_the_size(rng, backend, block):
    weight, mask = make(rng, 100, 90, block, 0.3)
    x = rng.normal(size=(11, 100)).astype(np.float32)
    out = run(backend, jnp.asarray(x), kp.pack(weight, mask, block=block))
    agree(out, oracle(x, weight, None, None, None, jnp.float32), jnp.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_epilogues(rng, backend, activation, biased, added):
    dtype = jnp.bfloat16 if backend == "mosaic_gpu" else jnp.float32
    weight, mask = make(rng, 100, 200, (32, 128), 0.5)  # neither divides, nor do the rows fill a tile
    x, residual = rng.normal(size=(70, 100)).astype(np.float32), rng.normal(size=(70, 200)).astype(np.float32)
    bias = rng.normal(size=200).astype(np.float32) if biased else None
    rest = jnp.asarray(residual, dtype) if added else None
    out = run(
        backend, jnp.asarray(x, dtype), kp.pack(weight, mask, dtype=dtype), bias, rest, activation=activation
    )  # fmt: skip
    agree(out, oracle(x, weight, bias, activation, residual if added else None, dtype), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_full_panels_side_by_side(rng, backend):
    weight, mask = make(rng, 192, 640, (32, 128), 0.3)
    mask[:, :128], mask[:, 256:384], mask[:, 512:] = False, True, False
    weight = rng.normal(size=weight.shape).astype(np.float32) * mask
    x, bias = rng.normal(size=(300, 192)).astype(np.float32), rng.normal(size=640).astype(np.float32)
    panels = kp.pack(weight, mask, dtype=jnp.bfloat16)
    assert [panels.counts[p] for p in (0, 2, 4)] == [0, 6, 0]
    out = run(backend, jnp.asarray(x, jnp.bfloat16), panels, bias, activation="gelu")
    agree(out, oracle(x, weight, bias, "gelu", None, jnp.bfloat16), jnp.bfloat16)
    expected = ACTIVATIONS["gelu"](bias[:128].astype(np.float64))
    np.testing.assert_allclose(np.asarray(out[:, :128], np.float64), np.tile(expected, (300, 1)), atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("inputs", "units"), [(96, 200), (128, 384)])
def test_feed_forward(rng, backend, inputs, units):
    dtype = jnp.bfloat16 if backend == "mosaic_gpu" else jnp.float32
    (up, up_mask), (down, down_mask) = (
        make(rng, inputs, units, (32, 128), 0.4),
        make(rng, units, inputs, (32, 128), 0.4),
    )
    x, first, second = rng.normal(size=(5, 60, inputs)), rng.normal(size=units), rng.normal(size=inputs)
    x, first, second = (value.astype(np.float32) for value in (x, first, second))
    out = kp.block_ffn(
        jnp.asarray(x, dtype), kp.pack(up, up_mask, dtype=dtype), kp.pack(down, down_mask, dtype=dtype), first, second,
        jnp.asarray(x, dtype), backend=backend, interpret=backend in KERNELS,
    )  # fmt: skip
    hidden = rounded(oracle(x, up, first, "gelu", None, dtype), dtype)
    agree(out, hidden @ rounded(down, dtype) + second + rounded(x, dtype), dtype)


def test_blocks_may_reach_over_the_last_unit(rng):
    weight, other = np.ones((32, 130), np.float32), rng.normal(size=(130, 32)).astype(np.float32)
    up, down = kp.pack(weight, block=(32, 128)), kp.pack(other, block=(288, 128))
    x = rng.normal(size=(9, 32)).astype(np.float32)
    out = kp.block_ffn(x, up, down, activation="relu", backend="tpu", interpret=True)
    np.testing.assert_allclose(out, np.maximum(x @ weight, 0) @ other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("backend", "platform"), [("tpu", "tpu"), ("mosaic_gpu", "cuda")])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_kernels_lower_for_their_hardware(rng, monkeypatch, backend, platform, activation):
    monkeypatch.setattr("kaprune_jax.kernels.block_sparse.api._missing", lambda *_, **__: None)
    weight, mask = make(rng, 768, 3072, (32, 128), 0.05)
    up, down = kp.pack(weight, mask, dtype=jnp.bfloat16), kp.pack(weight.T, mask.T, dtype=jnp.bfloat16)
    x, bias = jax.ShapeDtypeStruct((768, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((3072,), jnp.float32)
    options = {"activation": activation, "backend": backend}
    single = jax.jit(functools.partial(matmul_features_major, **options))
    assert single.trace(x, up, bias).lower(lowering_platforms=(platform,)).as_text()
    both = jax.jit(functools.partial(ffn_features_major, **options))
    text = both.trace(x, up, down, bias, None, x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("custom_call @") == {"tpu": 1, "mosaic_gpu": 2}[backend]  # on a TPU the two are one kernel


def test_auto_takes_what_wins_and_says_nothing_it_cannot_do(rng):
    thin, thick = (kp.pack(*make(rng, 512, 512, (32, 128), density)) for density in (0.05, 1.0))
    assert choose_backend("auto", thin) == "xla"
    assert choose_backend("auto", thick) == "reference"
    assert choose_backend("auto", thin, thick) == "reference"


@pytest.mark.parametrize(
    ("make_call", "error", "words"),
    [
        (lambda p, x: kp.block_matmul(x[:, :5], p), ValueError, r"shape \(4, 5\).*64 inputs"),
        (lambda p, x: kp.block_matmul(x[:0], p), ValueError, r"\(0, 64\) is empty"),
        (lambda p, x: kp.block_matmul(x.astype(np.float16), p), ValueError, "float16"),
        (lambda p, x: kp.block_matmul(x, p, np.ones(5, np.float32)), ValueError, r"bias of shape \(5,\): \(256,\)"),
        (lambda p, x: kp.block_matmul(x, p, None, x), ValueError, r"residual of shape \(4, 64\): \(4, 256\)"),
        (lambda p, x: kp.block_matmul(x, p, backend="tpu"), NotImplementedError, "a TPU, and this process runs on cpu"),
        (
            lambda p, x: kp.block_matmul(jnp.asarray(x, jnp.bfloat16), p, backend="mosaic_gpu"),
            NotImplementedError,
            "Hopper",
        ),
        (lambda p, x: kp.block_matmul(x, p, backend="mosaic_gpu", interpret=True), NotImplementedError, "is float32"),
        (lambda p, x: kp.block_ffn(x, p, p), ValueError, "up has 256 outputs, and down 64 inputs"),
    ],
)
def test_bad_input(rng, make_call, error, words):
    panels = kp.pack(*make(rng, 64, 256, (32, 128), 0.5))
    with pytest.raises(error, match=words):
        make_call(panels, rng.normal(size=(4, 64)).astype(np.float32))


@pytest.mark.parametrize("block", [(8, 128), (32, 64)])
@pytest.mark.parametrize("backend", KERNELS)
def test_kernels_refuse_blocks_that_their_hardware_cannot_cut(rng, backend, block):
    panels = kp.pack(*make(rng, 64, 256, block, 0.5), block=block)
    with pytest.raises(NotImplementedError, match="multiples of 16 by multiples of 128"):
        kp.block_matmul(np.ones((4, 64), np.float32), panels, backend=backend, interpret=True)
