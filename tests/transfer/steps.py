"""A tiny encoder, batches for it, and coupled steps on them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import kaprune_jax as kp
from kaprune_jax.l0.gates import init_gates
from kaprune_jax.l0.lagrangian import init_duals
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import bert_layout
from kaprune_jax.train.step import init_state
from kaprune_jax.transfer.coupling import Constraint, Coupling, Task
from kaprune_jax.transfer.sharing import make_store
from kaprune_jax.transfer.step import make_coupled_step

# Without dropout: its keys differ from one kind of step to the other.
CONFIG = BertConfig(
    30, 8, 2, 2, 12, 8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, head="classification",
    labels=("a", "b"), initializer_range=0.3,
)  # fmt: skip
LAYOUT = bert_layout(CONFIG)
APPLY = make_apply(CONFIG)
LABELS = kp.hard_labels_loss()
KEY = jax.random.key(11)
RATE = 0.5


def batch_of(seed, flip=False, padded=True):
    random = np.random.default_rng(seed)
    mask = (np.arange(6)[None] < random.integers(3 if padded else 6, 7, (4, 1))).astype(np.int32)
    labels = random.permutation([0, 1, 0, 1]).astype(np.int32)
    return {
        "input_ids": jnp.asarray(random.integers(1, 30, (4, 6)).astype(np.int32) * mask),
        "attention_mask": jnp.asarray(mask),
        "token_type_ids": jnp.zeros((4, 6), jnp.int32),
        "labels": jnp.asarray(1 - labels if flip else labels),
    }


def parts_for(names, *, gates=True, same=False):
    """Parts of each task; where they are the same, with a head that is undecided at first."""
    parts = {}
    for number, name in enumerate(names):
        part = {"model": dict(init_params(CONFIG, jax.random.key(0 if same else number)))}
        if same:
            part["model"]["head"] = jax.tree.map(lambda leaf: 0.3 * leaf, part["model"]["head"])
        if gates:
            random = np.random.default_rng(0 if same else number)
            part["gates"] = {
                family: value + jnp.asarray(random.normal(-3, 1, value.shape), jnp.float32)
                for family, value in init_gates(LAYOUT).items()
            }
            part["duals"] = init_duals()
        parts[name] = part
    return parts


def run(
    batches, *, share="both", depth=None, names=("target", "aux"), gates=True, same=False, coupling=None,
    constraint=None, tx=None, steps=1, objective=LABELS, start=None,
):  # fmt: skip
    """The state after some steps on these batches, and the metrics of the last one."""
    tx = tx or optax.sgd(RATE)
    store = make_store(parts_for(names, gates=gates, same=same), share=share, target="target", depth=depth)
    if gates and constraint is None:  # no penalty: the gates are sparser than this
        constraint = Constraint(LAYOUT, 0.0, 0, 1)
    tasks = {name: Task(APPLY, objective) for name in names}
    step = make_coupled_step(tasks, "target", tx, constraint=constraint, coupling=coupling or Coupling())
    state = init_state(store, tx, KEY)
    state = state if start is None else state._replace(step=jnp.int32(start))
    metrics = None
    for _ in range(steps):  # not jitted: compiling would take longer than all else
        state, metrics = step(state, dict.fromkeys(names), batches)
    return store, state.params, metrics


def gradient(store, params):
    """What plain gradient steps of RATE were made of."""
    return jax.tree.map(lambda old, new: np.asarray((old - new) / RATE, np.float64), store, params)


def close(one, two, atol=2e-5):
    chex.assert_trees_all_close(one, two, rtol=1e-4, atol=atol)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(tree)])
