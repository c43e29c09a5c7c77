"""Whole runs on meshes: the same results as on one device, and gone on with on another mesh."""

import dataclasses
import json
import os
import signal

import pytest
from short_runs import SHORT, same

from experiments import glue
from kaprune_jax.train.loop import fit


@pytest.fixture
def run(tiny, files, tmp_path):
    """Runs the command on the tiny encoder into a folder of a name; gives the exit code."""
    return lambda name, *flags: glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / name), *SHORT, *flags])


@pytest.mark.long
@pytest.mark.parametrize("method", ["sparsebert", "cofi"])
def test_a_run_on_a_mesh_gives_what_one_device_gives_and_goes_on_on_another(method, run, tmp_path, monkeypatch, capsys):
    flags = ["--method", method, "--sparsity", "0.5"]
    assert run("one", *flags) == 0
    steps = iter(range(100))

    def interrupted_fit(*arguments, **options):
        def stop():
            return next(steps) == 12 and os.kill(os.getpid(), signal.SIGTERM)  # four steps after the teacher's eight

        old = options["hooks"]
        hooks = dataclasses.replace(old, should_stop=lambda: bool(stop()) or old.should_stop())
        return fit(*arguments, **{**options, "hooks": hooks})

    monkeypatch.setattr("experiments.runs.stage.fit", interrupted_fit)
    assert run("many", *flags, "--mesh", "data=2,fsdp=2,model=2") == 143
    monkeypatch.setattr("experiments.runs.stage.fit", fit)
    assert run("many", *flags, "--mesh", "fsdp=8", "--resume") == 0
    said = capsys.readouterr().out
    assert "on data=2,fsdp=2,model=2: " in said
    assert "collectives per step: all-gather" in said
    assert "on fsdp=8: " in said
    same(tmp_path / "one", tmp_path / "many")
    one, many = (json.loads((tmp_path / name / "result.json").read_text("utf-8")) for name in ("one", "many"))
    assert one["last"] == many["last"]
    assert (one["mesh"], many["mesh"]) == ("data=1", "fsdp=8")
    assert many["step_cost"]["collectives"]["all-reduce"] > 0 == sum(one["step_cost"]["collectives"].values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh", "rows=2"], "--mesh: mesh 'rows=2': 'rows=2' is not AXIS=NUMBER"),
        (["--mesh", "data=16"], "--mesh: mesh 'data=16' has 16 devices; allowed are at most the 8"),
        (["--mesh", "data=3"], "--batch-size 8: not a multiple of the 3 devices that --mesh data=3 divides"),
        (["--accumulate", "3"], "--accumulate 3: no divisor of the 8 rows of --batch-size"),
        (["--mesh", "data=4", "--accumulate", "4"], "rows over times --accumulate 4"),
        (["--accumulate", "0"], "--accumulate 0: a whole number >= 1 is needed"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_before_anything_is_written(flags, message, run, tmp_path, capsys):
    assert run("run", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_parts_and_recomputation_are_settings_of_a_run(run, tmp_path):
    assert run("run", "--method", "hard-labels", "--accumulate", "2", "--remat") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    assert (config["accumulate"], config["remat"]) == (2, True)
