"""Makes a model physically smaller: folds open gates into the weights and takes away what is closed."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.l0.finalize import alive
from kaprune_jax.l0.layout import Cut, Layout


def shrink(params: Params, values: Mapping[str, Any], layout: Layout) -> Params:
    """The parameters that are left, smaller, computing what the gated model computes.

    Args:
      params: of the whole model, nested dicts.
      values: gates in [0, 1]; 0 is gone, fractions are multiplied into the weights.
      layout: the model's gates and how parameters follow them.

    Returns:
      nested dicts of numpy arrays; a part of which nothing is left is not there.

    Raises:
      ValueError: a gate or a parameter does not have the layout's shape.
    """
    layout.check(values)
    gates = {name: np.asarray(value, np.float32) for name, value in values.items()}
    there = {axis.name: alive(gates, layout, axis.name) for axis in layout.axes}

    def of_layer(array: np.ndarray, layered: bool, layer: int | None) -> np.ndarray:
        return np.asarray(array[layer]) if layered and layer is not None else array

    def cut(path: str, leaf: Any, rule: Cut, layer: int | None) -> np.ndarray | None:
        array = np.asarray(leaf)
        kept = {name: of_layer(value, value.ndim > 1, layer) for name, value in there.items()}
        if rule.needs and not kept[rule.needs].any():
            return None
        repeats = []
        for dimension, axis in enumerate(rule.axes):
            length = array.shape[dimension]
            if axis is not None and length % len(kept[axis]):
                raise ValueError(
                    f"{path}: dimension {dimension} is {length}, no multiple of {len(kept[axis])} ({axis})"
                )
            repeats.append(1 if axis is None else length // len(kept[axis]))
        for name in rule.fold:
            if name in gates:
                value = of_layer(gates[name], layout.gate(name).layered, layer)
                array = array * _along(value, name, rule, repeats, array.ndim, layout)
        for dimension, axis in enumerate(rule.axes):
            if axis is not None:
                array = np.compress(np.repeat(kept[axis], repeats[dimension]), array, axis=dimension)
        return np.ascontiguousarray(array)

    result: dict[Any, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_string(keys)
        rule, layer = _find(path, layout)
        smaller = np.asarray(leaf) if rule is None else cut(path, leaf, rule, layer)
        if smaller is not None:
            _insert(result, [key.key for key in keys], smaller)
    return result


def _find(path: str, layout: Layout) -> tuple[Cut | None, int | None]:
    for rule in layout.cuts:
        if match := re.fullmatch(rule.path, path):
            number = match.groupdict().get("layer")
            return rule, None if number is None else int(number)
    return None, None


def _along(value: np.ndarray, name: str, rule: Cut, repeats: list[int], ndim: int, layout: Layout) -> np.ndarray:
    """A gate's values as they multiply a parameter: along the dimension that follows it, else one number."""
    if value.ndim == 0:
        return value
    dimension = next(d for d, axis in enumerate(rule.axes) if axis is not None and name in layout.axis(axis).gates)
    shape = [1] * ndim
    shape[dimension] = -1
    return np.repeat(value, repeats[dimension]).reshape(shape)


def _insert(tree: dict, keys: list[Any], value: np.ndarray) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
