"""Tokenizers: no code of a folder runs, no file outside it is read or written, ids stay within bounds."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import readers

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.tokenizer import load_tokenizer


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
