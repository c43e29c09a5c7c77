"""The training step as programs that are compiled once, on a mesh, and whose cost is known."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from kaprune_jax._typing import Params
from kaprune_jax.train.cost import StepCost, cost_of_parts, step_cost
from kaprune_jax.train.sharding import batch_shardings, shardings
from kaprune_jax.train.turns import in_turn

Run = Callable[..., Any]
"""`run(part, *arguments, donate=False)` calls a part of a step, a function of arrays that is the same object in every
step; with `donate` the memory of its first argument is given away."""


class StepInParts(NamedTuple):
    """A training step that may be compiled as several programs; called, it is a function like any other.

    Attributes:
      function: `function(run, state, teacher_params, batch) -> (state, metrics)`. Between its calls of `run` it only
        hands on; the last of them gives the result.
    """

    function: Callable[..., Any]

    def __call__(self, state: Any, teacher_params: Any, batch: Mapping[str, Any]) -> Any:
        """One step, its parts as they are."""
        return self.function(lambda part, *arguments, donate=False: part(*arguments), state, teacher_params, batch)


class CompiledStep:
    """A training step on a mesh, compiled once for every shape of batch; its state is donated, and keeps its place.

    Attributes:
      costs: of a step with each shape of batch, in the order of their first use.
      seconds: that compiling took.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        mesh: Mesh,
        *,
        on_compile: Callable[[StepCost, int], None] = lambda cost, programs: None,
    ):
        """Args:
        step: of `make_train_step` or `kaprune_jax.transfer.step.make_coupled_step`.
        mesh: states and teachers come as `kaprune_jax.train.sharding.place` puts them, batches as `place_batch` does.
        on_compile: told of the cost of a step with another shape of batch, and how many programs were compiled for it.
        """
        self.step = step if isinstance(step, StepInParts) else StepInParts(_in_one(step))
        self.mesh, self.on_compile = mesh, on_compile
        self.costs: list[StepCost] = []
        self.seconds = 0.0
        self._programs: dict[Any, dict[Callable[..., Any], Any]] = {}  # by shapes of a batch, and part of the step
        self._compiled: dict[Any, tuple[Any, StepCost]] = {}  # by part, and shapes of its arguments

    def __call__(self, state: Any, teacher_params: Params | None, batch: Mapping[str, Any]) -> Any:
        """One step: the new state, and its metrics."""
        programs = self._programs.get(shapes := _shapes(batch))
        if programs is None:
            began = time.perf_counter()
            programs = self._programs[shapes] = self.compile(state, teacher_params, batch)
            self.seconds += time.perf_counter() - began

        def run(part: Callable[..., Any], *arguments: Any, donate: bool = False) -> Any:
            return programs[part](*arguments)

        return self.step.function(run, state, teacher_params, batch)

    def compile(self, state: Any, teacher_params: Params | None, batch: Mapping[str, Any]) -> dict[Any, Any]:
        """The programs of a step by part, without running it; `jax.ShapeDtypeStruct`s will do instead of arrays."""
        programs, costs, fresh = {}, [], 0

        def compile_part(part: Callable[..., Any], *arguments: Any, donate: bool = False) -> Any:
            nonlocal fresh
            key = part, _shapes(arguments)
            result = jax.eval_shape(part, *arguments)
            result = _placed(result, shardings(result, self.mesh))
            if key not in self._compiled:
                places = jax.tree.map(lambda leaf: leaf.sharding, result)
                jitted = jax.jit(part, donate_argnums=0 if donate else (), out_shardings=places)
                compiled = jitted.lower(*arguments).compile()
                self._compiled[key] = in_turn(compiled, self.mesh), step_cost(compiled, devices=self.mesh.size)
                fresh += 1
            programs[part], cost = self._compiled[key]
            costs.append(cost)
            return result

        held = (
            _placed(state, shardings(state, self.mesh)),
            _placed(teacher_params, shardings(teacher_params, self.mesh)),
            _placed(batch, batch_shardings(batch, self.mesh)),
        )
        self.step.function(compile_part, *held)
        self.costs.append(cost_of_parts(costs, _bytes(held)))
        self.on_compile(self.costs[-1], fresh)
        return programs


def _in_one(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that is one program."""
    return lambda run, *arguments: run(step, *arguments, donate=True)


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaf.shape for leaf in leaves)


def _placed(tree: Any, places: Any) -> Any:
    """Descriptions of arrays that lie in these places."""
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)


def _bytes(tree: Any) -> int:
    """Of such arrays, on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
