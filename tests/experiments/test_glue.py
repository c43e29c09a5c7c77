"""The main job from flags to files, on an encoder that is small enough for a test."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from short_runs import QUICK, lines, tree_of

import kaprune_jax as kp
from experiments import glue
from experiments.runs.run import predict_rows
from kaprune_jax.data import loader
from kaprune_jax.models.bert import init_params


def test_a_run_folder_holds_what_is_promised(run, tmp_path, capsys):
    assert run() == 0
    folder = tmp_path / "run"
    for name in (
        "config.json",
        "env.json",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "ckpt",
        "model",
        "model-last",
    ):
        assert (folder / name).exists(), name
    for name in ("config.json", "model.safetensors", "masks.safetensors", "tokenizer.json", "README.md"):
        assert (folder / "model" / name).is_file(), name
    result = json.loads((folder / "result.json").read_text())
    for name in (
        "task method pattern seed metric dense pruned last examples sparsity parameters bytes steps seconds "
        "examples_per_second peak_memory_bytes compilations versions"
    ).split():
        assert name in result, name
    assert result["compilations"] == len(result["batch_shapes"])
    tensors = load_file(folder / "model" / "model.safetensors")
    matrices = [tensor for name, tensor in tensors.items() if ".layer." in name and tensor.ndim == 2]
    for matrix in matrices:
        assert np.count_nonzero(matrix) == matrix.size * 5 // 100
    total = sum(matrix.size for matrix in matrices)
    zeros = sum(matrix.size - np.count_nonzero(matrix) for matrix in matrices)
    assert result["sparsity"]["encoder"] == pytest.approx(zeros / total)
    assert result["sparsity"]["all"] == pytest.approx(zeros / result["parameters"]["dense"])
    model = kp.load(folder)
    assert model.predict(["the film was good ."])[0].label in ("yes", "no")
    records = lines(folder / "metrics.jsonl")
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert records[-1]["kind"] == "eval"
    assert records[-1]["step"] == result["steps"]
    assert "dense" in capsys.readouterr().out


def test_dev_rows_come_in_the_lengths_asked_for(run, monkeypatch):
    seen = set()
    made = loader.eval_batches

    def watched(*data, **options):
        for rows, batch in made(*data, **options):
            seen.add(batch["input_ids"].shape[1])
            yield rows, batch

    monkeypatch.setattr("experiments.runs.run.eval_batches", watched)
    assert run("--method", "dense", "--lengths", "1", "--length-multiple", "7") == 0
    assert len(seen) == 1
    assert seen.pop() % 7 == 0


def test_a_long_evaluation_says_how_far_it_is(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Slow:
        """Logits of a batch that are there after 25 seconds."""

        def __init__(self, size):
            self.size = size

        def __array__(self, *_, **__):
            now[0] += 25
            return np.zeros((self.size, 2), np.float32)

    ids = tuple(np.ones(5, np.int32) for _ in range(11))
    data = loader.Encoded(ids, ids, np.zeros(11, np.int32), frozenset(), 8, 0)
    predict_rows(lambda _, batch: Slow(len(batch["input_ids"])), None, data, batch_size=2)
    assert capsys.readouterr().out.splitlines() == ["predicted 6 of 11 rows"]


@pytest.mark.parametrize("method", ["logits", "prune-finetuned", "prune-then-finetune"])
def test_every_method_takes_the_same_steps_and_delivers_the_sparsity(run, tmp_path, method):
    assert run("--method", method, "--pattern", "block-4x4", "--sparsity", "0.75") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 30
    assert result["sparsity"]["encoder"] == pytest.approx(0.75)
    assert result["target_step"] == (1 if method == "prune-then-finetune" else 15)


@pytest.mark.parametrize("scores", ["magnitude", "sensitivity"])
def test_other_scores_and_starts_deliver_the_sparsity(run, tmp_path, scores):
    assert run("--method", "sparsebert", "--sparsity", "0.8", "--scores", scores, "--student", "teacher") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sparsity"]["encoder"] == pytest.approx(0.8, abs=0.01)
    assert result["sparsity"]["encoder"] >= 0.8
    table = (tmp_path / "run" / "table.md").read_text("utf-8")
    assert "student teacher" in table
    assert ("scores magnitude" in table) == (scores == "magnitude")  # the other is the recipe's


def test_the_students_dropout_is_the_given_one_or_that_of_the_recipe(run, tmp_path):
    def weights(name, *flags):
        assert run("--method", "sparsebert", *flags, "--out", str(tmp_path / name)) == 0
        made = kp.load(tmp_path / name)
        assert made.config.hidden_dropout_prob == 0.1  # what is saved has the start's own
        return made.details["recipe"]["dropout"], (tmp_path / name / "model-last" / "model.safetensors").read_bytes()

    by_recipe, none = weights("recipe"), weights("none", "--dropout", "0")
    assert by_recipe[0] is None  # the start's
    assert weights("own", "--dropout", "0.1")[1] == by_recipe[1] != none[1]
    assert "dropout 0" in (tmp_path / "none" / "table.md").read_text("utf-8")


def test_several_methods_share_a_teacher_and_get_a_folder_each(run, tmp_path):
    assert run("--method", "sparsebert,hard-labels", "--pattern", "2:4") == 0
    assert tree_of(tmp_path / "run")[0] == "hard-labels"
    results = [
        json.loads((tmp_path / "run" / name / "result.json").read_text()) for name in ("sparsebert", "hard-labels")
    ]
    assert results[0]["dense"] == results[1]["dense"]
    assert {result["sparsity"]["encoder"] for result in results} == {0.5}
    assert (tmp_path / "run" / "report.html").is_file()
    terms = [
        set(lines(tmp_path / "run" / name / "metrics.jsonl")[0]["terms"]) for name in ("sparsebert", "hard-labels")
    ]
    assert terms == [{"embeddings", "hidden", "attention", "logits"}, {"labels"}]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run, tiny, files, tmp_path):
    def weights(name, seed):
        flags = ["--model", str(tiny), *files, *QUICK, "--method", "dense", "--teacher-epochs", "2", "--seed", seed]
        assert glue.main([*flags, "--out", str(tmp_path / name)]) == 0
        return (tmp_path / name / "model-last" / "model.safetensors").read_bytes()

    assert weights("a", "1") == weights("b", "1") != weights("c", "2")


def test_a_given_teacher_is_used_and_a_foreign_one_refused(run, tiny, files, tmp_path, capsys):
    base = ["--model", str(tiny), *files, *QUICK]
    assert glue.main([*base, "--method", "dense", "--out", str(tmp_path / "t")]) == 0
    assert run("--teacher", str(tmp_path / "t")) == 0
    assert not (tmp_path / "run" / "teacher").exists()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["dense"] == json.loads((tmp_path / "t" / "result.json").read_text())["pruned"]
    capsys.readouterr()
    flags = [
        "--task",
        "micro-rte",
        "--model",
        str(tiny),
        "--teacher",
        str(tmp_path / "t"),
        "--out",
        str(tmp_path / "x"),
    ]
    assert glue.main(flags) == 2
    said = capsys.readouterr().err
    assert "--teacher" in said
    assert "predicts no, yes" in said
    assert not (tmp_path / "x").exists()


def test_a_pruned_model_is_no_teacher_by_mistake(run, tmp_path, capsys):
    assert run("--method", "dense", "--teacher-epochs", "1", "--out", str(tmp_path / "t")) == 0
    assert run("--method", "logits", "--teacher", str(tmp_path / "t")) == 0
    capsys.readouterr()
    assert run("--method", "logits", "--teacher", str(tmp_path / "run"), "--out", str(tmp_path / "x")) == 2
    said = capsys.readouterr().err
    assert "this run pruned its model" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x").exists()
    meant = str(tmp_path / "run" / "model")
    assert run("--method", "logits", "--teacher", meant, "--steps", "2", "--out", str(tmp_path / "x")) == 0
    assert f"note: --teacher {meant} is itself pruned" in capsys.readouterr().out


def test_a_model_of_ours_starts_another_task_without_its_head(run, tiny, files, tmp_path, capsys):
    assert run("--method", "dense", "--teacher-epochs", "1") == 0
    capsys.readouterr()
    flags = ["--task", "micro-nli", "--limit-train", "32", *QUICK, "--teacher-epochs", "1", "--method", "dense"]
    assert glue.main([*flags, "--model", str(tmp_path / "run"), "--out", str(tmp_path / "next")]) == 0
    assert "is dropped" in capsys.readouterr().out


def test_a_wider_teacher_is_learned_from_through_a_projection(run, files, tiny, tmp_path, capsys):
    config = kp.load(tiny).config.replace(hidden_size=24, num_attention_heads=3, num_hidden_layers=3)
    kp.save(tmp_path / "wide", init_params(config, jax.random.key(1)), config, tokenizer=kp.load(tiny).tokenizer)
    flags = ["--model", str(tmp_path / "wide"), *files, *QUICK, "--method", "dense", "--out", str(tmp_path / "t")]
    assert glue.main(flags) == 0
    assert run("--teacher", str(tmp_path / "t")) == 0
    said = capsys.readouterr().out
    assert "a projection is learned" in said
    assert "different numbers of heads" in said
    assert "projection" not in kp.load(tmp_path / "run").params
    flags = ["--model", str(tiny), *files, "--teacher", str(tmp_path / "t"), "--method", "prune-finetuned"]
    assert glue.main([*flags, "--out", str(tmp_path / "other")]) == 2
    assert "prune-finetuned prunes the teacher" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    flags = ["--model", str(tmp_path / "wide"), *files, *QUICK, "--teacher", str(tmp_path / "run" / "model")]
    flags += ["--method", "logits", "--out", str(tmp_path / "other")]
    assert glue.main([*flags, "--loss-weights", "hidden=1"]) == 2
    assert "2 layers, fewer than the student's 3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert glue.main(flags) == 0  # the logits alone need no layers


def test_regression_on_own_files(tiny, tmp_path):
    words = ("big", "small", "old", "new", "clean", "dirty")
    rows = [
        f"the {word} house .\tit was {other} .\t{(i * 7 + j) % 9 / 2 + 0.25}"
        for i, word in enumerate(words)
        for j, other in enumerate(words)
    ]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("a\tb\tscore\n" + "\n".join(rows) + "\n")
    flags = ["--train-file", str(tmp_path / "train.tsv"), "--dev-file", str(tmp_path / "dev.tsv"), "--text", "a,b"]
    flags += ["--label", "score", "--model", str(tiny), *QUICK, "--out", str(tmp_path / "run"), "--pooling", "cls"]
    assert glue.main(flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metric"] == "pearson"
    assert set(result["metrics"]) == {"pearson", "spearman"}


def test_a_weak_teacher_is_refused_and_what_it_took_is_kept(tiny, files, tmp_path, capsys):
    flags = [flag for flag in QUICK if flag != "--allow-weak-teacher"] + ["--teacher-learning-rate", "1e-9"]
    flags = ["--model", str(tiny), *files, *flags]
    assert glue.main([*flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "always answering the same gets" in said
    assert f"it is kept in {tmp_path / 'run' / 'teacher'}" in said
    assert "--resume --allow-weak-teacher" in said
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["teacher"]
    assert glue.main([*flags, "--teacher", str(tmp_path / "run"), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
    trained = (tmp_path / "run" / "teacher" / "result.json").read_bytes()
    assert glue.main([*flags, "--out", str(tmp_path / "run"), "--resume", "--allow-weak-teacher"]) == 0
    assert (tmp_path / "run" / "teacher" / "result.json").read_bytes() == trained
    assert (tmp_path / "run" / "result.json").is_file()


def test_the_dense_model_beside_others_is_their_teacher(run, tmp_path, capsys):
    assert run("--method", "hard-labels,dense") == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["dense", "hard-labels"]
    dense, pruned = (json.loads((tmp_path / "run" / m / "result.json").read_text()) for m in ("dense", "hard-labels"))
    assert pruned["dense"] == dense["dense"] == dense["pruned"]
    assert capsys.readouterr().out.count("dev accuracy") == 3 + 3
    assert run("--method", "logits", "--resume") == 2
    assert "holds runs of dense, hard-labels; --method logits names one" in capsys.readouterr().err
    assert run("--method", "logits", "--teacher", str(tmp_path / "run"), "--out", str(tmp_path / "next")) == 0


def test_a_teacher_of_a_stock_script_has_classes_without_names(run, tiny, files, tmp_path, capsys):
    assert glue.main(["--model", str(tiny), *files, *QUICK, "--method", "dense", "--out", str(tmp_path / "t")]) == 0
    file = tmp_path / "t" / "model" / "config.json"
    raw = json.loads(file.read_text())
    raw["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}
    file.write_text(json.dumps(raw))
    assert run("--teacher", str(tmp_path / "t" / "model")) == 0
    assert "calls its classes LABEL_0, LABEL_1; taken as no, yes" in capsys.readouterr().out
    assert kp.load(tmp_path / "run").config.labels == ("no", "yes")


def test_the_records_name_what_was_decided(run, tiny, tmp_path):
    assert run("--pattern", "block-4x4", "--loss-weights", "hidden=0.5", "--sparsity", "0.75") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pooling"] == "mean"
    assert config["max_length"] == 32  # the model has no more positions
    assert config["objective"]["hidden"] == 0.5
    assert (config["steps"], config["target_step"]) == (30, 15)
    section = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["kaprune"]
    teacher = kp.load(tmp_path / "run" / "teacher").fingerprint
    assert section["recipe"]["teacher"] == {"name": "fine-tuned", "sha256": teacher}
    assert section["source"] == {"name": "tiny", "sha256": kp.load(tiny).fingerprint}
    assert section["layers"] == [{"heads": [0, 1], "ffn": 32}] * 2
    assert section["hidden"] == 16
    assert (section["pattern"], section["sparsity"]) == ("block-4x4", 0.75)
    assert section["recipe"]["objective"]["hidden"] == 0.5
    assert section["recipe"]["learning_rate"] == 3e-3


def test_an_encoder_of_chance_is_not_needed_for_long_rows(tiny, tmp_path, files, capsys):
    train = Path(files[1])
    train.write_text(train.read_text().replace("the film was", "the film was " + "very " * 60), "utf-8")
    assert glue.main(["--model", str(tiny), *files, *QUICK, "--method", "dense", "--out", str(tmp_path / "r")]) == 0
    assert "truncated to 32 tokens: 8 of 40 training rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "r" / "result.json").read_text())["truncated"] == {"train": 8, "dev": 0}
