"""The masks of a model folder: which weights of each pruned matrix were kept, as packed bits."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax._typing import Masks

MASKS = "masks.safetensors"


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
      InputError: the file is damaged, or a mask has no shape.
    """
    file = folder / MASKS
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = opened.metadata() or {}
            for path in sorted(opened.keys()):
                rows, columns = (int(part) for part in shapes[path].split("x"))
                bits = np.unpackbits(opened.get_tensor(path), count=rows * columns)
                yield path, bits.astype(bool).reshape(rows, columns)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{file}: not a readable file of masks ({error})") from None
