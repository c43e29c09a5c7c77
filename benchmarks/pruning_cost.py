"""What pruning adds to a run: the training step without it, with masks in place, and with a mask update.

    python benchmarks/pruning_cost.py --shape bert-base

The three are timed in turn in one process, on one state, medians are taken, and the cost over a run of `--steps` steps
with `--updates` mask updates is added up. Student and teacher, SparseBERT's loss (Xu et al., 2021, arXiv:2104.08682).
"""

import statistics

import jax
import numpy as np
import optax

import experiments  # noqa: F401 (keeps freed memory, as training runs do)
import kaprune_jax as kp
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.train.optimizer import adamw
from kaprune_jax.train.step import init_state, make_train_step
from shapes import LEARNING_RATE, SHAPES, SPARSITY, make_batch, make_config, make_parser, timed


def build(shape: str, batch: int, length: int, rounds: int):
    """Functions that take one step each, by name; a mask update falls on every second step of the third."""
    sizes = SHAPES[shape]
    config = make_config(sizes)
    apply = make_apply(config)
    teacher = init_params(config, jax.random.key(1))
    data = make_batch(batch, length, sizes.vocab, 0) | {"labels": np.zeros(batch, np.int32)}
    plain = adamw(LEARNING_RATE)
    schedule = kp.linear(SPARSITY, end=4 * rounds + 8)
    pruned = optax.chain(plain, kp.magnitude_pruning(schedule, every=2))

    def stepper(tx):
        step = jax.jit(make_train_step(apply, tx, kp.sparsebert_loss(), teacher=apply), donate_argnums=0)
        state = init_state(init_params(config, jax.random.key(0)), tx, jax.random.key(2))

        return timed(step, state, teacher, data)

    return stepper(plain), stepper(pruned)


def main() -> None:
    """Command line."""
    parser = make_parser(__doc__, shape="bert-base", rounds=5)
    parser.add_argument("--steps", type=int, default=1000, help="length of the run the cost is added up for")
    parser.add_argument("--updates", type=int, default=100, help="mask updates in it")
    arguments = parser.parse_args()
    without, masked = build(arguments.shape, arguments.batch, arguments.length, arguments.rounds)
    for _ in range(2):
        without(), masked()
    times: dict[str, list[float]] = {"without pruning": [], "masks in place": [], "mask update": []}
    for _ in range(arguments.rounds):
        times["without pruning"].append(without())
        times["masks in place"].append(masked())
        times["mask update"].append(masked())
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{arguments.shape}  batch {arguments.batch}  length {arguments.length}  jax {jax.__version__}")
    for name, value in medians.items():
        print(f"{name:16s} {value:.3f} s  (min {min(times[name]):.3f}, max {max(times[name]):.3f})")
    base = medians["without pruning"]
    extra = medians["masks in place"] - base
    update = medians["mask update"] - medians["masks in place"]
    share = (extra + update * arguments.updates / arguments.steps) / base
    print(f"a run of {arguments.steps} steps with {arguments.updates} updates takes {share:.1%} longer")


if __name__ == "__main__":
    main()
