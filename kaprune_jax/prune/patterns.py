"""What is removed as one piece: single weights, blocks, or N of every M."""

import dataclasses
import math
import re
from fractions import Fraction
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

_FORMS = "element, block-RxC (such as block-32x128), block-RxC-balanced, N:M (such as 2:4)"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A parsed pattern; its pieces are ranked by the sum of the scores in them, the magnitudes when pruning.

    Attributes:
      kind: "element"; "block", pieces of `rows` inputs by `columns` outputs; or "n:m", at most `rows` weights kept
        among every `columns` successive inputs of an output, the form sparse tensor cores take.
      balanced: of blocks: every stripe of `columns` outputs keeps as many as the others, give or take one, so that
        kernels with the same work for each stripe have nothing to fill up.
    """

    kind: Literal["element", "block", "n:m"]
    rows: int = 1
    columns: int = 1
    balanced: bool = False

    def __str__(self) -> str:
        if self.kind == "element":
            return "element"
        block = f"block-{self.rows}x{self.columns}{'-balanced' if self.balanced else ''}"
        return block if self.kind == "block" else f"{self.rows}:{self.columns}"

    @property
    def sparsity(self) -> float | None:
        """The fraction an N:M pattern removes; None where it is free."""
        return 1.0 - self.rows / self.columns if self.kind == "n:m" else None

    def check(self, shape: tuple[int, ...], path: str) -> None:
        """Raises ValueError, naming the matrix, where the pattern does not divide it."""
        if self.kind == "element":
            return
        if len(shape) != 2:
            raise ValueError(f"pattern {self}: {path} has shape {shape}; a matrix is needed")
        rows, columns = (self.rows, self.columns) if self.kind == "block" else (self.columns, 1)
        if shape[0] % rows or shape[1] % columns:
            raise ValueError(f"pattern {self} does not divide {path} of shape {shape[0]}x{shape[1]} (inputs x outputs)")

    def pieces(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many groups are ranked on their own, and how many pieces each group has."""
        size = math.prod(shape)
        if self.kind == "n:m":
            return size // self.columns, self.columns
        if self.balanced:
            return shape[1] // self.columns, shape[0] // self.rows
        return 1, size // (self.rows * self.columns)

    def kept(self, shape: tuple[int, ...], sparsity: float) -> int:
        """Pieces each group keeps at a sparsity: floor(n (1 - s)), and never under N in N:M; balanced, all groups."""
        if self.balanced:
            return keep_count(math.prod(self.pieces(shape)), sparsity)
        count = keep_count(self.pieces(shape)[1], sparsity)
        return max(count, self.rows) if self.kind == "n:m" else count

    def sums(self, scores: Float[Array, "..."]) -> Float[Array, "groups *pieces"]:
        """The scores summed over each piece, in float32; pieces keep the matrix's order of axes, and its shards."""
        scores = scores.astype(jnp.float32)
        if self.kind == "element":
            return scores[None]
        if self.kind == "block":
            inputs, outputs = scores.shape
            blocks = scores.reshape(inputs // self.rows, self.rows, outputs // self.columns, self.columns)
            sums = blocks.sum(axis=(1, 3))
            return sums.T if self.balanced else sums[None]
        return scores.T.reshape(-1, self.columns)

    def split(self, mask: Shaped[Array, "..."]) -> Shaped[Array, "groups *pieces"]:
        """One value of each piece of an array that is constant within pieces."""
        if self.kind == "element":
            return mask[None]
        if self.kind == "block":
            blocks = mask[:: self.rows, :: self.columns]
            return blocks.T if self.balanced else blocks[None]
        return mask.T.reshape(-1, self.columns)

    def spread(self, pieces: Shaped[Array, "groups *pieces"], shape: tuple[int, ...]) -> Shaped[Array, "..."]:
        """The array of the given shape with every piece's value in each of its places; inverse of `split`."""
        if self.kind == "element":
            return pieces.reshape(shape)
        inputs, outputs = shape
        if self.kind == "block":
            pieces = pieces.T if self.balanced else pieces
            grid = pieces.reshape(inputs // self.rows, 1, outputs // self.columns, 1)
            full = (inputs // self.rows, self.rows, outputs // self.columns, self.columns)
            return jnp.broadcast_to(grid, full).reshape(shape)
        return pieces.reshape(outputs, inputs).T


def parse_pattern(text: str) -> Pattern:
    """Reads "element", "block-RxC" (R inputs by C outputs), "block-RxC-balanced" or "N:M".

    Raises:
      ValueError: another text, a zero, or N >= M; the message lists what is allowed.
    """
    if text == "element":
        return Pattern("element")
    if block := re.fullmatch(r"block-(\d+)x(\d+)(-balanced)?", text):
        rows, columns = int(block[1]), int(block[2])
        if rows and columns:
            return Pattern("block", rows, columns, balanced=bool(block[3]))
    if ratio := re.fullmatch(r"(\d+):(\d+)", text):
        keep, group = int(ratio[1]), int(ratio[2])
        if keep >= group or not keep:
            raise ValueError(f"pattern {text!r}: N of N:M must be at least 1 and less than M; allowed: {_FORMS}")
        return Pattern("n:m", keep, group)
    raise ValueError(f"pattern {text!r} is unknown; allowed: {_FORMS}")


def keep_count(n: int, sparsity: float) -> int:
    """floor(n (1 - sparsity)) with the sparsity taken as the decimal it is written as: 0.9 of 1000 leaves 100."""
    return math.floor(n * (1 - Fraction(repr(float(sparsity)))))
