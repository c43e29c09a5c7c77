"""Type aliases shared by every part of the package."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

Params = Any
"""A pytree of floating-point arrays; in this package's models a nested dict."""

Masks = Any
"""The tree of the parameters with boolean leaves, and None where a leaf is never pruned."""

Predicate = Callable[[str, Array], bool]
"""Decides from the path ("encoder/layers/0/ffn/up/kernel") and the array."""
