"""Answers to the rows of a file, and the score on them, from saved models."""

import csv
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from short_runs import lines

import kaprune_jax as kp
from experiments.predict import main
from kaprune_jax.models.bert import init_params


@pytest.fixture
def make(tiny, tmp_path):
    """Saves an untrained model with the head of a task; gives its folder."""

    def save(head="classification", *, labels=("no", "yes"), name="model", **details):
        start = kp.load(tiny)
        config = start.config.replace(head=head, labels=labels if head == "classification" else (), pooling="cls")
        params = init_params(config, jax.random.key(0))
        return kp.save(tmp_path / name, params, config, tokenizer=start.tokenizer, details=details)

    return save


def test_the_score_is_that_of_the_run(run, tmp_path, capsys):
    assert run("--method", "dense", "--max-length", "8") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["metrics"]) == ["accuracy", "macro_f1"]
    capsys.readouterr()
    assert main([str(tmp_path / "run"), str(tmp_path / "dev.tsv")]) == 0
    out = capsys.readouterr().out.splitlines()
    accuracy = result["metrics"]["accuracy"]
    assert out[-2].startswith(f"accuracy {accuracy:.4f}")
    assert out[-1] == f"macro_f1 {result['metrics']['macro_f1']:.4f}"
    assert out[-3].startswith(f"8 rows of {tmp_path / 'dev.tsv'}: ")
    assert [line.split(":")[0] for line in out[:-3]] == [f"row {number}" for number in range(2, 7)]
    (tmp_path / "long.txt").write_text("anna saw a robin .\nanna saw a robin and an owl .", "utf-8")
    assert main([str(tmp_path / "run"), str(tmp_path / "long.txt")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("of 1 row only the first 8 tokens were read; --max-length ")


def test_the_metric_that_was_asked_for_counts(run, tmp_path, capsys):
    flags = ["--method", "dense", "--steps", "2", "--teacher-epochs", "1", "--metric", "matthews_correlation"]
    assert run(*flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    names = ["matthews_correlation", "accuracy", "macro_f1"]
    assert (result["metric"], list(result["metrics"])) == (names[0], names)
    assert result["dense"] == result["metrics"]["matthews_correlation"]
    capsys.readouterr()
    assert main([str(tmp_path / "run"), str(tmp_path / "dev.tsv")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == names


def test_columns_of_the_training_rows_are_known(tiny, tmp_path, capsys):
    from experiments import glue

    rows = [{"b": f"anna saw {animal} .", "stars": stars} for animal in "owl cat wolf bee".split() for stars in (1, 2)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    flags = ["--train-file", f"{tmp_path}/train.jsonl", "--dev-file", f"{tmp_path}/dev.jsonl", "--text", "b"]
    flags += ["--label", "stars", "--model", str(tiny), "--out", str(tmp_path / "run"), "--method", "dense"]
    assert glue.main([*flags, "--steps", "2", "--batch-size", "4", "--evaluations", "1", "--allow-weak-teacher"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run"), f"{tmp_path}/dev.jsonl"]) == 0
    assert "accuracy 0.5000" in capsys.readouterr().out


def test_all_answers_are_kept_beside_their_texts(make, tmp_path, capsys):
    model, file = make(), tmp_path / "rows.csv.gz"
    texts = ["anna saw a robin .", 'a "robin",\nand an owl', "anna saw", "ben saw an owl . " * 3]
    with gzip.open(file, "wt", newline="") as opened:
        csv.writer(opened).writerows([("sentence", "label"), *zip(texts, ["no", "yes", "yes", "no"], strict=True)])
    given = kp.load(model).predict([text.strip() for text in texts], batch_size=1)
    for ending in ("csv", "jsonl"):
        out = tmp_path / f"out.{ending}"
        assert main([str(model), str(file), "--out", str(out), "--batch-size", "3"]) == 0
        found = lines(out) if ending == "jsonl" else list(csv.DictReader(out.read_text("utf-8").splitlines(True)))
        assert [row["sentence"] for row in found] == [text.strip() for text in texts]
        assert [row["row"] for row in found] == ["2", "3", "5", "6"]  # the lines they begin on
        assert [row["label"] for row in found] == ["no", "yes", "yes", "no"]
        assert [row["prediction"] for row in found] == [each.label for each in given]
        shares = [max(each.probabilities.values()) for each in given]
        np.testing.assert_allclose([float(row["probability"]) for row in found], shares, rtol=1e-5)
    np.testing.assert_allclose(found[1]["probabilities"]["no"], given[1].probabilities["no"], rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.csv", "out.jsonl", "rows.csv.gz"]
    out = capsys.readouterr().out
    right = np.mean([each.label == label for each, label in zip(given, ["no", "yes", "yes", "no"], strict=True)])
    assert 0 < right < 1
    assert f"accuracy {right:.4f} ± {(right * (1 - right) / 4) ** 0.5:.4f} (standard error)\n" in out


def test_files_without_labels(make, tmp_path, capsys):
    model = make()
    (tmp_path / "texts.txt").write_text("anna saw a robin .\r\nben saw an owl .\n", "utf-8")
    (tmp_path / "pairs.tsv").write_text("a\tb\nanna saw\tan owl\n", "utf-8")
    assert main([str(model), str(tmp_path / "texts.txt")]) == 0
    assert main([str(model), str(tmp_path / "pairs.tsv"), "--text", "a,b"]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in ("row 1: ", "row 2: ", "anna saw | an owl"))
    assert "accuracy" not in out


def test_tasks_of_glue_know_their_files(make, tmp_path, capsys):
    cola = make(labels=("unacceptable", "acceptable"), task="cola-held-out")
    (tmp_path / "dev.tsv").write_text("x\t1\t\tanna saw an owl .\nx\t0\t*\tsaw anna owl .\n", "utf-8")  # no header
    assert main([str(cola), str(tmp_path / "dev.tsv")]) == 0
    assert "2 rows" in (out := capsys.readouterr().out)
    assert "matthews_correlation " in out
    assert "row 1: " in out
    stsb = make("regression", name="scores", task="stsb", metrics=["pearson", "spearman"])
    rows = "\n".join(f"anna saw {animal}\tan owl\t{score}" for animal, score in (("owl", 5), ("cat", 2.5), ("bee", 0)))
    (tmp_path / "dev.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}\n", "utf-8")
    assert main([str(stsb), str(tmp_path / "dev.tsv")]) == 0
    out = capsys.readouterr().out
    given = [each.label for each in kp.load(stsb).predict([(f"anna saw {a}", "an owl") for a in "owl cat bee".split()])]
    assert f"pearson {np.corrcoef(given, (5, 2.5, 0))[0, 1]:.4f}\nspearman " in out


def test_labels_can_be_left_aside(make, tmp_path, capsys):
    model, file = make(), tmp_path / "rows.csv"
    file.write_text("sentence,label\nanna saw an owl .,maybe\nben saw,\n", "utf-8")
    assert main([str(model), str(file), "--label", ""]) == 0
    assert "2 rows of" in (out := capsys.readouterr().out)
    assert "accuracy" not in out
    file.write_text("sentence,label\nanna saw an owl .,\nben saw,\n", "utf-8")  # a column that is not filled in
    assert main([str(model), str(file)]) == 0
    assert "accuracy" not in capsys.readouterr().out


def test_a_row_of_fields_knows_whether_others_have_labels(make, tmp_path, capsys):
    rows = [{"sentence": "anna saw an owl ."}, {"sentence": "ben saw", "label": "no"}]
    for number, order in enumerate((rows, rows[::-1])):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, order)), "utf-8")
        assert main([str(make(name=f"model{number}")), str(tmp_path / "rows.jsonl")]) == 2
        assert f"rows.jsonl, row {number + 1}: no field 'label'" in capsys.readouterr().err


def test_a_model_that_is_broken_gives_no_answers(make, tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("anna saw\n")
    for head in ("classification", "regression"):
        model = kp.load(make(head, name=head))
        params = {**model.params, "head": {**model.params["head"], "bias": model.params["head"]["bias"] + np.nan}}
        kp.save(tmp_path / f"broken-{head}", params, model.config, tokenizer=model.tokenizer)
        assert (
            main([str(tmp_path / f"broken-{head}"), str(tmp_path / "rows.txt"), "--out", str(tmp_path / "o.csv")]) == 2
        )
        assert "its answer to row 1 of" in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_signs_that_a_terminal_obeys_are_not_printed(make, tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("anna \x1b[31m saw \x07\n", "utf-8")
    assert main([str(make()), str(tmp_path / "rows.txt")]) == 0
    assert "anna \\x1b[31m saw \\x07\n" in capsys.readouterr().out


def test_folders_that_say_nothing_or_nonsense(make, tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nanna saw an owl .\t1\nben saw\t0\n", "utf-8")
    nonsense = {"columns": {"text": 1, "label": []}, "metrics": [{}], "recipe": {"max_length": "x"}, "task": {}}
    for name, details in (("none", {}), ("odd", nonsense), ("wrong", {"metrics": ["pearson"], "recipe": []})):
        assert main([str(make(labels=("LABEL_0", "LABEL_1"), name=name, **details)), str(tmp_path / "dev.tsv")]) == 0
        assert "\nmacro_f1 " in capsys.readouterr().out


def test_questions(make, questions, tmp_path, capsys):
    model, file = make("span"), questions[-1]
    assert main([str(model), file, "--out", str(tmp_path / "answers.jsonl")]) == 0
    assert "\nf1 0." in (out := capsys.readouterr().out)
    assert "\nexact_match 0." in out
    found, asked = lines(tmp_path / "answers.jsonl"), json.loads(Path(file).read_text("utf-8"))["data"]
    right = {
        one["id"]: one["answers"][0]["text"] for part in asked for each in part["paragraphs"] for one in each["qas"]
    }
    assert {row["row"] for row in found} == set(right)
    assert all(row["prediction"] in row["passage"] for row in found)
    exact = np.mean([row["prediction"].removeprefix("the ") == right[row["row"]].removeprefix("the ") for row in found])
    assert f"exact_match {exact:.4f}" in out
    asked[0]["paragraphs"][0]["qas"][0]["question"] = "who " * 600
    (tmp_path / "long.json").write_text(json.dumps({"data": asked}), "utf-8")
    assert main([str(model), str(tmp_path / "long.json")]) == 2
    name = asked[0]["paragraphs"][0]["qas"][0]["id"]
    assert f"long.json, question {name}: the question leaves room for 0 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "flags", "parts"),
    [
        (None, [], ["rows.tsv", "no such file"]),
        ("sentence\tlabel\nanna\tmaybe\n", [], ["rows.tsv, row 2", "'maybe'", "no, yes"]),
        ("sentence\tlabel\nanna\tno\n \tno\n", [], ["rows.tsv, row 3", "empty"]),
        ("sentence\tlabel\n", [], ["rows.tsv", "no rows"]),
        ("text\tlabel\nanna\tno\n", [], ["no column 'sentence'", "'text', 'label'"]),
        ("text\tlabel\nanna\tno\n", ["--text", "text", "--label", "score"], ["no column 'score'"]),
        ("a\tb\nanna\tno\n", ["--text", "a,b,c"], ["--text a,b,c", "one column or two"]),
        ("a\tb\nanna\tno\n", ["--text", "a,a"], ["--text a,a", "one column or two"]),
        ("sentence\nanna\n", ["--batch-size", "0"], ["--batch-size 0", ">= 1"]),
        ("sentence\nanna\n", ["--max-length", "4"], ["--max-length 4", ">= 8"]),
        ("sentence\nanna\n", ["--out", "out.tsv"], ["--out out.tsv", ".csv or .jsonl"]),
        ("sentence\nanna\n", ["--out", "nowhere/out.csv"], ["--out nowhere/out.csv", "cannot be written"]),
        ("sentence\nanna\n", ["--out", "there.csv"], ["--out there.csv", "is there already"]),
        ("row\nanna\n", ["--text", "row", "--out", "out.csv"], ["column 'row'", "--out"]),
        ("sentence\tlabel\nanna\tno\n", ["--label", "sentence"], ["--label sentence", "text column"]),
        ("sentence\nanna\n", ["--bogus"], ["--bogus", "--help"]),
    ],
)
def test_bad_input(make, tmp_path, monkeypatch, capsys, content, flags, parts):
    monkeypatch.chdir(tmp_path)
    make()
    (tmp_path / "there.csv").write_text("mine")
    if content is not None:
        (tmp_path / "rows.tsv").write_text(content, "utf-8")
    assert main(["model", "rows.tsv", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not (tmp_path / "out.tsv").exists()


def test_models_and_files_that_do_not_go_together(make, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make()
    make("span", name="spans")
    (tmp_path / "rows.txt").write_text("anna saw\n")
    (tmp_path / "asked.json").write_text('{"data": []}')
    make(name="pairs", texts=2)
    make(name="rte", task="rte")
    (tmp_path / "one.tsv").write_text("sentence1\tsentence2\nanna\tben\n")
    asked = [{"id": "a", "question": "who ?", "answers": [{"text": "anna", "answer_start": 0}]}]
    asked += [{"id": "b", "question": "who ?", "answers": []}]
    paragraphs = {"data": [{"paragraphs": [{"context": "anna saw", "qas": asked}]}]}
    (tmp_path / "some.json").write_text(json.dumps(paragraphs))
    for arguments, parts in (
        (["nowhere/there", "rows.txt"], ["nowhere"]),
        ([str(tiny), "rows.txt"], ["head of a task"]),
        (["model", "asked.json"], ["asked.json", "ends in .txt, .tsv"]),
        (["spans", "rows.txt"], ["rows.txt", "SQuAD"]),
        (["spans", "asked.json"], ["asked.json: no questions"]),
        (["model", "rows.txt", "--label", "x"], ["--label x", "has no columns"]),
        (["model", "."], [".: a folder"]),
        (["model", "rows.md"], ["rows.md", ".txt, .tsv"]),
        (["pairs", "rows.txt"], ["rows.txt", "pairs of texts", "two columns"]),
        (["rte", "one.tsv", "--text", "sentence1"], ["one.tsv", "pairs of texts"]),
        (["spans", "some.json"], ["some.json: 1 of 2 questions have no answer", "'b'"]),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(part in error for part in parts), error
