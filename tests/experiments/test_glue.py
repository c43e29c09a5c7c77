"""The main job from flags to files, on an encoder that is small enough for a test."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from deaths import outcome
from safetensors.numpy import load_file

import kaprune_jax as kp
from experiments import glue
from kaprune_jax.models.bert import init_params
from kaprune_jax.train.loop import fit
from kaprune_jax.train.seals import sealed_steps

QUICK = ["--epochs", "6", "--teacher-epochs", "40", "--batch-size", "8", "--evaluations", "3", "--log-every", "5"]
QUICK += ["--learning-rate", "3e-3", "--teacher-learning-rate", "3e-3", "--allow-weak-teacher"]


@pytest.fixture
def run(tiny, files, tmp_path):
    """Runs the command on the tiny encoder; gives the exit code."""
    return lambda *flags: glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / "run"), *QUICK, *flags])


def lines(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def tree_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


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


@pytest.mark.parametrize("method", ["logits", "prune-finetuned", "prune-then-finetune"])
def test_every_method_takes_the_same_steps_and_delivers_the_sparsity(run, tmp_path, method):
    assert run("--method", method, "--pattern", "block-4x4", "--sparsity", "0.75") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 30
    assert result["sparsity"]["encoder"] == pytest.approx(0.75)
    assert result["target_step"] == (1 if method == "prune-then-finetune" else 15)


@pytest.mark.parametrize(
    "flags",
    [["--scores", "movement", "--student", "teacher"], ["--scores", "sensitivity", "--regrow", "--student", "mean"]],
    ids=" ".join,
)
def test_other_scores_and_starts_deliver_the_sparsity(run, tmp_path, flags):
    assert run("--method", "sparsebert", "--sparsity", "0.8", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sparsity"]["encoder"] == pytest.approx(0.8, abs=0.01)
    assert result["sparsity"]["encoder"] >= 0.8
    table = (tmp_path / "run" / "table.md").read_text("utf-8")
    assert f"student {flags[-1]}" in table
    assert f"scores {flags[1]}" in table


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


@pytest.mark.parametrize("more", [[], ["--augment", "2"]], ids=["", "augment"])
def test_interrupted_then_resumed_gives_the_same_bits(more, run, tiny, files, tmp_path, monkeypatch, capsys):
    flags = ["--model", str(tiny), *files, *QUICK, "--method", "hard-labels", *more]
    assert glue.main([*flags, "--out", str(tmp_path / "whole")]) == 0

    def interrupted_fit(*arguments, **options):
        if options["steps"] == 30:  # the pruning phase
            steps = iter(range(100))
            hooks = arguments_hooks(options, lambda: next(steps) == 17 and os.kill(os.getpid(), signal.SIGTERM))
            return fit(*arguments, **{**options, "hooks": hooks})
        return fit(*arguments, **options)

    def arguments_hooks(options, also):
        import dataclasses

        old = options["hooks"]
        return dataclasses.replace(old, should_stop=lambda: bool(also()) or old.should_stop())

    monkeypatch.setattr("experiments.stage.fit", interrupted_fit)
    assert glue.main([*flags, "--out", str(tmp_path / "cut")]) == 143
    said = capsys.readouterr().err
    assert "to go on: python -m experiments.glue" in said
    assert "--resume" in said
    monkeypatch.setattr("experiments.stage.fit", fit)
    let_the_clock_go_back(tmp_path / "cut", monkeypatch)
    assert glue.main([*flags, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    for name in ("model", "model-last"):
        one, two = ((tmp_path / run / name / "model.safetensors").read_bytes() for run in ("whole", "cut"))
        assert one == two
    whole, cut = (lines(tmp_path / run / "metrics.jsonl") for run in ("whole", "cut"))
    assert [r for r in whole if r["kind"] == "eval"] == [r for r in cut if r["kind"] == "eval"]


def let_the_clock_go_back(folder, monkeypatch):
    """What is in a folder is from a year to come."""
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() - 366 * 86400)
    for place in folder.rglob("*"):
        os.utime(place, (now() + 366 * 86400,) * 2)


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


def test_a_finished_run_is_left_as_it_is_and_another_is_not_gone_on_with(run, files, tmp_path, capsys):
    flags = ["--method", "dense", "--teacher-epochs", "2"]
    assert run(*flags) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(*flags, "--resume") == 0
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert [path.name for path in before if before[path] != after[path]] == []
    capsys.readouterr()
    assert run(*flags, "--resume", "--seed", "1") == 2
    assert "was started with --seed 0, now 1" in capsys.readouterr().err
    train = Path(files[1])
    train.write_text(train.read_text() + "the book was good .\tyes\n" * 20, "utf-8")  # and so more steps
    assert run(*flags, "--resume") == 2
    assert "was started with another data" in capsys.readouterr().err
    assert run("--method", "dense,logits", "--resume") == 2
    assert "is a run of one method; --method dense,logits names several" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert run(*flags, "--resume", "--out", str(tmp_path / "mine")) == 2
    assert "there is nothing to go on with" in capsys.readouterr().err
    assert tree_of(tmp_path / "mine") == ["notes.txt"]


def test_a_run_killed_before_its_first_line_is_gone_on_with(run, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.stage.fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run("--method", "dense", "--teacher-epochs", "2")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.setattr("experiments.stage.fit", fit)
    assert run("--method", "dense", "--teacher-epochs", "2", "--resume") == 0
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


def test_a_run_that_does_not_stay_finite_ends_with_code_3_and_names_the_checkpoint(run, tmp_path, capsys):
    assert run("--method", "dense", "--teacher-learning-rate", "1e8", "--schedule", "constant") == 3
    said = capsys.readouterr().err
    assert re.match(r"error: (loss|the squared norm of the gradient) is (nan|inf) at step \d+; ", said)
    named = Path(said.split("checkpoint is ")[1].split(" ")[0])
    assert named.is_dir()
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_gradient_that_overflows_beside_a_finite_loss_ends_with_code_3(run, tmp_path, capsys):
    flags = ["--teacher-epochs", "4", "--method", "hard-labels", "--loss-weights", "labels=1e30"]
    assert run(*flags) == 3
    said = capsys.readouterr().err
    assert "error: the squared norm of the gradient is inf at step 1; " in said
    assert (
        f"the last good checkpoint is {tmp_path / 'run' / 'ckpt' / '0'} (step 0)" in said
    )  # not the teacher's, step 20


def test_a_folder_with_half_of_what_a_run_is_starts_anew(tiny, files, tmp_path, capsys):
    folder, model = tmp_path / "run", tmp_path / "start"
    shutil.copytree(tiny, model)
    flags = ["--model", str(model), *files, *QUICK, "--method", "dense", "--teacher-epochs", "1", "--resume"]
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert glue.main([*flags, "--out", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["method"] == "dense"
    shutil.copy(folder / "env.json", tmp_path / "env.json")
    (folder / "env.json").unlink()  # lost later on: it has checkpoints
    capsys.readouterr()
    assert glue.main([*flags, "--out", str(folder)]) == 2
    assert "env.json" in capsys.readouterr().err
    shutil.copy(tmp_path / "env.json", folder / "env.json")
    kp.save(tmp_path / "other", init_params(kp.load(tiny).config, jax.random.key(9)), kp.load(tiny).config)
    shutil.copy(tmp_path / "other" / "model.safetensors", model / "model.safetensors")
    assert glue.main([*flags, "--out", str(folder)]) == 2
    assert "was started with another model: its content has changed since" in capsys.readouterr().err


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(run, tmp_path, capsys, monkeypatch):
    """Also where the best model is of a later step than the checkpoint that is gone on from."""
    scores: dict[bytes, float] = {}

    def rising(predict, params, prepared, *, batch_size):
        bits = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
        return {"accuracy": scores.setdefault(bits, len(scores) / 100)}

    monkeypatch.setattr("experiments.run.evaluate", rising)
    flags = ["--method", "dense", "--teacher-epochs", "6"]
    assert run(*flags) == 0
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text())["best_step"] == 30
    expected = outcome(folder)
    largest = max((folder / "ckpt" / "30").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    (folder / "result.json").unlink()
    capsys.readouterr()
    assert run(*flags, "--resume") == 0
    said = capsys.readouterr().out
    assert (
        f"note: {folder}/ckpt: step 30 is damaged (a file in it was altered or lost); going on from step 20\n" in said
    )
    assert "going on at step 20 of 30" in said
    assert outcome(folder) == expected
    assert sealed_steps(folder / "ckpt") == [20, 30]


def test_an_encoder_of_chance_is_not_needed_for_long_rows(tiny, tmp_path, files, capsys):
    train = Path(files[1])
    train.write_text(train.read_text().replace("the film was", "the film was " + "very " * 60), "utf-8")
    assert glue.main(["--model", str(tiny), *files, *QUICK, "--method", "dense", "--out", str(tmp_path / "r")]) == 0
    assert "truncated to 32 tokens: 8 of 40 training rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "r" / "result.json").read_text())["truncated"] == {"train": 8, "dev": 0}
