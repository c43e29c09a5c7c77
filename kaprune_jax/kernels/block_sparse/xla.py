"""Block-sparse product in plain XLA: gathers of input blocks and dense products, the CPU's path, portable everywhere.

Panels with about as many blocks as each other are one batched product, whose size is static. A product that runs often
has its panels grouped once, by `group`; each call then moves activations only.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kaprune_jax.kernels.block_sparse.epilogue import Epilogue, finish
from kaprune_jax.kernels.block_sparse.format import BlockPanels

_ALIKE = 0.75
"""Panels with so large a part of the blocks of the fullest one of a group are filled up to it: a product more
costs more than the zeros do."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupedPanels:
    """A packed matrix as a few batched products.

    Attributes:
      weights: for each group [members, bn, size * bk]; zeros where a member has fewer blocks. None where the size is 0.
      rows: for each group int32 [members, size], the input blocks, 0 there.
      members: for each group, its panels.
      shape: inputs and outputs.
      block: (bk, bn).
      stored: weights in blocks, what was filled up left out.
    """

    weights: tuple[Any, ...]
    rows: tuple[Any, ...]
    members: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    block: tuple[int, int] = dataclasses.field(metadata={"static": True})
    stored: int = dataclasses.field(metadata={"static": True})


def group(panels: BlockPanels) -> GroupedPanels:
    """The panels of a matrix in groups of about as many blocks."""
    (bk, bn), starts = panels.block, panels.starts
    groups: list[list[int]] = []
    for panel in panels.order.tolist():
        fullest = panels.counts[groups[-1][0]] if groups else -1
        if groups and panels.counts[panel] >= _ALIKE * fullest:
            groups[-1].append(panel)
        else:
            groups.append([panel])
    weights, rows = [], []
    for members in groups:
        members.sort()
        counts, size = np.array([panels.counts[panel] for panel in members]), max(panels.counts[p] for p in members)
        if not size:
            weights.append(None)
            rows.append(None)
            continue
        slots = np.arange(size)[None]
        there = slots < counts[:, None]
        places = np.where(there, starts[members][:, None] + slots, 0)
        chosen = jnp.where(there[:, :, None, None], panels.blocks[places], 0).transpose(0, 2, 1, 3)
        weights.append(chosen.reshape(len(members), bn, size * bk))
        rows.append(jnp.where(there, panels.rows[places], 0))
    return GroupedPanels(
        tuple(weights), tuple(rows), tuple(map(tuple, groups)), panels.shape, panels.block, panels.blocks.size
    )


def matmul(
    xt: Float[Array, "inputs tokens"], panels: BlockPanels | GroupedPanels, epilogue: Epilogue
) -> Float[Array, "outputs tokens"]:
    """act(W^T x + b) + r, features-major, accumulated in float32."""
    grouped = group(panels) if isinstance(panels, BlockPanels) else panels
    (bk, bn), tokens, blocks = grouped.block, xt.shape[1], -(-grouped.shape[0] // grouped.block[0])
    inputs = jnp.pad(xt, ((0, blocks * bk - xt.shape[0]), (0, 0))).reshape(blocks, bk, tokens)
    parts = []
    for members, weights, rows in zip(grouped.members, grouped.weights, grouped.rows, strict=True):
        if weights is None:
            parts.append(jnp.zeros((len(members), bn, tokens), jnp.float32))
            continue
        gathered = inputs[rows].reshape(len(members), weights.shape[2], tokens)
        options: dict[str, Any] = {"preferred_element_type": jnp.float32}
        parts.append(jax.lax.dot_general(weights.astype(xt.dtype), gathered, (((2,), (1,)), ((0,), (0,))), **options))
    order = np.concatenate([np.array(members) for members in grouped.members])
    product = parts[0] if len(parts) == 1 else jnp.concatenate(parts)[np.argsort(order)]
    product = product.reshape(len(order) * bn, tokens)[: grouped.shape[1]]
    return finish(product, *epilogue).astype(xt.dtype)
