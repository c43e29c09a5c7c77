"""The training step as programs that are compiled once, on a mesh, and whose cost is known."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from kaprune_jax._typing import Params
from kaprune_jax.train.cost import StepCost, step_cost
from kaprune_jax.train.sharding import batch_shardings, replicated, shardings


class CompiledStep:
    """A training step on a mesh, compiled once for every shape of batch; its state is donated, and keeps its place.

    Attributes:
      costs: of each program, in the order of their first use.
      seconds: that compiling them took.
    """

    def __init__(
        self, step: Callable[..., Any], mesh: Mesh, *, on_compile: Callable[[StepCost], None] = lambda cost: None
    ):
        """Args:
        step: of `make_train_step` or `kaprune_jax.transfer.step.make_coupled_step`.
        mesh: states and teachers come as `kaprune_jax.train.sharding.place` puts them, batches as `place_batch` does.
        on_compile: told of every program's cost.
        """
        self.step, self.mesh, self.on_compile = step, mesh, on_compile
        self.costs: list[StepCost] = []
        self.seconds = 0.0
        self._programs: dict[Any, Any] = {}

    def __call__(self, state: Any, teacher_params: Params | None, batch: Mapping[str, Any]) -> Any:
        """One step: the new state, and its metrics."""
        shapes = jax.tree.structure(batch), tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._programs:
            began = time.perf_counter()
            self._programs[shapes] = self.lower(state, teacher_params, batch).compile()
            self.seconds += time.perf_counter() - began
            self.costs.append(step_cost(self._programs[shapes]))
            self.on_compile(self.costs[-1])
        return self._programs[shapes](state, teacher_params, batch)

    def lower(self, state: Any, teacher_params: Params | None, batch: Mapping[str, Any]) -> jax.stages.Lowered:
        """The program before it is compiled; `jax.ShapeDtypeStruct`s will do instead of arrays."""
        own, theirs = shardings(state, self.mesh), shardings(teacher_params, self.mesh)
        return jax.jit(
            self.step,
            donate_argnums=0,
            in_shardings=(own, theirs, batch_shardings(batch, self.mesh)),
            out_shardings=(own, replicated(self.mesh)),
        ).lower(state, teacher_params, batch)
