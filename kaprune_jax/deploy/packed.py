"""A BERT encoder for inference: compacted, its matrices dense or block-sparse, as one pure function of its weights.

Inside, tokens are the last axis from the embeddings to the pooler: products with block-sparse matrices want it, and
dense ones on a CPU gain from it too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from kaprune_jax._typing import Params
from kaprune_jax.deploy.compact import CompactLayer, Linear, compact_layer
from kaprune_jax.kernels.block_sparse.api import choose_backend, ffn_features_major, matmul_features_major
from kaprune_jax.kernels.block_sparse.epilogue import Activation, finish
from kaprune_jax.kernels.block_sparse.format import BLOCK, pack
from kaprune_jax.models.config import BertConfig

_ACTIVATION: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Choice(NamedTuple):
    """How one matrix runs.

    Attributes:
      name: "layers/0/ffn/up".
      shape: inputs and outputs after compaction.
      density: of its blocks, the fraction that is stored.
      path: "dense", or the backend of its blocks.
    """

    name: str
    shape: tuple[int, int]
    density: float
    path: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedLinear:
    """A matrix and its bias.

    Attributes:
      kernel: [outputs, inputs], or its `BlockPanels`.
      bias: [outputs], float32.
      path: "dense", or the backend of the panels.
    """

    kernel: Any
    bias: Any
    path: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedLayer:
    """One layer; parts as in `CompactLayer`, with its two LayerNorms."""

    qkv: PackedLinear | None
    output: PackedLinear | None
    attended: Any
    up: PackedLinear | None
    down: PackedLinear | None
    fed: Any
    attention_norm: Params
    ffn_norm: Params
    heads: int = dataclasses.field(metadata={"static": True})
    query_size: int = dataclasses.field(metadata={"static": True})
    value_size: int = dataclasses.field(metadata={"static": True})


def pack_model(
    params: Params, config: BertConfig, *, backend: str = "auto", dtype: str = "float32"
) -> tuple[Params, tuple[Choice, ...]]:
    """The weights that `make_forward` takes, and how each matrix will run.

    Args:
      params: of a whole or shrunk model with the head of a task.
      config: its configuration.
      backend: of every matrix; "auto" decides for each by its density.
      dtype: of the matrices.

    Raises:
      NotImplementedError: a named backend that cannot run here.
    """
    params = jax.tree.map(np.asarray, params)
    function = _ACTIVATION[config.hidden_act]
    plan: list[Choice] = []

    def act(x: np.ndarray) -> np.ndarray:
        return np.asarray(finish(jnp.asarray(x)[:, None], None, function, None))[:, 0]

    def take(part: Linear | None, name: str) -> PackedLinear | None:
        if part is None:
            return None
        panels = pack(part.kernel, dtype=dtype)
        chosen = choose_backend(backend, panels, dtype=dtype)
        path = "dense" if chosen == "reference" else chosen
        plan.append(Choice(name, (part.kernel.shape[0], part.kernel.shape[1]), panels.density, path))
        return PackedLinear(jnp.asarray(part.kernel.T, dtype) if path == "dense" else panels, part.bias, path)

    def one(index: int) -> PackedLayer:
        layer: CompactLayer = compact_layer(params, config, index, act=act, block=BLOCK[0])
        norms = params["encoder"]["layers"][index]
        name = f"layers/{index}"
        return PackedLayer(
            qkv=take(layer.qkv, f"{name}/attention/qkv"),
            output=take(layer.output, f"{name}/attention/output"),
            attended=layer.attended,
            up=take(layer.up, f"{name}/ffn/up"),
            down=take(layer.down, f"{name}/ffn/down"),
            fed=layer.fed,
            attention_norm=norms["attention_norm"],
            ffn_norm=norms["ffn_norm"],
            heads=layer.heads,
            query_size=layer.query_size,
            value_size=layer.value_size,
        )

    layers = tuple(one(index) for index in range(config.num_hidden_layers))
    rest = {name: part for name, part in params.items() if name not in ("encoder", "lm_head")}
    return jax.tree.map(jnp.asarray, {"layers": layers, **rest}), tuple(plan)


def make_forward(config: BertConfig, *, dtype: str = "float32") -> Callable[..., Float[Array, "batch ..."]]:
    """`forward(weights, input_ids, attention_mask, token_type_ids)`: float32 logits of what `pack_model` gives."""
    act = _ACTIVATION[config.hidden_act]

    def forward(weights: Params, input_ids: Array, attention_mask: Array, token_type_ids: Array) -> Array:
        batch, seq = input_ids.shape
        tables = {name: table["embedding"] for name, table in weights["embeddings"].items() if name != "norm"}
        summed = tables["word"][input_ids] + tables["position"][:seq][None] + tables["token_type"][token_type_ids]
        x = with_layout_constraint(summed.reshape(batch * seq, -1).T.astype(dtype), Layout((0, 1)))
        x = _normalise(x, weights["embeddings"]["norm"], config.layer_norm_eps)
        attend = attention_mask.astype(bool)
        for layer in weights["layers"]:
            x = _normalise(_attend(x, layer, attend), layer.attention_norm, config.layer_norm_eps)
            x = _normalise(_feed(x, layer, act), layer.ffn_norm, config.layer_norm_eps)
        last = x.reshape(-1, batch, seq).astype(jnp.float32)
        if config.head == "span":
            by_token = last.transpose(1, 2, 0) @ weights["head"]["kernel"]
            return by_token + weights["head"]["bias"][None, None]
        if config.pooling == "cls":
            pooled = jnp.tanh(last[:, :, 0].T @ weights["pooler"]["kernel"] + weights["pooler"]["bias"][None])
        else:
            real = attend.astype(jnp.float32)
            pooled = ((last * real[None]).sum(axis=2) / jnp.maximum(real.sum(axis=1), 1.0)[None]).T
        return pooled @ weights["head"]["kernel"] + weights["head"]["bias"][None]

    return forward


def _attend(x: Array, layer: PackedLayer, attend: Array) -> Array:
    """x + attention(x), [hidden, tokens]; rows of tokens follow one another."""
    if layer.qkv is None or layer.output is None:
        return x + layer.attended[:, None].astype(x.dtype)
    (batch, seq), heads = attend.shape, layer.heads
    sizes = [heads * layer.query_size] * 2
    parts = jnp.split(_linear(x, layer.qkv), np.cumsum(sizes))
    query, key, value = (part.reshape(heads, -1, batch, seq).transpose(2, 0, 1, 3) for part in parts)
    scores = jnp.matmul(key.swapaxes(2, 3), query, preferred_element_type=jnp.float32)  # [batch, heads, keys, queries]
    scores = jnp.where(attend[:, None, :, None], scores, jnp.finfo(jnp.float32).min)
    powers = jnp.exp(scores - scores.max(axis=2, keepdims=True))
    context = jnp.matmul(value, powers.astype(x.dtype), preferred_element_type=jnp.float32)
    context = (context / powers.sum(axis=2, keepdims=True)).astype(x.dtype)  # softmax, divided after the product
    return _linear(context.transpose(1, 2, 0, 3).reshape(-1, batch * seq), layer.output, residual=x)


def _feed(x: Array, layer: PackedLayer, act: Activation) -> Array:
    """x + feed_forward(x), [hidden, tokens]; one kernel where there is one for both products."""
    if layer.up is None or layer.down is None:
        return x + layer.fed[:, None].astype(x.dtype)
    up, down = layer.up, layer.down
    if up.path == down.path != "dense":
        options: dict[str, Any] = {"activation": act, "backend": up.path}
        return ffn_features_major(x, up.kernel, down.kernel, up.bias, down.bias, x, **options)
    return _linear(_linear(x, up, act), down, residual=x)


def _linear(x: Array, part: PackedLinear, act: Activation | None = None, *, residual: Array | None = None) -> Array:
    if part.path != "dense":
        options: dict[str, Any] = {"activation": act, "backend": part.path}
        return matmul_features_major(x, part.kernel, part.bias, residual, **options)
    product = jnp.matmul(part.kernel, x, preferred_element_type=jnp.float32)
    return finish(product, part.bias[:, None], act, residual).astype(x.dtype)


def _normalise(x: Array, norm: Params, epsilon: float) -> Array:
    """LayerNorm over the first axis, in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=0, keepdims=True)
    # E[x^2] - E[x]^2 reads x once less than centred values do; what is left of the mean after a residual sum is small.
    variance = jnp.maximum(jnp.square(wide).mean(axis=0, keepdims=True) - jnp.square(mean), 0.0)
    scale = jax.lax.rsqrt(variance + epsilon)
    return ((wide - mean) * scale * norm["scale"][:, None] + norm["bias"][:, None]).astype(x.dtype)
