"""A training step on one device and on meshes of eight: the same masks, the same losses, each array in its place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax.l0.gates import init_gates, keep_in_bounds
from kaprune_jax.l0.lagrangian import dual_ascent, init_duals
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import bert_layout
from kaprune_jax.train.optimizer import adamw
from kaprune_jax.train.program import CompiledStep
from kaprune_jax.train.sharding import (
    default_mesh,
    fetch,
    make_mesh,
    mesh_text,
    on_mesh,
    parse_mesh,
    place,
    place_batch,
    shardings,
)
from kaprune_jax.train.step import get_masks, init_state, make_predict, make_train_step
from kaprune_jax.transfer.coupling import Constraint, Coupling, Task
from kaprune_jax.transfer.sharing import make_store
from kaprune_jax.transfer.step import make_coupled_step

CONFIG = BertConfig(64, 32, 2, 4, 64, 16, head="classification", labels=("a", "b"))  # with dropout
LAYOUT = bert_layout(CONFIG)
MESHES = ("data=8", "fsdp=8", "data=4,model=2", "data=2,fsdp=2,model=2")
LONG = [*MESHES[:1], *(pytest.param(text, marks=pytest.mark.long) for text in MESHES[1:])]
STEPS = 50


def batch_of(seed, rows=16, length=8):
    random = np.random.default_rng(seed)
    mask = (np.arange(length)[None] < random.integers(3, length + 1, (rows, 1))).astype(np.int32)
    return {
        "input_ids": random.integers(0, 64, (rows, length)).astype(np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros((rows, length), np.int32),
        "labels": random.integers(0, 2, rows).astype(np.int32),
    }


def magnitude(mesh):
    """Step, state, teacher and batches of pruning by magnitude."""
    tx = optax.chain(adamw(1e-3), kp.magnitude_pruning(kp.cubic(0.9, end=40), updates=10))
    apply = on_mesh(make_apply(CONFIG), mesh)
    step = make_train_step(apply, tx, kp.sparsebert_loss(), teacher=apply)
    params, teacher = (init_params(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    return step, init_state(params, tx, jax.random.key(2)), teacher, lambda number: batch_of(number % 10)


def gated(mesh):
    """Step, store, teachers and batches of pruning with gates, jointly with another task."""
    apply, names = on_mesh(make_apply(CONFIG), mesh), ("mine", "other")
    parts = {
        name: {
            "model": init_params(CONFIG, jax.random.key(number)),
            "gates": init_gates(LAYOUT, keep=0.9),
            "duals": init_duals(),
            "projection": kp.init_projection(32, 32, jax.random.key(number)),
        }
        for number, name in enumerate(names)
    }

    def label(path, _):
        return next((part for part in ("gates", "duals") if part in path_string(path).split("/")), "model")

    tx = optax.with_extra_args_support(
        optax.partition(
            {
                "model": adamw(1e-3),
                "gates": optax.chain(optax.adam(0.1), keep_in_bounds()),
                "duals": dual_ascent(0.5, kind="augmented"),
            },
            lambda params: jax.tree_util.tree_map_with_path(label, params),
        )
    )
    tasks = {name: Task(apply, kp.cofi_loss(), apply) for name in names}
    constraint = Constraint(LAYOUT, 0.7, 5, 30)
    step = make_coupled_step(tasks, "mine", tx, constraint=constraint, coupling=Coupling(surgery="pcgrad"))
    store = make_store(parts, share="both", target="mine")
    teachers = {name: init_params(CONFIG, jax.random.key(7 + number)) for number, name in enumerate(names)}
    state = init_state(store, tx, jax.random.key(2))
    return step, state, teachers, lambda number: {"mine": batch_of(number % 10), "other": batch_of(20 + number % 7)}


def run(kind, text):
    mesh = make_mesh(text)
    step, state, teachers, batches = kind(mesh)
    state, teachers = place(state, mesh), place(teachers, mesh)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    program, losses = CompiledStep(step, mesh), []
    for number in range(STEPS):
        state, metrics = program(state, teachers, place_batch(batches(number), mesh))
        losses.append(metrics.loss)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
    assert before == shardings(state, mesh)
    return np.array(jax.device_get(losses)), fetch(state._replace(key=state.step)), metrics, program


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly():
    """Programs for eight devices take long to optimise, and run for fifty steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def alone():
    return functools.cache(lambda kind: run(kind, "data=1"))


@pytest.mark.parametrize("text", LONG)
def test_magnitude_pruning_gives_the_same_masks_and_losses(alone, text):
    losses, state, _, program = run(magnitude, text)
    wanted, there, _, _ = alone(magnitude)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
    masks, expected = get_masks(state.opt_state), get_masks(there.opt_state)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)
    assert kp.sparsity(masks) == pytest.approx(0.9, abs=1e-3)
    assert len(program.costs) == 1  # one program for fifty steps


@pytest.mark.long
@pytest.mark.parametrize("text", MESHES)
def test_gates_and_coupled_tasks_come_out_the_same(alone, text):
    losses, state, metrics, program = run(gated, text)
    wanted, there, before, _ = alone(gated)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
    for name, values in state.params["shared"]["gates"].items():
        np.testing.assert_allclose(values, there.params["shared"]["gates"][name], atol=1e-4)
    np.testing.assert_array_equal(metrics.delivered, before.delivered)
    assert 0.1 < float(metrics.delivered) < 1.0
    assert len(program.costs) == 1


def test_each_shape_of_batch_is_compiled_once():
    mesh, told = make_mesh("data=8"), []
    step, state, teacher, _ = magnitude(mesh)
    state, teacher = place(state, mesh), place(teacher, mesh)
    program = CompiledStep(step, mesh, on_compile=lambda cost, programs: told.append(programs))
    for number in range(6):
        state, _ = program(state, teacher, place_batch(batch_of(number, length=(8, 16)[number % 2]), mesh))
    assert told == [1, 1]
    assert len(program.costs) == 2


def parameter_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("text", LONG)
def test_what_a_device_holds_and_sends_is_known(text):
    mesh = make_mesh(text)
    step, state, teacher, batches = magnitude(mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, teacher, batches(0)))
    program = CompiledStep(step, mesh)
    program.compile(*shapes)
    (cost,) = program.costs
    held = jax.tree.map(
        lambda leaf, place: int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize,
        state._replace(key=jax.random.key_data(state.key)),
        shardings(state._replace(key=jax.random.key_data(state.key)), mesh),
    )
    own = sum(jax.tree.leaves(held))
    assert abs(cost.aliased - own) <= 64  # the state comes out where it went in
    whole = parameter_bytes(state.params)
    assert own <= parameter_bytes(state.opt_state) + whole + 64  # step and key
    if mesh.shape["fsdp"] == 8:
        assert own < (parameter_bytes(state.opt_state) + whole) / 4  # matrices in eight parts, vectors whole
    reduced, gathered = cost.collectives.get("all-reduce", 0), cost.collectives.get("all-gather", 0)
    if mesh.shape["model"] == 1:
        unused = 8 * 32 * 4  # positions that the batch is too short for have no gradient
        assert whole - unused <= reduced <= 1.05 * whole + 4096  # every gradient once, and a few sums
    matrices = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, teacher)) if leaf.ndim > 1)
    assert gathered <= (2.1 * matrices if mesh.shape["fsdp"] > 1 else 0)
    assert sum(cost.branches.values()) < 4096  # masks: counts only


def test_evaluation_on_a_mesh_gives_the_same_logits():
    params, batch = init_params(CONFIG, jax.random.key(0)), batch_of(0, rows=12)  # 12 rows, 8 devices
    wanted = make_predict(make_apply(CONFIG))(params, batch)
    for text in MESHES:
        mesh = make_mesh(text)
        predict = make_predict(on_mesh(make_apply(CONFIG), mesh), mesh=mesh)
        for rows in (12, 16):
            part = (
                batch
                if rows == 12
                else {name: np.resize(value, (16, *value.shape[1:])) for name, value in batch.items()}
            )
            logits = predict(place(params, mesh), place_batch(part, mesh))
            assert logits.is_fully_replicated
            np.testing.assert_allclose(logits[:12], wanted, atol=1e-5)


@pytest.mark.parametrize("text", MESHES)
def test_placed_and_fetched_arrays_are_the_same(text, rng):
    tree = {"ffn": {"up": {"kernel": rng.normal(size=(32, 64)).astype(np.float32), "bias": np.arange(64.0)}}}
    placed = place(tree, make_mesh(text))
    jax.tree.map(np.testing.assert_array_equal, fetch(placed), tree)


def test_companions_of_a_parameter_lie_where_it_does():
    mesh = make_mesh("data=2,fsdp=2,model=2")
    _, state, _, _ = magnitude(mesh)
    places = {path_string(path): place.spec for path, place in jax.tree.leaves_with_path(shardings(state, mesh))}
    for path, leaf in jax.tree.leaves_with_path(state.params):
        own = path_string(path)
        companions = [spec for name, spec in places.items() if name.endswith(f"/{own}")]
        assert len(companions) >= 3  # itself, two moments, and a mask where it is pruned
        assert set(companions) == {places[f"params/{own}"]}, own
        if own.endswith("query/kernel"):
            assert leaf.ndim == 2
            assert places[f"params/{own}"] == jax.P("fsdp", "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data", "'data' is not AXIS=NUMBER with an axis of data, fsdp, model"),
        ("rows=8", "'rows=8' is not"),
        ("data=2,data=4", "'data=4' is not"),
        ("data=0", "a whole number >= 1"),
        ("data=-1", "a whole number >= 1"),
        ("data=²", "a whole number >= 1"),
        ("", "'' is not"),
    ],
)
def test_a_malformed_mesh_is_refused_with_what_is_allowed(text, message):
    with pytest.raises(InputError, match=message):
        parse_mesh(text)


def test_a_mesh_needs_as_many_devices_as_there_are():
    with pytest.raises(
        InputError, match=r"'data=4,model=4' has 16 devices; allowed are at most the 8 there are \(cpu\)"
    ):
        make_mesh("data=4,model=4")
    assert mesh_text(parse_mesh("model=2,data=4")) == "data=4,model=2"
    assert mesh_text(parse_mesh("model=1")) == "data=1"


@pytest.mark.parametrize(("rows", "wanted"), [(32, 8), (12, 6), (7, 7), (1, 1), (11, 1)])
def test_by_default_rows_go_over_as_many_accelerators_as_divide_them(rows, wanted, monkeypatch):
    assert default_mesh(rows) == "data=1"  # eight of one CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert default_mesh(rows) == f"data={wanted}"


def test_a_projection_and_gates_lie_whole_on_every_device():
    mesh = make_mesh("fsdp=4,model=2")
    _, state, _, _ = gated(mesh)
    for path, place_ in jax.tree.leaves_with_path(shardings(state.params, mesh)):
        if {"gates", "duals", "projection"} & set(path_string(path).split("/")):
            assert place_.is_fully_replicated
    assert jnp.ndim(state.step) == 0
