"""Block-sparse products over a choice of backends.

`auto` takes a kernel only where it has been seen to win, by platform and density; elsewhere the dense product. It never
fails for want of a platform; a backend that is named runs, or says what it needs.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kaprune_jax.kernels.block_sparse import reference, xla
from kaprune_jax.kernels.block_sparse.epilogue import Activation, Epilogue, check_activation
from kaprune_jax.kernels.block_sparse.format import BlockPanels

Some = Array | np.ndarray

Backend = Literal["auto", "reference", "xla", "tpu", "mosaic_gpu"]

DENSEST: dict[str, dict[str, float]] = {"cpu": {"xla": 0.5}}
"""By platform, the backends that have been measured to win there, up to which density; the first that does is taken."""


def block_matmul(
    x: Float[Some, "*batch inputs"],
    panels: BlockPanels,
    bias: Float[Some, " outputs"] | None = None,
    residual: Float[Some, "*batch outputs"] | None = None,
    *,
    activation: Activation | None = None,
    backend: Backend = "auto",
    interpret: bool = False,
) -> Float[Array, "*batch outputs"]:
    """act(x W + b) + r with the packed W, accumulated in float32 and returned in the type of x.

    Args:
      x: rows of inputs, in any leading shape.
      panels: the packed matrix.
      bias: added to the product.
      residual: added after the activation.
      activation: "gelu" (exact), "gelu_tanh", "relu" or None.
      backend: "reference" (the dense product), "xla" (any platform), "tpu", "mosaic_gpu" (NVIDIA Hopper), or "auto".
      interpret: run a kernel in its simulator, on any platform: slow, for tests.

    Raises:
      ValueError: shapes that do not match, an empty batch, or an unknown activation or backend.
      NotImplementedError: a backend that is named and cannot run here.

    Example:
      >>> import numpy as np, kaprune_jax as kp
      >>> weight = np.zeros((64, 256), np.float32)
      >>> weight[32:, :128] = 1.0
      >>> panels = kp.pack(weight)
      >>> panels.counts, panels.density
      ((1, 0), 0.25)
      >>> kp.block_matmul(np.ones((2, 64), np.float32), panels)[:, [0, 200]].tolist()
      [[32.0, 0.0], [32.0, 0.0]]
    """
    options: dict[str, Any] = {"activation": activation, "backend": backend, "interpret": interpret}

    def product(xt: Array, rest: Array | None) -> Array:
        return matmul_features_major(xt, panels, bias, rest, **options)

    return _tokens_first(product, x, residual, panels.shape)


def matmul_features_major(
    xt: Float[Array, "inputs tokens"],
    panels: BlockPanels,
    bias: Float[Some, " outputs"] | None = None,
    residual: Float[Array, "outputs tokens"] | None = None,
    *,
    activation: Activation | None = None,
    backend: Backend = "auto",
    interpret: bool = False,
) -> Float[Array, "outputs tokens"]:
    """`block_matmul` with tokens last, as all backends work: successive products need no transpose between them."""
    check_activation(activation)
    arguments = (xt, panels, Epilogue(_column(bias, panels), activation, residual))
    chosen = choose_backend(backend, panels, dtype=xt.dtype, interpret=interpret)
    if chosen == "xla":
        return xla.matmul(*arguments)
    if chosen == "tpu":
        from kaprune_jax.kernels.block_sparse import pallas_tpu  # Pallas takes as long to import as half of JAX

        return pallas_tpu.matmul(*arguments, interpret=interpret)
    if chosen == "mosaic_gpu":
        from kaprune_jax.kernels.block_sparse import pallas_mosaic_gpu

        return pallas_mosaic_gpu.matmul(*arguments, interpret=interpret)
    return reference.matmul(*arguments)


def block_ffn(
    x: Float[Some, "*batch inputs"],
    up: BlockPanels,
    down: BlockPanels,
    up_bias: Float[Some, " units"] | None = None,
    down_bias: Float[Some, " outputs"] | None = None,
    residual: Float[Some, "*batch outputs"] | None = None,
    *,
    activation: Activation | None = "gelu",
    backend: Backend = "auto",
    interpret: bool = False,
) -> Float[Array, "*batch outputs"]:
    """act(x W_up + b_up) W_down + b_down + r. On a TPU in one kernel, where the units never leave the chip.

    Args, errors: as for `block_matmul`; the outputs of `up` are the inputs of `down`.
    """
    options: dict[str, Any] = {"activation": activation, "backend": backend, "interpret": interpret}

    def product(xt: Array, rest: Array | None) -> Array:
        return ffn_features_major(xt, up, down, up_bias, down_bias, rest, **options)

    return _tokens_first(product, x, residual, (up.shape[0], down.shape[1]))


def ffn_features_major(
    xt: Float[Array, "inputs tokens"],
    up: BlockPanels,
    down: BlockPanels,
    up_bias: Float[Some, " units"] | None = None,
    down_bias: Float[Some, " outputs"] | None = None,
    residual: Float[Array, "outputs tokens"] | None = None,
    *,
    activation: Activation | None = "gelu",
    backend: Backend = "auto",
    interpret: bool = False,
) -> Float[Array, "outputs tokens"]:
    """`block_ffn` with tokens last."""
    check_activation(activation)
    if up.shape[1] != down.shape[0]:
        raise ValueError(f"up has {up.shape[1]} outputs, and down {down.shape[0]} inputs")
    if choose_backend(backend, up, down, dtype=xt.dtype, interpret=interpret) == "tpu":
        first = Epilogue(_column(up_bias, up), activation)
        from kaprune_jax.kernels.block_sparse import pallas_tpu

        second = Epilogue(_column(down_bias, down), residual=residual)
        return pallas_tpu.ffn(xt, up, down, first, second, interpret=interpret)
    units = matmul_features_major(xt, up, up_bias, activation=activation, backend=backend, interpret=interpret)
    return matmul_features_major(units, down, down_bias, residual, backend=backend, interpret=interpret)


def choose_backend(backend: str, *matrices: BlockPanels, dtype: Any = jnp.bfloat16, interpret: bool = False) -> str:
    """The backend that will run for these matrices: the named one, or for "auto" the one known to win.

    Raises:
      ValueError: unknown.
      NotImplementedError: named, and cannot run here; says what it needs.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r}; allowed: {', '.join(get_args(Backend))}")
    if backend == "auto":
        density = max((panels.density for panels in matrices), default=1.0)
        able = DENSEST.get(jax.default_backend(), {})
        return next((name for name, most in able.items() if density <= most), "reference")
    if missing := _missing(backend, matrices, jnp.dtype(dtype), interpret=interpret):
        raise NotImplementedError(f"backend {backend!r} needs {missing}; backend='auto' works everywhere")
    return backend


def _missing(backend: str, matrices: tuple[BlockPanels, ...], dtype: jnp.dtype, *, interpret: bool) -> str | None:
    """What a backend lacks here, in words; None where it can run."""
    platform = jax.default_backend()
    if backend in ("tpu", "mosaic_gpu"):
        for panels in matrices:
            if panels.block[0] % 16 or panels.block[1] % 128:
                return f"blocks of multiples of 16 by multiples of 128, and these have {panels.block}"
    if backend == "mosaic_gpu" and dtype.itemsize != 2:
        return f"16-bit types, since its matrix unit rounds others, and x is {dtype}"
    if interpret or backend in ("reference", "xla"):
        return None
    if backend == "tpu":
        return None if platform == "tpu" else f"a TPU, and this process runs on {platform}"
    if platform != "gpu":
        return f"an NVIDIA Hopper GPU, and this process runs on {platform}"
    capability = getattr(jax.devices()[0], "compute_capability", "?")
    return None if capability == "9.0" else f"compute capability 9.0, and this GPU has {capability}"


def _tokens_first(
    product: Callable[[Array, Array | None], Array], x: Some, residual: Some | None, shape: tuple[int, int]
) -> Array:
    """A features-major product of rows in any leading shape, checked: one transpose in, one out."""
    x, (inputs, outputs) = jnp.asarray(x), shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x of shape {x.shape}: the last axis must be the matrix's {inputs} inputs")
    if x.size == 0:
        raise ValueError(f"x of shape {x.shape} is empty; at least one row is needed")
    if x.dtype == jnp.float16 and jax.default_backend() == "cpu":
        raise ValueError("x is float16, which this processor has no fast products for; use float32 or bfloat16")
    wanted = (*x.shape[:-1], outputs)
    if residual is not None and residual.shape != wanted:
        raise ValueError(f"residual of shape {residual.shape}: {wanted} is needed")
    rest = None if residual is None else jnp.asarray(residual).reshape(-1, outputs).T
    return product(x.reshape(-1, inputs).T, rest).T.reshape(wanted)


def _column(bias: Some | None, panels: BlockPanels) -> Array | None:
    if bias is None:
        return None
    if bias.shape != (panels.shape[1],):
        raise ValueError(f"bias of shape {bias.shape}: ({panels.shape[1]},) is needed")
    return jnp.asarray(bias)[:, None]
