import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax._tree import select
from kaprune_jax.distill.losses import label_loss
from kaprune_jax.l0.gates import expected_sparsity, init_gates, keep_in_bounds, sample_gates
from kaprune_jax.l0.lagrangian import dual_ascent, init_duals, penalty
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import bert_layout
from kaprune_jax.train.program import CompiledStep
from kaprune_jax.train.sharding import make_mesh, place
from kaprune_jax.train.step import init_state, make_train_step
from kaprune_jax.transfer import step as module
from kaprune_jax.transfer.coupling import Constraint, Coupling, Task
from kaprune_jax.transfer.sharing import make_store, parts_of
from kaprune_jax.transfer.step import make_coupled_step
from kaprune_jax.transfer.surgery import attittud, pcgrad

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


@pytest.mark.parametrize(
    ("fade", "wanted"), [("constant", (3, 3, 3, 3)), ("fade-in", (0, 1.5, 3, 3)), ("fade-out", (3, 1.5, 0, 0))]
)
def test_strength(fade, wanted):
    coupling = Coupling(weight=3.0, fade=fade, steps=101)
    strengths = [float(coupling.strength(jnp.int32(step))) for step in (0, 50, 100, 500)]
    np.testing.assert_allclose(strengths, wanted, rtol=1e-6)
    once = Coupling(weight=3.0, fade=fade, steps=1)
    assert float(once.strength(jnp.int32(0))) == wanted[0]


@pytest.mark.parametrize(("fade", "step"), [("fade-in", 0), ("fade-out", 9)])
def test_an_auxiliary_task_that_has_faded_does_nothing(fade, step):
    coupling = Coupling(weight=4.0, fade=fade, steps=10)
    batches = {"target": batch_of(0), "aux": batch_of(1)}
    store, params, metrics = run(batches, coupling=coupling, start=step)
    _, alone, _ = run({"target": batches["target"]}, start=step)
    close(params, alone)
    close(params["own"]["aux"], store["own"]["aux"])
    np.testing.assert_allclose(metrics.loss, metrics.terms["labels"], rtol=1e-6)


def test_the_asked_sparsity_rises_in_a_line():
    constraint = Constraint(LAYOUT, 0.9, 5, 8)
    asked = [float(constraint.asked(jnp.int32(step))) for step in range(40)]
    assert asked[:5] == [0.0] * 5
    np.testing.assert_allclose(asked[5:13], 0.9 * np.arange(1, 9) / 8, rtol=1e-6)
    assert set(asked[12:]) == {float(jnp.float32(0.9))}
    at_once = Constraint(LAYOUT, 0.9, 2, 0)
    assert [float(at_once.asked(jnp.int32(step))) for step in range(4)] == [0, 0, *[float(jnp.float32(0.9))] * 2]


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
