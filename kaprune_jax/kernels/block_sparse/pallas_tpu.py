"""Block-sparse products for TPUs: Pallas kernels (Mosaic TPU), a step for every panel and tile of tokens.

Features-major: only there can input blocks of less than 128 be cut out at a place known at run time. The blocks of x
that a panel uses are copied together in VMEM, then one product of the matrix unit covers the panel.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kaprune_jax.kernels.block_sparse.epilogue import Epilogue, finish
from kaprune_jax.kernels.block_sparse.format import BlockPanels, ell, fill

TILE = 256
"""Tokens of a kernel step."""


def matmul(
    xt: Float[Array, "inputs tokens"],
    panels: BlockPanels,
    epilogue: Epilogue,
    *,
    tile: int = TILE,
    interpret: bool = False,
) -> Float[Array, "outputs tokens"]:
    """act(W^T x + b) + r, features-major, accumulated in float32."""
    x = fill(xt, panels.input_blocks * panels.block[0], tile)
    steps, outputs = x.shape[1] // tile, panels.shape[1]
    operands, specs, prefetched = _weights(panels, epilogue.bias, xt.dtype, lambda p: p)
    if epilogue.residual is not None:
        operands.append(fill(epilogue.residual, len(panels.counts) * panels.block[1], tile))
        specs.append(pl.BlockSpec((panels.block[1], tile), lambda t, p, *_: (p, t)))
    out = pl.pallas_call(
        functools.partial(
            _matmul_kernel,
            panels=_static(panels),
            activation=epilogue.activation,
            added=epilogue.residual is not None,
        ),
        out_shape=jax.ShapeDtypeStruct((len(panels.counts) * panels.block[1], x.shape[1]), xt.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(steps, len(panels.counts)),
            in_specs=[pl.BlockSpec((x.shape[0], tile), lambda t, p, *_: (0, t)), *specs],
            out_specs=pl.BlockSpec((panels.block[1], tile), lambda t, p, *_: (p, t)),
            scratch_shapes=[_gathered(panels, tile, xt.dtype)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(*prefetched, x, *operands)
    return out[:outputs, : xt.shape[1]]


def ffn(
    xt: Float[Array, "inputs tokens"],
    up: BlockPanels,
    down: BlockPanels,
    inner: Epilogue,
    outer: Epilogue,
    *,
    tile: int = TILE,
    interpret: bool = False,
) -> Float[Array, "outputs tokens"]:
    """W_down^T act(W_up^T x + b_up) + b_down + r, in one kernel: what the units hold stays in VMEM."""
    residual = outer.residual
    x = fill(xt, up.input_blocks * up.block[0], tile)
    first, second = len(up.counts), len(down.counts)
    held = max(first * up.block[1], down.input_blocks * down.block[0])
    operands, specs, prefetched = _weights(up, inner.bias, xt.dtype, lambda p: jnp.minimum(p, first - 1))
    more, more_specs, more_prefetched = _weights(down, outer.bias, xt.dtype, lambda p: jnp.maximum(p - first, 0))
    if residual is not None:
        more.append(fill(residual, second * down.block[1], tile))
        more_specs.append(pl.BlockSpec((down.block[1], tile), lambda t, p, *_: (jnp.maximum(p - first, 0), t)))
    out = pl.pallas_call(
        functools.partial(
            _ffn_kernel,
            up=_static(up),
            down=_static(down),
            activation=inner.activation,
            added=residual is not None,
        ),
        out_shape=jax.ShapeDtypeStruct((second * down.block[1], x.shape[1]), xt.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(x.shape[1] // tile, first + second),
            in_specs=[pl.BlockSpec((x.shape[0], tile), lambda t, p, *_: (0, t)), *specs, *more_specs],
            out_specs=pl.BlockSpec((down.block[1], tile), lambda t, p, *_: (jnp.maximum(p - first, 0), t)),
            scratch_shapes=[
                pltpu.VMEM((held, tile), xt.dtype),
                _gathered(up, tile, xt.dtype),
                _gathered(down, tile, xt.dtype),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(*prefetched, *more_prefetched, x, *operands, *more)
    return out[: down.shape[1], : xt.shape[1]]


def _matmul_kernel(rows, counts, x, weights, bias, *refs, panels, activation, added):
    """One panel of one tile."""
    residual, (out, gathered) = (refs[0] if added else None), refs[-2:]
    product = _panel(pl.program_id(1), rows, counts, x, weights, gathered, *panels)
    finished = finish(product, bias[...], activation, None if residual is None else residual[...])
    out[...] = finished.astype(out.dtype)


def _ffn_kernel(
    up_rows, up_counts, down_rows, down_counts, x, up_weights, up_bias, down_weights, down_bias, *refs,
    up, down, activation, added,
):  # fmt: skip
    """The panels of the units, kept; then the panels of the outputs, which read them."""
    residual, (out, held, up_gathered, down_gathered) = (refs[0] if added else None), refs[-4:]
    step, first = pl.program_id(1), up_counts.shape[0]

    @pl.when(step == 0)
    def _():  # a block may reach over the last unit: nothing there may be left from before
        held[...] = jnp.zeros(held.shape, held.dtype)

    @pl.when(step < first)
    def _():
        bn = up_weights.shape[1]
        product = _panel(step, up_rows, up_counts, x, up_weights, up_gathered, *up)
        place = pl.ds(pl.multiple_of(step * bn, bn), bn)
        held[place, :] = finish(product, up_bias[...], activation, None).astype(held.dtype)

    @pl.when(step >= first)
    def _():
        product = _panel(step - first, down_rows, down_counts, held, down_weights, down_gathered, *down)
        finished = finish(product, down_bias[...], None, None if residual is None else residual[...])
        out[...] = finished.astype(out.dtype)


def _panel(panel, rows, counts, x, weights, gathered, bk: int, most: int):
    """The product of one panel in float32. Slots that it leaves free hold zeros."""
    count = counts[panel]

    @pl.loop(0, most)
    def _(slot):
        place = pl.ds(pl.multiple_of(slot * bk, bk), bk)

        @pl.when(slot < count)
        def _():
            gathered[place, :] = x[pl.ds(pl.multiple_of(rows[panel * most + slot] * bk, bk), bk), :]

        @pl.when(slot >= count)
        def _():
            gathered[place, :] = jnp.zeros((bk, gathered.shape[1]), gathered.dtype)

    return jnp.dot(weights[0], gathered[...], preferred_element_type=jnp.float32)


def _weights(panels: BlockPanels, bias, dtype, panel_of) -> tuple[list, list, list]:
    """Operands, their specs, and the indices that go ahead, of a matrix; without a bias, zeros."""
    (bk, bn), across, most = panels.block, len(panels.counts), max(panels.most, 1)
    blocks, rows = ell(panels)
    bias = jnp.zeros((panels.shape[1], 1)) if bias is None else bias.astype(jnp.float32)
    operands = [blocks.astype(dtype), jnp.pad(bias, ((0, across * bn - panels.shape[1]), (0, 0)))]
    specs = [
        pl.BlockSpec((1, bn, most * bk), lambda t, p, *_: (panel_of(p), 0, 0)),
        pl.BlockSpec((bn, 1), lambda t, p, *_: (panel_of(p), 0)),
    ]
    return operands, specs, [rows.reshape(-1), jnp.asarray(panels.counts, jnp.int32)]


def _static(panels: BlockPanels) -> tuple[int, int]:
    return panels.block[0], max(panels.most, 1)


def _gathered(panels: BlockPanels, tile: int, dtype):
    bk, most = _static(panels)
    return pltpu.VMEM((most * bk, tile), dtype)
