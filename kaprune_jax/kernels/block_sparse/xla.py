"""Block-sparse product in plain XLA: gathers of input blocks and dense products, the CPU's path, portable everywhere.

Panels with as many blocks as each other are one batched product, whose size is static: nothing is filled up.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kaprune_jax.kernels.block_sparse.epilogue import Epilogue, finish
from kaprune_jax.kernels.block_sparse.format import BlockPanels


def matmul(
    xt: Float[Array, "inputs tokens"], panels: BlockPanels, epilogue: Epilogue
) -> Float[Array, "outputs tokens"]:
    """act(W^T x + b) + r, features-major, accumulated in float32."""
    (bk, bn), tokens, count = panels.block, xt.shape[1], len(panels.counts)
    inputs = jnp.pad(xt, ((0, panels.input_blocks * bk - xt.shape[0]), (0, 0))).reshape(-1, bk, tokens)
    counts, starts = np.asarray(panels.counts), panels.starts
    parts, order = [], []
    for size in sorted(set(panels.counts)):
        members = np.flatnonzero(counts == size)
        order.append(members)
        if not size:
            parts.append(jnp.zeros((len(members), bn, tokens), jnp.float32))
            continue
        places = starts[members][:, None] + np.arange(size)
        gathered = inputs[panels.rows[places]].reshape(len(members), size * bk, tokens)
        weights = panels.blocks[places].transpose(0, 2, 1, 3).reshape(len(members), bn, size * bk)
        parts.append(
            jax.lax.dot_general(
                weights.astype(xt.dtype),
                gathered,
                (((2,), (1,)), ((0,), (0,))),
                preferred_element_type=jnp.float32,
            )
        )
    product = parts[0] if len(parts) == 1 else jnp.concatenate(parts)[np.argsort(np.concatenate(order))]
    product = product.reshape(count * bn, tokens)[: panels.shape[1]]
    return finish(product, *epilogue).astype(xt.dtype)
