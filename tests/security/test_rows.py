"""Rows, augmented rows and studies: bombs, rubbish, pipes; one line that names file and row."""

import gzip
import json
import os

import pytest
import readers

from experiments.grid.file import read_grid, read_slice
from experiments.grid.transfer import make_kind
from experiments.runs.augment_file import write_rows
from kaprune_jax.data.augment import Augmented


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
    ids=lambda value: value[:40] if isinstance(value, str) else "",  # packed bytes say when they were packed
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
    assert f"--study {file}: " in (said := refused(lambda: read_grid(str(file), make_kind())))
    assert part in said


@pytest.mark.parametrize("text", ["²/3", "9" * 5000 + "/1", "1/0", "2/1", "1/1/1", ""])
def test_slices_of_a_study(refused, text):
    assert "I/N with 1 <= I <= N is needed" in refused(read_slice, text)
