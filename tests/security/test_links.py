"""Names and links in a folder: nothing outside of it is read, but for the blobs of the hub's cache."""

import json
import os
import shutil
from pathlib import Path

import pytest
import readers

import kaprune_jax as kp
from experiments.pages.write import write_report
from kaprune_jax._reading import inside
from kaprune_jax.deploy.tokenizer import load_tokenizer


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
