"""Pruning with gates from flags to files, on an encoder that is small enough for a test."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import kaprune_jax as kp
from experiments import glue
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.models.bert import init_params
from kaprune_jax.train.loop import fit

QUICK = ["--epochs", "8", "--teacher-epochs", "4", "--batch-size", "8", "--evaluations", "8", "--log-every", "5"]
QUICK += ["--learning-rate", "3e-3", "--teacher-learning-rate", "3e-3", "--allow-weak-teacher", "--method", "cofi"]


@pytest.fixture
def run(tiny, files, tmp_path):
    """Runs the command on the tiny encoder; gives the exit code."""
    return lambda *flags: glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / "run"), *QUICK, *flags])


@pytest.fixture(scope="session")
def teacher(tiny, tmp_path_factory):
    """The tiny encoder with a head for the easy task, as good as untrained."""
    config = kp.load(tiny).config.replace(head="classification", labels=("no", "yes"))
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    kp.save(folder, init_params(config, jax.random.key(3)), config, tokenizer=kp.load(tiny).tokenizer)
    return folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text("utf-8"))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_what_is_delivered_is_smaller_and_as_sparse_as_asked(run, tmp_path, capsys, pooling):
    assert run("--sparsity", "0.8", "--pooling", pooling) == 0
    folder = tmp_path / "run"
    result, model = result_of(folder), kp.load(folder)
    tensors = load_file(folder / "model" / "model.safetensors")
    left = sum(tensor.size for name, tensor in tensors.items() if ".layer." in name and tensor.ndim == 2)
    full = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    unit = 2 * model.config.hidden_size
    assert left <= full * 0.2 < left + unit
    assert result["sparsity"]["encoder"] == pytest.approx(1 - left / full)
    assert result["parameters"]["kept"] == sum(tensor.size for tensor in tensors.values())
    assert result["bytes"]["stored"] == 4 * result["parameters"]["kept"]
    assert model.config.is_shrunk
    assert model.predict(["the film was good ."])[0].label in ("yes", "no")
    zeros = {path: 1 - mask.mean() for path, mask in read_masks(folder / "model")}
    assert len(zeros) == 12
    assert sum(zeros.values()) > 0
    assert result["per_matrix"] == pytest.approx(zeros)
    said = capsys.readouterr().out
    for part in ("made smaller", "left:", "heads", "hidden dimensions", "times as fast on this machine"):
        assert part in said
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    gated = [record["sparsity"] for record in records if record["kind"] == "train" and record["phase"] == "prune"]
    assert all(set(sparsity) == {"asked", "delivered", "expected"} for sparsity in gated)
    asked = [sparsity["asked"] for sparsity in gated]
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(0.8)


@pytest.mark.long
@pytest.mark.parametrize("part", ["gated", "smaller"])
def test_interrupted_then_resumed_gives_the_same_bits(run, tiny, files, tmp_path, monkeypatch, capsys, part):
    assert run() == 0
    calls = []

    def interrupted_fit(*arguments, **options):
        calls.append(1)
        if len(calls) == (2 if part == "gated" else 3):  # the teacher's training is the first
            steps = iter(range(100))
            options["hooks"] = dataclasses.replace(options["hooks"], should_stop=lambda: next(steps) == 6)
        return fit(*arguments, **options)

    monkeypatch.setattr("experiments.runs.stage.fit", interrupted_fit)
    flags = ["--model", str(tiny), *files, "--out", str(tmp_path / "again"), *QUICK]
    assert glue.main(flags) == 130
    monkeypatch.undo()
    assert "--resume" in capsys.readouterr().err
    assert glue.main([*flags, "--resume"]) == 0
    for name in ("model", "model-last"):
        first, second = (load_file(tmp_path / folder / name / "model.safetensors") for folder in ("run", "again"))
        assert first.keys() == second.keys()
        for tensor in first:
            np.testing.assert_array_equal(first[tensor], second[tensor])
    steps = [
        [(r["kind"], r["step"], r.get("score")) for r in map(json.loads, file.read_text("utf-8").splitlines())]
        for file in (tmp_path / "run" / "metrics.jsonl", tmp_path / "again" / "metrics.jsonl")
    ]
    evaluations = [[row for row in rows if row[0] == "eval"] for rows in steps]
    assert evaluations[0] == evaluations[1]


def test_a_gradient_that_overflows_beside_a_finite_loss_ends_with_code_3(run, tmp_path, teacher, capsys):
    assert run("--teacher", str(teacher), "--loss-weights", "logits=1e30") == 3
    said = capsys.readouterr().err
    assert "error: loss is nan at step " in said
    assert f"the last good checkpoint is {tmp_path / 'run' / 'ckpt' / '0'} (step 0)" in said


def test_only_the_gates_asked_for_close(run, tmp_path):
    assert run("--gates", "units,ffn", "--sparsity", "0.4") == 0
    removed = result_of(tmp_path / "run")["removed"]
    assert removed["hidden"]["kept"] == removed["hidden"]["of"]
    assert removed["heads"]["kept"] == [2, 2]
    assert sum(removed["units"]["kept"]) < 64


def test_a_vocabulary_can_be_left_out_too(run, tiny, tmp_path):
    assert run("--prune-vocabulary") == 0
    model = kp.load(tmp_path / "run")
    assert model.config.vocab_size < kp.load(tiny).config.vocab_size
    assert model.predict(["the film was good .", "a zebra xyz"])
    result = result_of(tmp_path / "run")
    logits = jax.jit(model.apply)(model.params, np.array([[1, 2]])).logits
    assert np.isfinite(np.asarray(logits)).all()
    assert result["parameters"]["kept"] < result["parameters"]["dense"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gates", "heads", "--sparsity", "0.9"], ["--sparsity 0.9", "--gates heads", "at most 0.4"]),
        (["--sparsity", "0.9999"], ["--sparsity 0.9999", "at most 0.99", "path"]),
        (["--gates", "heads,tails"], ["--gates 'heads,tails'", "attention, ffn, heads, units, hidden"]),
        (["--pattern", "2:4"], ["--pattern 2:4", "cofi"]),
        (["--pattern", "block-4x4"], ["--pattern block-4x4", "cofi"]),
        (["--before", "0.6", "--after", "0.5"], ["--before 0.6", "--after 0.5", "below 1"]),
        (["--target-at", "0.9"], ["--target-at 0.9", "0.7"]),
        (["--loss-weights", "attention=1"], ["attention=1", "heads", "must be 0"]),
        (["--layer-map", "first"], ["--layer-map first", "cofi"]),
        (["--gate-start", "1.5"], ["--gate-start 1.5", "probability"]),
        (["--gates", "attention,ffn", "--sparsity", "0.95"], ["--sparsity 0.95", "--gates attention,ffn", "at most"]),
        (["--steps", "1", "--before", "0.9", "--after", "0", "--target-at", "1"], ["1 steps are too few"]),
        (["--method", "sparsebert", "--layer-map", "nearest"], ["--layer-map nearest", "sparsebert"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, teacher, capsys, flags, words):
    assert run("--teacher", str(teacher), *flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_flags_of_masks_are_said_to_be_idle():
    from experiments.config.checks import idle_with_gates
    from experiments.config.settings import Settings

    assert idle_with_gates(Settings(method="cofi")) == ()
    assert idle_with_gates(Settings(method="cofi,sparsebert", updates=7)) == ()
    (line,) = idle_with_gates(Settings(method="cofi", updates=7))
    assert line == "--updates 7 is of pruning with masks; cofi has no use for it"


@pytest.mark.long
def test_what_is_scored_before_gates_close_is_what_is_trained(run, tmp_path):
    scores = []
    for start in ("0.998", "0.3"):  # before pruning begins, all gates are held open, wherever they start
        flags = ["--before", "0.5", "--target-at", "0.6", "--sparsity", "0.5"]
        assert run(*flags, "--gate-start", start, "--out", str(tmp_path / start)) == 0
        records = map(json.loads, (tmp_path / start / "metrics.jsonl").read_text("utf-8").splitlines())
        scores.append([each["metrics"] for each in records if each["kind"] == "eval" and each["phase"] == "prune"])
    assert scores[0][:4] == scores[1][:4]
    assert scores[0][0] != scores[0][1]
