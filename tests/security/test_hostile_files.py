"""Hostile files: one line that names the file, within bounds of memory and time, and nothing else happens.

No code of a folder runs, nothing outside it is read or written, and what is refused is refused before it costs much.
"""

import contextlib
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import readers
from safetensors.numpy import save_file

import kaprune_jax as kp
from experiments.augment_file import write_rows
from experiments.report import write_report
from experiments.study import read_cells, read_slice
from kaprune_jax._errors import InputError
from kaprune_jax._reading import inside, parse_json
from kaprune_jax.data.augment import Augmented
from kaprune_jax.deploy.expand import expand
from kaprune_jax.deploy.folder import load_start
from kaprune_jax.deploy.tokenizer import load_tokenizer


@pytest.fixture
def refused(bounds):
    """Runs what must be refused, within 64 MiB and a few seconds; gives the line."""

    def run(read, *arguments, mebibytes=64, seconds=10) -> str:
        with bounds(mebibytes, seconds), pytest.raises(InputError) as caught:
            read(*arguments)
        said = str(caught.value)
        assert said.isprintable()
        assert len(said) < 2100
        return said

    return run


def indexed(folder: Path, name: str) -> None:
    """A model whose weights are in the one shard of that name."""
    shutil.copy(folder / readers.WEIGHTS, folder.parent / "outside.safetensors")
    (folder / readers.WEIGHTS).unlink()
    (folder / readers.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "sub/../../outside.safetensors", "..\\outside.safetensors", "a\0.safetensors", "..", ".",
     "", "a" * 300 + ".safetensors", "weights.bin", "ABSOLUTE"],
)  # fmt: skip
def test_shards_with_other_names_than_files_of_the_folder(tmp_path, refused, name):
    folder = readers.model(tmp_path)
    indexed(folder, str(tmp_path / "outside.safetensors") if name == "ABSOLUTE" else name)
    assert f"{readers.INDEX}: shard '" in refused(kp.load, folder)


@pytest.mark.parametrize("name", ["config.json", readers.WEIGHTS, readers.INDEX, "1_Pooling/config.json"])
def test_links_out_of_a_model_folder(tmp_path, refused, name):
    folder = readers.model(tmp_path)
    if name == readers.INDEX:
        indexed(folder, "s.safetensors")
        os.symlink(tmp_path / "outside.safetensors", folder / "s.safetensors")
        assert "s.safetensors: leads to" in refused(kp.load, folder)
        (folder / "s.safetensors").unlink()
    outside, place = tmp_path / "elsewhere", folder / name
    outside.write_text("{}")
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.symlink(outside, place)
    assert f"{name}: leads to {outside}" in refused(kp.load, folder)
    place.unlink()
    os.symlink("/dev/zero", place)
    refused(kp.load, folder)
    place.unlink()
    os.symlink(place, place)  # a link to itself
    if name in ("config.json", readers.WEIGHTS):
        refused(kp.load, folder)


def test_links_of_masks_tokenizers_runs_and_of_a_whole_model(tmp_path, refused):
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(readers.RESULT))
    masks, words = readers.masks(tmp_path / "run" if not (tmp_path / "run").mkdir() else tmp_path), tmp_path / "words"
    words.mkdir()
    words = readers.tokenizer(words)
    shutil.move(masks / "masks.safetensors", tmp_path)
    os.symlink(tmp_path / "masks.safetensors", masks / "masks.safetensors")
    assert "masks.safetensors: leads to" in refused(readers.read_all_masks, masks)
    os.symlink(secret, words / "special_tokens_map.json")
    assert "special_tokens_map.json: leads to" in refused(load_tokenizer, words)
    run = readers.run(tmp_path / "other" if not (tmp_path / "other").mkdir() else tmp_path)
    (run / "result.json").unlink()
    os.symlink(secret, run / "result.json")
    assert "result.json: leads to" in refused(write_report, run)
    (tmp_path / "third").mkdir()
    os.symlink(readers.model(tmp_path), tmp_path / "third" / "model")
    assert "leads to" in refused(kp.load, tmp_path / "third")
    assert kp.load(tmp_path / "third" / "model").params  # that a person gives a link is no matter


def test_links_within_the_hubs_cache_are_followed_and_others_are_not(tmp_path, refused):
    cache = tmp_path / "models--some--encoder"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(("config.json", readers.WEIGHTS)):
        shutil.copy(readers.FIXTURES / "encoder" / name, blobs / f"hash{number}")
        os.symlink(f"../../blobs/hash{number}", snapshot / name)
    wanted = kp.load(readers.FIXTURES / "encoder").fingerprint
    assert kp.load(snapshot).fingerprint == wanted
    (snapshot / readers.WEIGHTS).rename(snapshot / "model-1.safetensors")
    (blobs / "hash2").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    os.symlink("../../blobs/hash2", snapshot / readers.INDEX)
    assert kp.load(snapshot).fingerprint == wanted
    assert inside(snapshot, "no-such-file") == snapshot / "no-such-file"

    other = tmp_path / "models--other--secret" / "blobs"
    other.mkdir(parents=True)
    shutil.move(blobs / "hash0", other)
    (snapshot / "config.json").unlink()
    os.symlink("../../../models--other--secret/blobs/hash0", snapshot / "config.json")
    assert "config.json: leads to" in refused(kp.load, snapshot)  # another model's blob
    (snapshot / "config.json").unlink()
    shutil.move(other / "hash0", cache / "hash0")
    os.symlink("../../hash0", snapshot / "config.json")
    assert "config.json: leads to" in refused(kp.load, snapshot)  # beside the blobs
    (snapshot / "config.json").unlink()
    shutil.copytree(blobs, other, dirs_exist_ok=True)
    shutil.move(cache / "hash0", other)
    shutil.rmtree(blobs)
    os.symlink(other, blobs)
    os.symlink("../../blobs/hash0", snapshot / "config.json")
    assert "config.json: leads to" in refused(kp.load, snapshot)  # blobs that are elsewhere
    plain = tmp_path / "downloads"
    (plain / "snapshots" / "x").mkdir(parents=True)
    (plain / "blobs").mkdir()
    shutil.copy(readers.FIXTURES / "encoder" / "config.json", plain / "blobs" / "c")
    os.symlink("../../blobs/c", plain / "snapshots" / "x" / "config.json")
    assert "config.json: leads to" in refused(kp.load, plain / "snapshots" / "x")  # no folder of the hub's cache


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; allowed: whole numbers from 1 to 64"),
        ({"num_hidden_layers": 20000}, "num_hidden_layers=20000; allowed: whole numbers from 1 to 64"),
        ({"num_hidden_layers": 64}, "encoder.layer.3.output.LayerNorm.weight is missing"),
        ({"num_attention_heads": 10**9}, "num_attention_heads=1000000000"),
        ({"vocab_size": 10**30}, "vocab_size=1000"),
        ({"vocab_size": 10**9}, "config.json asks for [1000000000, 32]"),
        ({"hidden_size": 10**9}, "config.json asks for"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"intermediate_size": [64]}, "intermediate_size=[64]"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan; allowed: a number in [0, 1]"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps='x'"),
        ({"layer_norm_eps": 10**299}, "layer_norm_eps=1000"),
        ({"initializer_range": float("inf")}, "initializer_range=inf"),
        ({"hidden_dropout_prob": True}, "hidden_dropout_prob=True"),
        ({"pad_token_id": -5}, "pad_token_id=-5; allowed: 0 to 59"),
        ({"pad_token_id": 60}, "pad_token_id=60"),
        ({"pad_token_id": [1]}, "pad_token_id=[1]"),
        ({"hidden_act": ["gelu"]}, "hidden_act=['gelu']"),
        ({"architectures": 5}, "architectures=5; a list of names"),
        ({"architectures": [[]]}, "architectures=[[]]"),
        ({"kaprune": []}, "kaprune and id2label must be JSON objects"),
        ({"kaprune": 3}, "kaprune and id2label must be JSON objects"),
        ({"kaprune": {"pooling": ["cls"]}}, "pooling=['cls']"),
        ({"kaprune": {"head": {}}}, "head={}"),
        ({"kaprune": {"head_size": 8, "layers": 5}}, "kaprune.layers"),
        ({"kaprune": {"head_size": 2**40, "layers": []}}, "attention_head_size=1099511627776"),
        ({"kaprune": {"format": "1"}}, "kaprune.format='1'"),
        ({"id2label": {"9" * 5000: "a"}}, "the keys of id2label whole numbers"),
        ({"id2label": {"²": "a", "0": "b"}}, "the keys of id2label whole numbers"),
        ({"id2label": {"0": ["a"]}}, "its values texts"),
        ({"id2label": 5}, "kaprune and id2label must be JSON objects"),
        ({"hidden_act": "\ud800"}, "half of a surrogate pair"),
        ({"hidden_act": "\x1b[2J" + "x" * 10**6}, "hidden_act='"),
        ({"model_type": ["bert"]}, "model_type=['bert']"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_configurations(tmp_path, refused, changes, part):
    folder = readers.model(tmp_path)
    readers.change_json(folder / "config.json", **changes)
    said = refused(kp.load, folder)
    assert part in said
    assert str(folder) in said


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", readers.INDEX])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"a":' + "[" * 200_000, "nested more than 100 deep"),
        ('{"a":' + "[" * 150 + "]" * 150 + "}", "nested more than 100 deep"),
        ('{"vocab_size":' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("[]", "a JSON object is needed, not list"),
        ("\ufeff{}", "not JSON"),
        (b"{\xff}", "not UTF-8 (byte 0xff in line 1)"),
        ("", "line 1: not JSON"),
    ],
    ids=lambda value: value[:30] if len(value) > 1000 else None,
)
def test_files_that_are_no_json(tmp_path, refused, name, content, part):
    folder = readers.model(tmp_path)
    if name == readers.INDEX:
        (folder / readers.WEIGHTS).unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{folder / name}: " in (said := refused(kp.load, folder))
    assert part in said


def test_json_as_deep_and_long_as_allowed_is_read():
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json(json.dumps([{"text": "[" * 1000}] * 200))
    assert parse_json("9" * 300) == 10**300 - 1
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2**62),
        (b"{}", 0),
        ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, None),
        ({"a": {"dtype": "F32", "shape": [2**31, 0], "data_offsets": [0, 0]}}, None),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, None),
        ({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, None),
        ({"a": {"dtype": "F128", "shape": [1], "data_offsets": [0, 4]}}, None),
        (b'{"a":' + b"[" * 100_000, None),
    ],
)
def test_headers_of_weights(tmp_path, refused, header, length):
    folder = readers.model(tmp_path)
    readers.write_safetensors(folder / readers.WEIGHTS, header, b"0000", length)
    assert str(folder) in refused(kp.load, folder)


def test_values_beyond_float32(tmp_path, refused):
    folder = readers.model(tmp_path)
    save_file({"a": np.array([1e300])}, folder / readers.WEIGHTS)
    assert "has float64 values beyond the range of float32" in refused(kp.load, folder)


def test_a_tensor_that_two_shards_have(tmp_path, refused):
    folder = readers.model(tmp_path)
    shutil.copy(folder / readers.WEIGHTS, folder / "a.safetensors")
    os.symlink("a.safetensors", folder / "b.safetensors")
    (folder / readers.WEIGHTS).unlink()
    shards = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / readers.INDEX).write_text(json.dumps(shards))
    assert "is in another file of the folder too" in refused(kp.load, folder)


def test_a_new_pooler_is_as_wide_as_the_model(tmp_path, bounds):
    folder = readers.model(tmp_path)
    shape = {"heads": [0, 1, 2, 3], "ffn": 64}
    section = {"head": "none", "head_size": 8, "pooler": 2**31 - 1, "layers": [shape] * 3}
    readers.change_json(folder / "config.json", kaprune=section)
    import jax

    with bounds(512, 60):
        start = load_start(folder, head="regression", labels=(), key=jax.random.key(0), pooling="cls")
    assert start.model.params["pooler"]["kernel"].shape == (32, 32)


@pytest.mark.parametrize(
    ("shape", "bits"),
    [
        ("60000x60000", np.zeros(4, np.uint8)),
        ("100000000x100000000", np.zeros(4, np.uint8)),
        ("axb", np.zeros(4, np.uint8)),
        ("-1x-8", np.zeros(4, np.uint8)),
        ("-4x-8", np.zeros(4, np.uint8)),
        ("0x5", np.zeros(0, np.uint8)),
        ("32", np.zeros(4, np.uint8)),
        ("4x4x2", np.zeros(4, np.uint8)),
        ("4x9", np.zeros(4, np.uint8)),
        ("4x4", np.zeros(4, np.uint8)),
        ("4x8", np.zeros((2, 2), np.uint8)),
        ("4x8", np.zeros(4, np.float32)),
        ("4x8", np.zeros(4, np.int8)),
        ("٤x٨", np.zeros(4, np.uint8)),
        ("9" * 5000 + "x1", np.zeros(4, np.uint8)),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else str(value.dtype),
)
def test_masks_whose_shape_is_not_that_of_their_bits(tmp_path, refused, shape, bits):
    readers.write_mask(tmp_path, shape, bits)
    said = refused(readers.read_all_masks, tmp_path)
    assert f"{tmp_path / 'masks.safetensors'}: mask 'encoder/x/kernel' has shape " in said


def test_a_mask_without_a_shape(tmp_path, refused):
    save_file({"k": np.zeros(4, np.uint8)}, tmp_path / "masks.safetensors")
    assert "mask 'k' has shape 'none'" in refused(readers.read_all_masks, tmp_path)


def test_masks_of_another_model(tmp_path, refused):
    folder = readers.model(tmp_path)
    readers.masks(tmp_path)
    shape = {"heads": [0, 1, 2, 3], "ffn": 64}
    readers.change_json(folder / "config.json", kaprune={"head_size": 8, "layers": [shape] * 3})
    said = refused(lambda: expand(kp.load(folder)), seconds=60, mebibytes=256)
    assert "masks.safetensors: keeps 16 hidden dimensions" in said


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("t.tsv.gz", readers.bomb(b"sentence\tlabel\n", b"a", 1024), "times the size"),
        ("t.csv.gz", readers.bomb(b"sentence,label\n", b"\n", 512), "times the size"),
        ("t.jsonl.gz", readers.bomb(b"", b'{"sentence":"a","label":1}\n', 512), "times the size"),
        ("t.tsv.gz", gzip.compress(b"sentence\tlabel\na\t1\n")[:-9], "cut short"),
        ("t.tsv.gz", gzip.compress(b"sentence\tlabel\na\t1\n")[:-8] + bytes(8), "not a sound gzip file"),
        ("t.tsv.gz", gzip.compress(b"sentence\tlabel\na\t1\n") + b"rubbish", "not a sound gzip file"),
        ("t.tsv.gz", gzip.compress(gzip.compress(b"sentence\tlabel\na\t1\n")), "row 1: byte 0x8b is not UTF-8"),
        ("t.csv", b"sentence,label\nx,1\na\0b,1\n", "row 3: a NUL character"),
        ("t.tsv", b"sentence\tlabel\na\0b\t1\n", "row 2: a NUL character"),
        ("t.jsonl", b'{"sentence":"a\\u0000b","label":1}\n', "row 1, field 'sentence': 'a\\x00b' has a NUL"),
        ("t.jsonl", b'{"sentence":"a","label":1}\n{"sentence":"a","label":NaN}\n', "row 2, field 'label': nan is"),
        ("t.jsonl", b'{"sentence":"a","label":-Infinity}\n', "row 1, field 'label': -inf is no finite number"),
        ("t.jsonl", b'{"sentence":"a","label":1e999}\n', "row 1, field 'label': inf is no finite number"),
        ("t.jsonl", b'{"sentence":"a","label":' + b"9" * 5000 + b"}\n", "row 1: malformed JSON (a number of 5000"),
        ("t.jsonl", b'{"sentence":' + b"[" * 500_000 + b"\n", "row 1: malformed JSON (nested more than 100"),
        ("t.jsonl", b"[" * 900 + b"]" * 900 + b"\n", "row 1: malformed JSON (nested more than 100"),
        ("t.csv", b"sentence,label\n" + b"a" * 200_000 + b",1\n", "row 2: malformed CSV (field larger"),
        ("t.tsv", b"\t".join(b"c%d" % i for i in range(200_000)) + b"\nx\n", "no column 'sentence'"),
        ("t.tsv", b"sentence\tlabel\na\t1\nb\xff\t1\n", "row 3: byte 0xff is not UTF-8"),
        ("t\n.tsv", b"x", "t .tsv: no column 'sentence'"),
        ("t\x1b[2J.tsv", b"x", "t\\x1b[2J.tsv: no column 'sentence'"),
    ],
    ids=lambda value: str(value[:20]),
)  # fmt: skip
def test_rows(tmp_path, refused, name, content, part):
    (tmp_path / name).write_bytes(content)
    said = refused(readers.read_table, tmp_path / name, mebibytes=160)
    assert part in said
    assert str(tmp_path) in said


def test_rows_that_shrink_as_text_does_are_read(tmp_path, rng):
    words = [b"film", b"song", b"good", b"bad", b"awful", b"a", b"the", b"was"]
    lines = [b" ".join(words[i] for i in row) + b"\t1\n" for row in rng.integers(0, 8, (2000, 2000))]
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"sentence\tlabel\n" + b"".join(lines), 1))
    assert sum(map(len, lines)) > 16 << 20
    assert len(readers.read_table(tmp_path / "t.tsv.gz").texts) == 2000


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: os.symlink("/dev/zero", file)], ids=["pipe", "device"])
@pytest.mark.parametrize("name", ["t.tsv", "t.jsonl.gz"])
def test_pipes_and_devices_are_no_files(tmp_path, refused, name, make):
    make(tmp_path / name)
    assert f"{name}: cannot be read (a device or a pipe" in refused(readers.read_table, tmp_path / name)


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ([b"[1]"], "line 1 is no JSON object"),
        ([b"{}"], "line 1 is no JSON object with a sha256"),
        ([b'{"sha256": ""}', b'[-1, "x"]'], "line 2 is [-1, 'x']"),
        ([b'{"sha256": ""}', b'[true, "x"]'], "line 2 is [True, 'x']"),
        ([b'{"sha256": ""}', b'[0, "x", "y", "z"]'], "line 2 is [0, 'x', 'y', 'z']"),
        ([b'{"sha256": ""}', b"[0, 5]"], "line 2 is [0, 5]"),
        ([b'{"sha256": ""}', b"{}"], "line 2 is {}"),
        ([b'{"sha256": ""}', b"[" * 100_000], "nested more than 100 deep"),
        ([b'{"sha256": ""}', b"9" * 5000], "a number of 5000 digits"),
        ([b'{"sha256": ""}', b'[0, "\\ud800"]'], "half of a surrogate pair"),
        ([b'{"sha256": "x", "data": "y"}', b'[0, "x"]'], "made with data y"),
        ([json.dumps(readers.HEADER | {"sha256": 5}).encode(), b'[0, "x"]'], "not those that were written"),
        ([b"\xff"], "not a readable file of augmented rows"),
    ],
)
def test_augmented_rows(tmp_path, refused, lines, part):
    file = tmp_path / "augmented.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    assert f"{file}: " in (said := refused(readers.read_own, file))
    assert part in said


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (Augmented((("x",),), (2,)), "a row of 1 texts made of row 2; 2 rows of 1 are there"),
        (Augmented((("x", "y"),), (0,)), "a row of 2 texts made of row 0"),
    ],
)
def test_augmented_rows_of_another_task(tmp_path, refused, made, part):
    write_rows(tmp_path / "rows", readers.HEADER, made)
    assert part in refused(readers.read_own, tmp_path / "rows")


def test_augmented_rows_that_are_a_bomb(tmp_path, refused):
    file = tmp_path / "rows"  # whatever it is called
    file.write_bytes(readers.bomb(b'{"sha256": ""}\n', b"[", 1024))
    assert "times the size" in refused(readers.read_own, file, mebibytes=160)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"grids": [{name: [0, 1, 2, 3] for name in ("seed", "steps", "limit_train", "batch_size", "augment", "epochs",
                                                     "learning_rate", "sparsity", "warmup", "temperature")}]},
         "cells; up to 10000"),
        ({"grids": [[]]}, "base and every grid must be objects"),
        ({"grids": [{"seed": 5}]}, "seed=5; a list of values"),
        ({"grids": [{"seed": [[1]]}]}, "seed=[1] is no int"),
        ({"grids": 5}, "an object with out, base and grids"),
        ({"base": []}, "base and every grid must be objects"),
        ({"out": "a\0b"}, "an object with out, base and grids"),
        ({"out": ["a"]}, "an object with out, base and grids"),
        ({"base": {"sparsity": float("nan"), "cell": "1/1"}}, "'cell' is no flag"),
    ],
)  # fmt: skip
def test_studies(tmp_path, refused, changes, part):
    file = readers.study(tmp_path)
    readers.change_json(file, **changes)
    assert f"--study {file}: " in (said := refused(lambda: read_cells(str(file))))
    assert part in said


@pytest.mark.parametrize("text", ["²/3", "9" * 5000 + "/1", "1/0", "2/1", "1/1/1", ""])
def test_slices_of_a_study(refused, text):
    assert "I/N with 1 <= I <= N is needed" in refused(read_slice, text)


BAD = '<script>alert("x")</script><img src=x onerror=alert(1)>&\x00'


@pytest.mark.parametrize("name", ["result.json", "config.json", "env.json", "metrics.jsonl"])
def test_what_a_run_says_of_itself_is_text_in_the_report(tmp_path, name):
    """Every name and every value of a file replaced by markup, one after the other."""

    def spoil(value):
        if isinstance(value, dict):
            yield dict.fromkeys([BAD], next(iter(value.values()), BAD))
            for key, inner in value.items():
                yield from (value | {key: each} for each in spoil(inner))
        yield BAD

    file = readers.run(tmp_path) / name
    for line in file.read_text().splitlines():
        for changed in spoil(json.loads(line)):
            if isinstance(changed, dict):
                file.write_text(json.dumps(changed) + "\n")
                try:
                    page = write_report(tmp_path).read_text()
                except InputError as error:
                    page = str(error)
                assert "<script" not in page
                assert "<img src=x" not in page


def test_paths_of_masks_are_text_in_the_report(tmp_path):
    run = readers.run(tmp_path)
    paths = (f"{BAD[:-1]}layers/0/{BAD[:-1]}/query/kernel", "encoder/layers/" + "9" * 5000 + "/attention/query/kernel")
    save_file({path: np.zeros(8, np.uint8) for path in paths}, run / "model" / "masks.safetensors",
              metadata=dict.fromkeys(paths, "8x8"))  # fmt: skip
    readers.change_json(run / "result.json", removed=None, per_matrix=None)
    assert "<script" not in write_report(run).read_text()


@pytest.mark.parametrize("section", ["tokenizer_config.json", "config.json"])
def test_code_of_a_folder_does_not_run(tmp_path, section):
    folder, mark = readers.tokenizer(tmp_path), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass T: pass\nclass C: pass\n")
    if section == "config.json":
        shutil.copy(readers.FIXTURES / "encoder" / "config.json", folder)
    code = {"AutoTokenizer": ["evil.T", "evil.T"], "AutoConfig": "evil.C"}
    readers.change_json(folder / section, auto_map=code)
    load_tokenizer(folder)
    readers.change_json(folder / section, auto_map=code, tokenizer_class="T", model_type="evil")
    with contextlib.suppress(InputError):  # no such class, or none needed
        load_tokenizer(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("tokenizer_config.json", {"vocab_file": "/etc/hostname"}, "vocab_file='/etc/hostname'; only the folder's own"),
        ("tokenizer_config.json", {"tokenizer_file": "other.json"}, "tokenizer_file='other.json'"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.5.0.0.json"]}, "fast_tokenizer_files="),
        ("tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}}, "makes texts up to 1e+19 times"),
        ("tokenizer.json", {"model": []}, "its tokenizer cannot be read"),
        ("tokenizer.json", {"added_tokens": {"id": 5}}, "its tokenizer cannot be read"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_tokenizers(tmp_path, refused, name, changes, part):
    folder = readers.tokenizer(tmp_path)
    readers.change_json(folder / name, **changes)
    assert part in refused(load_tokenizer, folder, mebibytes=512, seconds=60)


def test_templates_of_a_tokenizer_are_no_names_of_files(tmp_path):
    folder = readers.tokenizer(tmp_path)
    templates = [{"name": name, "template": "x"} for name in ("default", "../../../evil", str(tmp_path / "evil"))]
    readers.change_json(folder / "tokenizer_config.json", chat_template=templates)
    load_tokenizer(folder).save_pretrained(tmp_path / "saved" / "deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "saved"]
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["deep"]


@pytest.mark.parametrize("number", [4000, 2**31, 2**32 - 1, 2**63, 10**30, -1])
@pytest.mark.parametrize("place", ["vocab", "added_tokens", "added_tokens.json", "added_tokens_decoder"])
def test_absurd_ids_of_tokens(tmp_path, bounds, place, number):
    folder = Path(shutil.copytree(kp.load("mini").folder, tmp_path / "mini"))
    raw = json.loads((folder / "tokenizer.json").read_text())
    token = {"content": "[NEW]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    if place == "vocab":
        raw["model"]["vocab"]["[NEW]"] = number
    elif place == "added_tokens":
        raw["added_tokens"].append(token | {"id": number, "special": True})
    elif place == "added_tokens.json":
        (folder / place).write_text(json.dumps({"[NEW]": number}))
    else:
        readers.change_json(folder / "tokenizer_config.json", added_tokens_decoder={str(number): token})
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    model = kp.load(folder)
    with bounds(256, 20):
        try:
            assert max(model.tokenizer.get_vocab().values()) < model.config.vocab_size
        except InputError as error:
            assert str(folder) in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", ['{"model":' + "[" * 10_000, "[]", "9" * 5000, "", "null"])
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_tokenizer_files_that_are_no_json_objects(tmp_path, refused, name, content):
    folder = readers.tokenizer(tmp_path)
    (folder / name).write_text(content)
    assert f"{folder / name}: " in refused(load_tokenizer, folder)


def test_messages_stay_one_short_printable_line():
    said = str(InputError("a\nb\x1b[31m\ud800 " + "x" * 10**6))
    assert said.startswith("a b\\x1b[31m\\ud800 xxx")
    assert said.isprintable()
    assert len(said) < 2100


def test_sound_files_are_read(tmp_path):
    for name, (make, read) in readers.READERS.items():
        (tmp_path / name).mkdir()
        assert read(make(tmp_path / name))
