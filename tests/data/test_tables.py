"""Reading files: formats, what is tolerated, and every bad file named with its row."""

import gzip
import json
from pathlib import Path

import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.tables import read_rows

GOOD = "id\tsentence\tlabel\n0\tfine words\tyes\n1\tbad words\tno\n"


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, **kwargs):
    return read_rows(path, **{"text": ("sentence",), "label": "label", **kwargs})


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", GOOD),
        ("t.csv", 'label,sentence\nyes,"fine words"\nno,bad words\n'),
        ("t.jsonl", '{"sentence": "fine words", "label": "yes"}\n{"label": "no", "sentence": "bad words"}\n'),
    ],
)
def test_all_formats(tmp_path, name, content, ending):
    path = write(tmp_path / (name + ending), content)
    rows = read(path)
    assert rows.source == str(path)
    assert (rows.texts, rows.labels) == ((("fine words",), ("bad words",)), ("yes", "no"))
    assert rows.numbers == ((1, 2) if name == "t.jsonl" else (2, 3))


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n"), GOOD + "\n\n", GOOD.rstrip("\n")],
    ids=["byte order mark", "CRLF", "empty lines at the end", "no last line end"],
)
def test_tolerated(tmp_path, content):
    rows = read(write(tmp_path / "t.tsv", content))
    assert (rows.texts, rows.labels) == ((("fine words",), ("bad words",)), ("yes", "no"))


def test_crlf_and_byte_order_mark_in_csv_and_jsonl(tmp_path):
    csv_rows = read(write(tmp_path / "t.csv", b"\xef\xbb\xbfsentence,label\r\nfine,yes\r\n"))
    json_rows = read(write(tmp_path / "t.jsonl", b'\xef\xbb\xbf{"sentence": "fine", "label": "yes"}\r\n'))
    assert csv_rows.texts == json_rows.texts == (("fine",),)
    assert csv_rows.labels == json_rows.labels == ("yes",)


def test_tsv_has_no_quoting_and_splits_at_line_feeds_only(tmp_path):
    text = 'a "bare quote, \x0c form\u2028feed\x85'
    assert read(write(tmp_path / "t.tsv", f"sentence\tlabel\n{text}\t1\n")).texts == ((text,),)


def test_csv_quotes_and_the_row_a_record_begins_on(tmp_path):
    path = write(tmp_path / "t.csv", 'sentence,label\n"two\nlines, ""quoted""",yes\nnext,no\n')
    rows = read(path)
    assert rows.texts == (('two\nlines, "quoted"',), ("next",))
    assert rows.numbers == (2, 4)


def test_two_text_columns_in_the_order_asked(tmp_path):
    path = write(tmp_path / "t.tsv", "a\tb\tlabel\n1st\t2nd\tx\n")
    assert read(path, text=("b", "a")).texts == (("2nd", "1st"),)


def test_header_given_by_the_caller(tmp_path):
    rows = read(write(tmp_path / "t.tsv", "gj04\t1\t\tA sentence.\n"), header=("source", "label", "star", "sentence"))
    assert (rows.texts, rows.labels, rows.numbers) == ((("A sentence.",),), ("1",), (1,))


def test_json_numbers_become_text(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"sentence": 5, "label": 1}\n{"sentence": "x", "label": 2.5}\n')
    rows = read(path)
    assert (rows.texts, rows.labels) == ((("5",), ("x",)), ("1", "2.5"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "", "t.tsv: the file is empty"),
        ("t.tsv.gz", "", "t.tsv.gz: the file is empty"),
        ("t.csv", "\ufeff\n\n", "t.csv: the file is empty"),
        ("t.tsv", "sentence\tlabel\n", "t.tsv: a header but no rows"),
        ("t.xlsx", "x", "t.xlsx: name ends in '.xlsx'; allowed are .tsv, .csv, .jsonl, plain or with .gz"),
        ("t.tsv", GOOD.encode() + b"2\tcaf\xe9\tno\n", "t.tsv, row 4: byte 0xe9 is not UTF-8"),
        ("t.tsv", b"\xef\xbb\xbf" + GOOD.encode() + b"2\tcaf\xe9\tno\n", "t.tsv, row 4: byte 0xe9 is not UTF-8"),
        ("t.csv", GOOD.encode("utf-16"), "t.csv, row 1: byte 0xff is not UTF-8"),
        ("t.tsv", GOOD + "2\tshort\n", r"t.tsv, row 4: too few fields, 2 instead of 3 \(columns: 'id', 'sentence'"),
        ("t.tsv", "sentence\tlabel\n\nx\t1\n", "t.tsv, row 2: too few fields, 1 instead of 2"),
        ("t.tsv", GOOD + "2\tlong\tno\tmore\n", "t.tsv, row 4: too many fields, 4 instead of 3"),
        ("t.csv", "sentence,label\nfine,yes\nbad\n", "t.csv, row 3: too few fields, 1 instead of 2"),
        ("t.csv", "sentence,label\none, two,yes\n", "t.csv, row 2: too many fields, 3 instead of 2"),
        ("t.csv", 'sentence,label\nx,1\n"open,yes\nmore,no\n', "t.csv, row 3: malformed CSV"),
        ("t.tsv", "text\tlabel\nx\t1\n", "t.tsv: no column 'sentence'; the columns are: 'text', 'label'"),
        ("t.csv", "sentence,target\nx,1\n", "t.csv: no column 'label'; the columns are: 'sentence', 'target'"),
        ("t.csv", GOOD, r"the columns are: 'id\\tsentence\\tlabel'; commas part the columns of such a file"),
        ("t.csv", "sentence;label\nx;1\n", "the columns are: 'sentence;label'; commas part the columns of such a file"),
        ("t.tsv", "sentence,label\nx,1\n", "the columns are: 'sentence,label'; tabs part the columns of such a file"),
        ("t.tsv", "sentence\tlabel\tlabel\nx\t1\t1\n", "t.tsv: more than one column 'label'"),
        ("t.jsonl", '{"sentence": "x", "label": 1}\n{"sentence": \n', "t.jsonl, row 2: malformed JSON"),
        ("t.jsonl", "[" * 100000, "t.jsonl, row 1: malformed JSON"),
        ("t.jsonl", '["x", 1]\n', "t.jsonl, row 1: .* is not a JSON object"),
        (
            "t.jsonl",
            '{"text": "x", "label": 1}\n',
            "t.jsonl, row 1: no field 'sentence'; the fields are: 'text', 'label'",
        ),
        (
            "t.jsonl",
            '{"sentence": "x", "label": null}\n',
            "row 1, field 'label': None is neither a string nor a number",
        ),
        ("t.jsonl", '{"sentence": "x", "label": true}\n', "row 1, field 'label': True is neither"),
        ("t.jsonl", '{"sentence": ["x"], "label": 1}\n', r"row 1, field 'sentence': \['x'\] is neither"),
        ("t.jsonl", '{"sentence": "\\ud800", "label": 1}\n', "row 1: malformed JSON .*cannot be text"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"no\.tsv: no such file"):
        read(tmp_path / "no.tsv")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(InputError, match=r"folder\.tsv: cannot be read \(Is a directory\)"):
        read(tmp_path / "folder.tsv")


def test_truncated_and_unsound_gzip(tmp_path):
    packed = gzip.compress(json.dumps([GOOD] * 50).encode())
    (tmp_path / "cut.tsv.gz").write_bytes(packed[:-12])
    with pytest.raises(InputError, match=r"cut\.tsv\.gz: the gzip data is cut short"):
        read(tmp_path / "cut.tsv.gz")
    (tmp_path / "plain.tsv.gz").write_bytes(GOOD.encode())
    with pytest.raises(InputError, match=r"plain\.tsv\.gz: not a sound gzip file"):
        read(tmp_path / "plain.tsv.gz")
    (tmp_path / "crc.tsv.gz").write_bytes(packed[:-8] + bytes(8))
    with pytest.raises(InputError, match=r"crc\.tsv\.gz: not a sound gzip file"):
        read(tmp_path / "crc.tsv.gz")
