"""Runs of the main job that were interrupted, killed, damaged or no longer finite, and what goes on from them."""

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
from short_runs import QUICK, same_bits, tree_of

import kaprune_jax as kp
from experiments import glue
from kaprune_jax.models.bert import init_params
from kaprune_jax.train.loop import fit
from kaprune_jax.train.seals import sealed_steps


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

    monkeypatch.setattr("experiments.runs.stage.fit", interrupted_fit)
    assert glue.main([*flags, "--out", str(tmp_path / "cut")]) == 143
    said = capsys.readouterr().err
    assert "to go on: python -m experiments.glue" in said
    assert "--resume" in said
    monkeypatch.setattr("experiments.runs.stage.fit", fit)
    let_the_clock_go_back(tmp_path / "cut", monkeypatch)
    assert glue.main([*flags, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert "was started with" not in capsys.readouterr().out
    same_bits(tmp_path / "whole", tmp_path / "cut")


def let_the_clock_go_back(folder, monkeypatch):
    """What is in a folder is from a year to come."""
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() - 366 * 86400)
    for place in folder.rglob("*"):
        os.utime(place, (now() + 366 * 86400,) * 2)


def test_a_finished_run_is_left_as_it_is_and_another_is_not_gone_on_with(run, files, tmp_path, capsys):
    flags = ["--method", "dense", "--teacher-epochs", "2"]
    assert run(*flags) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(*flags, "--resume") == 0
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert [path.name for path in before if before[path] != after[path]] == []
    made = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    del made["dropout"]  # as of a version that did not have it
    (tmp_path / "run" / "config.json").write_text(json.dumps(made), "utf-8")
    assert run(*flags, "--resume") == 0
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

    monkeypatch.setattr("experiments.runs.stage.fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run("--method", "dense", "--teacher-epochs", "2")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.setattr("experiments.runs.stage.fit", fit)
    assert run("--method", "dense", "--teacher-epochs", "2", "--resume") == 0
    assert (tmp_path / "run" / "result.json").is_file()


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

    monkeypatch.setattr("experiments.runs.run.evaluate", rising)
    flags = ["--method", "dense", "--teacher-epochs", "6"]
    assert run(*flags) == 0
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text())["best_step"] == 30
    expected = outcome(folder)
    largest = max((folder / "ckpt" / "30").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    (folder / "result.json").unlink()
    environment = json.loads((folder / "env.json").read_text())
    cpus = environment["cpus"]
    environment |= {"cpus": cpus + 1, "versions": environment["versions"] | {"jax": "0.0.1"}}
    (folder / "env.json").write_text(json.dumps(environment))
    capsys.readouterr()
    assert run(*flags, "--resume") == 0
    said = capsys.readouterr().out
    assert f"note: {folder} was started with cpus {cpus + 1} (now {cpus}), jax 0.0.1 (now {jax.__version__}); " in said
    assert (
        f"note: {folder}/ckpt: step 30 is damaged (a file in it was altered or lost); going on from step 20\n" in said
    )
    assert "going on at step 20 of 30" in said
    assert outcome(folder) == expected
    assert sealed_steps(folder / "ckpt") == [20, 30]
