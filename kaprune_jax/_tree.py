"""Paths of leaves in a pytree, and selection of leaves by path."""

import re
from typing import Any

import jax

from kaprune_jax._typing import Params, Predicate


def path_string(path: tuple[Any, ...]) -> str:
    """A key path as text, "encoder/layers/0/ffn/up/kernel"; without the "value" that those of Flax NNX end in."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def select(params: Params, which: str | Predicate) -> list[tuple[str, Any]]:
    """The leaves that a pattern or predicate chooses, as (path, leaf) in tree order.

    Args:
      params: any pytree of arrays.
      which: a regular expression that must match the whole path, or a function of path and leaf.

    Raises:
      ValueError: nothing is chosen; the message names some of the paths there are.
    """
    leaves = [(path_string(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    if isinstance(which, str):
        pattern = re.compile(which)
        chosen = [(path, leaf) for path, leaf in leaves if pattern.fullmatch(path)]
    else:
        chosen = [(path, leaf) for path, leaf in leaves if which(path, leaf)]
    if not chosen:
        some = ", ".join(path for path, _ in leaves[:5])
        raise ValueError(f"prunable={which!r} matches no parameter; the tree has {len(leaves)} leaves, such as {some}")
    return chosen
