import json
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.folder import load_start
from kaprune_jax.models.bert import PRUNABLE, init_params
from kaprune_jax.models.config import BertConfig, LayerShape

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bert"
SMALL = BertConfig(60, 32, 2, 4, 64, 40, labels=("no", "yes"), head="classification")


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("head", ["classification", "regression", "masked-lm", "none"])
def test_saves_and_loads_the_same(tmp_path, getkey, head, pooling):
    config = SMALL.replace(head=head, pooling=pooling, labels=("no", "yes") if head == "classification" else ())
    params = init_params(config, getkey())
    kp.save(tmp_path / "m", params, config, details={"pattern": "element"})
    model = kp.load(tmp_path / "m")
    assert model.config == config
    assert same(model.params, params)
    assert model.details["pattern"] == "element"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize(("pattern", "sparsity"), [("element", 0.95), ("block-4x8", 0.9), ("2:4", 0.5)])
def test_the_saved_file_has_exactly_the_asked_zeros_and_masks(tmp_path, getkey, pattern, sparsity):
    params = init_params(SMALL, getkey())
    state = kp.magnitude_pruning(kp.one_shot(sparsity), pattern=pattern).init(params)
    tx = kp.magnitude_pruning(kp.one_shot(sparsity), pattern=pattern)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    pruned = jax.tree.map(jnp.add, params, updates)
    kp.save(tmp_path / "m", pruned, SMALL, masks=state.masks)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    matrices = [t for name, t in tensors.items() if ".layer." in name and t.ndim == 2]
    assert len(matrices) == 12
    for matrix in matrices:
        unit = {"element": 1, "block-4x8": 32, "2:4": 1}[pattern]
        kept = matrix.size // unit * round(1000 * (1 - sparsity)) // 1000 * unit
        assert np.count_nonzero(matrix) == kept
    with safe_open(tmp_path / "m" / "masks.safetensors", "np") as opened:
        shapes = opened.metadata()
        for name in opened.keys():  # noqa: SIM118
            rows, columns = map(int, shapes[name].split("x"))
            bits = np.unpackbits(opened.get_tensor(name), count=rows * columns).reshape(rows, columns)
            leaf = pruned
            for key in name.split("/"):
                leaf = leaf[int(key) if key.isdigit() else key]
            np.testing.assert_array_equal(bits.astype(bool), np.asarray(leaf) != 0)


def test_a_folder_that_exists_is_not_touched(tmp_path, getkey):
    (tmp_path / "m").mkdir()
    with pytest.raises(InputError, match="exists already"):
        kp.save(tmp_path / "m", init_params(SMALL, getkey()), SMALL)
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_nothing_half_written_remains(tmp_path, getkey, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("kaprune_jax.deploy.folder.save_file", fail)
    with pytest.raises(InputError, match=error.strerror):
        kp.save(tmp_path / "m", init_params(SMALL, getkey()), SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_limit_on_the_size_of_files_leaves_nothing_behind(tmp_path, getkey, share):
    params = init_params(SMALL, getkey())
    size = (kp.save(tmp_path / "whole", params, SMALL) / "model.safetensors").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), hard))
        with pytest.raises(InputError, match=r"m: cannot be written \(.*[Ff]ile too large"):
            kp.save(tmp_path / "m", params, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def as_shards(folder, shards):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights; model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only as pytorch_model.bin",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "not a readable safetensors file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 20_000), "not a readable safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: line 1: not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json: not UTF-8"),
        (lambda folder: (folder / "config.json").write_text("[]"), "a JSON object is needed"),
        (lambda folder: as_shards(folder, ["model-1.safetensors"]), "weight_map must be a JSON object"),
        (lambda folder: as_shards(folder, {"a": "model-1.safetensors"}), "shard model-1.safetensors is missing"),
        (lambda folder: as_shards(folder, {}), "no weights"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(tmp_path, prepare, message):
    folder = tmp_path / "m"
    shutil.copytree(FIXTURES / "encoder", folder)
    prepare(folder)
    with pytest.raises(InputError, match=message) as caught:
        kp.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_folder_is_refused_in_one_line(monkeypatch):
    with pytest.raises(InputError, match=r"'\./nowhere': no such folder"):
        kp.load("./nowhere")

    def unreachable(*_, **__):
        raise ConnectionError("no route to host\nmany more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"'some/model': neither a folder.*no route to host") as caught:
        kp.load("some/model")
    assert "\n" not in str(caught.value)


def test_a_hub_name_is_read_from_what_the_hub_gives(monkeypatch):
    asked = {}

    def download(name, *, allow_patterns):
        asked[name] = allow_patterns
        return str(FIXTURES / "classifier")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert kp.load("some/model").config.num_hidden_layers == 2
    assert not any("bin" in pattern or "*.pt" in pattern for pattern in asked["some/model"])


def start(folder, **changes):
    return load_start(folder, **{"head": "classification", "labels": ("a", "b"), "key": jax.random.key(0)} | changes)


def test_pooling_is_what_the_checkpoint_was_made_for(tmp_path):
    assert "no pooler" in start(FIXTURES / "encoder").notes[0]
    assert start(FIXTURES / "encoder").model.config.pooling == "mean"
    assert start(FIXTURES / "classifier").model.config.pooling == "cls"
    assert start(FIXTURES / "encoder", pooling="cls").model.config.pooling == "cls"
    folder = tmp_path / "sentence"
    shutil.copytree(FIXTURES / "classifier", folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert start(folder).model.config.pooling == "mean"
    zero = tmp_path / "zero"
    shutil.copytree(FIXTURES / "encoder", zero)
    tensors = load_file(zero / "model.safetensors")
    tensors |= {"pooler.dense.weight": np.ones((32, 32), np.float32), "pooler.dense.bias": np.zeros(32, np.float32)}
    save_file(tensors, zero / "model.safetensors")
    assert "never trained" in start(zero).notes[0]
    tensors["pooler.dense.bias"] += 0.1
    save_file(tensors, zero / "model.safetensors")
    assert start(zero).model.config.pooling == "cls"


def test_the_head_is_kept_for_the_same_labels_and_dropped_for_others(tmp_path, getkey):
    params = init_params(SMALL, getkey())
    kp.save(tmp_path / "m", params, SMALL)
    kept = start(tmp_path / "m", labels=("no", "yes"))
    assert same(kept.model.params, params)
    dropped = start(tmp_path / "m", labels=("no", "maybe", "yes"))
    assert dropped.model.params["head"]["kernel"].shape == (32, 3)
    assert any("is dropped" in note for note in dropped.notes)
    assert same(dropped.model.params["encoder"], params["encoder"])
    regression = start(tmp_path / "m", head="regression", labels=(), head_bias=2.5)
    assert regression.model.params["head"]["bias"].tolist() == [2.5]


def test_a_shrunk_model_is_nothing_to_start_from(tmp_path, getkey):
    layers = tuple(LayerShape((0,), 8) for _ in range(SMALL.num_hidden_layers))
    config = SMALL.replace(layers=layers, attention_head_size=SMALL.head_size)
    kp.save(tmp_path / "m", init_params(config, getkey()), config)
    with pytest.raises(InputError, match="whole structures were cut out of this model; a whole one is needed"):
        start(tmp_path / "m")


def test_a_folder_of_several_runs_says_where_its_models_are(tmp_path, getkey):
    kp.save(tmp_path / "runs" / "b" / "model", init_params(SMALL, getkey()), SMALL)
    with pytest.raises(InputError, match=rf"no model folder: .*; there are models in {tmp_path}/runs/b$"):
        kp.load(tmp_path / "runs")


def test_a_missing_pooler_starts_at_random_and_is_said(tmp_path):
    begun = start(FIXTURES / "encoder", pooling="cls")
    assert any("has no pooler; it starts at random" in note for note in begun.notes)
    assert start(FIXTURES / "mlm", pooling="cls").model.params["pooler"]["kernel"].shape == (32, 32)


def test_predicts_labels_and_probabilities_of_texts(tmp_path, getkey):
    mini = kp.load("mini")
    config = mini.config.replace(head="classification", labels=("no", "yes"), pooling="mean")
    kp.save(tmp_path / "m", init_params(config, getkey()), config, tokenizer=mini.tokenizer)
    model = kp.load(tmp_path / "m")
    rows = [("a robin is a bird .", "a robin is an animal ."), ("a bird is small .", "a bird is big .")] * 3
    predictions = model.predict(rows, batch_size=4)
    assert len(predictions) == 6
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    np.testing.assert_allclose(predictions[0].probabilities["no"], predictions[2].probabilities["no"], atol=1e-6)
    assert model.predict(["a robin is a bird ."])[0].label in ("no", "yes")
    assert model.predict([]) == []
    for one, other in zip(model.predict(rows[:2], max_length=15), predictions, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert not one.truncated
    mixed = model.predict([("a", "a"), rows[0], ("a", "b")], max_length=5)
    assert [each.truncated for each in mixed] == [False, True, False]
    assert mixed[1].probabilities != predictions[0].probabilities
    with pytest.raises(InputError, match="batch_size=0"):
        model.predict(rows, batch_size=0)
    with pytest.raises(InputError, match="1 names for 2 rows"):
        model.predict(rows[:2], names=["the first"])
    with pytest.raises(InputError, match="^the second is \\("):
        model.predict([("a", "b"), ("a",)], names=["the first", "the second"])
    with pytest.raises(InputError, match="without the head of a task"):
        mini.predict(["a"])


@pytest.mark.parametrize("rows", [["a", ("a", "b")], [("a", "b"), "a"], [("a", "b", "c")]])
def test_rows_that_are_not_alike_are_refused(tmp_path, getkey, rows):
    mini = kp.load("mini")
    config = mini.config.replace(head="regression", pooling="mean")
    kp.save(tmp_path / "m", init_params(config, getkey()), config, tokenizer=mini.tokenizer)
    with pytest.raises(InputError, match=r"predict: row \d is .*are needed"):
        kp.load(tmp_path / "m").predict(rows)


def test_prunable_is_the_six_matrices_of_each_layer():
    from kaprune_jax._tree import select

    assert len(select(kp.load(FIXTURES / "classifier").params, PRUNABLE)) == 2 * 6


@pytest.mark.parametrize("name", ["classifier", "encoder"])
def test_stock_transformers_gives_the_same_logits(tmp_path, name, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here; pip install torch to run it")
    import transformers

    begun = start(FIXTURES / name, labels=("a", "b", "c")).model
    kp.save(tmp_path / "m", begun.params, begun.config)
    ids = rng.integers(5, 60, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    ours = begun.apply(begun.params, jnp.asarray(ids), jnp.asarray(mask)).logits
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        if begun.config.pooling == "cls":
            stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
            theirs = stock(**batch).logits
        else:
            stock = transformers.AutoModel.from_pretrained(tmp_path / "m").eval()
            weight = batch["attention_mask"][..., None]
            mean = (stock(**batch).last_hidden_state * weight).sum(1) / weight.sum(1)
            head = load_file(tmp_path / "m" / "model.safetensors")
            theirs = mean @ torch.tensor(head["classifier.weight"]).T + torch.tensor(head["classifier.bias"])
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
