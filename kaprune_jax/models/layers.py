"""The parts of a BERT layer as Flax NNX modules that hold parameters only.

Devlin et al., 2019, arXiv:1810.04805. Post-layer-norm: x + sublayer(x), then LayerNorm.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt32

from kaprune_jax.models.config import BertConfig, LayerShape
from kaprune_jax.models.products import activation_dtype, product_of, rounded_product


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Φ(x) with the exact normal distribution function; its gradient keeps x alone, not three arrays.

    Reverse mode only (`jax.grad`, `jax.vjp`): forward-mode derivatives of a custom VJP do not exist.
    """
    return jax.nn.gelu(x, approximate=False)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, gradient):
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * jnp.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return (gradient * (cumulative + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function behind a Hugging Face `hidden_act` name; "gelu" is the exact erf form."""
    return {
        "gelu": gelu,
        "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "relu": jax.nn.relu,
    }[name]


def position_bits(key: Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random bits for dropout: the 32-bit finaliser of MurmurHash3 (Appleby, 2011) over position and key.

    Not for anything but dropout. Unlike the counter of `jax.random` it is a few integer operations that XLA fuses into
    the passes that use it, forward and backward, so that no mask is ever stored: a tenth of a training step on a CPU.
    """
    words = jax.random.key_data(key)  # two words, or four for the keys that some backends prefer
    first, second = words[0], words[-1]
    bits = jax.lax.iota(jnp.uint32, math.prod(shape)) * jnp.uint32(0x9E3779B1) + first
    for word, factor in ((second, 0x85EBCA6B), (first, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> 16)) ^ word) * jnp.uint32(factor)
    return (bits ^ (bits >> 16)).reshape(shape)


def dropout(x: Float[Array, "..."], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "..."]:
    """Zeroes a fraction `rate` of x and scales the rest by 1 / (1 - rate); x itself where rngs is None.

    The rate is kept to 2^-32. Which elements go follows from the key and their position alone.
    """
    if rngs is None or rate == 0.0:
        return x
    kept = position_bits(rngs.dropout(), x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(kept, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros_like(x))


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the hidden dimension, variance computed from centred values.

    Under hidden gates mean and variance are those of the open dimensions alone and the others stay zero, so that the
    outcome is that of the model without them.
    """

    def __call__(self, x: Array, hidden: Array | None = None) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        if hidden is None:
            return super().__call__(x)
        wide, there = x.astype(jnp.float32), _beside(hidden > 0, x).astype(jnp.float32)
        count = jnp.maximum(there.sum(), 1.0)
        centred = (wide - (wide * there).sum(axis=-1, keepdims=True) / count) * there
        variance = jnp.square(centred).sum(axis=-1, keepdims=True) / count
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (_beside(value[...], x) for value in (self.scale, self.bias))  # pyright: ignore[reportOptionalSubscript]
        return ((normed * scale + bias) * there).astype(x.dtype)


def _beside(vector: Array, x: Array) -> Array:
    """A vector over the last dimension with as many dimensions as x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def layer_norm(config: BertConfig, dtype: str, rngs: nnx.Rngs) -> LayerNorm:
    """The LayerNorm of a configuration."""
    options: dict[str, Any] = {"epsilon": config.layer_norm_eps, "dtype": activation_dtype(dtype)}
    return LayerNorm(config.hidden_size, use_fast_variance=False, rngs=rngs, **options)


def linear(inputs: int, outputs: int, config: BertConfig, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with BERT's initialisation: normal with `initializer_range`, bias zero."""
    options: dict[str, Any] = {"kernel_init": nnx.initializers.normal(config.initializer_range), "rngs": rngs}
    if dtype != "float32":
        options["dot_general"] = _dot_general
    return nnx.Linear(inputs, outputs, dtype=activation_dtype(dtype), **options)


def _dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """The product of a linear layer, as `nnx.Linear` calls it."""
    return rounded_product(x, kernel)


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings, summed, normalised, dropped out."""

    def __init__(self, config: BertConfig, dtype: str, rngs: nnx.Rngs):
        initializer = nnx.initializers.normal(config.initializer_range)

        def table(rows: int) -> nnx.Embed:
            options: dict[str, Any] = {"embedding_init": initializer, "dtype": activation_dtype(dtype)}
            return nnx.Embed(rows, config.hidden_size, rngs=rngs, **options)

        self.config = config
        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings)
        self.token_type = table(config.type_vocab_size)
        self.norm = layer_norm(config, dtype, rngs)

    def __call__(
        self,
        input_ids: Array,
        token_type_ids: Array,
        *,
        hidden: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        seq, most = input_ids.shape[-1], self.config.max_position_embeddings
        if isinstance(seq, int) and seq > most:  # an exported program's symbolic length is bounded by its exporter
            raise ValueError(f"input_ids has {seq} tokens a row; the model has {most} positions")
        positions = jax.lax.broadcasted_iota(jnp.int32, (1, seq), 1)
        summed = self.word(input_ids) + self.position(positions) + self.token_type(token_type_ids)
        normed = scaled(self.norm(summed, hidden), hidden)
        return dropout(normed, self.config.hidden_dropout_prob, rngs)


def scaled(x: Array, gate: Array | None) -> Array:
    """x times a gate over its last dimension, or times one number; x itself without a gate."""
    if gate is None:
        return x
    return x * (gate if gate.ndim == 0 else _beside(gate, x)).astype(x.dtype)


class LayerGates(NamedTuple):
    """The gates of one layer, in [0, 1]; None where open.

    Attributes:
      attention: of the attention as a whole.
      heads: of each head.
      ffn: of the feed-forward network as a whole.
      units: of each unit in it.
      hidden: of each hidden dimension, the same in all layers.
    """

    attention: Float[Array, ""] | None = None
    heads: Float[Array, " heads"] | None = None
    ffn: Float[Array, ""] | None = None
    units: Float[Array, " units"] | None = None
    hidden: Float[Array, " hidden"] | None = None


OPEN = LayerGates()


class SelfAttention(nnx.Module):
    """Multi-head self-attention; returns its output and the scaled scores before masking and softmax."""

    def __init__(self, config: BertConfig, heads: int, dtype: str, rngs: nnx.Rngs):
        self.config, self.heads, self.product = config, heads, product_of(dtype)
        width = heads * config.head_size
        self.query = linear(config.hidden_size, width, config, dtype, rngs)
        self.key = linear(config.hidden_size, width, config, dtype, rngs)
        self.value = linear(config.hidden_size, width, config, dtype, rngs)
        self.output = linear(width, config.hidden_size, config, dtype, rngs)

    def __call__(
        self,
        x: Float[Array, "batch seq hidden"],
        attend: Bool[Array, "batch seq"],
        *,
        gate: Float[Array, " heads"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch seq hidden"], Float[Array, "batch heads seq seq"]]:
        batch, seq, _ = x.shape
        heads, size = self.heads, self.config.head_size

        def by_head(states: Array) -> Array:  # batch and heads in front: the products then need no other layout
            return states.reshape(batch, seq, heads, size).transpose(0, 2, 1, 3)

        query = by_head(self.query(x) * jnp.asarray(size**-0.5, x.dtype))
        key, value = by_head(self.key(x)), by_head(self.value(x))
        scores = self.product(query, key.swapaxes(-1, -2))
        masked = jnp.where(attend[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(masked.astype(jnp.float32), axis=-1).astype(x.dtype)
        weights = dropout(weights, self.config.attention_probs_dropout_prob, rngs)
        context = self.product(weights, value)
        if gate is not None:
            context = context * gate[None, :, None, None].astype(context.dtype)
        context = context.transpose(0, 2, 1, 3).reshape(batch, seq, heads * size)
        return self.output(context), scores


class FeedForward(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: BertConfig, width: int, dtype: str, rngs: nnx.Rngs):
        self.config = config
        self.up = linear(config.hidden_size, width, config, dtype, rngs)
        self.down = linear(width, config.hidden_size, config, dtype, rngs)

    def __call__(self, x: Array, *, gate: Array | None = None) -> Array:
        return self.down(scaled(activation(self.config.hidden_act)(self.up(x)), gate))


class Layer(nnx.Module):
    """One encoder layer; where its attention or its feed-forward network is gone, only the LayerNorm behind it acts."""

    def __init__(self, config: BertConfig, shape: LayerShape, dtype: str, rngs: nnx.Rngs):
        self.config = config
        self.attention = SelfAttention(config, len(shape.heads), dtype, rngs) if shape.heads else None
        self.attention_norm = layer_norm(config, dtype, rngs)
        self.ffn = FeedForward(config, shape.ffn, dtype, rngs) if shape.ffn else None
        self.ffn_norm = layer_norm(config, dtype, rngs)

    def __call__(
        self, x: Array, attend: Array, *, gates: LayerGates = OPEN, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array]:
        rate, hidden = self.config.hidden_dropout_prob, gates.hidden
        batch, seq, _ = x.shape
        scores = jnp.zeros((batch, 0, seq, seq), x.dtype)
        if self.attention is not None:
            attended, scores = self.attention(x, attend, gate=gates.heads, rngs=rngs)
            x = x + dropout(scaled(scaled(attended, gates.attention), hidden), rate, rngs)
        x = self.attention_norm(x, hidden)
        if self.ffn is not None:
            x = x + dropout(scaled(scaled(self.ffn(x, gate=gates.units), gates.ffn), hidden), rate, rngs)
        return self.ffn_norm(x, hidden), scores
