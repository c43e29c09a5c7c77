"""What a training step costs in each type of activations and products: SparseBERT's, with masks in place.

    python benchmarks/dtypes.py --shape minilm --length 16

The steps are timed in turn in one process; medians, and the ratio to float32 in each round.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import optax

import experiments  # noqa: F401 (keeps freed memory, as training runs do)
import kaprune_jax as kp
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.products import DTYPES
from kaprune_jax.train.optimizer import adamw
from kaprune_jax.train.step import init_state, make_train_step
from shapes import LEARNING_RATE, SHAPES, SPARSITY, make_batch, make_config, make_parser, timed


def build(dtype: str, shape: str, batch: int, length: int):
    """A function that takes one step and returns its seconds."""
    sizes = SHAPES[shape]
    config = make_config(sizes)
    apply = make_apply(config, dtype=dtype)
    # One mask update, in the first step, which is a warm-up step.
    tx = optax.chain(adamw(LEARNING_RATE, clip=1.0), kp.magnitude_pruning(kp.one_shot(SPARSITY, at=1), updates=1))
    keys = jax.random.split(jax.random.key(0), 3)
    data = {name: jnp.asarray(value) for name, value in make_batch(batch, length, sizes.vocab, 0).items()}
    data["labels"] = jnp.zeros(batch, jnp.int32)
    step = jax.jit(make_train_step(apply, tx, kp.DistillConfig(), teacher=apply), donate_argnums=0)
    state = init_state(init_params(config, keys[0]), tx, keys[2])
    return timed(step, state, init_params(config, keys[1]), data)


def main() -> None:
    """Command line."""
    arguments = make_parser(__doc__, shape="minilm", rounds=12).parse_args()
    make = functools.partial(build, shape=arguments.shape, batch=arguments.batch, length=arguments.length)
    steps = {dtype: make(dtype) for dtype in DTYPES}
    for step in steps.values():
        step(), step()
    times = {dtype: [] for dtype in DTYPES}
    for _ in range(arguments.rounds):
        for dtype, step in steps.items():
            times[dtype].append(step())
    print(f"{arguments.shape}  batch {arguments.batch}  length {arguments.length}  jax {jax.__version__}")
    for dtype, seconds in times.items():
        ratios = sorted(whole / other for whole, other in zip(times["float32"], seconds, strict=True))
        ratio = f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{dtype:9s} {statistics.median(seconds):.3f} s  {ratio}")


if __name__ == "__main__":
    main()
