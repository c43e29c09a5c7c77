"""Matrix products whose factors are bfloat16 and whose sums are float32, forward and backward.

What TPUs do with float32 by default, written out: a CPU with AVX-512 BF16 or AMX, and a GPU, multiply bfloat16 several
times as fast, but XLA takes its slow path on CPUs wherever the outcome is bfloat16 too, and ignores precisions there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

DTYPES = ("float32", "bfloat16", "mixed")


def activation_dtype(dtype: str) -> str:
    """The type of activations of a `DTYPES` name: "mixed" has float32 activations and bfloat16 factors."""
    return "float32" if dtype == "mixed" else dtype


def product_of(dtype: str) -> Callable[[Array, Array], Array]:
    """The product of a `DTYPES` name."""
    return jnp.matmul if dtype == "float32" else rounded_product


def rounded_product(x: Float[Array, "*batch m k"], y: Float[Array, "*#batch k n"]) -> Float[Array, "*batch m n"]:
    """x @ y with both rounded to bfloat16, summed in float32; both and the outcome are of one type.

    Its gradient rounds the cotangent too. y has two dimensions, or all of x's. Reverse mode only. Accelerators sum in
    float32 by themselves, so products that are bfloat16 throughout are left to them, and to CPUs that stand for some.
    """
    if x.dtype == jnp.bfloat16 and not _is_one_cpu():
        return jnp.matmul(x, y)
    return _rounded(x, y)


@jax.custom_vjp
def _rounded(x: Array, y: Array) -> Array:
    return _times(x, y, x.dtype)


def _forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    short = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return _times(*short, x.dtype), short


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    (x, y), dtype, gradient = kept, gradient.dtype, gradient.astype(jnp.bfloat16)
    for_x = _times(gradient, _transposed(y), dtype)
    if y.ndim == 2:
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return for_x, _times(_transposed(x), gradient, dtype)


_rounded.defvjp(_forward, _backward)


def _times(x: Array, y: Array, dtype: Any) -> Array:
    short = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jnp.matmul(*short, preferred_element_type=jnp.float32).astype(dtype)


def _transposed(x: Float[Array, "*batch m k"]) -> Float[Array, "*batch k m"]:
    """The transpose. On a CPU that of a matrix is written out: the product of a view of it is half as fast there.

    Not among several devices, where the partitioner would first gather what it is told to write out.
    """
    if x.ndim > 2 or not _is_one_cpu():
        return x.swapaxes(-1, -2)
    return with_layout_constraint(x.T, Layout((0, 1)))


def _is_one_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1
