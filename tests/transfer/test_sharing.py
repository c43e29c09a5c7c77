import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaprune_jax.l0.gates import init_gates
from kaprune_jax.l0.lagrangian import init_duals
from kaprune_jax.models.bert import param_shapes
from kaprune_jax.models.config import BertConfig
from kaprune_jax.models.layout import bert_layout
from kaprune_jax.transfer.sharing import SHARE, has_own_gates, make_store, parts_of, shares_gates, shares_weights

LAYERS = 3
CONFIG = BertConfig(20, 8, LAYERS, 2, 12, 8, head="classification", labels=("a", "b"))
TASKS = {"aux": CONFIG.replace(labels=("a", "b", "c")), "target": CONFIG}
OWN = ("head", "pooler")


def parts_by_task(gates=True):
    """Parts of two tasks in which no two leaves are alike."""
    random, parts = np.random.default_rng(0), {}
    for name, config in TASKS.items():
        part = {"model": param_shapes(config), "projection": {"kernel": jnp.eye(8)}}
        if gates:
            part |= {"gates": init_gates(bert_layout(CONFIG)), "duals": init_duals()}
        parts[name] = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), part)
    return parts


def paths(tree):
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in jax.tree.leaves_with_path(tree)}


def is_shared(path, share, depth):
    """Whether all of a leaf is common, from the definition: "yes", "rows" for the first rows, or "no"."""
    part, *rest = path.split("/")
    if part == "model" and share in ("weights", "both") and rest[0] not in OWN:
        return "yes" if rest[0] != "encoder" or depth is None or int(rest[2]) < depth else "no"
    if part == "gates" and share in ("gates", "both"):
        return "yes" if rest[0] == "hidden" or depth is None or depth >= LAYERS else "rows"
    return "no"


@pytest.mark.parametrize("depth", [None, 0, 1, LAYERS, LAYERS + 1])
@pytest.mark.parametrize("share", SHARE)
def test_there_and_back(share, depth):
    parts = parts_by_task()
    store = make_store(parts, share=share, target="target", depth=depth)
    assert sorted(store["own"]) == ["aux", "target"]
    for name in TASKS:
        back, mine, lead = (paths(tree) for tree in (parts_of(store, name), parts[name], parts["target"]))
        assert sorted(back) == sorted(mine)
        for path, leaf in back.items():
            kind, wanted = is_shared(path, share, depth), mine[path]
            if kind == "yes":
                wanted = lead[path]
            elif kind == "rows":
                wanted = jnp.concatenate([lead[path][:depth], mine[path][depth:]])
            np.testing.assert_array_equal(leaf, wanted, err_msg=path)


@pytest.mark.parametrize("depth", [None, 1, LAYERS])
@pytest.mark.parametrize("share", SHARE)
def test_a_shared_leaf_changes_both_tasks_and_an_own_leaf_one(share, depth):
    store = make_store(parts_by_task(), share=share, target="target", depth=depth)
    for part in ("shared", "own"):
        moved = {**store, part: jax.tree.map(lambda leaf: leaf + 1, store[part])}
        for name in TASKS:
            before, after = paths(parts_of(store, name)), paths(parts_of(moved, name))
            for path, leaf in before.items():
                change = np.asarray(after[path] - leaf)
                kind = is_shared(path, share, depth)
                wanted = np.full(change.shape, float((kind == "yes") == (part == "shared")))
                if kind == "rows":
                    wanted[:depth], wanted[depth:] = part == "shared", part == "own"
                np.testing.assert_allclose(change, wanted, atol=1e-5, err_msg=path)
    other = {**store, "own": {**store["own"], "aux": jax.tree.map(jnp.zeros_like, store["own"]["aux"])}}
    before, after = paths(parts_of(store, "target")), paths(parts_of(other, "target"))
    assert all(np.array_equal(before[path], after[path]) for path in before)


@pytest.mark.parametrize("share", SHARE)
def test_nothing_is_stored_twice(share):
    parts = parts_by_task()
    store = make_store(parts, share=share, target="target", depth=1)
    count = sum(leaf.size for leaf in jax.tree.leaves(store))
    twice = 0
    for path, leaf in paths(parts["target"]).items():
        kind = is_shared(path, share, 1)
        twice += leaf.size if kind == "yes" else leaf[:1].size if kind == "rows" else 0
    assert count == sum(leaf.size for leaf in jax.tree.leaves(parts)) - twice


@pytest.mark.parametrize(
    ("share", "depth", "own"),
    [("nothing", None, True), ("weights", None, True), ("gates", None, False), ("both", None, False),
     ("gates", 1, True), ("both", LAYERS, False)],
)  # fmt: skip
def test_who_has_gates_of_its_own(share, depth, own):
    store = make_store(parts_by_task(), share=share, target="target", depth=depth)
    assert has_own_gates(store, "aux") == has_own_gates(store, "target") == own
    assert not has_own_gates(make_store(parts_by_task(gates=False), share=share, target="target"), "aux")


def test_what_the_words_mean():
    assert [shares_weights(share) for share in SHARE] == [share in ("weights", "both") for share in SHARE]
    assert [shares_gates(share) for share in SHARE] == [share in ("gates", "both") for share in SHARE]


def test_heads_multipliers_and_projections_are_a_tasks_own():
    store = make_store(parts_by_task(), share="both", target="target")
    assert sorted(store["shared"]) == ["gates", "model"]
    for name, classes in (("aux", 3), ("target", 2)):
        assert sorted(store["own"][name]["model"]) == ["head", "pooler"]
        assert store["own"][name]["model"]["head"]["kernel"].shape == (8, classes)
        assert store["own"][name]["gates"] == {}
        assert {"duals", "projection"} <= set(store["own"][name])


def test_the_parts_given_stay_as_they_are():
    parts = parts_by_task()
    before = {name: sorted(paths(part)) for name, part in parts.items()}
    make_store(parts, share="both", target="target", depth=1)
    assert {name: sorted(paths(part)) for name, part in parts.items()} == before


def test_without_gates_and_for_one_task():
    parts = parts_by_task(gates=False)
    for share in SHARE:
        store = make_store({"target": parts["target"]}, share=share, target="target")
        assert paths(parts_of(store, "target")).keys() == paths(parts["target"]).keys()
        assert "gates" not in store["shared"]
