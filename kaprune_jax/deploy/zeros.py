"""Matrices with zeros in a smaller file: the values that are not zero, and a bit for each place.

A matrix [rows, columns] named N becomes N.values [values], in the order of its rows, and N.bits [rows,
ceil(columns / 8)], a set bit for each value, the first place in the highest bit; its shape is in the file's metadata.
Nothing is rounded: what is read is what was written, but for the sign of a zero.
"""

from collections.abc import Mapping

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import parse_shape

VALUES, BITS = ".values", ".bits"


def leave_out(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file, matrices that get smaller by it without their zeros, and the shapes of those.

    Example:
      >>> tensors, shapes = leave_out({"a": np.array([[0, 0, 0, 2.5]], np.float32), "b": np.ones((1, 4), np.float32)})
      >>> tensors["a.values"].tolist(), tensors["a.bits"].tolist(), sorted(tensors), shapes
      ([2.5], [[16]], ['a.bits', 'a.values', 'b'], {'a': '1x4'})
    """
    found, shapes = {}, {}
    for name, tensor in tensors.items():
        bits = np.packbits(tensor != 0, axis=-1) if tensor.ndim == 2 else tensor
        values = tensor[tensor != 0]
        if tensor.ndim != 2 or bits.nbytes + values.nbytes >= tensor.nbytes:
            found[name] = tensor
            continue
        found |= {name + VALUES: values, name + BITS: bits}
        shapes[name] = "x".join(map(str, tensor.shape))
    return found, shapes


def put_back(values: np.ndarray, bits: np.ndarray, shape: str, where: str) -> np.ndarray:
    """A matrix with its zeros.

    Args:
      values: [values].
      bits: [rows, ceil(columns / 8)].
      shape: from the metadata of the file, "384x1536".
      where: file and name, for messages.

    Raises:
      InputError: shape, bits and values do not go together.
    """
    rows, columns = parse_shape(shape, where)
    if bits.dtype != np.uint8 or bits.shape != (rows, -(-columns // 8)):
        raise InputError(f"{where} has shape {rows}x{columns}, which its bits, {bits.dtype} {list(bits.shape)}, do not")
    kept = np.unpackbits(bits, axis=1, count=columns).astype(bool)
    if values.shape != (kept.sum(),):
        raise InputError(f"{where} has {kept.sum()} set bits, but values of shape {list(values.shape)}")
    matrix = np.zeros((rows, columns), values.dtype)
    matrix[kept] = values
    return matrix
