"""Extractive question answering from flags to files, on encoders that are small enough for a test."""

import dataclasses
import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from short_runs import lines, same_bits

import kaprune_jax as kp
from experiments import export, glue, transfer
from experiments.config.resolve import resolve
from experiments.config.settings import parse
from kaprune_jax.train.loop import fit

QUICK = ["--steps", "12", "--teacher-steps", "12", "--batch-size", "8", "--evaluations", "2", "--log-every", "4"]
QUICK += ["--learning-rate", "3e-3", "--teacher-learning-rate", "3e-3", "--allow-weak-teacher", "--updates", "4"]
PASSAGE = "anna saw the owl . ben saw the robin . clara saw the cat . david saw the wolf . emma saw the shark ."


@pytest.fixture
def run(tiny, questions, tmp_path):
    """Runs the command on the tiny encoder, which has 32 positions; gives the exit code."""
    return lambda *flags: glue.main(["--model", str(tiny), *questions, "--out", str(tmp_path / "run"), *QUICK, *flags])


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_run_delivers_a_stock_model_that_answers(run, tmp_path, capsys):
    assert run("--stride", "8") == 0
    out, folder = capsys.readouterr().out, tmp_path / "run"
    assert "tmp" not in (task := result_of(folder)["task"])
    assert f"{task}: 33 training questions, 15 dev questions, span" in out
    assert "note: windows of up to 32 tokens, 8 shared: 33 training questions in 59, 15 dev questions in 27" in out
    assert "note: pooling" not in out
    result = result_of(folder)
    assert (result["metric"], list(result["metrics"])) == ("f1", ["f1", "exact_match"])
    assert result["examples"] == {"train": 33, "dev": 15, "augmented": 0}
    assert result["windows"] == {"train": 59, "dev": 27}
    assert result["sparsity"]["encoder"] == pytest.approx(0.95, abs=0.01)
    assert all(0.0 <= value <= 1.0 for value in result["metrics"].values())
    assert f"f1 dense {result['dense']:.4f} -> {result['pruned']:.4f}" in out
    assert f", exact match {result['metrics']['exact_match']:.4f} (" in out
    config = json.loads((folder / "config.json").read_text())
    assert (config["stride"], config["max_length"]) == (8, 32)
    raw = json.loads((folder / "model" / "config.json").read_text())
    assert raw["architectures"] == ["BertForQuestionAnswering"]
    assert raw["kaprune"]["recipe"]["stride"] == 8
    tensors = load_file(folder / "model" / "model.safetensors")
    assert tensors["qa_outputs.weight"].shape == (2, 16)
    card = (folder / "model" / "README.md").read_text()
    assert "AutoModelForQuestionAnswering" in card
    assert "| exact_match (dev) |" in card
    assert "| training questions, steps, seed | 33, 12, 0 |" in card
    assert "exact_match" in (folder / "report.html").read_text()
    model = kp.load(folder)
    found = model.predict([("what did emma see ?", PASSAGE), ("who saw the owl ?", "anna saw the owl .")])
    assert all(isinstance(each.label, str) and each.label in PASSAGE for each in found)
    assert all(0.0 <= (each.score or 0.0) <= 1.0 and each.probabilities == {} for each in found)
    records = lines(folder / "metrics.jsonl")
    assert set(records[0]["terms"]) == {"embeddings", "hidden", "attention", "logits"}


def test_the_bundled_encoder_learns_where_answers_are(questions, tmp_path):
    flags = [*questions, "--method", "dense", "--teacher-steps", "60", "--batch-size", "16", "--evaluations", "1"]
    assert glue.main([*flags, "--teacher-learning-rate", "1e-3", "--out", str(tmp_path / "run")]) == 0
    result = result_of(tmp_path / "run")
    assert result["pruned"] > 0.5  # one of up to eight places; a blind guess gets less than a fifth
    assert result["metrics"]["exact_match"] <= result["metrics"]["f1"]


def test_every_method_takes_questions(run, tmp_path):
    methods = "logits,hard-labels,prune-finetuned,prune-then-finetune"
    assert run("--method", methods, "--sparsity", "0.75") == 0
    for method in methods.split(","):
        folder = tmp_path / "run" / method
        result = result_of(folder)
        assert (result["steps"], result["metric"]) == (12, "f1")
        assert result["sparsity"]["encoder"] == pytest.approx(0.75, abs=0.01)
        terms = set(lines(folder / "metrics.jsonl")[0]["terms"])
        assert terms == ({"logits"} if method == "logits" else {"labels"})


def test_structures_are_cut_out_words_too_and_exports_agree(run, tmp_path, capsys):
    flags = ["--method", "cofi", "--sparsity", "0.5", "--prune-vocabulary", "--gates", "attention,ffn,heads,units"]
    assert run(*flags) == 0
    folder = tmp_path / "run"
    model, result = kp.load(folder), result_of(folder)
    assert model.config.is_shrunk
    assert (model.config.head, model.config.pooler_size) == ("span", None)
    assert model.config.vocab_size < kp.load(folder / "teacher").config.vocab_size
    assert result["sparsity"]["encoder"] >= 0.5
    assert "exact match" in capsys.readouterr().out
    rows = [("what did emma see ?", PASSAGE), ("what did ben see ?", PASSAGE)]
    wanted = model.predict(rows)
    fast = kp.compile(model, batch=2, length=32).predict(rows)
    assert [each.label for each in fast] == [each.label for each in wanted]
    np.testing.assert_allclose([each.score for each in fast], [each.score for each in wanted], rtol=1e-3)
    assert export.main([str(folder), "--to", "stablehlo", "--out", str(tmp_path / "program")]) == 0
    assert export.main([str(folder), "--to", "hf", "--out", str(tmp_path / "stock")]) == 0
    assert "AutoModelForQuestionAnswering loads it" in capsys.readouterr().out
    whole = kp.load(tmp_path / "stock")
    ids = jnp.array([[2, 5, 6, 7, 3]])
    np.testing.assert_allclose(
        whole.apply(whole.params, ids).logits, model.apply(model.params, ids).logits, atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize("method", ["hard-labels", pytest.param("cofi", marks=pytest.mark.slow)])
def test_interrupted_then_resumed_gives_the_same_bits(method, tiny, questions, tmp_path, monkeypatch):
    flags = ["--model", str(tiny), *questions, *QUICK, "--method", method, "--sparsity", "0.5"]
    assert glue.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    asked = iter(range(1000))

    def cut_fit(*arguments, **options):
        old = options["hooks"]

        def should_stop():
            if next(asked) == 12 + 4:  # in the pruning phase
                os.kill(os.getpid(), signal.SIGTERM)
            return old.should_stop()

        return fit(*arguments, **{**options, "hooks": dataclasses.replace(old, should_stop=should_stop)})

    monkeypatch.setattr("experiments.runs.stage.fit", cut_fit)
    assert glue.main([*flags, "--out", str(tmp_path / "cut")]) == 143
    monkeypatch.setattr("experiments.runs.stage.fit", fit)
    assert glue.main([*flags, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    same_bits(tmp_path / "whole", tmp_path / "cut")


def test_another_stride_is_another_run(run, capsys):
    flags = ["--method", "dense", "--teacher-steps", "1"]
    assert run(*flags, "--stride", "8") == 0
    capsys.readouterr()
    assert run(*flags, "--stride", "9", "--resume") == 2
    assert "was started with stride 8, now 9" in capsys.readouterr().err


def test_squads_own_folder_and_a_given_teacher(tiny, questions, tmp_path, capsys):
    folder = tmp_path / "squad"
    folder.mkdir()
    shutil.copy(questions[1], folder / "train-v1.1.json")
    (folder / "dev-v1.1.json.gz").write_bytes(gzip.compress(Path(questions[3]).read_bytes()))
    flags = ["--task", "squad", "--data-dir", str(folder), "--model", str(tiny), *QUICK, "--limit-train", "10"]
    assert glue.main([*flags, "--method", "dense", "--out", str(tmp_path / "t")]) == 0
    assert result_of(tmp_path / "t")["examples"]["train"] == 10
    assert glue.main([*flags, "--teacher", str(tmp_path / "t"), "--out", str(tmp_path / "run")]) == 0
    assert result_of(tmp_path / "run")["dense"] == result_of(tmp_path / "t")["pruned"]
    capsys.readouterr()
    given = ["--teacher", str(tmp_path / "t"), "--model", str(tiny), "--out", str(tmp_path / "x")]
    assert glue.main(["--task", "micro-rte", *given]) == 2
    assert "it predicts head span; task micro-rte needs entailment, not_entailment" in capsys.readouterr().err


def test_a_weak_teacher_is_told_by_the_first_words(tiny, questions, tmp_path, capsys):
    for file in (questions[1], questions[3]):  # now the first word of each passage is the answer
        raw = json.loads(Path(file).read_text())
        for paragraph in raw["data"][0]["paragraphs"]:
            for question in paragraph["qas"]:
                question["answers"] = [{"text": paragraph["context"].split()[0], "answer_start": 0}]
        Path(file).write_text(json.dumps(raw))
    flags = [flag for flag in QUICK if flag != "--allow-weak-teacher"] + ["--teacher-learning-rate", "1e-9"]
    assert glue.main(["--model", str(tiny), *questions, *flags, "--out", str(tmp_path / "run")]) == 2
    assert "the first words of each passage get 1.0000" in capsys.readouterr().err


def test_presets():
    settings = resolve(parse(["--task", "squad", "--source", "hub"]))
    assert (settings.max_length, settings.batch_size, settings.stride) == (384, 16, None)
    own = resolve(parse(["--train-file", "a.json", "--dev-file", "b.json.gz"]))
    assert (own.task, own.max_length, own.method) == ("a", 384, "sparsebert")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--task", "squad"], ["--task squad needs --data-dir", "train-v1.1.json", "--source hub"]),
        (["--task", "squad", "--data-dir", "nowhere"], ["nowhere: no such folder"]),
        (["--task", "rte", "--source", "hub", "--stride", "9"], ["--stride 9: only for questions"]),
        (["--stride", "9"], ["--stride 9: only for questions"]),
        (["TRAIN", "DEV", "--stride", "-1"], ["--stride -1: a whole number >= 0"]),
        (["TRAIN", "DEV", "--stride", "28"], ["--stride 28: windows have 32 tokens", "up to 27 can be shared"]),
        (["TRAIN", "DEV", "--stride", "27"], ["train.json, question 'bee-anna': the question leaves room for 24"]),
        (["TRAIN", "DEV", "--max-length", "9"], ["the question leaves room for 1 tokens", "window of 9", "stride, 3"]),
        (["TRAIN", "DEV", "--augment", "2"], ["--augment 2: not for questions"]),
        (["TRAIN", "DEV", "--pooling", "mean"], ["--pooling mean", "use auto"]),
        (["TRAIN", "DEV", "--text", "a,b"], ["--text a,b", "no columns"]),
        (["TRAIN", "DEV", "--label", "b"], ["--label b", "no columns"]),
        (["TRAIN", "DEV", "--limit-train", "0"], ["--limit-train 0"]),
        (["TRAIN", "--dev-file", "dev.tsv"], ["--dev-file dev.tsv: JSON in SQuAD's layout"]),
        (["--train-file", "train.tsv", "DEV"], ["--train-file train.tsv and --dev-file", "both tables"]),
    ],
)
def test_flags_that_do_not_go_with_questions(tiny, questions, tmp_path, capsys, monkeypatch, flags, parts):
    monkeypatch.chdir(tmp_path)
    places = {"TRAIN": questions[:2], "DEV": questions[2:]}
    before = sorted(tmp_path.rglob("*"))
    assert glue.main(["--model", str(tiny), *(part for flag in flags for part in places.get(flag, [flag]))]) == 2
    out, said = capsys.readouterr()
    assert (out, said.count("\n")) == ("", 1)
    for part in parts:
        assert part in said
    assert sorted(tmp_path.rglob("*")) == before


def test_questions_that_are_wrong_are_named_and_nothing_is_written(run, questions, tmp_path, capsys):
    whole = json.loads(Path(questions[3]).read_text())
    question = whole["data"][0]["paragraphs"][1]["qas"][2]
    for change, said in (
        ({"answers": []}, "dev.json: 1 of 15 questions have no answer, as in SQuAD 2.0; the first is 'cat-clara'"),
        ({"answers": [{"text": "the owl", "answer_start": 1}]}, "1 of 15 answers are not in their passage"),
        ({"question": "what did clara see " + "? " * 40}, "dev.json, question 'cat-clara': the question leaves room"),
    ):
        question_before = dict(question)
        question.update(change)
        Path(questions[3]).write_text(json.dumps(whole))
        assert run() == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()
        question.update(question_before)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["TRAIN", "DEV"], "answering questions is not coupled with other tasks"),
        (["--task", "squad", "--source", "hub"], "--task squad: answering questions is not coupled"),
        (["--auxiliary", "squad"], "--auxiliary squad: squad is for experiments.glue"),
    ],
)
def test_questions_are_not_coupled(questions, tmp_path, capsys, monkeypatch, flags, part):
    monkeypatch.chdir(tmp_path)
    places = {"TRAIN": questions[:2], "DEV": questions[2:]}
    assert transfer.main([part for flag in flags for part in places.get(flag, [flag])]) == 2
    assert part in capsys.readouterr().err


def test_the_real_questions_in_windows(shared, tmp_path, capsys):
    place = shared / "data" / "squad_v1.1"
    dev = json.loads(gzip.decompress((place / "dev-v1.1.json.gz").read_bytes()))
    dev["data"] = [{"paragraphs": dev["data"][0]["paragraphs"][:6]}]  # 2067 paragraphs take long without a GPU
    (tmp_path / "dev.json").write_text(json.dumps(dev))
    flags = ["--train-file", str(place / "train_subset-v1.1.json.gz"), "--dev-file", str(tmp_path / "dev.json")]
    flags += ["--limit-train", "40", "--max-length", "64", "--method", "dense", "--teacher-steps", "2"]
    assert glue.main([*flags, "--batch-size", "8", "--evaluations", "1", "--out", str(tmp_path / "run")]) == 0
    assert "windows of up to 64 tokens, 21 shared: 40 training questions in" in capsys.readouterr().out
