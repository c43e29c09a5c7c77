"""What surgery does to the gradients of a coupled step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import LAYOUT, RATE, batch_of, close, flat, gradient, run

import kaprune_jax as kp
from kaprune_jax._tree import select
from kaprune_jax.l0.gates import expected_sparsity
from kaprune_jax.l0.lagrangian import init_duals, penalty
from kaprune_jax.transfer import step as module
from kaprune_jax.transfer.coupling import Constraint, Coupling
from kaprune_jax.transfer.surgery import attittud, pcgrad

# The same texts but one, with the opposite labels.
OPPOSED = {"target": batch_of(0, padded=False), "aux": batch_of(0, flip=True, padded=False)}
OPPOSED["aux"]["input_ids"] = OPPOSED["aux"]["input_ids"].at[3].set(jnp.arange(7, 13))


def gradients(surgery, filtered="both", batches=OPPOSED):
    coupling = Coupling(weight=0.7, surgery=surgery, filtered=filtered, parts=2)
    return gradient(*run(batches, same=True, coupling=coupling)[:2])


@pytest.fixture(scope="module")
def opposed():
    """Gradients of the target alone and of the auxiliary alone, by a joint step without surgery."""
    target = gradients("none", batches={"target": OPPOSED["target"]})
    joint = gradients("none")
    auxiliary = jax.tree.map(lambda both, one: (both - one) / 0.7, joint, target)
    for part in ("model", "gates"):
        assert flat(target["shared"][part]) @ flat(auxiliary["shared"][part]) < 0
    return target, auxiliary, joint


@pytest.mark.parametrize("surgery", ["pcgrad", "attittud"])
def test_surgery_looks_at_what_masks_leave(monkeypatch, surgery):
    seen = []
    monkeypatch.setattr(module, surgery, lambda *trees: seen.append(trees) or trees[-1])
    pruning = kp.magnitude_pruning(kp.one_shot(0.9, at=1), prunable=r".*encoder/.*/kernel")
    run(
        {"target": batch_of(0), "aux": batch_of(1)}, share="weights", gates=False, steps=2,
        tx=optax.chain(optax.sgd(RATE), pruning), coupling=Coupling(surgery=surgery, parts=2),
    )  # fmt: skip
    for tree in seen[-1]:
        kernels = [leaf for path, leaf in select(tree["encoder"], r".*/kernel")]
        assert np.mean(np.concatenate([np.ravel(leaf) for leaf in kernels]) == 0) >= 0.9


@pytest.mark.parametrize("filtered", ["both", "weights", "gates"])
def test_pcgrad_changes_the_auxiliary_gradient_of_shared_parts_only(opposed, filtered):
    target, auxiliary, joint = opposed
    result = gradients("pcgrad", filtered)
    close(result["own"], joint["own"])
    assert np.abs(flat(joint["own"]["aux"])).max() > 1e-2
    for part, word in (("model", "weights"), ("gates", "gates")):
        mine, theirs = (flat(tree["shared"][part]) for tree in (target, auxiliary))
        along = theirs @ mine / (mine @ mine) if filtered in ("both", word) else 0.0
        wanted = mine + 0.7 * (theirs - min(0.0, along) * mine)
        np.testing.assert_allclose(flat(result["shared"][part]), wanted, rtol=1e-3, atol=1e-4, err_msg=part)
        moved = np.abs(flat(result["shared"][part]) - flat(joint["shared"][part])).max()
        assert (moved > 1e-3) == (filtered in ("both", word))


def test_the_gradient_of_the_constraint_is_not_filtered(monkeypatch):
    seen = []

    def spy(mine, theirs):
        seen.append((mine, theirs))
        return pcgrad(mine, theirs)

    monkeypatch.setattr(module, "pcgrad", spy)
    constraint = Constraint(LAYOUT, 0.95, 0, 1)
    coupling = Coupling(weight=0.7, surgery="pcgrad")
    store, bound, _ = run(OPPOSED, same=True, coupling=coupling, constraint=constraint)
    _, free, _ = run(OPPOSED, same=True, coupling=coupling)
    assert len(seen) == 4  # weights and gates, in each run
    key = jax.tree.map(lambda old, new: (new - old) / RATE, bound["shared"]["gates"], free["shared"]["gates"])

    def value(gates):
        return penalty(init_duals(), expected_sparsity(gates, LAYOUT), jnp.float32(0.95))

    close(key, jax.grad(value)(store["shared"]["gates"]), atol=1e-4)


def test_attittud_with_factors_one_is_joint_and_with_its_own_it_is_not(monkeypatch, opposed):
    target, _, joint = opposed
    filtered = gradients("attittud")
    close(filtered["own"], joint["own"])  # also of the target, as the mean over its parts
    changed = flat(filtered["shared"]) - flat(joint["shared"])
    assert np.abs(changed).max() > 1e-3
    for part in ("model", "gates"):
        added = flat(filtered["shared"][part]) - flat(target["shared"][part])
        assert added @ flat(target["shared"][part]) > -1e-4  # what opposed is gone
    monkeypatch.setattr(module, "attittud", functools.partial(attittud, opposing=1.0))
    close(gradients("attittud"), joint, atol=1e-4)
