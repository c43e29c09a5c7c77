"""The product with the dense matrix: what every backend has to agree with, and the fallback where nothing is gained."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kaprune_jax.kernels.block_sparse.epilogue import Epilogue, finish
from kaprune_jax.kernels.block_sparse.format import BlockPanels, unpack


def matmul(
    xt: Float[Array, "inputs tokens"], panels: BlockPanels, epilogue: Epilogue
) -> Float[Array, "outputs tokens"]:
    """act(W^T x + b) + r, features-major, accumulated in float32."""
    weight = unpack(panels)
    product = jnp.einsum("kn,kt->nt", weight.astype(xt.dtype), xt, preferred_element_type=jnp.float32)
    return finish(product, *epilogue).astype(xt.dtype)
