"""Runs that die at any operation on files are gone on with, and give the same bits."""

import gc
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from deaths import Dead, Killer, outcome

from experiments import glue
from experiments.runs.lock import release
from experiments.runs.replace import finish_replacing, replace_folder

DEATHS = Path(__file__).with_name("deaths.py")
QUICK = ["--teacher-epochs", "2", "--epochs", "4", "--batch-size", "8", "--evaluations", "2", "--log-every", "5"]
QUICK += ["--learning-rate", "3e-3", "--teacher-learning-rate", "3e-3", "--allow-weak-teacher"]


@pytest.fixture(scope="session")
def killer():
    return Killer()


@pytest.fixture
def command(tiny, files):
    """The flags of a run into a folder."""
    return lambda folder, *more: ["--model", str(tiny), *files, *QUICK, "--out", str(folder), *more]


def die(killer, arguments, folder, at):
    """Runs until the operation of that number; True if the run has died there."""
    killer.arm(folder, at)
    try:
        glue.main(arguments)
    except Dead:
        pass
    finally:
        died = killer.is_dead
        killer.disarm()
        release()
        bury()
    return died


def bury():
    """Collects what a death in this process has left open now, so that no later test is blamed for it."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    sys.unraisablehook = hook


def go_on(arguments, folder):
    """What a person does: the same command, with --resume where there is a folder."""
    assert glue.main([*arguments, "--resume"] if folder.exists() else arguments) == 0


def operations(killer, arguments, folder):
    """What a run that nobody disturbs does with files."""
    killer.arm(folder, None)
    try:
        assert glue.main(arguments) == 0
    finally:
        killer.disarm()
    return [line.replace(str(folder), "") for line in killer.done]


def compare(killer, command, tmp_path, more, choose):
    """Kills runs at the operations that `choose` gives numbers of, counted from 1, and compares what comes out."""
    done = operations(killer, command(tmp_path / "whole", *more), tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    assert {"model/model.safetensors", "model-last/model.safetensors", "metrics.jsonl", "result.json"} < set(expected)
    for at in choose(done):
        folder = tmp_path / "killed"
        assert die(killer, command(folder, *more), folder, at), at
        go_on(command(folder, *more), folder)
        assert outcome(folder) == expected, (at, done[at - 1])
        shutil.rmtree(folder)


def number_of(done, pattern):
    return next(number for number, line in enumerate(done, 1) if re.search(pattern, line))


@pytest.mark.parametrize(
    "pattern",
    [
        r"rename /\.config\.json\.partial",  # env.json alone is there
        r"rename /ckpt/\.0\.sha256",  # the first checkpoint is not sealed
        r"rename /ckpt/5\.orbax\S*-tmp /ckpt/5$",  # the second is not there
        r"rename /model\.new",
        r"rename /\.report\.html-",
    ],
)
@pytest.mark.long
def test_killed_at_the_worst_moments(killer, command, tmp_path, pattern):
    compare(killer, command, tmp_path, ["--method", "dense"], lambda done: [number_of(done, pattern)])


@pytest.mark.long
def test_killed_between_evaluations_goes_on_from_what_was_kept_by_the_clock(command, tmp_path, capsys):
    more = ["--method", "dense", "--evaluations", "1"]
    assert glue.main(command(tmp_path / "whole", *more)) == 0
    assert sorted(path.name for path in (tmp_path / "whole" / "ckpt").iterdir() if path.is_dir()) == ["0", "10"]
    arguments = command(tmp_path / "killed", *more, "--checkpoint-minutes", "1e-9")
    before_the_last = r"os\.rename \S*/ckpt/\.10\.sha256"
    assert subprocess.run([sys.executable, str(DEATHS), before_the_last, "1", *arguments]).returncode == 9
    capsys.readouterr()
    go_on(command(tmp_path / "killed", *more), tmp_path / "killed")
    assert "going on at step 5 of 10" in capsys.readouterr().out
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_every_operation(killer, command, tmp_path):
    compare(killer, command, tmp_path, ["--method", "dense"], lambda done: range(1, len(done) - 1))


@pytest.mark.slow
def test_killed_all_over_a_run_with_gates(killer, command, tmp_path):
    more = ["--method", "cofi", "--epochs", "6", "--sparsity", "0.8"]
    compare(killer, command, tmp_path, more, lambda done: range(9, len(done), max(1, len(done) // 30)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "pattern", "number"),
    [
        ("sparsebert", r"open \S*/ckpt/10\.orbax-checkpoint-tmp/_CHECKPOINT_METADATA", 1),  # while it is written
        ("cofi", r"os\.rename \S*/model\.new \S*/model$", 2),  # the old one has made way
    ],
)
def test_a_process_that_was_killed(command, tmp_path, capfd, method, pattern, number):
    more = ["--method", method, "--sparsity", "0.8"]
    assert glue.main(command(tmp_path / "whole", *more)) == 0
    arguments = command(tmp_path / "killed", *more)
    died = subprocess.run([sys.executable, str(DEATHS), pattern, str(number), *arguments])
    assert died.returncode == 9
    assert (tmp_path / "killed" / "lock").is_file()
    go_on(arguments, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_model_is_there_whenever_its_replacement_dies(killer, tmp_path):
    def write(name, text):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(text)

    for at in range(1, 20):
        write("model", "old")
        write("model.new", "new")
        killer.arm(tmp_path, at)
        try:
            replace_folder(tmp_path / "model", tmp_path / "model.new")
        except (Dead, OSError):
            pass
        finally:
            died = killer.is_dead
            killer.disarm()
        finish_replacing(tmp_path / "model")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert (tmp_path / "model" / "weights").read_text() in (("old", "new") if died else ("new",))
        shutil.rmtree(tmp_path / "model")
        if not died:
            assert at > 4
            return
    pytest.fail("it never came to its end")


def test_half_a_new_model_is_removed(tmp_path):
    for name in ("model", "model.new", "model.old", ".model.new-abc", ".model-last.new-abc"):
        (tmp_path / name).mkdir()
    finish_replacing(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model-last.new-abc", "model"]
