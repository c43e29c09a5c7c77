"""Configurations, JSON and weights: one line that names the file, before it costs memory or time."""

import json
import os
import shutil

import numpy as np
import pytest
import readers
from safetensors.numpy import save_file

import kaprune_jax as kp
from kaprune_jax._reading import parse_json
from kaprune_jax.deploy.folder import load_start


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
    readers.change_json(folder / "config.json", kaprune={"head": "none", "pooler": 2**31 - 1})
    import jax

    with bounds(512, 60):
        start = load_start(folder, head="regression", labels=(), key=jax.random.key(0), pooling="cls")
    assert start.model.params["pooler"]["kernel"].shape == (32, 32)


def test_sound_files_are_read(tmp_path):
    for name, (make, read) in readers.READERS.items():
        (tmp_path / name).mkdir()
        assert read(make(tmp_path / name))
