"""What checkpoints cost a run: the same training steps with and without one being written beside them.

    python benchmarks/checkpoint_cost.py --shape minilm --steps 4 --rounds 8

Student and teacher, SparseBERT's loss (Xu et al., 2021, arXiv:2104.08682), nothing pruned, so that nothing in a
checkpoint is zero. A round is so many steps without a
checkpoint, then so many with one that is saved before the first of them and waited for after the last. What one
checkpoint adds is the difference in a round; the median ratio of the rounds gives the overhead of a run.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax

import experiments  # noqa: F401 (keeps freed memory, as training runs do)
import kaprune_jax as kp
from experiments.config.settings import Settings
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.train.checkpoint import Checkpoints
from kaprune_jax.train.optimizer import adamw
from kaprune_jax.train.step import init_state, make_train_step
from shapes import LEARNING_RATE, SHAPES, make_batch, make_config, make_parser


def _fill(leaf: jax.Array) -> jax.Array:
    """Moments as after many steps: no zeros, which files are made smaller by."""
    if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
        return leaf
    return 1e-3 * jax.numpy.abs(jax.random.normal(jax.random.key(leaf.size), leaf.shape))


class Run:
    """A training that can be timed with and without a checkpoint."""

    def __init__(self, shape: str, batch: int, length: int, folder: Path):
        sizes = SHAPES[shape]
        config = make_config(sizes)
        apply = make_apply(config)
        self.teacher = init_params(config, jax.random.key(1))
        self.data = make_batch(batch, length, sizes.vocab, 0) | {"labels": np.zeros(batch, np.int32)}
        tx = optax.with_extra_args_support(adamw(LEARNING_RATE))
        self.step = jax.jit(make_train_step(apply, tx, kp.sparsebert_loss(), teacher=apply), donate_argnums=0)
        state = init_state(init_params(config, jax.random.key(0)), tx, jax.random.key(2))
        self.state = state._replace(opt_state=jax.tree.map(_fill, state.opt_state))
        self.checkpoints = Checkpoints(folder)

    def take(self, steps: int, *, saving: bool) -> tuple[float, float]:
        """Seconds of so many steps, with a checkpoint of the first state or without; and those that saving held up."""
        began, held = time.perf_counter(), 0.0
        if saving:
            self.checkpoints.save(self.state, {})
            held = time.perf_counter() - began
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.teacher, self.data)
        jax.block_until_ready(self.state)
        self.checkpoints.wait()
        return time.perf_counter() - began, held


def main() -> None:
    """Command line."""
    parser = make_parser(__doc__, shape="minilm", rounds=8)
    parser.add_argument("--steps", type=int, default=4, help="steps beside one checkpoint")
    parser.add_argument("--run", type=int, default=1000, help="steps of the run that the overhead is given for")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = Run(arguments.shape, arguments.batch, arguments.length, Path(place) / "ckpt")
        for saving in (False, True):
            run.take(2, saving=saving)
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append((run.take(arguments.steps, saving=False)[0], *run.take(arguments.steps, saving=True)))
        newest = run.checkpoints.newest
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) if newest else 0
        run.checkpoints.close()
    without, added = statistics.median(row[0] for row in rounds), [row[1] - row[0] for row in rounds]
    count = Settings().evaluations + 1  # at the start, and after each evaluation
    step = without / arguments.steps
    print(f"{arguments.shape}  batch {arguments.batch}  length {arguments.length}  jax {jax.__version__}")
    print(f"a checkpoint has {size / 1e6:.0f} MB; a step without one takes {step:.3f} s")
    print(f"it adds {statistics.median(added):.2f} s ({min(added):.2f} to {max(added):.2f} by round)", end="; ")
    print(f"saving returns after {statistics.median(row[2] for row in rounds):.2f} s")
    share = statistics.median(row[1] / row[0] - 1.0 for row in rounds) * arguments.steps * count / arguments.run
    print(f"a run of {arguments.run} steps and {count} checkpoints takes {share:.2%} longer (median ratio of a round)")


if __name__ == "__main__":
    main()
