"""Coupled pruning from flags to files, on an encoder that is small enough for a test."""

import dataclasses
import json
import types

import numpy as np
import pytest
from safetensors.numpy import load_file
from short_runs import COUPLED, last_weights, same_tensors

import kaprune_jax as kp
from experiments import transfer
from experiments.coupling.common import CoupledBatches
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.train.loop import fit


@pytest.mark.long
def test_couplings_side_by_side(couple, tmp_path, capsys):
    assert couple("--coupling", "none,joint,surgery,sequential") == 0
    out = tmp_path / "run"
    for coupling in ("none", "joint", "surgery", "sequential"):
        result = json.loads((out / coupling / "result.json").read_text("utf-8"))
        assert result["sparsity"]["encoder"] >= 0.7
        assert result["steps"] == (
            26 if coupling == "sequential" else 20
        )  # "after" twice: the auxiliary task's, then its own
        assert json.loads((out / coupling / "config.json").read_text("utf-8"))["coupling"] == coupling
    assert (out / "report.html").is_file()
    assert not same_tensors(last_weights(out / "none"), last_weights(out / "joint"))
    assert "coupling surgery" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "joint" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert "auxiliary" in records[0]["terms"]


@pytest.mark.long
def test_sharing_nothing_or_no_weight_is_the_run_without_coupling(couple, tmp_path):
    assert couple("--coupling", "none", out="alone") == 0
    assert couple("--coupling", "joint", "--share", "nothing", out="nothing") == 0
    assert couple("--coupling", "joint", "--share", "gates", "--auxiliary-weight", "0", out="weightless") == 0
    first = last_weights(tmp_path / "alone")
    assert same_tensors(first, last_weights(tmp_path / "nothing"))
    third = last_weights(tmp_path / "weightless")
    assert first.keys() == third.keys()
    for name in first:
        np.testing.assert_allclose(first[name], third[name], atol=1e-5)


@pytest.mark.long
def test_a_start_from_the_auxiliary_task_is_that_of_one_after_the_other(couple, tmp_path):
    flags = ["--share", "weights", "--when", "before"]
    assert couple("--coupling", "sequential", *flags, out="after") == 0
    assert couple("--coupling", "joint", "--auxiliary-weight", "0", "--start", "auxiliary", *flags, out="started") == 0
    assert couple("--coupling", "joint", "--auxiliary-weight", "0", *flags, out="pretrained") == 0
    first, second, third = (last_weights(tmp_path / name) for name in ("after", "started", "pretrained"))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5)
    assert any(
        first[name].shape != third[name].shape or np.abs(first[name] - third[name]).max() > 1e-2 for name in first
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        ["--share", "weights", "--tie", "0.1", "--auxiliary-schedule", "fade-out"],
        ["--share", "both", "--share-depth", "1", "--when", "prune"],
        ["--start", "auxiliary"],
        ["--coupling", "surgery", "--surgery", "attittud", "--surgery-on", "gates"],
        ["--coupling", "sequential", "--share", "gates", "--when", "prune"],
        ["--coupling", "sequential", "--share", "weights", "--when", "before"],
        ["--method", "sparsebert", "--share", "gates"],
        ["--method", "sparsebert", "--coupling", "sequential", "--when", "prune"],
    ],
    ids=" ".join,
)
def test_every_axis_delivers_what_is_asked(couple, tmp_path, flags):
    assert couple("--coupling", "joint", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["sparsity"]["encoder"] >= 0.69
    assert kp.load(tmp_path / "run").predict(["the film was good ."])[0].label in ("yes", "no")


@pytest.mark.long
@pytest.mark.parametrize("place", ["auxiliary teacher", "joint"])
def test_interrupted_then_resumed_gives_the_same_bits(tiny, files, other, tmp_path, monkeypatch, capsys, place):
    flags = ["--model", str(tiny), *files, *COUPLED, "--auxiliary", f"other={other}", "--auxiliary-text", "text"]
    flags += ["--auxiliary-label", "kind", "--auxiliary-teacher-steps", "4", "--coupling", "joint", "--when", "prune"]
    assert transfer.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    calls = []

    def interrupted_fit(*arguments, **options):
        calls.append(1)  # the teachers', then the gated model's
        if len(calls) < (1 if place == "auxiliary teacher" else 3):
            return fit(*arguments, **options)
        steps = iter(range(100))
        hooks = dataclasses.replace(options["hooks"], should_stop=lambda: next(steps) == 1)
        return fit(*arguments, **{**options, "hooks": hooks})

    monkeypatch.setattr("experiments.runs.stage.fit", interrupted_fit)
    assert transfer.main([*flags, "--out", str(tmp_path / "cut")]) == 130
    assert "python -m experiments.transfer" in capsys.readouterr().err
    monkeypatch.setattr("experiments.runs.stage.fit", fit)
    assert transfer.main([*flags, "--out", str(tmp_path / "cut"), "--share", "gates", "--resume"]) == (
        0 if place == "auxiliary teacher" else 2
    )
    if place == "joint":
        assert "--share both, now gates" in capsys.readouterr().err
        assert transfer.main([*flags, "--out", str(tmp_path / "cut"), "--resume"]) == 0
        assert same_tensors(last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut"))


@pytest.mark.long
def test_several_auxiliary_tasks_come_one_after_the_other(tiny, files, other, tmp_path):
    """Each goes on from the one before; by itself each is fine-tuned only for a coupling that wants it so."""
    flags = ["--model", str(tiny), *files, *COUPLED, "--auxiliary", f"other={other},third={other}"]
    flags += ["--auxiliary-text", "text", "--auxiliary-label", "kind", "--auxiliary-teacher-steps", "4"]
    flags += ["--when", "before", "--out", str(tmp_path / "run")]
    chain = ["teacher-other", "teacher-third-after-others"]
    assert transfer.main([*flags, "--coupling", "sequential"]) == 0
    assert sorted(place.name for place in (tmp_path / "run").glob("teacher-*")) == chain
    flags[-1] = str(tmp_path / "both")
    assert transfer.main([*flags, "--coupling", "joint,sequential"]) == 0
    assert sorted(place.name for place in (tmp_path / "both").glob("teacher-*")) == [
        "teacher-other",
        "teacher-third",
        chain[1],
    ]
    first, alone, chained = (
        load_file(tmp_path / "both" / name / "model" / "model.safetensors")
        for name in ("teacher-other", "teacher-third", chain[1])
    )
    assert same_tensors(first, alone)  # the same rows
    assert not same_tensors(alone, chained)
    assert same_tensors(chained, load_file(tmp_path / "run" / chain[1] / "model" / "model.safetensors"))


@pytest.mark.long
def test_masks_that_are_taken_over_stay(couple, tmp_path):
    flags = ["--method", "sparsebert", "--coupling", "sequential", "--share", "gates", "--scores", "sensitivity"]
    assert couple(*flags, "--lengths", "1") == 0
    first, target = (dict(read_masks(tmp_path / "run" / place / "model-last")) for place in ("first-other", "."))
    assert first.keys() == target.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], target[name])


@pytest.mark.long
def test_earlier_runs_vote_on_the_first_gates(couple, tmp_path, capsys):
    assert couple("--coupling", "none", out="first") == 0
    assert couple("--coupling", "none", "--init-from", str(tmp_path / "first"), "--vote-rate", "1", out="second") == 0
    assert couple("--coupling", "none", "--init-from", str(tmp_path / "first" / "teacher"), out="third") == 2
    assert "teacher" in capsys.readouterr().err


@pytest.mark.long
def test_candidates_are_ranked_with_none_among_them(couple, tmp_path, capsys):
    assert couple("--rank", "--evaluations", "3", out="rank") == 0
    found = json.loads((tmp_path / "rank" / "rank.json").read_text("utf-8"))["candidates"]
    assert {row["candidate"] for row in found} == {"none", "other"}
    row = next(row for row in found if row["candidate"] == "other")
    assert row["leep"] < 0
    assert 0 <= row["overlap"] <= 1
    assert "kNN" in capsys.readouterr().out
    for short in ("short-target", "short-auxiliary-other"):  # a few steps, of which only the gates are wanted
        assert (tmp_path / "rank" / short / "metrics.jsonl").read_text("utf-8").count('"kind": "eval"') == 1


def test_one_after_the_other_the_target_has_as_many_steps_as_alone():
    import jax.numpy as jnp

    from experiments.coupling.common import Auxiliary, make_batches
    from experiments.coupling.phases import Phases, with_turn
    from experiments.runs.method import Plan

    class Train:
        batch_size = 4

        def __getitem__(self, step):
            return {"step": step}

    rates = jnp.linspace(1.0, 0.0, 10)
    plan = Plan("prune", None, None, None, lambda step: rates[step], 10, 6, ())  # type: ignore
    longer, where = with_turn(plan, Phases(1, 4, 6, 10))
    assert (longer.steps, where.gated, where.steps) == (14, 6, 14)
    assert [float(longer.rate(step)) for step in range(14)] == [*rates.tolist(), *rates[6:].tolist()]
    data = types.SimpleNamespace(name="target")
    prepared = types.SimpleNamespace(
        data=data, train=Train(), settings=types.SimpleNamespace(coupling="sequential", seed=0)
    )
    batches = make_batches(prepared, [Auxiliary("a", None, None, Train(), 1.0)], where, ("after",))  # type: ignore
    assert [*map(sorted, map(batches.__getitem__, range(14)))] == [["target"]] * 6 + [["a"]] * 4 + [["target"]] * 4


def test_the_auxiliary_task_of_a_step_follows_from_seed_and_step():
    from experiments.coupling.common import Auxiliary

    class Train:
        batch_size = 4

        def __getitem__(self, step):
            return {"step": step}

    pair = [Auxiliary(name, None, None, Train(), share) for name, share in (("a", 0.75), ("b", 0.25))]  # type: ignore
    batches = CoupledBatches("target", Train(), pair, lambda step: step >= 10, seed=3)  # type: ignore
    drawn = [sorted(batches[step]) for step in range(410)]
    assert all(names == ["target"] for names in drawn[:10])
    assert drawn == [sorted(batches[step]) for step in range(410)]
    share = sum("a" in names for names in drawn) / 400
    assert 0.65 < share < 0.85
