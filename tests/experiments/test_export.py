"""Exported models give the logits of the model they come from, read by what they are for."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import kaprune_jax as kp
from experiments.export import main
from experiments.runs.results import delivered
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.deploy.shrink import matrix_masks
from kaprune_jax.models.bert import init_params, make_apply


def same_logits(one, two):
    ids = jnp.array([[5, 6, 7, 8]])
    return np.allclose(one.apply(one.params, ids).logits, two.apply(two.params, ids).logits, atol=1e-5)


def make(tiny, folder, *, hidden=False, cut=True):
    """A structured model: of layer 0 a head and the feed-forward part are gone, of layer 1 the attention and units."""
    start = kp.load(tiny)
    config = start.config.replace(head="classification", labels=("no", "yes"), pooling="cls")
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    if not cut:
        return kp.save(folder, params, config, tokenizer=start.tokenizer)
    gates = {gate.name: np.ones(gate.shape, np.float32) for gate in kp.bert_layout(config).gates}
    gates["heads"][0, 1], gates["ffn"][0], gates["units"][0] = 0, 0, 0
    gates["attention"][1], gates["heads"][1], gates["units"][1, ::3] = 0, 0, 0
    gates["hidden"][::5] = 0 if hidden else 1
    smaller = kp.materialize(params, gates, config)
    masks = matrix_masks(smaller.kept, config)
    return kp.save(folder, smaller.params, smaller.config, tokenizer=start.tokenizer, masks=masks)


@pytest.mark.parametrize("cut", [False, True])
def test_hugging_face_folders_have_whole_shapes(tiny, tmp_path, cut, capsys):
    make(tiny, tmp_path / "model", cut=cut)
    assert main([str(tmp_path / "model"), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    assert "AutoModelForSequenceClassification loads it" in capsys.readouterr().out
    model, out = kp.load(tmp_path / "model"), kp.load(tmp_path / "out")
    assert not out.config.is_shrunk
    ids = jnp.array([[5, 6, 7, 8]])
    np.testing.assert_allclose(
        out.apply(out.params, ids).logits, model.apply(model.params, ids).logits, atol=1e-6
    )  # fmt: skip
    if cut:
        zeros = dict(read_masks(tmp_path / "model"))
        for index, layer in out.params["encoder"]["layers"].items():
            up = np.asarray(layer["ffn"]["up"]["kernel"])
            assert not up[~zeros[f"encoder/layers/{index}/ffn/up/kernel"]].any()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["difference"] < 1e-4


@pytest.mark.parametrize("hidden", [False, True])
def test_a_program_runs_without_this_package(tiny, tmp_path, hidden):
    make(tiny, tmp_path / "model", hidden=hidden)
    assert main([str(tmp_path / "model"), "--to", "stablehlo"]) == 0
    out, model = tmp_path / "model" / "export-stablehlo", kp.load(tmp_path / "model")
    row = [3, 9, 14, 20, 2]
    done = subprocess.run(
        [sys.executable, "-I", str(out / "run.py"), *map(str, row)], capture_output=True, text=True, check=True
    )
    expected = make_apply(model.config)(model.params, jnp.array([row])).logits
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), expected, rtol=1e-4, atol=1e-5)
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    rows = np.array([row, row[::-1], row], np.int32)
    assert program.call(rows, np.ones_like(rows), np.zeros_like(rows)).shape == (3, 2)
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.long
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.filterwarnings("default")  # the converter's own
def test_onnx_takes_any_batch_and_length(tiny, tmp_path, hidden):
    pytest.importorskip("jax2onnx", reason="the converter comes with the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="it comes with the extra onnx")
    make(tiny, tmp_path / "model", hidden=hidden)
    assert main([str(tmp_path / "model"), "--to", "onnx"]) == 0
    out, model = tmp_path / "model" / "export-onnx", kp.load(tmp_path / "model")
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for rows, seq in ((1, 3), (4, 17)):
        ids = np.random.default_rng(rows).integers(1, 40, (rows, seq)).astype(np.int32)
        mask = (np.arange(seq)[None] < np.arange(seq - rows + 1, seq + 1)[:, None]).astype(np.int32)
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        expected = model.apply(model.params, *map(jnp.asarray, feed.values())).logits
        np.testing.assert_allclose(session.run(["logits"], feed)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_small_folder_is_the_same_model_in_the_bytes_that_results_count(tiny, tmp_path, cut, dtype, capsys):
    make(tiny, tmp_path / "model", cut=cut)
    model = kp.load(tmp_path / "model")
    if not cut:  # nine of ten weights gone, single ones
        tx = kp.magnitude_pruning(kp.one_shot(0.9))
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model.params), tx.init(model.params), model.params)
        pruned = jax.tree.map(jnp.add, model.params, updates)
        kp.save(tmp_path / "pruned", pruned, model.config, tokenizer=model.tokenizer)
        model = kp.load(tmp_path / "pruned")
    assert main([str(model.folder), "--to", "small", "--dtype", dtype, "--out", str(tmp_path / "out")]) == 0
    assert f"MB of weights in {dtype} without zeros" in capsys.readouterr().out
    out = kp.load(tmp_path / "out")
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), model.params)
    assert jax.tree.structure(out.params) == jax.tree.structure(model.params)
    assert all(map(np.array_equal, jax.tree.leaves(out.params), jax.tree.leaves(rounded)))
    assert out.config == model.config
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    written = sum(tensor.nbytes for tensor in tensors.values())
    if dtype == "float32" and not cut:
        assert written == delivered(tmp_path / "pruned", asked=0.9)["bytes"]["stored"]
        assert written < 4 * sum(leaf.size for leaf in jax.tree.leaves(model.params))
    again = tmp_path / "again"  # what other commands make of it
    assert main([str(tmp_path / "out"), "--to", "hf", "--out", str(again)]) == 0
    assert same_logits(kp.load(again), out)


def test_a_small_folder_without_unused_words_answers_the_texts_alike(tiny, tmp_path, capsys):
    make(tiny, tmp_path / "model")
    model = kp.load(tmp_path / "model")
    words = [word for word in model.tokenizer.get_vocab() if word.isalpha() and len(word) > 1][:8]
    texts = [" ".join(words[:5]), " ".join(words[3:])]
    (tmp_path / "texts.tsv").write_text("\n".join(f"{number}\t{text}" for number, text in enumerate(texts)))
    flags = ["--to", "small", "--words", str(tmp_path / "texts.tsv"), "--dtype", "float32", "--out", "OUT"]
    assert main([str(tmp_path / "model"), *flags[:-1], str(tmp_path / "out")]) == 0
    out = kp.load(tmp_path / "out")
    assert len(words) <= out.config.vocab_size < model.config.vocab_size
    assert f"{out.config.vocab_size} of {model.config.vocab_size} tokens" in capsys.readouterr().out
    for one, two in zip(model.predict(texts), out.predict(texts), strict=True):
        assert one.label == two.label
        np.testing.assert_allclose(list(one.probabilities.values()), list(two.probabilities.values()), atol=1e-6)


def test_without_the_converter_onnx_says_what_is_missing(tiny, tmp_path, capsys, monkeypatch):
    make(tiny, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert main([str(tmp_path / "model"), "--to", "onnx"]) == 2
    assert "jax2onnx is not installed here; it comes with the extra onnx" in capsys.readouterr().err
    assert not (tmp_path / "model" / "export-onnx").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["MODEL", "--to", "hf"], "hidden dimensions are gone"),
        (["MODEL", "--to", "onnx2"], "invalid choice: 'onnx2'"),
        (["MODEL"], "--to"),
        (["MODEL", "--to", "hf", "--dtype", "float16"], "--dtype goes with --to small, not --to hf"),
        (["MODEL", "--to", "small", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["MODEL", "--to", "small", "--words", "rows.jsonl"], "--words rows.jsonl: ends in '.jsonl'; allowed are .txt"),
        (["MODEL", "--to", "small", "--words", "nowhere.txt"], "nowhere.txt: no such file"),
        (["nowhere", "--to", "hf"], "'nowhere'"),
        (["TINY", "--to", "hf", "--out", "HERE/new"], "the head of a task is needed, not none"),
        (["MODEL", "--to", "hf", "--out", "MODEL"], "is there already"),
        (["MODEL", "--to", "hf", "--out", "HERE/no/where"], "its parent is no folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tiny, tmp_path, capsys, flags, words):
    make(tiny, tmp_path / "model", hidden=True)
    before = sorted(tmp_path.rglob("*"))
    places = {"MODEL": str(tmp_path / "model"), "TINY": str(tiny), "HERE": str(tmp_path)}
    for name, place in places.items():
        flags = [flag.replace(name, place) for flag in flags]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
