"""What coupled runs refuse, and what they make of flags."""

import jax
import pytest
from short_runs import COUPLED

import kaprune_jax as kp
from experiments.config.transfer_settings import TransferSettings, parse, resolve
from experiments.coupling.auxiliary import prepare_auxiliaries
from experiments.runs.prepare import prepare
from kaprune_jax.models.bert import init_params


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
def test_bad_input_is_one_line_and_leaves_nothing(couple, tmp_path, capsys, flags, words):
    assert couple(*flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_the_sparsity_is_that_of_a_pattern_which_has_one():
    assert resolve(TransferSettings()).sparsity == 0.9
    assert resolve(TransferSettings(method="sparsebert", pattern="2:4")).sparsity == 0.5


def test_an_auxiliary_task_is_worked_on_as_the_target_is(tiny, files, other, tmp_path):
    flags = ["--model", str(tiny), *files, *COUPLED, "--auxiliary", f"other={other}", "--auxiliary-text", "text"]
    flags += ["--auxiliary-label", "kind", "--batch-size", "16", "--limit-train", "10", "--accumulate", "5", "--remat"]
    settings = resolve(parse([*flags, "--out", str(tmp_path / "run")]))
    target = prepare(settings)
    (auxiliary,) = prepare_auxiliaries(settings, target)
    for name in ("batch_size", "accumulate", "remat"):
        assert getattr(auxiliary.settings, name) == getattr(target.settings, name)
    assert auxiliary.train.batch_size == target.train.batch_size == 10


@pytest.mark.parametrize("flags", [["--coupling", "joint", "--start", "auxiliary"], ["--coupling", "sequential"]])
def test_an_encoder_of_another_shape_is_nothing_to_start_from(couple, teachers, tmp_path, capsys, flags):
    old = kp.load(teachers[1])
    config = old.config.replace(intermediate_size=old.config.intermediate_size + 8)
    kp.save(tmp_path / "wide", init_params(config, jax.random.key(3)), config, tokenizer=old.tokenizer)
    assert couple(*flags, "--auxiliary-teacher", str(tmp_path / "wide")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--auxiliary-teacher: the encoder of the one of other is not of the shape of --model" in said
    assert not (tmp_path / "run").exists()


def test_an_auxiliary_teacher_of_other_classes_is_named_by_its_flag(couple, tiny, tmp_path, capsys):
    assert couple("--auxiliary-teacher", str(tiny)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --auxiliary-teacher {tiny}: it predicts")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_target_cannot_be_its_own_help(couple, files, tmp_path, capsys):
    assert couple("--auxiliary", f"again={files[1]}") == 2
    assert "target's own file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
