import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import APPLY, CONFIG, KEY, LABELS, LAYOUT, RATE, batch_of, close, flat, gradient, parts_for, run

import kaprune_jax as kp
from kaprune_jax.distill.losses import label_loss
from kaprune_jax.l0.gates import expected_sparsity, init_gates, keep_in_bounds, sample_gates
from kaprune_jax.l0.lagrangian import dual_ascent, penalty
from kaprune_jax.models.bert import init_params
from kaprune_jax.train.program import CompiledStep
from kaprune_jax.train.sharding import make_mesh, place
from kaprune_jax.train.step import init_state, make_train_step
from kaprune_jax.transfer.coupling import Constraint, Coupling, Task
from kaprune_jax.transfer.sharing import make_store, parts_of
from kaprune_jax.transfer.step import make_coupled_step


@pytest.mark.parametrize(("share", "scores"), [("nothing", "magnitude"), ("weights", "sensitivity")])
def test_one_task_without_gates_is_the_plain_training_step(share, scores):
    teacher = init_params(CONFIG, jax.random.key(9))
    params = init_params(CONFIG, jax.random.key(1))
    schedule = kp.cubic(0.5, end=2)
    pruning = kp.magnitude_pruning(schedule, updates=2, prunable=r".*encoder/.*/kernel", scores=scores)
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), pruning)
    plain = make_train_step(APPLY, tx, kp.sparsebert_loss(), teacher=APPLY)
    task = Task(APPLY, kp.sparsebert_loss(), APPLY)
    coupled = make_coupled_step({"target": task}, "target", tx)
    store = make_store({"target": {"model": params}}, share=share, target="target")
    one, two = init_state(params, tx, KEY), init_state(store, tx, KEY)
    for number in range(2):
        one, first = plain(one, teacher, batch_of(number))
        two, second = coupled(two, {"target": teacher}, {"target": batch_of(number)})
        np.testing.assert_allclose(first.loss, second.loss, rtol=1e-5)
        close(first.terms, second.terms)
        assert float(first.asked) == float(second.asked)
        assert float(first.delivered) == pytest.approx(float(second.delivered))
    close(one.params, parts_of(two.params, "target")["model"])
    assert float(second.delivered) == pytest.approx(0.5, abs=0.01)
    assert int(two.step) == 2


def cross_entropy(parts, batch, gates=None):
    output = APPLY(parts["model"], batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], gates=gates)
    return label_loss(output.logits, batch["labels"]).mean()


@pytest.mark.parametrize(
    ("share", "depth", "names"),
    [("both", None, ("target", "aux")), ("gates", 1, ("target", "aux", "more")), ("nothing", None, ("target", "aux"))],
)
def test_the_joint_gradient_is_that_of_the_sum(share, depth, names):
    batches = {name: batch_of(number) for number, name in enumerate(names)}
    constraint = Constraint(LAYOUT, 0.95, 0, 1)
    store, params, metrics = run(
        batches, names=names, share=share, depth=depth, coupling=Coupling(weight=0.3), constraint=constraint
    )
    key = jax.random.split(jax.random.fold_in(KEY, 0), 2)[0]

    def losses(store):
        tasks = {name: parts_of(store, name) for name in names}
        each = {name: cross_entropy(p, batches[name], sample_gates(key, p["gates"])) for name, p in tasks.items()}
        bounded = names if share == "nothing" or depth else ("target",)  # all that have gates of their own
        bound = sum(
            penalty(tasks[name]["duals"], expected_sparsity(tasks[name]["gates"], LAYOUT), jnp.float32(0.95))
            for name in bounded
        )
        others = sum(each[name] for name in names if name != "target") / (len(names) - 1)
        return each["target"] + 0.3 * others + bound, (each["target"], others, bound)

    wanted, (target, others, bound) = jax.grad(losses, has_aux=True)(store)
    close(gradient(store, params), jax.tree.map(np.asarray, wanted), atol=1e-4)
    np.testing.assert_allclose(metrics.loss, target + 0.3 * others, rtol=1e-5)
    np.testing.assert_allclose(metrics.terms["labels"], target, rtol=1e-5)
    np.testing.assert_allclose(metrics.terms["constraint"], bound, rtol=1e-5)
    if len(names) == 2:
        np.testing.assert_allclose(metrics.terms["auxiliary"], others, rtol=1e-5)
    np.testing.assert_allclose(
        metrics.expected, expected_sparsity(parts_of(store, "target")["gates"], LAYOUT), rtol=1e-5
    )


@pytest.mark.parametrize("surgery", ["none", "pcgrad", "attittud"])
def test_nothing_shared_leaves_the_target_alone(surgery):
    target, constraint = {"target": batch_of(0, padded=False)}, Constraint(LAYOUT, 0.9, 0, 2)
    options = dict(share="nothing", constraint=constraint, tx=optax.sgd(0.1, momentum=0.9))
    options |= dict(steps=1 if surgery == "attittud" else 2)
    _, alone, _ = run(target, names=("target",), **options)
    _, both, _ = run(
        target | {"aux": batch_of(1, padded=False)}, coupling=Coupling(weight=5.0, surgery=surgery), **options
    )
    close(both["own"]["target"], alone["own"]["target"])
    start = make_store(parts_for(("target", "aux")), share="nothing", target="target")
    assert np.abs(flat(both["own"]["aux"]) - flat(start["own"]["aux"])).max() > 1e-2


@pytest.mark.parametrize(("fade", "step"), [("fade-in", 0), ("fade-out", 9)])
def test_an_auxiliary_task_that_has_faded_does_nothing(fade, step):
    coupling = Coupling(weight=4.0, fade=fade, steps=10)
    batches = {"target": batch_of(0), "aux": batch_of(1)}
    store, params, metrics = run(batches, coupling=coupling, start=step)
    _, alone, _ = run({"target": batches["target"]}, start=step)
    close(params, alone)
    close(params["own"]["aux"], store["own"]["aux"])
    np.testing.assert_allclose(metrics.loss, metrics.terms["labels"], rtol=1e-6)


def test_gates_are_open_before_the_constraint_begins():
    batches = {"target": batch_of(0), "aux": batch_of(1)}
    constraint = Constraint(LAYOUT, 0.9, 2, 2)
    store, params, metrics = run(batches, constraint=constraint, steps=2)
    chex.assert_trees_all_equal(params["shared"]["gates"], store["shared"]["gates"])
    assert float(params["own"]["target"]["duals"]["linear"]) == 0.0
    assert float(metrics.asked) == float(metrics.terms["constraint"]) == 0.0
    _, plain, without = run(batches, gates=False, steps=2)
    close(params["shared"]["model"], plain["shared"]["model"])
    np.testing.assert_allclose(metrics.loss, without.loss, rtol=1e-5)
    _, after, metrics = run(batches, constraint=constraint, steps=3)
    assert np.abs(flat(after["shared"]["gates"]) - flat(store["shared"]["gates"])).max() > 1e-3
    assert float(metrics.asked) == pytest.approx(0.45)


def test_one_trace_per_set_of_batches_while_the_sparsity_rises():
    gates = optax.chain(optax.adam(0.3), keep_in_bounds())
    kinds = {"gates": gates, "duals": dual_ascent(1.0), "rest": optax.adam(1e-3)}

    def label(path, _):
        return next((key.key for key in path if key.key in ("gates", "duals")), "rest")

    tx = optax.partition(kinds, lambda params: jax.tree_util.tree_map_with_path(label, params))
    tx = optax.with_extra_args_support(tx)
    names = ("target", "aux")
    store = make_store(parts_for(names), share="both", target="target")
    store["shared"]["gates"] = init_gates(LAYOUT)
    step = make_coupled_step(
        {name: Task(APPLY, LABELS) for name in names}, "target", tx, constraint=Constraint(LAYOUT, 0.8, 5, 20)
    )
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(step.__call__, n=2))
    state, asked, expected = init_state(store, tx, KEY), [], []
    sets = (names, ("target",))
    for number in range(50):
        batches = {name: batch_of(number) for name in sets[number % 2]}
        state, metrics = jitted(state, dict.fromkeys(names), batches)
        asked.append(float(metrics.asked))
        expected.append(float(metrics.expected))
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(0.8)
    assert expected[4] < 0.01
    assert expected[-1] > 0.6
    assert float(metrics.delivered) > 0.3


def test_a_program_for_each_task_and_length_not_for_each_pair_and_the_same_figures_as_in_one():
    names, mesh, told = ("target", "aux"), make_mesh("data=1"), []
    tasks = {name: Task(APPLY, LABELS) for name in names}
    tx = optax.sgd(RATE)
    step = make_coupled_step(tasks, "target", tx)
    program = CompiledStep(step, mesh, on_compile=lambda cost, programs: told.append(programs))
    store = make_store(parts_for(names, gates=False), share="weights", target="target")
    state = place(init_state(store, tx, jax.random.key(11)), mesh)  # a key of its own: it is given away
    for mine, other in ((6, 6), (5, 5), (6, 5)):
        batches = {"target": cut(batch_of(0), mine), "aux": cut(batch_of(1), other)}
        before = jax.tree.map(jnp.copy, state)
        state, metrics = program(state, dict.fromkeys(names), batches)
    assert told == [3, 2, 0]  # two gradients and an update; gradients of another length; both known
    assert len(program.costs) == 3
    there, wanted = step(before, dict.fromkeys(names), batches)
    close(state.params, there.params)
    np.testing.assert_allclose(metrics.loss, wanted.loss, rtol=1e-5)
    assert metrics.terms.keys() == wanted.terms.keys()


def cut(batch, length):
    return {name: value if name == "labels" else value[:, :length] for name, value in batch.items()}


def test_a_step_without_the_target_trains_the_auxiliary_task():
    batches = {"aux": batch_of(1)}
    store, params, metrics = run(batches, gates=False, coupling=Coupling(weight=0.1))
    close(params["own"]["target"], store["own"]["target"], atol=0)
    loss, wanted = jax.value_and_grad(lambda store: cross_entropy(parts_of(store, "aux"), batches["aux"]))(store)
    close(gradient(store, params), jax.tree.map(np.asarray, wanted), atol=1e-4)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    assert "auxiliary" not in metrics.terms


def test_a_tie_pulls_gates_together():
    batches = {"target": batch_of(0), "aux": batch_of(1)}
    (store, loose, _), (_, tied, _) = (run(batches, share="weights", coupling=Coupling(tie=tie)) for tie in (0.0, 10.0))
    mine, theirs = (store["own"][name]["gates"] for name in ("target", "aux"))
    count = sum(leaf.size for leaf in jax.tree.leaves(mine))
    for name, sign in (("target", 1), ("aux", -1)):
        pull = jax.tree.map(lambda a, b: (a - b) / RATE, loose["own"][name]["gates"], tied["own"][name]["gates"])
        wanted = jax.tree.map(lambda a, b: sign * 2 * 10.0 * (a - b) / count, mine, theirs)  # noqa: B023
        close(pull, wanted, atol=1e-4)
    gaps = [
        np.linalg.norm(flat(store["own"]["target"]["gates"]) - flat(store["own"]["aux"]["gates"]))
        for store in (store, loose, tied)
    ]
    assert gaps[2] < 0.6 * gaps[1]
    assert gaps[1] > 0.9 * gaps[0]


def test_layers_that_are_gone_teach_nothing():
    """`alive` of a student without gates reaches the nearest map."""
    teacher = init_params(CONFIG, jax.random.key(9))
    objective = kp.DistillConfig(embeddings=0.0, attention=0.0, logits=0.0, layer_map="nearest")
    batch, terms = batch_of(0), {}
    store = make_store(parts_for(("target",), gates=False), share="nothing", target="target")
    for alive in (None, (False, True), (False, False)):
        step = make_coupled_step({"target": Task(APPLY, objective, APPLY, alive)}, "target", optax.sgd(RATE))
        _, metrics = step(init_state(store, optax.sgd(RATE), KEY), {"target": teacher}, {"target": batch})
        terms[alive] = float(metrics.terms["hidden"])
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    last, taught = (APPLY(p, *inputs).hidden_states for p in (parts_of(store, "target")["model"], teacher))
    wanted = sum(float(kp.hidden_loss(last[2], taught[layer], inputs[1])) for layer in (1, 2))  # its quarters
    assert terms[False, True] == pytest.approx(wanted, rel=1e-4)
    assert terms[False, False] == 0.0
    assert terms[None] < terms[False, True]
