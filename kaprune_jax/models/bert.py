"""BERT (Devlin et al., 2019, arXiv:1810.04805) with heads for tasks or masked words, as a pure function of params.

Parameters are a plain nested dict:

    embeddings/{word,position,token_type}/embedding   embeddings/norm/{scale,bias}
    encoder/layers/I/attention/{query,key,value,output}/{kernel,bias}   encoder/layers/I/attention_norm/{scale,bias}
    encoder/layers/I/ffn/{up,down}/{kernel,bias}                        encoder/layers/I/ffn_norm/{scale,bias}
    pooler/{kernel,bias}   (pooling "cls", not for spans)      head/{kernel,bias}      lm_head/...   (masked-LM)

Kernels are [inputs, outputs]. The six kernels of each layer are what pruning is about: `encoder/.*/kernel`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kaprune_jax._typing import Params
from kaprune_jax.l0.layout import Gates
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layers import Embeddings, Layer, LayerGates, activation, dropout, layer_norm, linear

PRUNABLE = r"encoder/.*/kernel"


class BertOutput(NamedTuple):
    """What a forward pass returns.

    Attributes:
      hidden_states: layers + 1 arrays [batch, seq, hidden], the embedding output first.
      attention_scores: layers arrays [batch, heads, seq, seq], scaled by 1/sqrt(head size), before masking and softmax.
      logits: [batch, classes], [batch, 1] for a regression, [batch, seq, 2] for spans (first and last token of an
        answer), [batch, seq, vocab] for masked-LM, None without a head.
    """

    hidden_states: tuple[Float[Array, "batch seq hidden"], ...]
    attention_scores: tuple[Float[Array, "batch heads seq seq"], ...]
    logits: Float[Array, "batch ..."] | None


class MaskedLMHead(nnx.Module):
    """Linear, activation, LayerNorm, then the word embeddings as output matrix, plus a bias."""

    def __init__(self, config: BertConfig, dtype: str, rngs: nnx.Rngs):
        self.config = config
        self.transform = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)
        self.norm = layer_norm(config, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))

    def __call__(self, x: Array, words: nnx.Embed) -> Array:
        x = self.norm(activation(self.config.hidden_act)(self.transform(x)))
        return words.attend(x) + self.bias[...].astype(x.dtype)[None, None]


class Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig, dtype: str, remat: bool, rngs: nnx.Rngs):
        self.remat = remat
        shapes = map(config.layer, range(config.num_hidden_layers))
        self.layers = nnx.List([Layer(config, shape, dtype, rngs) for shape in shapes])

    def __call__(
        self, x: Array, attend: Array, *, gates: Gates | None = None, rngs: nnx.Rngs | None = None
    ) -> tuple[list[Array], list[Array]]:
        hidden, scores = [x], []
        for index, layer in enumerate(self.layers):
            run = nnx.remat(_run_layer) if self.remat else _run_layer
            x, score = run(layer, x, attend, _layer_gates(gates, index), rngs)
            hidden.append(x)
            scores.append(score)
        return hidden, scores


def _run_layer(layer: Layer, x: Array, attend: Array, gates: LayerGates, rngs: nnx.Rngs | None) -> tuple[Array, Array]:
    return layer(x, attend, gates=gates, rngs=rngs)


def _layer_gates(gates: Gates | None, index: int) -> LayerGates:
    """What concerns one layer: its row of each family, and the hidden dimensions' gates whole."""
    rows = {name: jnp.asarray(value if name == "hidden" else value[index]) for name, value in (gates or {}).items()}
    return LayerGates(**rows)


class Bert(nnx.Module):
    """The whole model; dropout acts only where `rngs` is given."""

    def __init__(self, config: BertConfig, *, dtype: str = "float32", remat: bool = False, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, dtype, rngs)
        self.encoder = Encoder(config, dtype, remat, rngs)
        if config.head == "masked-lm":
            self.lm_head = MaskedLMHead(config, dtype, rngs)
            return
        if config.has_pooler:
            self.pooler = linear(config.hidden_size, config.pooler_size or config.hidden_size, config, dtype, rngs)
        if config.num_logits:
            width = (config.pooler_size if config.has_pooler else None) or config.hidden_size
            self.head = linear(width, config.num_logits, config, dtype, rngs)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array,
        *,
        gates: Gates | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> BertOutput:
        attend = attention_mask.astype(bool)
        hidden_gate = _layer_gates(gates, 0).hidden
        embedded = self.embeddings(input_ids, token_type_ids, hidden=hidden_gate, rngs=rngs)
        hidden, scores = self.encoder(embedded, attend, gates=gates, rngs=rngs)
        logits = None
        if self.config.head == "masked-lm":
            logits = self.lm_head(hidden[-1], self.embeddings.word)
        elif self.config.head == "span":
            logits = self.head(hidden[-1]).astype(jnp.float32)
        elif self.config.num_logits:
            pooled = dropout(self._pool(hidden[-1], attend), self.config.hidden_dropout_prob, rngs)
            logits = self.head(pooled).astype(jnp.float32)
        return BertOutput(tuple(hidden), tuple(scores), logits)

    def _pool(self, last: Array, attend: Array) -> Array:
        if self.config.pooling == "cls":
            return jnp.tanh(self.pooler(last[:, 0]))
        weight = attend.astype(last.dtype)[..., None]
        return (last * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)


@functools.lru_cache(maxsize=32)
def split_config(config: BertConfig, dtype: str, remat: bool = False) -> tuple[Any, Params]:
    """The static graph of a model and the shapes of its parameters, without allocating any."""
    module = nnx.eval_shape(lambda: Bert(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module, nnx.Param)
    return graph, nnx.to_pure_dict(state)


def param_shapes(config: BertConfig) -> Params:
    """The tree of parameters with a `jax.ShapeDtypeStruct` for every leaf."""
    return split_config(config, "float32")[1]


@functools.partial(jax.jit, static_argnames=("config", "parts"))
def init_params(config: BertConfig, key: Array, *, parts: tuple[str, ...] | None = None) -> Params:
    """Random parameters: normal with `initializer_range`, biases zero, LayerNorm scales one.

    Args:
      config: sizes and head.
      key: random key.
      parts: only these of the top level, such as ("head",), with the values they have in the whole.
    """
    module = Bert(config, rngs=nnx.Rngs(params=key))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return params if parts is None else {name: params[name] for name in parts}


def make_apply(config: BertConfig, *, dtype: str = "float32", remat: bool = False) -> Callable[..., BertOutput]:
    """The forward pass as a pure function.

    Args:
      config: sizes and head.
      dtype: "float32" or "bfloat16", the type of activations and of what is multiplied, or "mixed", float32 activations
        and products of bfloat16, as TPUs make them of float32; sums are float32, parameters keep their type.
      remat: for the gradient, keep what goes into each layer and compute the rest again: less memory, more time.

    Returns:
      `apply(params, input_ids, attention_mask=None, token_type_ids=None, *, gates=None, dropout_key=None)`. Integer
      arrays [batch, seq]; attention_mask is 1 for real tokens, 0 for padding. `gates`: values in [0, 1] by the names
      of `kaprune_jax.models.layout.bert_layout`; a name that is absent is open. With a dropout key the model is in
      training mode, without one it is deterministic.
    """
    graph, _ = split_config(config, dtype, remat)

    def apply(
        params: Params,
        input_ids: Int[Array, "batch seq"],
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        gates: Gates | None = None,
        dropout_key: Array | None = None,
    ) -> BertOutput:
        model = nnx.merge(graph, params)
        rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
        input_ids = jnp.asarray(input_ids)
        mask = jnp.ones_like(input_ids) if attention_mask is None else jnp.asarray(attention_mask)
        types = jnp.zeros_like(input_ids) if token_type_ids is None else jnp.asarray(token_type_ids)
        return model(input_ids, mask, types, gates=gates, rngs=rngs)

    return apply


def make_fill(config: BertConfig, *, dtype: str = "float32") -> Callable[..., Float[Array, "batch vocab"]]:
    """What a masked-LM head says at one place of each text, as a pure function; it is not applied elsewhere.

    Args:
      config: with head "masked-lm".
      dtype: as for `make_apply`.

    Returns:
      `fill(params, input_ids, attention_mask, places)`: logits over the vocabulary at `places` [batch] of single
      texts [batch, seq].
    """
    graph, _ = split_config(config, dtype)

    def fill(
        params: Params,
        input_ids: Int[Array, "batch seq"],
        attention_mask: Array,
        places: Int[Array, " batch"],
    ) -> Float[Array, "batch vocab"]:
        model = nnx.merge(graph, params)
        embedded = model.embeddings(input_ids, jnp.zeros_like(input_ids), rngs=None)
        hidden, _ = model.encoder(embedded, attention_mask.astype(bool))
        at = jnp.take_along_axis(hidden[-1], places[:, None, None], axis=1)
        return model.lm_head(at, model.embeddings.word)[:, 0].astype(jnp.float32)

    return fill
