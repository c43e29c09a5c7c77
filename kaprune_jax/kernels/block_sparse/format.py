"""`BlockPanels`: a block-sparse matrix, stored as the blocks that are left, by panels of outputs.

A weight [inputs, outputs] is cut into blocks of bk inputs by bn outputs. A panel is one stripe of bn outputs; it has
the list of input blocks it uses, so an input tile is fetched once for a whole panel, and matrix units get products of
bn outputs at a time.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = (32, 128)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockPanels:
    """A packed matrix; arrays are data, everything else is static, so jit compiles for one structure.

    Attributes:
      blocks: [nnz, bn, bk], the blocks transposed, sorted by panel, then by input block.
      rows: int32 [nnz], the input block of each, ascending within a panel.
      counts: how many blocks each panel has, [outputs / bn] of them.
      shape: inputs and outputs before they were filled up to whole blocks.
      block: (bk, bn).
    """

    blocks: Any
    rows: Any
    counts: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    block: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def starts(self) -> np.ndarray:
        """int32 [panels + 1]: panel p has the blocks from starts[p] to starts[p + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int32)]).astype(np.int32)

    @property
    def order(self) -> np.ndarray:
        """int32 [panels], panels by falling count: the long ones are begun first."""
        return np.argsort(-np.asarray(self.counts, np.int32), kind="stable").astype(np.int32)

    @property
    def input_blocks(self) -> int:
        """Blocks along the inputs, the last one filled up with zeros."""
        return -(-self.shape[0] // self.block[0])

    @property
    def density(self) -> float:
        """The fraction of blocks that are stored, in [0, 1]."""
        return sum(self.counts) / (self.input_blocks * len(self.counts))

    @property
    def most(self) -> int:
        """Blocks in the fullest panel."""
        return max(self.counts)


def pack(weight: Any, mask: Any = None, *, block: tuple[int, int] = BLOCK, dtype: Any = None) -> BlockPanels:
    """Packs a matrix on the host: blocks without a kept weight are left out.

    Args:
      weight: [inputs, outputs].
      mask: [inputs, outputs], True where kept; by default where the weight is not zero. A kept weight that happens to
        be zero keeps its block.
      block: (bk, bn), inputs and outputs of a block, each >= 1; kernels on accelerators want multiples of 16 and 128.
      dtype: of the stored blocks; by default the weight's, or what JAX makes of it.

    Raises:
      ValueError: not a matrix, a mask of another shape, a weight that is not zero where the mask says removed, or a
        block size below 1.
    """
    weight = np.asarray(weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight of shape {weight.shape}: a matrix [inputs, outputs] with both at least 1 is needed")
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block={block}: (inputs, outputs) of a block, each at least 1, are needed")
    kept = weight != 0 if mask is None else np.asarray(mask)
    if kept.shape != weight.shape or kept.dtype != np.bool_:
        raise ValueError(f"mask {kept.dtype}{kept.shape} for a weight of shape {weight.shape}: booleans of that shape")
    if mask is not None and (stray := np.argwhere(~kept & (weight != 0))).size:
        row, column = stray[0].tolist()
        raise ValueError(
            f"mask and weight disagree in {len(stray)} places: weight[{row}, {column}] = {weight[row, column]} is not "
            "zero, and the mask says it is removed"
        )
    bk, bn = block
    tiles, used = _tiles(weight, bk, bn), _tiles(kept, bk, bn).any(axis=(2, 3))
    panels, rows = np.nonzero(used)
    counts = tuple(used.sum(axis=1).tolist())
    blocks = np.ascontiguousarray(tiles[panels, rows].transpose(0, 2, 1))
    blocks = jnp.asarray(blocks) if dtype is None else jnp.asarray(blocks, dtype)
    return BlockPanels(blocks, jnp.asarray(rows, jnp.int32), counts, (weight.shape[0], weight.shape[1]), (bk, bn))


def unpack(panels: BlockPanels) -> jax.Array:
    """The dense matrix [inputs, outputs], zeros where no block is stored."""
    bk, bn = panels.block
    count, across = panels.input_blocks, len(panels.counts)
    place = np.repeat(np.arange(across), panels.counts)
    grid = jnp.zeros((across, count, bn, bk), panels.blocks.dtype).at[place, panels.rows].set(panels.blocks)
    return grid.transpose(1, 3, 0, 2).reshape(count * bk, across * bn)[: panels.shape[0], : panels.shape[1]]


def concat_panels(*parts: BlockPanels) -> BlockPanels:
    """Several matrices over the same inputs as one, outputs side by side: query, key and value in one product.

    Raises:
      ValueError: inputs, blocks or types differ, or the outputs of any but the last do not fill their panels.
    """
    if not parts:
        raise ValueError("concat_panels() needs at least one matrix")
    first = parts[0]
    for part in parts:
        if (part.shape[0], part.block, part.blocks.dtype) != (first.shape[0], first.block, first.blocks.dtype):
            raise ValueError(
                f"matrices of {part.shape[0]} inputs, block {part.block}, {part.blocks.dtype} and of {first.shape[0]}, "
                f"{first.block}, {first.blocks.dtype} cannot be joined"
            )
        if part is not parts[-1] and part.shape[1] % part.block[1]:
            raise ValueError(f"{part.shape[1]} outputs do not fill panels of {part.block[1]}; only the last may")
    return BlockPanels(
        jnp.concatenate([part.blocks for part in parts]),
        jnp.concatenate([part.rows for part in parts]),
        tuple(count for part in parts for count in part.counts),
        (first.shape[0], sum(part.shape[1] for part in parts)),
        first.block,
    )


def ell(panels: BlockPanels) -> tuple[jax.Array, jax.Array]:
    """Every panel with as many blocks as the fullest, for kernels whose trip count is static.

    Returns:
      [panels, bn, most * bk], zeros where a panel has fewer; and int32 [panels, most], the input blocks, 0 there.
    """
    (bk, bn), most, across = panels.block, max(panels.most, 1), len(panels.counts)
    place, slot = _slots(panels.counts)
    blocks = jnp.zeros((across, most, bn, bk), panels.blocks.dtype).at[place, slot].set(panels.blocks)
    rows = jnp.zeros((across, most), jnp.int32).at[place, slot].set(panels.rows)
    return blocks.transpose(0, 2, 1, 3).reshape(across, bn, most * bk), rows


def fill(array: jax.Array, rows: int, tile: int) -> jax.Array:
    """A matrix filled up with zeros to so many rows and to whole tiles of columns, as kernels want it."""
    return jnp.pad(array, ((0, rows - array.shape[0]), (0, -array.shape[1] % tile)))


@functools.lru_cache(maxsize=256)
def _slots(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Panel of every stored block, and its place within the panel."""
    place = np.repeat(np.arange(len(counts)), counts)
    slot = np.concatenate([np.arange(count) for count in counts]) if place.size else np.zeros(0, np.int64)
    return place, slot


def _tiles(matrix: np.ndarray, bk: int, bn: int) -> np.ndarray:
    """[panels, input blocks, bk, bn], filled up with zeros."""
    inputs, outputs = matrix.shape
    full = np.pad(matrix, ((0, -inputs % bk), (0, -outputs % bn)))
    return full.reshape(full.shape[0] // bk, bk, full.shape[1] // bn, bn).transpose(2, 0, 1, 3)
