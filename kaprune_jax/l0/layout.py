"""Which gates a model has, what they multiply, and what each piece costs: all that this package knows of a model.

Another architecture is another `Layout`; see `kaprune_jax.models.layout` for BERT's.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Gates = Mapping[str, Float[Array | np.ndarray, "..."]]
"""Gates by name: log α, sampled values or probabilities. A name of the layout that is absent is a gate that is open."""


class Gate(NamedTuple):
    """A family of gates.

    Attributes:
      name: "heads".
      shape: (layers, heads); per layer first where `layered`.
      layered: whether each layer has its own.
    """

    name: str
    shape: tuple[int, ...]
    layered: bool

    @property
    def size(self) -> int:
        """How many gates these are."""
        return math.prod(self.shape)


class Axis(NamedTuple):
    """A dimension of the model that can shrink: an index is there where all its gates are open.

    Attributes:
      name: "head".
      gates: names of the gates that multiply, ("attention", "heads"); the last has one for each index.
    """

    name: str
    gates: tuple[str, ...]


class Product(NamedTuple):
    """Parameters that are there where one index of each axis is: `cost` of them for each combination."""

    axes: tuple[str, ...]
    cost: int


class Cut(NamedTuple):
    """How one parameter shrinks.

    Attributes:
      path: regular expression of the whole path; its group "layer" is the number of the layer.
      axes: the axis that each dimension follows, or None. A dimension may hold several values for each index.
      fold: gates whose values are multiplied into the parameter.
      needs: an axis without which the parameter goes as a whole.
    """

    path: str
    axes: tuple[str | None, ...]
    fold: tuple[str, ...] = ()
    needs: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The gates of a model.

    Attributes:
      gates: every family.
      axes: what they open and close.
      products: the matrices that sparsity is counted in.
      cuts: how parameters shrink, the first that matches a path counting; others stay whole.
    """

    gates: tuple[Gate, ...]
    axes: tuple[Axis, ...]
    products: tuple[Product, ...]
    cuts: tuple[Cut, ...]

    def gate(self, name: str) -> Gate:
        """The family of a name.

        Raises:
          ValueError: there is none.
        """
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise ValueError(f"gates {name!r}: allowed are {', '.join(gate.name for gate in self.gates)}")

    def axis(self, name: str) -> Axis:
        """The axis of a name."""
        return next(axis for axis in self.axes if axis.name == name)

    def scores(self, values: Gates, axis: str) -> Float[Array, "..."]:
        """The product of an axis's gates, [layers, indices] or [indices].

        Probabilities give the probability that an index is there, gate values what it is multiplied with.
        """
        families = [self.gate(name) for name in self.axis(axis).gates]
        shape = families[-1].shape
        product = jnp.ones(shape)
        for family in families:
            value = values.get(family.name)
            if value is not None:
                product = product * jnp.broadcast_to(
                    value.reshape(family.shape + (1,) * (len(shape) - value.ndim)), shape
                )
        return product

    def size(self, values: Gates) -> Float[Array, ""]:
        """Σ over products of cost times what is there: of probabilities the expected number of parameters.

        Gates of different families, and those of one axis, are independent, so expectations multiply.
        """
        self.check(values)
        total = jnp.float32(0.0)
        for product in self.products:
            there = [jnp.sum(self.scores(values, axis), axis=-1) for axis in product.axes]  # () or (layers,)
            total = total + product.cost * jnp.sum(math.prod(there[1:], start=there[0]))
        return total

    @property
    def full_size(self) -> int:
        """Parameters with every gate open."""
        total = 0
        for product in self.products:
            families = [self.gate(self.axis(axis).gates[-1]) for axis in product.axes]
            layers = {family.shape[0] for family in families if family.layered}
            total += product.cost * math.prod([family.shape[-1] for family in families]) * max(layers, default=1)
        return total

    def check(self, gates: Gates) -> None:
        """Whether names and shapes are this layout's.

        Raises:
          ValueError: they are not; the message names the first that differs.
        """
        for name, value in gates.items():
            if value.shape != self.gate(name).shape:
                raise ValueError(f"gates {name!r}: shape {value.shape}; the layout has {self.gate(name).shape}")

    def smallest_size(self, enabled: Sequence[str]) -> int:
        """Parameters of the smallest model with a path through it that these gates leave: one of their pieces."""
        sizes = []
        for open_axes in [(), *(product.axes for product in self.products)]:
            values = {name: np.zeros(self.gate(name).shape, np.float32) for name in enabled}
            for name in (name for axis in open_axes for name in self.axis(axis).gates if name in values):
                values[name].flat[0] = 1.0
            sizes.append(round(float(self.size(values))))
        return min(size for size in sizes if size > 0)

    def largest_sparsity(self, enabled: Sequence[str], *, closed: float = 0.0) -> float:
        """The sparsity with every enabled gate closed, or open with probability `closed`."""
        values = {name: jnp.full(self.gate(name).shape, closed) for name in enabled}
        return 1.0 - float(self.size(values)) / self.full_size
