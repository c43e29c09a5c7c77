"""The masks of a model folder: which weights of each pruned matrix were kept, as packed bits."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kaprune_jax._errors import InputError
from kaprune_jax._reading import inside
from kaprune_jax._tree import path_string
from kaprune_jax._typing import Masks

MASKS = "masks.safetensors"


class Structure(NamedTuple):
    """What is left of a model, True where kept.

    Attributes:
      hidden: [hidden].
      heads: [layers, heads].
      units: [layers, units], of the feed-forward parts.
    """

    hidden: np.ndarray
    heads: np.ndarray
    units: np.ndarray


def save_masks(file: Path, masks: Masks) -> None:
    """Writes each mask as packed bits of its flattened [inputs, outputs] array, its shape in the metadata."""
    bits, shapes = {}, {"format": "np"}
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        name = path_string(path)
        bits[name] = np.packbits(np.asarray(mask).reshape(-1))
        shapes[name] = "x".join(map(str, mask.shape))
    save_file(bits, file, metadata=shapes)


def read_masks(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Path and mask [inputs, outputs] (True = kept) of each pruned matrix of a model; nothing where it has no masks.

    Raises:
      InputError: the file is damaged, or a mask has no shape or another one than its bits fill.
    """
    file = inside(folder, MASKS)
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = opened.metadata() or {}
            for path in sorted(opened.keys()):
                part = opened.get_slice(path)
                stored = str(part.get_dtype()), list(part.get_shape())
                rows, columns = _shape(shapes.get(path, "none"), stored, f"{file}: mask {path!r}")
                bits = np.unpackbits(opened.get_tensor(path), count=rows * columns)
                yield path, bits.astype(bool).reshape(rows, columns)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable file of masks ({error})") from None


def parse_shape(written: str, where: str) -> tuple[int, int]:
    """The shape of a matrix from a file's metadata, "384x1536".

    Raises:
      InputError: it is none; `where` says what it is of.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,9})x([1-9][0-9]{0,9})", written)
    if not found:
        raise InputError(f"{where} has shape {written!r}; ROWSxCOLUMNS, both at least 1, is needed")
    return int(found[1]), int(found[2])


def _shape(written: str, stored: tuple[str, list[int]], where: str) -> tuple[int, int]:
    """The shape of a mask, after a check that its tensor (type and shape) holds as many bits: nothing is unpacked."""
    rows, columns = parse_shape(written, where)
    if stored != ("U8", [-(-rows * columns // 8)]):
        raise InputError(
            f"{where} has shape {written}, but is stored as {stored[0]} {stored[1]}; its bits, packed as U8 "
            f"[{-(-rows * columns // 8)}], are needed"
        )
    return rows, columns


def structure_of(masks: Mapping[str, np.ndarray], heads: int) -> Structure:
    """Which whole structures the masks of a BERT encoder keep something of.

    Args:
      masks: by path, [inputs, outputs]; needed are those of the query and the first feed-forward matrix.
      heads: attention heads of a layer of the whole model, >= 1.

    Raises:
      ValueError: a layer lacks one of them, or their shapes do not go together; one short clause that says which.
    """
    layers = sum(path.endswith("/attention/query/kernel") for path in masks)
    hidden, found, units = [], [], []
    for layer in range(max(layers, 1)):
        parts = "attention/query", "ffn/up"
        query, up = (masks.get(f"encoder/layers/{layer}/{part}/kernel") for part in parts)
        if query is None or up is None:
            raise ValueError(f"there are no masks of layer {layer}")
        if query.shape[1] % heads or len(query) != len(up):
            raise ValueError(f"the masks of layer {layer} are {query.shape} and {up.shape}, of {heads} heads")
        found.append(query.any(axis=0).reshape(heads, -1).any(axis=1))
        units.append(up.any(axis=0))
        # A layer may have lost all heads or all units: the hidden dimensions are those that any matrix has.
        hidden.append(query.any(axis=1) | up.any(axis=1))
    if len({mask.shape for mask in hidden}) > 1 or len({mask.shape for mask in units}) > 1:
        raise ValueError("the masks of its layers differ in size")
    return Structure(np.logical_or.reduce(hidden), np.stack(found), np.stack(units))
