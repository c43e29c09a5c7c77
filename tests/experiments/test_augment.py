"""Runs with augmented training rows, and the file these are kept in."""

import gzip
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import kaprune_jax as kp
from experiments import glue
from experiments.config.resolve import resolve
from experiments.config.settings import parse
from experiments.runs.augment import add_rows
from experiments.runs.augment_file import make_header
from experiments.runs.prepare import prepare
from kaprune_jax.train.loop import Interrupted

QUICK = ["--epochs", "2", "--teacher-epochs", "40", "--batch-size", "8", "--evaluations", "1", "--allow-weak-teacher"]
QUICK += ["--teacher-learning-rate", "3e-3"]


@pytest.fixture
def prepared(tiny, files, tmp_path):
    """What flags come to, on the tiny encoder."""

    def make(*flags):
        return prepare(resolve(parse(["--model", str(tiny), *files, "--out", str(tmp_path / "run"), *QUICK, *flags])))

    return make


@pytest.fixture
def run(tiny, files, tmp_path):
    """Runs the command into a folder of tmp_path; gives the exit code."""
    return lambda out, *flags: glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / out), *QUICK, *flags])


def never():
    return False


def weights(folder):
    return load_file(folder / "model-last" / "model.safetensors")


def test_new_rows_have_the_teachers_labels_and_do_not_change_the_number_of_steps(run, tmp_path, capsys):
    methods = ["--method", "sparsebert,hard-labels"]
    assert run("without", *methods) == 0
    assert run("with", *methods, "--augment", "4") == 0
    said = capsys.readouterr().out
    results = {
        name: json.loads((tmp_path / name / "hard-labels" / "result.json").read_text()) for name in ("with", "without")
    }
    assert results["with"]["steps"] == results["without"]["steps"] == 10
    assert results["without"]["examples"]["augmented"] == 0
    with gzip.open(tmp_path / "with" / "augmented.jsonl.gz", "rt") as opened:
        header, *rows = [json.loads(line) for line in opened]
    assert header["copies"] == 4
    assert 40 < len(rows) == results["with"]["examples"]["augmented"] <= 160
    assert f"{len(rows)} augmented rows, candidates by input embeddings" in said
    preview = (tmp_path / "with" / "augmented.txt").read_text("utf-8").splitlines()
    shown = [tuple(line.split("\t")) for line in preview if line.startswith("+")]
    assert len(shown) == 20
    teacher = kp.load(tmp_path / "with" / "teacher")
    assert {label for label, _ in shown} == {"+ yes", "+ no"}
    for label, text in shown:
        assert [text] in [row[1:] for row in rows]
        assert label == f"+ {teacher.predict([text])[0].label}"
    dense = json.loads((tmp_path / "with" / "teacher" / "result.json").read_text())
    assert dense["examples"] == {"train": 40, "dev": 8, "augmented": 0}
    recipe = kp.load(tmp_path / "with" / "hard-labels").details["recipe"]
    assert recipe["augment"] == 4
    assert recipe["teacher"]["name"] == "fine-tuned"
    assert f"40 and {len(rows)} augmented" in (tmp_path / "with" / "hard-labels" / "model" / "README.md").read_text()
    assert any(
        not np.array_equal(one, weights(tmp_path / "without" / "hard-labels")[name])
        for name, one in weights(tmp_path / "with" / "hard-labels").items()
    )


def test_a_file_of_rows_is_used_again_and_gives_the_same_bits(run, tmp_path, capsys):
    assert run("one", "--augment", "3") == 0
    kept = tmp_path / "one" / "augmented.jsonl.gz"
    before = kept.read_bytes()
    assert run("two", "--augment", "3", "--augment-file", str(kept)) == 0
    assert f"augmented rows from {kept}" in capsys.readouterr().out
    assert kept.read_bytes() == before
    assert not (tmp_path / "two" / "augmented.jsonl.gz").exists()
    for name, tensor in weights(tmp_path / "one").items():
        np.testing.assert_array_equal(tensor, weights(tmp_path / "two")[name])
    again = tmp_path / "elsewhere" / "rows.gz"
    assert run("three", "--augment", "3", "--augment-file", str(again)) == 0
    assert again.read_bytes() == before


@pytest.mark.long
@pytest.mark.parametrize("more", [["--epochs-over", "all"], ["--max-length", "8", "--steps", "4"]], ids=" ".join)
def test_a_finished_run_can_be_resumed(run, tmp_path, more):
    """Its augmented rows are not made again; what follows from how many there are is not asked for."""
    flags = ["--method", "hard-labels", "--augment", "3", "--epochs", "1", "--teacher-steps", "4", *more]
    assert run("run", *flags) == 0
    result = (tmp_path / "run" / "result.json").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    assert run("run", *flags, "--resume") == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "result.json").read_bytes() == result
    assert run("run", *flags, "--resume", "--seed", "5") == 2


def test_scores_of_new_rows_are_what_the_teacher_predicts(tiny, tmp_path):
    for name, count in (("train", 24), ("dev", 6)):
        rows = [f"the movie was good and long {'very ' * (n % 5)}\t{n / 7:.3f}" for n in range(count)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    flags = ["--model", str(tiny), "--train-file", str(tmp_path / "train.tsv"), "--dev-file", str(tmp_path / "dev.tsv")]
    prepared = prepare(resolve(parse([*flags, "--augment", "2", "--out", str(tmp_path / "run")])))
    more = add_rows(prepared, prepared.start, tmp_path / "run", never)
    assert more.augmented is not None
    labels = more.train.data.labels
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels[:24], prepared.data.train.labels)
    expected = [prediction.label for prediction in prepared.start.predict(list(more.augmented.texts))]
    np.testing.assert_allclose(labels[24:], expected, atol=1e-5)
    assert more.dev is prepared.dev
    assert more.data is prepared.data


def test_a_file_that_does_not_belong_to_the_run_is_refused(prepared, tiny, files, tmp_path, capsys):
    start = prepared("--augment", "2")
    file = tmp_path / "rows.jsonl.gz"
    add_rows(start, start.start, tmp_path / "made", never)
    made = tmp_path / "run" / "augmented.jsonl.gz"
    file.write_bytes(made.read_bytes())
    other = tmp_path / "other"
    kp.save(other, start.start.params, start.start.config, tokenizer=start.tokenizer)
    train = files[1]

    def refused(*flags):
        out = tmp_path / "refused"
        given = ["--model", str(tiny), *files, "--out", str(out), "--augment-file", str(file)]
        assert glue.main([*given, *flags]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert not out.exists()
        return said

    assert f"{file}: made with --augment 2, this run has 3" in refused("--augment", "3")
    assert f"{file}: made with --seed 0, this run has 1" in refused("--augment", "2", "--seed", "1")
    assert f"{file}: made with model " in refused("--augment", "2", "--model", str(other))
    with open(train, encoding="utf-8") as opened:
        rows = opened.readlines()
    shorter = tmp_path / "shorter.tsv"
    shorter.write_text("".join(rows[:-2]), "utf-8")
    assert f"{file}: made with data " in refused("--augment", "2", "--train-file", str(shorter))
    header = gzip.compress(b'{"sha256": ""}\n[]\n')
    damaged = "not a readable file of augmented rows"
    for content, said in ((b"", damaged), (b"no gzip", "not a sound gzip file"), (made.read_bytes()[:-20], "cut short"),
                          (gzip.compress(b"[1]\n"), damaged), (gzip.compress(b"{}\n"), damaged),
                          (gzip.compress(b'{"sha256": ""}\nno json\n'), damaged), (gzip.compress(b"\xff\n"), damaged),
                          (header, f"{damaged} (line 2 is [];")):  # fmt: skip
        file.write_bytes(content)
        assert said in refused("--augment", "2")

    lines = gzip.decompress(made.read_bytes()).splitlines(keepends=True)
    for rows in (lines[:-1], [*lines[:-1], lines[-1].replace(b"film", b"movie") + lines[-1]]):
        file.write_bytes(gzip.compress(b"".join(rows)))
        assert "its rows are not those that were written" in refused("--augment", "2")


def test_another_tokenizer_or_head_is_another_model(tiny, files, tmp_path):
    flags = [*files, "--augment", "2", "--out", str(tmp_path / "run")]
    prepared = prepare(resolve(parse(["--model", str(tiny), *flags])))
    one = make_header(prepared.settings, prepared.data, prepared.start)
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    options = json.loads((other / "tokenizer_config.json").read_text("utf-8"))
    assert options["do_lower_case"]
    (other / "tokenizer_config.json").write_text(json.dumps(options | {"do_lower_case": False}), "utf-8")
    two = make_header(prepared.settings, prepared.data, kp.load(other))
    assert {name for name in one if one[name] != two[name]} == {"tokenizer", "head"}


def test_pairs_and_truncated_rows(tiny, tmp_path):
    rows = [f"{'the film ' * 8}number {n}\tit was a {word} film\t{label}"
            for n in range(6) for word, label in (("good", "yes"), ("bad", "no"))]  # fmt: skip
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("a\tb\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    flags = ["--model", str(tiny), "--train-file", str(tmp_path / "train.tsv"), "--dev-file", str(tmp_path / "dev.tsv")]
    flags += ["--text", "a,b", "--max-length", "12", "--augment", "20", "--out", str(tmp_path / "run")]
    prepared = prepare(resolve(parse(flags)))
    more = add_rows(prepared, prepared.start, tmp_path / "run", never)
    data = more.train.data
    assert more.augmented is not None
    assert len(data.input_ids) == 12 + len(more.augmented.texts)
    origins = [*range(12), *more.augmented.origins]
    assert len({(origin, tuple(ids)) for origin, ids in zip(origins, data.input_ids, strict=True)}) == len(origins)
    assert data.truncated == prepared.train.data.truncated == 12
    with gzip.open(tmp_path / "run" / "augmented.jsonl.gz", "rt") as opened:
        assert len(opened.readlines()) - 1 > len(more.augmented.texts)  # some differed only beyond the 12 tokens


@pytest.mark.parametrize("calls", [1, 2])
def test_a_stop_is_heard(prepared, tmp_path, calls):
    start, asked = prepared("--augment", "2"), []

    def stop():
        asked.append(None)
        return len(asked) == calls

    with pytest.raises(Interrupted, match="augmented rows"):
        add_rows(start, start.start, tmp_path / "run", stop)


def test_the_place_of_the_rows_is_checked_first(tiny, files, tmp_path, capsys):
    (tmp_path / "plain").write_text("")
    flags = ["--model", str(tiny), *files, "--augment", "2", "--augment-file", str(tmp_path / "plain" / "rows.gz")]
    assert glue.main([*flags, "--out", str(tmp_path / "run")]) == 2
    assert "no permission to write in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rows_without_a_word_to_replace_are_refused(tiny, tmp_path, capsys):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("sentence,label\n1 + 1,yes\n2 of 3,no\n3 - 1,yes\n4 the 4,no\n", "utf-8")
    flags = ["--model", str(tiny), "--train-file", str(tmp_path / "train.csv"), "--dev-file", str(tmp_path / "dev.csv")]
    assert glue.main([*flags, "--augment", "5", "--out", str(tmp_path / "run")]) == 2
    assert "--augment 5: no word of the training rows can be replaced" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_while_rows_were_made_can_use_its_folder_again(run, prepared, tmp_path):
    start = prepared("--augment", "2")
    add_rows(start, start.start, tmp_path / "run", never)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"augmented.jsonl.gz", "augmented.txt"}
    assert run("run", "--augment", "2") == 0
