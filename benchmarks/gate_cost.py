"""What gates add to a training step: the same step and loss (CoFi's) with every gate, and without any.

    python benchmarks/gate_cost.py --shape minilm

Both are timed in turn in one process; medians, and the ratio of each round. Embeddings are not trained in either.
"""

import dataclasses
import statistics

import jax
import numpy as np
import optax

import experiments  # noqa: F401 (keeps freed memory, as training runs do)
import kaprune_jax as kp
from experiments.config.settings import Settings
from experiments.coupling.optimizers import gated_optimizer
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.train.cost import StepCost
from kaprune_jax.train.program import CompiledStep
from kaprune_jax.train.sharding import make_mesh, place, place_batch
from kaprune_jax.train.step import init_state
from kaprune_jax.transfer.coupling import Constraint, Task
from kaprune_jax.transfer.sharing import make_store
from kaprune_jax.transfer.step import make_coupled_step
from shapes import LEARNING_RATE, SHAPES, make_batch, make_config, make_parser, make_parts, timed


def build(shape: str, batch: int, length: int):
    """Two functions that take a step and return its seconds, without and with gates; and how many programs each has."""
    sizes = SHAPES[shape]
    config = make_config(sizes)
    apply, layout = make_apply(config), kp.bert_layout(config)
    teacher = {"task": init_params(config, jax.random.key(1))}
    data = {"task": make_batch(batch, length, sizes.vocab, 0) | {"labels": np.zeros(batch, np.int32)}}
    mesh = make_mesh("data=1")
    teacher, data = place(teacher, mesh), place_batch(data, mesh)
    settings = dataclasses.replace(Settings(), method="cofi", gate_learning_rate=0.1, dual_learning_rate=1.0)
    tx = optax.with_extra_args_support(gated_optimizer(settings, lambda count: LEARNING_RATE, "task"))
    compiled = {"without gates": 0, "with gates": 0}

    def stepper(name: str, constraint: Constraint | None):
        state = init_state(
            make_store({"task": make_parts(config)}, share="nothing", target="task"), tx, jax.random.key(2)
        )
        task = Task(apply, kp.cofi_loss(), apply)
        step = make_coupled_step({"task": task}, "task", tx, constraint=constraint)

        def count(cost: StepCost, programs: int) -> None:
            compiled[name] += programs

        return timed(CompiledStep(step, mesh, on_compile=count), place(state, mesh), teacher, data)

    constraint = Constraint(layout, 0.95, 0, 40)  # rises in every step: nothing may be compiled again
    return stepper("without gates", None), stepper("with gates", constraint), compiled


def main() -> None:
    """Command line."""
    arguments = make_parser(__doc__, shape="minilm", rounds=9).parse_args()
    without, gated, compiled = build(arguments.shape, arguments.batch, arguments.length)
    for _ in range(2):
        without(), gated()
    times = [(without(), gated()) for _ in range(arguments.rounds)]
    ratios = sorted(one / other for other, one in times)
    print(f"{arguments.shape}  batch {arguments.batch}  length {arguments.length}  jax {jax.__version__}")
    for name, values in zip(compiled, zip(*times, strict=True), strict=True):
        print(f"{name:14s} {statistics.median(values):.3f} s  ({min(values):.3f} to {max(values):.3f})")
    print(f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(f"programs compiled: {', '.join(f'{name} {count}' for name, count in compiled.items())}")


if __name__ == "__main__":
    main()
