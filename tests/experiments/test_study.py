"""Studies of the main job, on an encoder that is small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import kaprune_jax as kp
from experiments import glue
from experiments.grid.cells import make_once
from experiments.grid.file import read_slice
from kaprune_jax._errors import InputError
from kaprune_jax.train.loop import Interrupted

QUICK = {"steps": 8, "teacher_steps": 4, "batch_size": 8, "evaluations": 1, "updates": 2}


@pytest.fixture
def write(tiny, files, tmp_path):
    """Writes a study over own files; gives its file."""
    base = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), **QUICK}

    def made(grids, **more):
        file = tmp_path / "study.json"
        content = {"out": str(tmp_path / "study"), "base": base, "grids": grids} | more
        file.write_text(json.dumps(content), "utf-8")
        return file

    return made


def results(folder):
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("cells/*/result.json"))]


def test_cells_share_teachers_rows_and_the_models_made_first(write, files, tmp_path, capsys):
    first = {"train_file": files[1], "dev_file": files[3], "model": "mini", **QUICK, "limit_train": 20}
    grids = [
        {"method": ["sparsebert", "hard-labels"], "sparsity": [0.8]},
        {"augment": [2], "temperature": [2]},
        {"model": ["@first"], "hold_out": [8]},
    ]
    file = write(grids, runs={"first": first})
    assert glue.main(["--study", str(file), "--cell", "1/2"]) == 0
    study = tmp_path / "study"
    assert len(results(study)) == 2
    assert not (study / "runs").exists()  # none of these cells starts from it
    assert glue.main(["--study", str(file)]) == 0
    found = results(study)
    assert sorted(result["sparsity"]["asked"] for result in found) == [0.8, 0.8, 0.95, 0.95]
    assert len(list((study / "teachers").iterdir())) == 2  # of the two starts
    assert len(list((study / "augmented").iterdir())) == 1
    assert sum(result["examples"]["augmented"] > 0 for result in found) == 1
    held = next(result for result in found if result["task"].endswith("-held-out"))
    assert held["examples"] == {"train": 32, "dev": 8, "augmented": 0}
    table = (study / "table.md").read_text("utf-8")
    assert "sparsebert, augment 2, temperature 2" in table
    assert "hard-labels" in table
    assert (study / "report.html").is_file()
    assert not list(study.glob("*/*/ckpt"))
    before = {path: path.stat().st_mtime_ns for path in study.glob("*/*/result.json")}
    assert glue.main(["--study", str(file)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in study.glob("*/*/result.json")}


def test_cells_that_differ_in_what_a_teacher_follows_from_may_share_one_of_runs(write, files, tiny, tmp_path):
    dense = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), **QUICK}
    grids = [{"teacher": ["@dense"], "method": ["logits"], "sparsity": [0.8], "batch_size": [4], "steps": [4]}]
    assert glue.main(["--study", str(write(grids, runs={"dense": dense}))]) == 0
    study = tmp_path / "study"
    assert not (study / "teachers").exists()
    cell = next((study / "cells").iterdir())
    config, env = (json.loads((cell / name).read_text("utf-8")) for name in ("config.json", "env.json"))
    assert (config["batch_size"], config["teacher"]) == (4, str(study / "runs" / "dense"))
    assert env["teacher"] == kp.load(study / "runs" / "dense").fingerprint


def test_a_cell_leaves_no_programs_in_memory(write):
    client = jax.local_devices()[0].client
    assert glue.main(["--study", str(write([{"method": ["cofi"], "sparsity": [0.8]}]))]) == 0
    assert len(client.live_executables()) < 10


def test_a_cell_is_the_run_that_its_flags_make(write, files, tiny, tmp_path):
    assert glue.main(["--study", str(write([{"sparsity": [0.8]}]))]) == 0
    flags = ["--model", str(tiny), *files, "--sparsity", "0.8", "--allow-weak-teacher"]
    for name, value in QUICK.items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    assert glue.main([*flags, "--out", str(tmp_path / "run")]) == 0
    cell = next((tmp_path / "study").glob("cells/*"))
    one, two = (folder / "model" / "model.safetensors" for folder in (cell, tmp_path / "run"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("grids", "more", "words"),
    [
        ([{"method": ["dense"]}], {}, ["method='dense'", "one that prunes"]),
        ([{"method": ["logits,cofi"]}], {}, ["'logits,cofi'", "one that prunes"]),
        ([{"sparsity": [1.5]}], {}, ["cell {", "--sparsity 1.5"]),
        ([{"coupling": ["joint"]}], {}, ["'coupling'", "no flag of this command"]),
        ([{"sparsity": 0.5}], {}, ["sparsity=0.5", "a list of values"]),
        ([{"sparsity": ["0.5"]}], {}, ["sparsity='0.5' is no float"]),
        ([{"model": ["@other"]}], {"runs": {"first": {}}}, ["model='@other'", "runs has first"]),
        ([{"seed": [0]}], {"runs": {"../x": {}}}, ["'../x'", "no name of a run"]),
        ([{"seed": [0]}], {"runs": {"x": {"task": "rte"}}}, ["run x", "--data-dir"]),
        ([{"seed": [0]}], {"runs": {"x": {"color": 1}}}, ["'color'", "no flag of a dense model"]),
        ([{"seed": [0]}], {"runs": {"x": {"method": "cofi"}}}, ["'method'", "no flag of a dense model"]),
        ([{"seed": [0]}], {"runs": {"x": {"model": "@x"}}}, ["'@x'", "starts from no other run"]),
        ([{"seed": [0]}], {"runs": ["x"]}, ["runs must be"]),
        ([{"seed": [0]}], {"out": " "}, ["out=' '", "a folder is needed"]),
        ([], {}, ["an object with out, base and grids"]),
        ([{"seed": list(range(200)), "steps": list(range(200))}], {}, ["40000 cells", "10000"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(write, tmp_path, capsys, grids, more, words):
    assert glue.main(["--study", str(write(grids, **more))]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said
    assert not (tmp_path / "study").exists()


HOLDER = """
import sys, time
from pathlib import Path
from experiments.runs.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_what_another_process_makes_is_waited_for_and_taken_over_when_it_dies(tmp_path, capsys):
    place, looks = tmp_path / "made", []

    def make(work):
        work.mkdir()
        (work / "ckpt").mkdir()
        (work / "result").write_text("made here", "utf-8")

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".made.making")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"

        def kill_at_the_third_look():
            looks.append(place.exists())
            if len(looks) == 3:
                other.kill()
                other.wait()
            return False

        make_once(place, make, kill_at_the_third_look, wait=0.01)
    assert looks[:3] == [False] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]
    assert sorted(path.name for path in place.iterdir()) == ["result"]
    assert f"pid {other.pid}" in capsys.readouterr().out
    make_once(place, lambda work: pytest.fail("it is there"), lambda: False)


def test_waiting_can_be_stopped(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".made.making")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Interrupted, match="waiting for"):
            make_once(tmp_path / "made", lambda work: None, lambda: True, wait=0.01)
        other.kill()


def test_a_teacher_that_another_process_reads_can_be_read_too(write, tmp_path):
    """Slices run beside each other, each with the lock of what it works on."""
    assert glue.main(["--study", str(write([{"sparsity": [0.8]}]))]) == 0
    teacher = next((tmp_path / "study" / "teachers").iterdir())
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(teacher)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert glue.main(["--study", str(write([{"sparsity": [0.8, 0.5]}]))]) == 0
        other.kill()
    assert len(results(tmp_path / "study")) == 2


def test_a_cell_that_another_process_works_on_is_left_to_it(write, tmp_path, capsys):
    """So several processes with the same command share the cells."""
    file = write([{"sparsity": [0.8, 0.5]}])
    assert glue.main(["--study", str(file)]) == 0
    one, other = sorted((tmp_path / "study" / "cells").iterdir())
    for folder in (one, other):
        (folder / "result.json").unlink()
    (tmp_path / "study" / "figures.csv").unlink()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(one)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert glue.main(["--study", str(file)]) == 0
        process.kill()
    assert f"{one.name}: left to another process" in capsys.readouterr().out
    assert not (one / "result.json").exists()
    assert (other / "result.json").is_file()
    assert glue.main(["--study", str(file)]) == 0
    assert len(results(tmp_path / "study")) == 2


@pytest.mark.long
def test_a_cell_that_fails_keeps_no_other_from_being_run(write, tmp_path, capsys):
    file = write([{"method": ["hard-labels"], "learning_rate": [1e9, 1e-3]}])
    for _ in range(2):
        assert glue.main(["--study", str(file)]) == 3
        out, error = capsys.readouterr()
        assert "cell 1 of 2 has failed: " in out
        assert "1 of 2 cells have failed; the same command tries them again" in out
        assert error.splitlines()[-1].startswith("error: ")
        assert "cells/" in error  # the checkpoint's place
    (result,) = results(tmp_path / "study")
    assert result["method"] == "hard-labels"
    assert (tmp_path / "study" / "report.html").is_file()


@pytest.mark.long
def test_teachers_follow_from_the_parts_of_a_batch_too(write, tmp_path):
    assert glue.main(["--study", str(write([{"method": ["hard-labels"], "accumulate": [1, 2]}]))]) == 0
    assert len(results(tmp_path / "study")) == 2
    assert len([*(tmp_path / "study" / "teachers").iterdir()]) == 2


def test_a_model_that_was_made_with_other_flags_is_not_taken_for_what_its_name_says_now(write, files, tiny, capsys):
    first = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), **QUICK}
    grids = [{"model": ["@first"], "method": ["hard-labels"]}]
    assert glue.main(["--study", str(write(grids, runs={"first": first}))]) == 0
    capsys.readouterr()
    assert glue.main(["--study", str(write(grids, runs={"first": first | {"teacher_steps": 9}}))]) == 2
    said = capsys.readouterr().err
    assert "run first: teacher_steps=9, " in said
    assert "was made with 4; give it another name" in said


def test_who_fails_to_make_something_leaves_it_to_others(tmp_path):
    def fail(work):
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        make_once(tmp_path / "made", fail, lambda: False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".made.making")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        other.kill()


def test_an_interrupted_study_says_how_it_goes_on(write, tmp_path, monkeypatch, capsys):
    file = write([{"sparsity": [0.8]}])

    def stopped(*arguments, **options):
        raise Interrupted("stopped at step 3 of 8")

    monkeypatch.setattr("experiments.runs.stage.fit", stopped)
    assert glue.main(["--study", str(file), "--cell", "1/1"]) == 130
    said = capsys.readouterr().err
    assert said == f"stopped at step 3 of 8; to go on: python -m experiments.glue --study {file} --cell 1/1\n"
    monkeypatch.undo()
    assert glue.main(["--study", str(file), "--cell", "1/1"]) == 0
    assert len(results(tmp_path / "study")) == 1


def test_flags_beside_a_study_are_refused(write, capsys):
    assert glue.main(["--study", str(write([{"seed": [0]}])), "--seed", "3"]) == 2
    assert "--seed: not beside --study" in capsys.readouterr().err
    assert glue.main(["--cell", "1/2"]) == 2
    assert "only with --study FILE" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/2/3", "-1/2", "a/b", "1 /2"])
def test_slices(text):
    assert read_slice("2/3") == (2, 3)
    with pytest.raises(InputError, match="1 <= I <= N"):
        read_slice(text)


def test_the_studies_of_the_project_can_be_read(monkeypatch):
    from experiments.grid.file import read_grid
    from experiments.grid.glue import make_kind as of_glue
    from experiments.grid.transfer import make_kind as of_transfer

    for file in sorted(Path(glue.__file__).parent.glob("studies/*.json")):
        kind = of_transfer() if "coupling" in file.read_text("utf-8") else of_glue()
        grid = read_grid(str(file), kind)
        for cell in grid.cells:
            kind.resolve(kind.settings(**{**kind.defaults, **cell}))
