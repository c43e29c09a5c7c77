"""Coupled pruning from flags to files, on an encoder that is small enough for a test."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import kaprune_jax as kp
from experiments import transfer
from experiments.config.transfer_settings import TransferSettings, parse, resolve
from experiments.coupling.auxiliary import prepare_auxiliaries
from experiments.coupling.common import CoupledBatches
from experiments.runs.prepare import prepare
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.models.bert import init_params
from kaprune_jax.train.loop import fit

QUICK = ["--steps", "20", "--teacher-steps", "4", "--batch-size", "8", "--evaluations", "1", "--log-every", "10"]
QUICK += ["--learning-rate", "3e-3", "--allow-weak-teacher", "--sparsity", "0.7"]


@pytest.fixture
def other(tmp_path):
    """Rows of a related task, in a file of other columns."""
    words = {"yes": ("nice", "fine", "happy"), "no": ("poor", "sad", "ugly")}
    rows = [
        f"a {word} {thing} .\t{label}" for label in words for word in words[label] for thing in ("day", "cat", "hat")
    ]
    file = tmp_path / "other.tsv"
    file.write_text("text\tkind\n" + "\n".join(rows) + "\n", "utf-8")
    return file


@pytest.fixture(scope="session")
def teachers(tiny, tmp_path_factory):
    """Models with a head for the target and for the auxiliary task, as good as untrained."""
    folders = []
    for number in range(2):
        config = kp.load(tiny).config.replace(head="classification", labels=("no", "yes"))
        folders.append(tmp_path_factory.mktemp("teachers") / f"teacher{number}")
        tokenizer = kp.load(tiny).tokenizer
        kp.save(folders[-1], init_params(config, jax.random.key(number)), config, tokenizer=tokenizer)
    return folders


@pytest.fixture
def run(tiny, files, other, teachers, tmp_path):
    """Runs the command with given teachers; gives the exit code."""
    flags = ["--model", str(tiny), *files, *QUICK, "--auxiliary", f"other={other}", "--auxiliary-text", "text"]
    flags += ["--auxiliary-label", "kind", "--teacher", str(teachers[0]), "--auxiliary-teacher", str(teachers[1])]
    return lambda *more, out="run": transfer.main([*flags, "--out", str(tmp_path / out), *more])


def weights(folder):
    return load_file(folder / "model-last" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_couplings_side_by_side(run, tmp_path, capsys):
    assert run("--coupling", "none,joint,surgery,sequential") == 0
    out = tmp_path / "run"
    for coupling in ("none", "joint", "surgery", "sequential"):
        result = json.loads((out / coupling / "result.json").read_text("utf-8"))
        assert result["sparsity"]["encoder"] >= 0.7
        assert result["steps"] == (
            26 if coupling == "sequential" else 20
        )  # "after" twice: the auxiliary task's, then its own
        assert json.loads((out / coupling / "config.json").read_text("utf-8"))["coupling"] == coupling
    assert (out / "report.html").is_file()
    assert not same(weights(out / "none"), weights(out / "joint"))
    assert "coupling surgery" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "joint" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert "auxiliary" in records[0]["terms"]


@pytest.mark.long
def test_sharing_nothing_or_no_weight_is_the_run_without_coupling(run, tmp_path):
    assert run("--coupling", "none", out="alone") == 0
    assert run("--coupling", "joint", "--share", "nothing", out="nothing") == 0
    assert run("--coupling", "joint", "--share", "gates", "--auxiliary-weight", "0", out="weightless") == 0
    first = weights(tmp_path / "alone")
    assert same(first, weights(tmp_path / "nothing"))
    third = weights(tmp_path / "weightless")
    assert first.keys() == third.keys()
    for name in first:
        np.testing.assert_allclose(first[name], third[name], atol=1e-5)


@pytest.mark.long
def test_a_start_from_the_auxiliary_task_is_that_of_one_after_the_other(run, tmp_path):
    flags = ["--share", "weights", "--when", "before"]
    assert run("--coupling", "sequential", *flags, out="after") == 0
    assert run("--coupling", "joint", "--auxiliary-weight", "0", "--start", "auxiliary", *flags, out="started") == 0
    assert run("--coupling", "joint", "--auxiliary-weight", "0", *flags, out="pretrained") == 0
    first, second, third = (weights(tmp_path / name) for name in ("after", "started", "pretrained"))
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
def test_every_axis_delivers_what_is_asked(run, tmp_path, flags):
    assert run("--coupling", "joint", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["sparsity"]["encoder"] >= 0.69
    assert kp.load(tmp_path / "run").predict(["the film was good ."])[0].label in ("yes", "no")


@pytest.mark.long
@pytest.mark.parametrize("place", ["auxiliary teacher", "joint"])
def test_interrupted_then_resumed_gives_the_same_bits(tiny, files, other, tmp_path, monkeypatch, capsys, place):
    flags = ["--model", str(tiny), *files, *QUICK, "--auxiliary", f"other={other}", "--auxiliary-text", "text"]
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
        assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.long
def test_several_auxiliary_tasks_come_one_after_the_other(tiny, files, other, tmp_path):
    flags = ["--model", str(tiny), *files, *QUICK, "--auxiliary", f"other={other},third={other}"]
    flags += ["--auxiliary-text", "text", "--auxiliary-label", "kind", "--auxiliary-teacher-steps", "4"]
    flags += ["--coupling", "sequential", "--when", "before"]
    assert transfer.main([*flags, "--out", str(tmp_path / "run")]) == 0
    alone, chained = (
        load_file(tmp_path / "run" / name / "model" / "model.safetensors")
        for name in ("teacher-third", "teacher-third-after-others")
    )
    assert not same(alone, chained)


@pytest.mark.long
def test_masks_that_are_taken_over_stay(run, tmp_path):
    flags = ["--method", "sparsebert", "--coupling", "sequential", "--share", "gates", "--scores", "sensitivity"]
    assert run(*flags, "--lengths", "1") == 0
    first, target = (dict(read_masks(tmp_path / "run" / place / "model-last")) for place in ("first-other", "."))
    assert first.keys() == target.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], target[name])


@pytest.mark.long
def test_earlier_runs_vote_on_the_first_gates(run, tmp_path, capsys):
    assert run("--coupling", "none", out="first") == 0
    assert run("--coupling", "none", "--init-from", str(tmp_path / "first"), "--vote-rate", "1", out="second") == 0
    assert run("--coupling", "none", "--init-from", str(tmp_path / "first" / "teacher"), out="third") == 2
    assert "teacher" in capsys.readouterr().err


@pytest.mark.long
def test_candidates_are_ranked_with_none_among_them(run, tmp_path, capsys):
    assert run("--rank", out="rank") == 0
    found = json.loads((tmp_path / "rank" / "rank.json").read_text("utf-8"))["candidates"]
    assert {row["candidate"] for row in found} == {"none", "other"}
    row = next(row for row in found if row["candidate"] == "other")
    assert row["leep"] < 0
    assert 0 <= row["overlap"] <= 1
    assert "kNN" in capsys.readouterr().out


@pytest.mark.long
def test_a_study_runs_its_cells_once_and_in_slices(run, files, other, teachers, tiny, tmp_path, capsys):
    base = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), "auxiliary": f"other={other}"}
    base |= {"auxiliary_text": "text", "auxiliary_label": "kind", "steps": 20, "teacher_steps": 4, "batch_size": 8}
    base |= {"auxiliary_teacher": str(teachers[1]), "evaluations": 1, "sparsity": 0.7, "when": "prune"}
    grid = {"coupling": ["none", "joint"], "seed": [0, 1]}
    base["auxiliary_seed"] = 0
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"out": str(tmp_path / "study"), "base": base, "grids": [grid, grid]}), "utf-8")
    assert transfer.main(["--study", str(file), "--cell", "1/2"]) == 0
    cells = tmp_path / "study" / "cells"
    assert len(list(cells.iterdir())) == 2
    assert transfer.main(["--study", str(file)]) == 0
    assert len(list(cells.glob("*/result.json"))) == 4
    assert not list(cells.glob("*/ckpt"))
    assert len(list((tmp_path / "study" / "teachers").iterdir())) == 2  # one for each seed
    assert (tmp_path / "study" / "study.html").is_file()
    assert "joint" in (tmp_path / "study" / "study.md").read_text("utf-8")
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}
    assert transfer.main(["--study", str(file)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}
    more = {"coupling": ["none"], "seed": [0], "steps": [20, 16]}  # a grid that grows runs only what is new
    file.write_text(json.dumps({"out": str(tmp_path / "study"), "base": base, "grids": [grid, more]}), "utf-8")
    assert transfer.main(["--study", str(file)]) == 0
    after = {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}
    assert before.items() < after.items()
    assert len(after) == 5


@pytest.mark.long
def test_cells_share_what_comes_before_the_target(run, files, other, teachers, tiny, tmp_path, capsys):
    base = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), "auxiliary": f"other={other}"}
    base |= {"auxiliary_text": "text", "auxiliary_label": "kind", "steps": 20, "batch_size": 8, "auxiliary_seed": 0}
    base |= {"auxiliary_teacher": str(teachers[1]), "evaluations": 1, "sparsity": 0.7, "when": "prune"}
    base |= {"teacher": str(teachers[0]), "learning_rate": 3e-3, "log_every": 10}
    grid = {"coupling": ["sequential"], "limit_train": [20, 30], "seed": [0]}
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"out": str(tmp_path / "study"), "base": base, "grids": [grid]}), "utf-8")
    assert transfer.main(["--study", str(file)]) == 0
    assert len(list((tmp_path / "study" / "earlier").iterdir())) == 1
    flags = ["--coupling", "sequential", "--when", "prune", "--auxiliary-seed", "0", "--seed", "0"]
    assert run(*flags, "--limit-train", "30") == 0
    cell = next((tmp_path / "study" / "cells").glob("*30*"))
    assert same(load_file(cell / "model" / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors"))


@pytest.mark.long
def test_cells_share_a_jointly_trained_teacher_whatever_is_pruned(files, other, teachers, tiny, tmp_path):
    base = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), "auxiliary": f"other={other}"}
    base |= {"auxiliary_text": "text", "auxiliary_label": "kind", "auxiliary_teacher": str(teachers[1]), "steps": 10}
    base |= {"teacher_steps": 4, "batch_size": 8, "evaluations": 1, "coupling": "joint", "seed": 0}
    grids = [{"sparsity": [0.7]}, {"sparsity": [0.5], "share": ["weights"], "tie": [0.1], "when": ["before,prune"]}]
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"out": str(tmp_path / "study"), "base": base, "grids": grids}), "utf-8")
    assert transfer.main(["--study", str(file)]) == 0
    assert len(list((tmp_path / "study" / "cells").glob("*/result.json"))) == 2
    assert len(list((tmp_path / "study" / "teachers").glob("target-*"))) == 1


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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coupling", "some"], ["--coupling 'some'", "none, sequential, joint, surgery"]),
        (["--when", "prune,prune"], ["--when 'prune,prune'", "each once"]),
        (["--share", "all"], ["--share", "all", "nothing"]),
        (["--share-depth", "3"], ["--share-depth 3", "2 layers"]),
        (["--method", "logits"], ["--method logits", "cofi, sparsebert"]),
        (["--auxiliary", "micro-nli,micro-nli"], ["--auxiliary", "each once"]),
        (["--auxiliary-teacher", "a,b"], ["--auxiliary-teacher a,b", "one for each"]),
        (["--coupling", "surgery", "--surgery", "attittud", "--surgery-parts", "3"], ["--surgery-parts 3", "8"]),
        (["--auxiliary-rows", "0"], ["--auxiliary-rows 0", ">= 1"]),
        (["--auxiliary-rows", "4"], ["fewer than a batch of 8"]),
        (["--tie", "-1"], ["--tie -1", ">= 0"]),
        (["--init-from", "nowhere/at/all"], ["nowhere/at/all"]),
        (["--study", "no.json"], ["--study no.json", "put it into the file"]),
        (["--cell", "1/2"], ["--cell 1/2", "--study FILE"]),
        (["--auxiliary", "../x=f"], ["--auxiliary '../x=f'", "a name has letters"]),
        (["--auxiliary", "mnli"], ["--auxiliary mnli", "--data-dir"]),
        (["--tie", "0.1"], ["--tie 0.1", "own"]),
        (["--coupling", "surgery", "--surgery-on", "gates", "--share", "weights"], ["--surgery-on gates", "nothing"]),
        (["--method", "sparsebert", "--scope", "global"], ["--scope global"]),
        (["--coupling", "sequential", "--init-from", "x"], ["--init-from x", "sequential"]),
        (["--start", "auxiliary", "--when", "prune"], ["--start auxiliary", "--when prune"]),
        (["--start", "auxiliary", "--share", "gates"], ["--start auxiliary", "--share gates"]),
        (["--share", "gates", "--when", "before,after"], ["--when before,after", "--share gates", "learned in prune"]),
        (
            ["--method", "sparsebert", "--coupling", "sequential", "--share", "gates", "--when", "after"],
            ["--when after", "--share gates"],
        ),
        (["--share-depth", "1", "--when", "after"], ["--when after", "--share-depth"]),
        (["--share", "weights", "--tie", "1", "--when", "after"], ["--when after", "--tie 1.0", "learned in prune"]),
        (["--auxiliary-schedule", "fade-out", "--when", "after"], ["--when after", "fade-out has ended"]),
        (
            ["--method", "sparsebert", "--coupling", "surgery", "--surgery-on", "gates"],
            ["--surgery-on gates", "masks have no gradients"],
        ),
        (["--coupling", "surgery", "--surgery", "attittud", "--accumulate", "2"], ["--accumulate 2", "attittud"]),
        (["--method", "sparsebert", "--target-at", "0.9"], ["--target-at 0.9", "1 - --after, 0.7"]),
        (
            "--method sparsebert --steps 2 --before 0.5 --target-at 0.6 --after 0.4".split(),
            ["--steps 2: 2 steps are too few for --before 0.5"],
        ),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, capsys, flags, words):
    assert run(*flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_the_sparsity_is_that_of_a_pattern_which_has_one():
    assert resolve(TransferSettings()).sparsity == 0.9
    assert resolve(TransferSettings(method="sparsebert", pattern="2:4")).sparsity == 0.5


def test_an_auxiliary_task_is_worked_on_as_the_target_is(tiny, files, other, tmp_path):
    flags = ["--model", str(tiny), *files, *QUICK, "--auxiliary", f"other={other}", "--auxiliary-text", "text"]
    flags += ["--auxiliary-label", "kind", "--batch-size", "16", "--limit-train", "10", "--accumulate", "5", "--remat"]
    settings = resolve(parse([*flags, "--out", str(tmp_path / "run")]))
    target = prepare(settings)
    (auxiliary,) = prepare_auxiliaries(settings, target)
    for name in ("batch_size", "accumulate", "remat"):
        assert getattr(auxiliary.settings, name) == getattr(target.settings, name)
    assert auxiliary.train.batch_size == target.train.batch_size == 10


@pytest.mark.parametrize("flags", [["--coupling", "joint", "--start", "auxiliary"], ["--coupling", "sequential"]])
def test_an_encoder_of_another_shape_is_nothing_to_start_from(run, teachers, tmp_path, capsys, flags):
    old = kp.load(teachers[1])
    config = old.config.replace(intermediate_size=old.config.intermediate_size + 8)
    kp.save(tmp_path / "wide", init_params(config, jax.random.key(3)), config, tokenizer=old.tokenizer)
    assert run(*flags, "--auxiliary-teacher", str(tmp_path / "wide")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--auxiliary-teacher: the encoder of the one of other is not of the shape of --model" in said
    assert not (tmp_path / "run").exists()


def test_the_target_cannot_be_its_own_help(run, files, tmp_path, capsys):
    assert run("--auxiliary", f"again={files[1]}") == 2
    assert "target's own file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"out": "x", "grids": [{"colour": ["red"]}]}, ["'colour'", "no flag"]),
        ({"out": "x", "grids": [{"seed": 3}]}, ["seed=3", "list"]),
        ({"out": "x", "grids": [{"seed": ["three"]}]}, ["seed='three'", "int"]),
        ({"out": "x", "grids": [{"sparsity": [1.5]}]}, ["--sparsity 1.5", "cell"]),
        ({"grids": [{"seed": [1]}]}, ["out, base and grids"]),
        ({"out": "x", "grids": []}, ["out, base and grids"]),
        ({"out": "x", "grids": [{"share": ["bogus"]}]}, ["--share bogus", "allowed"]),
        ({"out": "x", "grids": [{"surgery": ["pc-grad"]}]}, ["--surgery pc-grad", "allowed"]),
    ],
    ids=str,
)
def test_a_bad_study_is_refused_before_anything_runs(tmp_path, capsys, study, words):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(study), "utf-8")
    assert transfer.main(["--study", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
