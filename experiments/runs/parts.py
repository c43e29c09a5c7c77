"""The weights and gates of a run that ends before its model is made smaller: what another task's run starts from."""

import os
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.train.processes import on_first

PARTS = "parts.safetensors"


def write_parts(folder: Path, parts: Params) -> None:
    """Writes them whole or not at all; with them the run is finished, and its folder may be read by several at once.

    Args:
      folder: the run folder.
      parts: any pytree of arrays, on the host.
    """
    partial = folder / f".{PARTS}.partial"
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(parts)}

    def write() -> None:
        save_file({path: np.asarray(leaf, order="C") for path, leaf in leaves.items()}, partial)
        os.replace(partial, folder / PARTS)

    on_first(write)


def read_parts(folder: Path, like: Params) -> Params | None:
    """The parts of a finished run, or None of another.

    Args:
      folder: the run folder.
      like: a tree of the same structure.

    Raises:
      InputError: the file is damaged, or of another model.
    """
    file = folder / PARTS
    if not on_first(file.is_file):
        return None
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error}); without it the run goes on from its checkpoint") from None
    leaves = jax.tree_util.tree_leaves_with_path(like)
    if {path_string(path): np.shape(leaf) for path, leaf in leaves} != {path: x.shape for path, x in found.items()}:
        raise InputError(f"{file}: is not of this model; without it the run goes on from its checkpoint")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: found[path_string(path)], like)
