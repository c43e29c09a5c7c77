"""What an encoder must compute and move, counted from its shapes; and how fast this machine does either at best."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kaprune_jax._typing import Params
from kaprune_jax.deploy.packed import PackedLayer, PackedLinear
from kaprune_jax.kernels.block_sparse.format import BlockPanels
from kaprune_jax.models.config import BertConfig


class Cost(NamedTuple):
    """Of one forward pass, or one part of it.

    Attributes:
      flops: multiplications and additions of the products.
      bytes: of weights and activations read and written, each product and each norm by itself.
    """

    flops: float
    bytes: float

    def __add__(self, other: tuple) -> "Cost":
        return Cost(self.flops + other[0], self.bytes + other[1])


class Peaks(NamedTuple):
    """What this machine does at best, counted.

    Attributes:
      flops: a second, of a large float32 product.
      bytes: a second, of a large copy.
      bfloat16: FLOPs a second of a large product of bfloat16 summed in float32.
    """

    flops: float
    bytes: float
    bfloat16: float

    def seconds(self, parts: list[Cost], dtype: str = "float32") -> float:
        """The least time for parts that run one after the other, each bound by its products or its traffic."""
        flops = self.bfloat16 if dtype == "bfloat16" else self.flops
        return sum(max(part.flops / flops, part.bytes / self.bytes) for part in parts)


def linear_cost(inputs: int, outputs: int, stored: int, tokens: int, itemsize: int = 4) -> Cost:
    """A product with a matrix of which so many weights are stored."""
    return Cost(2.0 * stored * tokens, itemsize * (stored + (inputs + outputs) * tokens))


def dense_costs(config: BertConfig, batch: int, length: int, itemsize: int = 4) -> list[Cost]:
    """The parts of a dense or shrunk encoder; embeddings and head are left out."""
    parts, hidden, tokens = [], config.hidden_size, batch * length
    for shape in map(config.layer, range(config.num_hidden_layers)):
        width = len(shape.heads) * config.head_size
        parts += [linear_cost(hidden, width, hidden * width, tokens, itemsize)] * 4 if width else []
        parts.append(_scores(len(shape.heads), config.head_size, config.head_size, batch, length, itemsize))
        parts += [linear_cost(hidden, shape.ffn, hidden * shape.ffn, tokens, itemsize)] * 2 if shape.ffn else []
        parts += [_norm(hidden, tokens, itemsize)] * 2
    return parts


def packed_costs(weights: Params, batch: int, length: int, itemsize: int = 4) -> list[Cost]:
    """The parts of what `pack_model` gives."""
    parts, tokens = [], batch * length
    for layer in weights["layers"]:
        assert isinstance(layer, PackedLayer)
        for part in (layer.qkv, layer.output, layer.up, layer.down):
            parts += [] if part is None else [_packed_linear(part, tokens, itemsize)]
        if layer.qkv is not None:
            parts.append(_scores(layer.heads, layer.query_size, layer.value_size, batch, length, itemsize))
        parts += [_norm(layer.ffn_norm["scale"].size, tokens, itemsize)] * 2
    return parts


def total(parts: list[Cost]) -> Cost:
    """The sum."""
    return sum(parts, Cost(0.0, 0.0))


def probe_peaks(*, size: int = 2048, megabytes: int = 256, calls: int = 5) -> Peaks:
    """Times square products of both types and a copy; the best of some calls of each."""
    square = jnp.ones((size, size), jnp.float32)
    long = jnp.ones((megabytes << 18,), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    copy = jax.jit(lambda a: a + 1.0)

    def best(function, array) -> float:
        jax.block_until_ready(function(array))
        seconds = []
        for _ in range(calls):
            began = time.perf_counter()
            jax.block_until_ready(function(array))
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    wide, short = (2.0 * size**3 / best(product, square.astype(dtype)) for dtype in ("float32", "bfloat16"))
    return Peaks(wide, 2.0 * long.nbytes / best(copy, long), short)


def _packed_linear(part: PackedLinear, tokens: int, itemsize: int) -> Cost:
    if isinstance(part.kernel, BlockPanels):
        return linear_cost(*part.kernel.shape, part.kernel.blocks.size, tokens, itemsize)
    outputs, inputs = part.kernel.shape
    return linear_cost(inputs, outputs, part.kernel.size, tokens, itemsize)


def _scores(heads: int, query: int, value: int, batch: int, length: int, itemsize: int) -> Cost:
    """Scores and their use: both products, the scores written and read."""
    tokens, scores = batch * length, heads * batch * length * length
    return Cost(2.0 * scores * (query + value), itemsize * (2 * scores + heads * tokens * 2 * (query + value)))


def _norm(hidden: int, tokens: int, itemsize: int) -> Cost:
    return Cost(8.0 * hidden * tokens, itemsize * 2 * hidden * tokens)
