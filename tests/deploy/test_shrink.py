import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.deploy.shrink import materialize, matrix_masks
from kaprune_jax.l0.finalize import finalize
from kaprune_jax.models.bert import init_params, make_apply, param_shapes
from kaprune_jax.models.config import BertConfig, LayerShape
from kaprune_jax.models.layout import bert_layout

WHOLE = BertConfig(30, 16, 2, 4, 24, 12, head="classification", labels=("no", "yes"))
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 30, (3, 6)), jnp.int32)


def values_of(seed=0, sparsity=0.7):
    random, layout = np.random.default_rng(seed), bert_layout(WHOLE)
    gates = {gate.name: random.normal(0, 1.5, gate.shape).astype(np.float32) for gate in layout.gates}
    gates["attention"] += 5
    gates["ffn"] += 5
    return finalize(gates, layout, sparsity)


def shrunk_of(config=WHOLE, values=None):
    random = np.random.default_rng(1)
    params = init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), params)
    return params, materialize(params, values or values_of(), config)


@pytest.mark.parametrize(
    "changes", [{"pooling": "cls"}, {"pooling": "mean"}, {"head": "span", "labels": ()}], ids=["cls", "mean", "span"]
)
def test_a_saved_model_is_the_same_after_loading(tmp_path, changes):
    config, values = WHOLE.replace(**changes), values_of()
    params, smaller = shrunk_of(config, values)
    kp.save(tmp_path / "m", smaller.params, smaller.config)
    model = kp.load(tmp_path / "m")
    assert model.config == smaller.config
    assert model.config.is_shrunk
    there = {name: value > 0 for name, value in values.items()}
    assert model.config.hidden_size == there["hidden"].sum()
    assert model.config.layers == tuple(
        LayerShape(tuple(np.flatnonzero(there["heads"][i]).tolist()), int(there["units"][i].sum())) for i in range(2)
    )
    assert model.config.head_size == 4
    assert model.config.pooler_size == (16 if config.has_pooler else None)
    run = jax.jit(make_apply(smaller.config))
    np.testing.assert_array_equal(run(model.params, IDS).logits, run(smaller.params, IDS).logits)
    gated = make_apply(config)(params, IDS, gates=jax.tree.map(jnp.asarray, values)).logits
    np.testing.assert_allclose(run(model.params, IDS).logits, gated, atol=1e-5)
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    assert raw["kaprune"]["hidden"] == raw["hidden_size"] == smaller.config.hidden_size


def test_layers_without_attention_or_feed_forward_network_are_read_back(tmp_path):
    values = {"attention": np.array([0.0, 1.0], np.float32), "ffn": np.array([1.0, 0.0], np.float32)}
    _, smaller = shrunk_of(values=values)
    assert smaller.config.layers == (LayerShape((), 24), LayerShape((0, 1, 2, 3), 0))
    kp.save(tmp_path / "m", smaller.params, smaller.config)
    model = kp.load(tmp_path / "m")
    assert model.config == smaller.config
    assert "attention" not in model.params["encoder"]["layers"][0]
    assert "ffn" not in model.params["encoder"]["layers"][1]


def test_masks_are_those_of_the_whole_model(tmp_path):
    values = values_of()
    _, smaller = shrunk_of(values=values)
    masks = matrix_masks(smaller.kept, WHOLE)
    kp.save(tmp_path / "m", smaller.params, smaller.config, masks=masks)
    read = dict(read_masks(tmp_path / "m"))
    there = {name: value > 0 for name, value in values.items()}
    hidden, kept, total = there["hidden"], 0, 0
    assert len(read) == 12
    for path, mask in read.items():
        layer, part = int(path.split("/")[2]), path.split("/")[4]
        columns = np.repeat(there["heads"][layer] & there["attention"][layer], 4)
        units = there["units"][layer] & there["ffn"][layer]
        ways = {"output": (columns, hidden), "up": (hidden, units), "down": (units, hidden)}
        rows, others = ways.get(part, (hidden, columns))
        np.testing.assert_array_equal(mask, rows[:, None] & others[None], err_msg=path)
        kept, total = kept + mask.sum(), total + mask.size
    assert total == bert_layout(WHOLE).full_size == 2 * (4 * 16 * 16 + 2 * 16 * 24)
    layers = smaller.params["encoder"]["layers"].values()
    kernels = [m["kernel"] for layer in layers for p in ("attention", "ffn") for m in layer.get(p, {}).values()]
    assert kept == sum(kernel.size for kernel in kernels)
    assert 1 - kept / total >= 0.7


def test_the_rows_of_a_projection_go_with_the_hidden_dimensions():
    values = values_of()
    params, _ = shrunk_of()
    kernel = np.arange(48, dtype=np.float32).reshape(16, 3)
    smaller = materialize({**params, "projection": {"kernel": kernel, "bias": np.ones(3, np.float32)}}, values, WHOLE)
    np.testing.assert_array_equal(smaller.params["projection"]["kernel"], kernel[values["hidden"] > 0])
    np.testing.assert_array_equal(smaller.params["projection"]["bias"], np.ones(3))


def test_parameters_of_the_whole_stay_as_they_are():
    params, _ = shrunk_of()
    before = jax.tree.map(np.array, params)
    materialize(params, values_of(), WHOLE)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True))


def test_a_shrunk_model_is_not_shrunk_again():
    _, smaller = shrunk_of()
    with pytest.raises(InputError, match="shrunk before"):
        materialize(smaller.params, {}, smaller.config)


def test_gates_of_another_shape_are_refused():
    params, _ = shrunk_of()
    with pytest.raises(ValueError, match=r"gates 'heads': shape \(2, 3\); the layout has \(2, 4\)"):
        materialize(params, {"heads": np.ones((2, 3), np.float32)}, WHOLE)


def layer(**changes):
    def damage(section):
        section["layers"][1] |= changes

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda section: section.update(layers="all"), "kaprune.layers: a list of 2 objects"),
        (lambda section: section.update(layers={"0": {}}), "kaprune.layers: a list of 2 objects"),
        (lambda section: section["layers"].pop(), "kaprune.layers: a list of 2 objects"),
        (lambda section: section["layers"].append({"heads": [], "ffn": 1}), "kaprune.layers: a list of 2 objects"),
        (lambda section: section["layers"].__setitem__(1, 7), r"kaprune.layers\[1\]=7"),
        (layer(heads=[0, 4]), r"kaprune.layers\[1\]=.*numbers below 4"),
        (layer(heads=[-1, 2]), r"kaprune.layers\[1\]"),
        (layer(heads=[1, 1]), r"kaprune.layers\[1\]"),
        (layer(heads=[2, 1]), r"kaprune.layers\[1\]"),
        (layer(heads=[True]), r"kaprune.layers\[1\]"),
        (layer(heads="0"), r"kaprune.layers\[1\]"),
        (layer(heads=None), r"kaprune.layers\[1\]"),
        (layer(ffn=-1), r"kaprune.layers\[1\]=.*width up to 24"),
        (layer(ffn=25), r"kaprune.layers\[1\]=.*width up to 24"),
        (layer(ffn=2.0), r"kaprune.layers\[1\]"),
        (layer(ffn="12"), r"kaprune.layers\[1\]"),
        (lambda section: section.update(head_size=0), "attention_head_size=0"),
        (lambda section: section.update(pooler=-3), "pooler_size=-3"),
        (lambda section: section.update(head_size=5), "tensor .* has shape"),
        (lambda section: section.update(pooler=15), "tensor .* has shape"),
        (layer(heads=[], ffn=0), "unexpected tensors"),
    ],
)
def test_a_damaged_section_is_named_in_one_line(tmp_path, damage, message):
    values = {"hidden": np.array([1] * 7 + [0] * 9, np.float32), "heads": np.ones((2, 4), np.float32)}
    values["heads"][1, 2:] = 0
    _, smaller = shrunk_of(values=values)
    kp.save(tmp_path / "m", smaller.params, smaller.config)
    file = tmp_path / "m" / "config.json"
    raw = json.loads(file.read_text())
    damage(raw["kaprune"])
    file.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as caught:
        kp.load(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "m") in str(caught.value)


@pytest.mark.parametrize("name", ["layers", "head_size"])
def test_a_section_without_a_part_is_named_in_one_line(tmp_path, name):
    _, smaller = shrunk_of(values={"hidden": np.array([1] * 7 + [0] * 9, np.float32)})
    kp.save(tmp_path / "m", smaller.params, smaller.config)
    file = tmp_path / "m" / "config.json"
    raw = json.loads(file.read_text())
    del raw["kaprune"][name]
    file.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=str(tmp_path / "m")):
        kp.load(tmp_path / "m")


_TYPES = """
import json, sys
from kaprune_jax._errors import InputError
from kaprune_jax.models.config import from_hugging_face
raw = json.loads(sys.stdin.read())
for part, value in (("head_size", "4"), ("head_size", 4.0), ("head_size", True), ("pooler", "16")):
    try:
        from_hugging_face(raw | {"kaprune": raw["kaprune"] | {part: value}}, "config.json")
        print("read")
    except InputError as error:
        print(error)
"""


def test_values_of_another_type_are_named(tmp_path):
    """In a process of its own: the type checker of the tests would be first to refuse them."""
    _, smaller = shrunk_of()
    kp.save(tmp_path / "m", smaller.params, smaller.config)
    text = (tmp_path / "m" / "config.json").read_text()
    ran = subprocess.run([sys.executable, "-c", _TYPES], input=text, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        f"config.json: config: {name}={value}; allowed: whole numbers from 1 to 2147483647"
        for name, value in (
            ("attention_head_size", "'4'"),
            ("attention_head_size", "4.0"),
            ("attention_head_size", "True"),
            ("pooler_size", "'16'"),
        )
    ]


@pytest.mark.long
@pytest.mark.parametrize("sparsity", [0.6, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("hidden", "layers"), [(384, 6), (768, 12)], ids=["minilm", "bert-base"])
def test_the_saved_file_is_sparse_to_the_unit(tmp_path, hidden, layers, sparsity):
    config = BertConfig(
        20, hidden, layers, 12, 4 * hidden, 16, pooling="mean", head="classification", labels=("a", "b")
    )
    random, layout = np.random.default_rng(1), bert_layout(config)
    gates = {gate.name: random.normal(1.0, 2.0, gate.shape).astype(np.float32) for gate in layout.gates}
    params = jax.tree.map(lambda leaf: random.normal(0, 0.02, leaf.shape).astype(np.float32), param_shapes(config))
    smaller = materialize(params, finalize(gates, layout, sparsity), config)
    kp.save(tmp_path / "model", smaller.params, smaller.config)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    left = sum(tensor.size for name, tensor in tensors.items() if ".layer." in name and tensor.ndim == 2)
    whole = layers * 12 * hidden * hidden
    assert 0 <= whole * (1 - sparsity) - left < 2 * smaller.config.hidden_size
    ids = jnp.asarray(np.arange(12).reshape(2, 6) % 20, jnp.int32)
    loaded = kp.load(tmp_path / "model")
    logits = make_apply(smaller.config)(smaller.params, ids).logits
    np.testing.assert_array_equal(np.asarray(loaded.apply(loaded.params, ids).logits), np.asarray(logits))


def test_log_alpha_is_not_taken_for_gates(getkey):
    config = BertConfig(20, 8, 2, 2, 12)
    gates = kp.init_gates(kp.bert_layout(config))
    with pytest.raises(ValueError, match=r"gates 'attention': from .* kp.finalize makes gates in \[0, 1\]"):
        kp.materialize(init_params(config, getkey()), gates, config)
