"""The parts of a BERT layer as Flax NNX modules that hold parameters only.

Devlin et al., 2019, arXiv:1810.04805. Post-layer-norm: x + sublayer(x), then LayerNorm.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from kaprune_jax.models.config import BertConfig

_BITS = 16


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function behind a Hugging Face `hidden_act` name; "gelu" is the exact erf form."""
    return {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "relu": jax.nn.relu,
    }[name]


def dropout(x: Float[Array, "..."], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "..."]:
    """Zeroes a fraction `rate` of x and scales the rest by 1 / (1 - rate); x itself where rngs is None.

    Sixteen random bits an element (the rate is kept to 1/65536): half the cost of the usual thirty-two, and
    on a CPU the random bits are the larger part of dropout.
    """
    if rngs is None or rate == 0.0:
        return x
    bits = jax.random.bits(rngs.dropout(), x.shape, jnp.uint16)
    threshold = round(rate * 2**_BITS)
    keep = 1.0 - threshold / 2**_BITS
    return jnp.where(bits >= jnp.uint16(threshold), x * jnp.asarray(1.0 / keep, x.dtype), jnp.zeros_like(x))


def layer_norm(config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the hidden dimension, variance computed from centred values."""
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, rngs=rngs
    )


def linear(inputs: int, outputs: int, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with BERT's initialisation: normal with `initializer_range`, bias zero."""
    initializer = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(inputs, outputs, kernel_init=initializer, dtype=dtype, rngs=rngs)


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings, summed, normalised, dropped out."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        initializer = nnx.initializers.normal(config.initializer_range)

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, config.hidden_size, embedding_init=initializer, dtype=dtype, rngs=rngs)

        self.config = config
        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings)
        self.token_type = table(config.type_vocab_size)
        self.norm = layer_norm(config, dtype, rngs)

    def __call__(self, input_ids: Array, token_type_ids: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        positions = jnp.arange(input_ids.shape[-1])
        summed = self.word(input_ids) + self.position(positions)[None] + self.token_type(token_type_ids)
        return dropout(self.norm(summed), self.config.hidden_dropout_prob, rngs)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; returns its output and the scaled scores before masking and softmax."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.query = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)
        self.key = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)
        self.value = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)
        self.output = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)

    def __call__(
        self,
        x: Float[Array, "batch seq hidden"],
        attend: Bool[Array, "batch seq"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch seq hidden"], Float[Array, "batch heads seq seq"]]:
        heads, size = self.config.num_attention_heads, self.config.head_size
        split = (*x.shape[:-1], heads, size)
        query = (self.query(x) * jnp.asarray(size**-0.5, x.dtype)).reshape(split)
        key, value = self.key(x).reshape(split), self.value(x).reshape(split)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        masked = jnp.where(attend[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(masked.astype(jnp.float32), axis=-1).astype(x.dtype)
        weights = dropout(weights, self.config.attention_probs_dropout_prob, rngs)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(context.reshape(x.shape)), scores


class FeedForward(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.up = linear(config.hidden_size, config.intermediate_size, config, dtype, rngs)
        self.down = linear(config.intermediate_size, config.hidden_size, config, dtype, rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(activation(self.config.hidden_act)(self.up(x)))


class Layer(nnx.Module):
    """One encoder layer."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.attention = SelfAttention(config, dtype, rngs)
        self.attention_norm = layer_norm(config, dtype, rngs)
        self.ffn = FeedForward(config, dtype, rngs)
        self.ffn_norm = layer_norm(config, dtype, rngs)

    def __call__(self, x: Array, attend: Array, *, rngs: nnx.Rngs | None = None) -> tuple[Array, Array]:
        rate = self.config.hidden_dropout_prob
        attended, scores = self.attention(x, attend, rngs=rngs)
        x = self.attention_norm(x + dropout(attended, rate, rngs))
        x = self.ffn_norm(x + dropout(self.ffn(x), rate, rngs))
        return x, scores
