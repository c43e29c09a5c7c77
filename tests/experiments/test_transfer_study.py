"""Studies of couplings: their cells, what these share, and files that are refused."""

import json

import pytest
from safetensors.numpy import load_file
from short_runs import same_tensors

from experiments import transfer
from experiments.config.settings import AROUND
from experiments.coupling.auxiliary import SHARED
from experiments.coupling.course import prune
from experiments.coupling.sequential import PRUNING
from experiments.grid.transfer import AUXILIARY, FIRST


@pytest.mark.long
def test_a_study_runs_its_cells_once_and_in_slices(couple, files, other, teachers, tiny, tmp_path, capsys):
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
def test_cells_share_what_comes_before_the_target(couple, files, other, teachers, tiny, tmp_path, monkeypatch, capsys):
    """Other processes may do so at the same time: nobody holds it while the target is pruned."""
    locks = []

    def prune_as(beginning, place, folder, should_stop):
        locks.append([*(tmp_path / "study" / "earlier").rglob("lock")])
        return prune(beginning, place, folder, should_stop)

    monkeypatch.setattr("experiments.coupling.course.prune", prune_as)
    base = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), "auxiliary": f"other={other}"}
    base |= {"auxiliary_text": "text", "auxiliary_label": "kind", "steps": 20, "batch_size": 8, "auxiliary_seed": 0}
    base |= {"auxiliary_teacher": str(teachers[1]), "evaluations": 1, "sparsity": 0.7, "when": "prune"}
    base |= {"teacher": str(teachers[0]), "learning_rate": 3e-3, "log_every": 10}
    grid = {"coupling": ["sequential"], "limit_train": [20, 30], "seed": [0]}
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"out": str(tmp_path / "study"), "base": base, "grids": [grid]}), "utf-8")
    assert transfer.main(["--study", str(file)]) == 0
    assert len(list((tmp_path / "study" / "earlier").iterdir())) == 1
    assert locks == [[], []]
    flags = ["--coupling", "sequential", "--when", "prune", "--auxiliary-seed", "0", "--seed", "0"]
    assert couple(*flags, "--limit-train", "30") == 0
    cell = next((tmp_path / "study" / "cells").glob("*30*"))
    assert same_tensors(
        load_file(cell / "model" / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    )


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


def test_what_is_shared_follows_from_all_that_an_auxiliary_run_is_started_with():
    """Else cells that differ in a setting meet in one folder, which refuses the second."""
    assert {*SHARED, *PRUNING} - {*AROUND} <= {*AUXILIARY, *PRUNING, *FIRST}
