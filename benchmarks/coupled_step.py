"""A coupled step compiled in parts, as training runs it, and as one program: CPU seconds to compile, memory, time.

    python benchmarks/coupled_step.py --shape minilm

Two tasks that share weights and gates, batches of two lengths of each in all four pairs; then steps of both kinds in
turn in one process, with the longest pair: medians, and the ratio of each round.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
import optax

import experiments  # noqa: F401 (keeps freed memory, as training runs do)
import kaprune_jax as kp
from experiments.config.settings import Settings
from experiments.coupling.optimizers import frozen_of, gated_optimizer
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.train.program import CompiledStep
from kaprune_jax.train.sharding import make_mesh, place, place_batch
from kaprune_jax.train.step import init_state
from kaprune_jax.transfer.coupling import Constraint, Task
from kaprune_jax.transfer.sharing import make_store
from kaprune_jax.transfer.step import make_coupled_step
from shapes import LEARNING_RATE, SHAPES, make_batch, make_config, make_parser, make_parts, timed

TASKS = ("target", "auxiliary")


def build(shape: str, batch: int, lengths: tuple[int, int]):
    """By kind: the compiled step, CPU seconds to compile it for all pairs of lengths, and one that takes a step."""
    sizes, mesh = SHAPES[shape], make_mesh("data=1")
    config = make_config(sizes)
    apply, layout = make_apply(config), kp.bert_layout(config)
    teachers = place({name: init_params(config, jax.random.key(1)) for name in TASKS}, mesh)
    settings = dataclasses.replace(Settings(), method="cofi", gate_learning_rate=0.1, dual_learning_rate=1.0)
    tx = optax.with_extra_args_support(gated_optimizer(settings, lambda count: LEARNING_RATE, TASKS[0]))
    store = make_store(dict.fromkeys(TASKS, make_parts(config)), share="both", target=TASKS[0])
    tasks = dict.fromkeys(TASKS, Task(apply, kp.cofi_loss(), apply))
    constraint = Constraint(layout, 0.95, 0, 40)
    step = make_coupled_step(tasks, TASKS[0], tx, constraint=constraint, frozen=frozen_of(settings))

    def batches(*each: int):
        rows = {
            name: make_batch(batch, length, sizes.vocab, 0) | {"labels": np.zeros(batch, np.int32)}
            for name, length in zip(TASKS, each, strict=True)
        }
        return place_batch(rows, mesh)

    found = {}
    for kind, function in {"in parts": step, "as one": step.__call__}.items():
        program, state = CompiledStep(function, mesh), place(init_state(store, tx, jax.random.key(2)), mesh)
        began = time.process_time()
        for mine in lengths:
            for other in lengths:
                program.compile(state, teachers, batches(mine, other))
        seconds = time.process_time() - began
        found[kind] = program, seconds, timed(program, state, teachers, batches(lengths[-1], lengths[-1]))
    return found


def main() -> None:
    """Command line."""
    arguments = make_parser(__doc__, shape="minilm", rounds=9).parse_args()
    lengths = (arguments.length // 2, arguments.length)
    found = build(arguments.shape, arguments.batch, lengths)
    takers = [take for _, _, take in found.values()]
    for _ in range(2):
        [take() for take in takers]
    times = [[take() for take in takers] for _ in range(arguments.rounds)]
    ratios = sorted(one / other for one, other in times)
    print(f"{arguments.shape}  batch {arguments.batch}  lengths {lengths}  jax {jax.__version__}")
    for (kind, (program, seconds, _)), values in zip(found.items(), zip(*times, strict=True), strict=True):
        cost = max(program.costs, key=lambda cost: cost.peak)
        print(
            f"{kind:9s} {seconds:.0f} CPU s to compile, peak {cost.peak / 1e6:.0f} MB, "
            f"{statistics.median(values):.3f} s a step ({min(values):.3f} to {max(values):.3f})"
        )
    print(f"ratio of steps {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
