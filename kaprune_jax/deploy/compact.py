"""What zeros in a BERT layer make superfluous is taken out of it, exactly: the function stays the same.

* a unit whose incoming weights are all zero emits act(bias): what it adds behind the next matrix goes into that bias;
* the same for a value dimension of a head, since attention weights sum to one;
* a unit or value dimension that nothing reads goes;
* a key dimension without weights adds to a score what all keys get alike, which softmax does not see: it goes with its
  query dimension; so does a query dimension that is zero throughout.

Heads are filled up to the widest one that is left, and units are put in an order in which those that read the same
inputs are neighbours, so that blocks are found. All of it stays in here: saved models keep the order they have.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kaprune_jax._typing import Params
from kaprune_jax.models.config import BertConfig


class Linear(NamedTuple):
    """A linear layer.

    Attributes:
      kernel: [inputs, outputs].
      bias: [outputs].
    """

    kernel: np.ndarray
    bias: np.ndarray


class CompactLayer(NamedTuple):
    """What is left of a layer. Where a part is gone, the constant that it adds is left.

    Attributes:
      heads: attention heads.
      query_size: of the queries and keys of each head.
      value_size: of the values of each head.
      qkv: to all queries, then all keys, then all values, by head; queries have the scale of the scores in them.
      output: of the attention, to the hidden dimensions; None without heads.
      attended: [hidden], added in its place then.
      up: to the units; None without units.
      down: to the hidden dimensions.
      fed: [hidden], added in their place.
    """

    heads: int
    query_size: int
    value_size: int
    qkv: Linear | None
    output: Linear | None
    attended: np.ndarray | None
    up: Linear | None
    down: Linear | None
    fed: np.ndarray | None


def compact_layer(
    params: Params, config: BertConfig, index: int, *, act: Callable[[np.ndarray], np.ndarray], block: int = 32
) -> CompactLayer:
    """A layer without what its zeros make superfluous.

    Args:
      params: of the whole model, NumPy arrays.
      config: its configuration.
      index: of the layer, from 0.
      act: the activation function, on NumPy arrays.
      block: inputs that are read together, for the order of the units.
    """
    layer, shape = params["encoder"]["layers"][index], config.layer(index)
    nothing = np.zeros(config.hidden_size, np.float32)
    heads, query_size, value_size, qkv, output, attended = 0, 0, 0, None, None, nothing
    if shape.heads:
        heads, query_size, value_size, qkv, output = _attention(layer["attention"], len(shape.heads), config.head_size)
        attended = output.bias if not heads else None
        output = output if heads else None
    up = down = None
    fed = nothing
    if shape.ffn:
        up, down = _feed_forward(layer["ffn"], act, block)
        fed = None
        if not up.bias.size:
            up, down, fed = None, None, down.bias
    return CompactLayer(heads, query_size, value_size, qkv, output, attended, up, down, fed)


def _attention(params: Params, heads: int, size: int) -> tuple[int, int, int, Linear | None, Linear]:
    """Heads left, their two sizes, the joined projections, and the output with its bias."""

    def split(name: str) -> Linear:
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return Linear(kernel.reshape(-1, heads, size).transpose(1, 2, 0), bias.reshape(heads, size))

    query, key, value = (split(name) for name in ("query", "key", "value"))
    query = Linear(query.kernel * size**-0.5, query.bias * size**-0.5)
    out = params["output"]["kernel"].reshape(heads, size, -1)
    emits, read = value.kernel.any(axis=2), out.any(axis=2)
    constant = np.where(read & ~emits, value.bias, 0.0)
    bias = params["output"]["bias"] + np.einsum("hd,hdo->o", constant, out)
    values = emits & read
    matched = key.kernel.any(axis=2) & (query.kernel.any(axis=2) | (query.bias != 0))
    left = np.flatnonzero(values.any(axis=1))
    if not left.size:
        return 0, 0, 0, None, Linear(np.zeros((0, len(bias)), np.float32), bias)
    query_size, value_size = max(int(matched[left].sum(axis=1).max()), 1), int(values[left].sum(axis=1).max())

    def gather(part: np.ndarray, chosen: np.ndarray, width: int) -> np.ndarray:
        """Of each head that is left the chosen dimensions, filled up with zeros: [heads, width, ...]."""
        whole = np.zeros((len(left), width, *part.shape[2:]), np.float32)
        for row, head in enumerate(left):
            kept = part[head, chosen[head]]
            whole[row, : len(kept)] = kept
        return whole

    parts = [(query, matched, query_size), (key, matched, query_size), (value, values, value_size)]
    kernels = [gather(part.kernel, chosen, width).reshape(len(left) * width, -1).T for part, chosen, width in parts]
    biases = [gather(part.bias, chosen, width).reshape(-1) for part, chosen, width in parts]
    qkv = Linear(np.concatenate(kernels, axis=1), np.concatenate(biases))
    output = gather(out, values, value_size).reshape(len(left) * value_size, -1)
    return len(left), query_size, value_size, qkv, Linear(output, bias)


def _feed_forward(params: Params, act: Callable[[np.ndarray], np.ndarray], block: int) -> tuple[Linear, Linear]:
    up, down = (Linear(params[name]["kernel"], params[name]["bias"]) for name in ("up", "down"))
    emits, read = up.kernel.any(axis=0), down.kernel.any(axis=1)
    constant = np.where(read & ~emits, act(up.bias), 0.0)
    bias = down.bias + constant @ down.kernel
    left = np.flatnonzero(emits & read)
    signature = np.concatenate([_used(up.kernel.T[left], block), _used(down.kernel[left], 4 * block)], axis=1)
    left = left[np.lexsort(signature.T[::-1])]
    return Linear(up.kernel[:, left], up.bias[left]), Linear(down.kernel[left], bias)


def _used(rows: np.ndarray, width: int) -> np.ndarray:
    """Which stretches of so many columns each row has something in."""
    full = np.pad(rows, ((0, 0), (0, -rows.shape[1] % width)))
    return np.any(full.reshape(len(rows), full.shape[1] // width, width), axis=2)
