import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.folder import load_start
from kaprune_jax.models.bert import init_params, param_shapes
from kaprune_jax.models.config import from_hugging_face, to_hugging_face
from kaprune_jax.models.convert import from_tensors, to_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bert"


@pytest.fixture
def copy(tmp_path):
    """Copies a fixture folder and lets a test change its tensors."""

    def make(name, change=None):
        folder = tmp_path / name
        shutil.copytree(FIXTURES / name, folder)
        if change is not None:
            tensors = load_file(folder / "model.safetensors")
            save_file(change(tensors), folder / "model.safetensors")
        return folder

    return make


@pytest.mark.parametrize("name", ["classifier", "encoder", "mlm", "span"])
def test_writes_back_what_it_read(name):
    model = kp.load(FIXTURES / name)
    ours, theirs = to_tensors(model.params, model.config), load_file(FIXTURES / name / "model.safetensors")
    assert set(ours) == set(theirs) - {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    for key, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[key])


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def test_the_bert_prefix_may_be_missing_or_there(copy):
    def toggle(tensors):
        return {
            (name.removeprefix("bert.") if name.startswith("bert.") else f"bert.{name}"): tensor
            for name, tensor in tensors.items()
        }

    assert same(kp.load(copy("encoder", toggle)).params, kp.load(FIXTURES / "encoder").params)
    strip = copy("classifier", lambda tensors: {name.removeprefix("bert."): t for name, t in tensors.items()})
    assert same(kp.load(strip).params, kp.load(FIXTURES / "classifier").params)


def test_old_layer_norm_names_are_read(copy):
    def old(tensors):
        swap = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new, name in swap:
            tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
        return tensors

    assert same(kp.load(copy("encoder", old)).params, kp.load(FIXTURES / "encoder").params)


def test_half_precision_files_are_widened(copy):
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        folder = copy("encoder", lambda tensors: {name: t.astype(dtype) for name, t in tensors.items()})  # noqa: B023
        params = kp.load(folder).params
        wanted = jax.tree.map(
            lambda a, dtype=dtype: a.astype(dtype).astype(jnp.float32), kp.load(FIXTURES / "encoder").params
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert same(params, wanted)
        shutil.rmtree(folder)


def test_shards_are_read_through_their_index(copy):
    folder = copy("classifier")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(kp.load(folder).params, kp.load(FIXTURES / "classifier").params)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="shard model-00002-of-00002.safetensors is missing"):
        kp.load(folder)


def test_missing_extra_and_misshaped_tensors_are_named():
    model = kp.load(FIXTURES / "classifier")
    tensors = to_tensors(model.params, model.config)
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    with pytest.raises(InputError, match=r"here: tensor encoder\.layer\.1\.intermediate\.dense\.weight is missing"):
        from_tensors({key: t for key, t in tensors.items() if key != name}, model.config, "here")
    with pytest.raises(InputError, match=r"dense\.weight has shape \[64, 31\].*asks for \[64, 32\]"):
        from_tensors({**tensors, name: tensors[name][:, 1:]}, model.config, "here")
    with pytest.raises(InputError, match=r"1 unexpected tensors, such as bert\.encoder\.layer\.7"):
        from_tensors({**tensors, "bert.encoder.layer.7.output.dense.bias": np.zeros(32)}, model.config, "here")


def test_an_untied_decoder_is_refused():
    model = kp.load(FIXTURES / "mlm")
    tensors = to_tensors(model.params, model.config)
    with pytest.raises(InputError, match="only tied heads"):
        from_tensors({**tensors, "cls.predictions.decoder.weight": np.ones((60, 32))}, model.config, "here")


def test_kernels_are_inputs_by_outputs():
    shapes = param_shapes(kp.load(FIXTURES / "classifier").config)
    assert shapes["encoder"]["layers"][0]["ffn"]["up"]["kernel"].shape == (32, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type='roberta'"),
        ({"hidden_act": "swish"}, "hidden_act='swish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"num_attention_heads": 5}, "hidden_size=32 is no multiple"),
        ({"is_decoder": True}, "a decoder"),
        ({"kaprune": {"format": 2}}, "kaprune.format=2; this version reads up to 1: install a newer"),
        ({"kaprune": {"format": "x"}}, "kaprune.format=.x.; this version reads up to 1"),
        ({"hidden_size": 0}, "hidden_size=0"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(change, message, copy):
    folder = copy("encoder")
    raw = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as caught:
        kp.load(folder)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_head_for_answers_has_stock_names_whatever_pools_elsewhere(pooling, getkey):
    config = kp.load(FIXTURES / "span").config.replace(pooling=pooling)
    assert (config.head, config.num_logits, config.has_pooler) == ("span", 2, False)
    tensors = to_tensors(init_params(config, getkey()), config)
    assert tensors["qa_outputs.weight"].shape == (2, 32)
    assert tensors["qa_outputs.bias"].shape == (2,)
    assert not [name for name in tensors if "pooler" in name or name.startswith("classifier")]
    assert set(tensors) == set(load_file(FIXTURES / "span" / "model.safetensors"))
    assert same(from_tensors(tensors, config, "here"), from_tensors(dict(tensors), config, "here"))
    assert to_hugging_face(config)["architectures"] == ["BertForQuestionAnswering"]
    again = from_hugging_face(to_hugging_face(config), "here")
    assert (again.head, again.pooling, again.labels) == ("span", pooling, ())
    bad = tensors | {"qa_outputs.weight": np.zeros((3, 32), np.float32)}
    with pytest.raises(InputError, match=r"qa_outputs.weight has shape \[3, 32\]; config.json asks for \[2, 32\]"):
        from_tensors(bad, config, "here")


def test_heads_of_other_tasks_are_dropped(getkey):
    start, notes = load_start(FIXTURES / "span", head="classification", labels=("no", "yes"), key=getkey())
    assert start.params["head"]["kernel"].shape == (32, 2)
    assert "pooler" in start.params
    assert any("(span) does not fit this task and is dropped" in note for note in notes)
    start, notes = load_start(FIXTURES / "classifier", head="span", labels=(), key=getkey())
    assert "pooler" not in start.params
    assert any("is dropped" in note for note in notes)
    kept, notes = load_start(FIXTURES / "span", head="span", labels=(), key=getkey())
    assert same(kept.params, kp.load(FIXTURES / "span").params)
    assert notes == ()
