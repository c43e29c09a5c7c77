"""Block-sparse product for NVIDIA Hopper: one Pallas kernel (Mosaic GPU) block per panel and tile of tokens.

Features-major: a stored block [outputs, inputs] is the left operand of the matrix unit (WGMMA), a tile of x the right.
The blocks of a panel and the input blocks they read stream through shared memory; sums stay in registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from kaprune_jax.kernels.block_sparse.epilogue import Epilogue, erf_by_exp, finish
from kaprune_jax.kernels.block_sparse.format import BlockPanels, fill

TILE = 128
"""Tokens of a kernel block."""

STEPS = 4
"""Blocks on their way at a time."""


def matmul(
    xt: Float[Array, "inputs tokens"],
    panels: BlockPanels,
    epilogue: Epilogue,
    *,
    tile: int = TILE,
    interpret: bool = False,
) -> Float[Array, "outputs tokens"]:
    """act(W^T x + b) + r, features-major, accumulated in float32."""
    (bk, bn), across = panels.block, len(panels.counts)
    bias, activation, residual = epilogue
    # A matrix without a block has nothing to point at: one block of zeros, which no panel reads.
    blocks = panels.blocks if sum(panels.counts) else jnp.zeros((1, bn, bk), panels.blocks.dtype)
    rows = panels.rows if sum(panels.counts) else jnp.zeros(1, jnp.int32)
    inputs = fill(xt, panels.input_blocks * bk, tile)
    operands = [inputs, blocks.astype(xt.dtype).reshape(-1, bk), rows, jnp.asarray(panels.starts)]
    if bias is not None:
        operands.append(jnp.pad(bias[:, 0].astype(jnp.float32), (0, across * bn - panels.shape[1])))
    if residual is not None:
        operands.append(fill(residual.astype(xt.dtype), across * bn, tile))
    kernel = plgpu.kernel(
        functools.partial(
            _kernel,
            bk=bk,
            bn=bn,
            tile=tile,
            activation=activation,
            biased=bias is not None,
            added=residual is not None,
        ),
        out_type=jax.ShapeDtypeStruct((across * bn, inputs.shape[1]), xt.dtype),
        scratch_types=[
            plgpu.SMEM((bn, tile), xt.dtype, transforms=_transforms(tile, xt.dtype)),
            plgpu.SMEM((bn,), jnp.float32),
            plgpu.Barrier(),
            plgpu.Barrier(),
        ],
        grid=(across, inputs.shape[1] // tile),
        grid_names=("panel", "tile"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=_interpreter() if interpret else False,
    )
    return kernel(*operands)[: panels.shape[1], : xt.shape[1]]


def _kernel(x, weights, rows, starts, *refs, bk, bn, tile, activation, biased, added):
    """One panel of one tile: a product per stored block, then the epilogue. No stored block: act(bias)."""
    bias, residual = refs[0] if biased else None, refs[int(biased)] if added else None
    out, staged, bias_here, bias_came, residual_came = refs[-5:]
    panel, column = jax.lax.axis_index("panel"), jax.lax.axis_index("tile")
    place = pl.ds(panel * bn, bn), pl.ds(column * tile, tile)
    first = starts[panel]
    stream = functools.partial(plgpu.BlockSpec, transforms=_transforms(min(bk, tile), x.dtype), delay_release=1)
    if bias is not None:
        plgpu.copy_gmem_to_smem(bias.at[place[0]], bias_here, bias_came)
    if residual is not None:
        plgpu.copy_gmem_to_smem(residual.at[place], staged, residual_came)

    def accumulate(total):
        def step(_, weight, inputs):
            plgpu.wgmma(total, weight, inputs)
            plgpu.wgmma_wait(1)

        plgpu.emit_pipeline(
            step,
            grid=(starts[panel + 1] - first,),
            in_specs=[
                stream((bn, bk), lambda s: (first + s, 0)),
                stream((bk, tile), lambda s: (rows[first + s], column)),
            ],
            max_concurrent_steps=STEPS,
        )(weights, x)
        return total[...]

    product = pl.run_scoped(accumulate, plgpu.ACC((bn, tile), jnp.float32))
    more = rest = None
    if bias is not None:
        plgpu.barrier_wait(bias_came)
        more = jax.lax.broadcast_in_dim(bias_here[...], (bn, tile), (0,))
    if residual is not None:
        plgpu.barrier_wait(residual_came)
        rest = staged[...]
    staged[...] = finish(product, more, activation, rest, erf=erf_by_exp).astype(out.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staged, out.at[place])
    plgpu.wait_smem_to_gmem(0)


def _transforms(width: int, dtype) -> tuple:
    """How a tile lies in shared memory: both operands of a product need the same swizzle."""
    swizzle = plgpu.find_swizzle(width * jnp.dtype(dtype).itemsize * 8)
    return plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(swizzle)


def _interpreter():
    """The simulator of a GPU's memories and barriers; public from JAX 0.11 on."""
    if public := getattr(plgpu, "InterpretGPUParams", None):
        return public()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()
