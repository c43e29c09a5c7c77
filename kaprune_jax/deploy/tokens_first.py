"""The compacted encoder with tokens as the first axis, as models have them: for weights none of which are packed.

Dense products on CPUs and LayerNorm's sums are faster this way; products with block-sparse matrices want the other.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kaprune_jax._typing import Params
from kaprune_jax.deploy.packed import ACTIVATION, PackedLayer, PackedLinear, normalise
from kaprune_jax.kernels.block_sparse.epilogue import Activation, finish
from kaprune_jax.models.config import BertConfig


def make_dense_forward(config: BertConfig, *, dtype: str = "float32") -> Callable[..., Float[Array, "batch classes"]]:
    """As `packed.make_forward`, for what `pack_model` gives where every path is "dense"."""
    act = ACTIVATION[config.hidden_act]

    def forward(weights: Params, input_ids: Array, attention_mask: Array, token_type_ids: Array) -> Array:
        batch, seq = input_ids.shape
        tables = {name: table["embedding"] for name, table in weights["embeddings"].items() if name != "norm"}
        summed = tables["word"][input_ids] + tables["position"][:seq][None] + tables["token_type"][token_type_ids]
        x = summed.reshape(batch * seq, -1).astype(dtype)
        x = normalise(x, weights["embeddings"]["norm"], config.layer_norm_eps, axis=1)
        attend = attention_mask.astype(bool)
        for layer in weights["layers"]:
            x = normalise(_attend(x, layer, attend), layer.attention_norm, config.layer_norm_eps, axis=1)
            x = normalise(_feed(x, layer, act), layer.ffn_norm, config.layer_norm_eps, axis=1)
        last = x.reshape(batch, seq, -1).astype(jnp.float32)
        if config.pooling == "cls":
            pooled = jnp.tanh(last[:, 0] @ weights["pooler"]["kernel"] + weights["pooler"]["bias"][None])
        else:
            real = attend.astype(jnp.float32)
            pooled = (last * real[:, :, None]).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1.0)[:, None]
        return pooled @ weights["head"]["kernel"] + weights["head"]["bias"][None]

    return forward


def _attend(x: Array, layer: PackedLayer, attend: Array) -> Array:
    """x + attention(x), [tokens, hidden]; rows of tokens follow one another."""
    if layer.qkv is None or layer.output is None:
        return x + layer.attended[None].astype(x.dtype)
    (batch, seq), heads = attend.shape, layer.heads
    parts = jnp.split(_linear(x, layer.qkv), np.cumsum([heads * layer.query_size] * 2), axis=1)
    query, key, value = (part.reshape(batch, seq, heads, -1).transpose(0, 2, 1, 3) for part in parts)
    scores = jnp.matmul(query, key.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores = jnp.where(attend[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    powers = jnp.exp(scores - scores.max(axis=3, keepdims=True))
    context = jnp.matmul(powers.astype(x.dtype), value, preferred_element_type=jnp.float32)
    context = (context / powers.sum(axis=3, keepdims=True)).astype(x.dtype)  # softmax, divided after the product
    return _linear(context.transpose(0, 2, 1, 3).reshape(batch * seq, -1), layer.output, residual=x)


def _feed(x: Array, layer: PackedLayer, act: Activation) -> Array:
    """x + feed_forward(x), [tokens, hidden]."""
    if layer.up is None or layer.down is None:
        return x + layer.fed[None].astype(x.dtype)
    return _linear(_linear(x, layer.up, act), layer.down, residual=x)


def _linear(x: Array, part: PackedLinear, act: Activation | None = None, *, residual: Array | None = None) -> Array:
    product = jnp.matmul(x, part.kernel.T, preferred_element_type=jnp.float32)
    return finish(product, part.bias[None], act, residual).astype(x.dtype)
