"""The table of a study's figures: what it keeps, what it stands for where run folders are gone, and odd input."""

import csv
import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
from short_runs import make_files
from test_report import make_run
from test_study import QUICK

from experiments import glue, report
from experiments.config.resolve import resolve
from experiments.config.settings import parse
from experiments.config.tuned import by_recipe, tuned
from experiments.grid.figures import command_of, format_figures, read_figures
from experiments.pages.data import read_run
from experiments.pages.tasks import task_table
from experiments.presets import OWN_FILES
from experiments.report import main
from kaprune_jax._errors import InputError


@pytest.fixture(scope="module")
def study(tiny, tmp_path_factory):
    """A study of two cells, one more of which is asked for than was run; gives its file and its folder."""
    place = tmp_path_factory.mktemp("figures")
    files = make_files(place)
    base = {"train_file": files[1], "dev_file": files[3], "model": str(tiny), **QUICK}
    content = {"out": str(place / "study"), "base": base, "grids": [{"sparsity": [0.8, 0.5], "temperature": [2]}]}
    (place / "study.json").write_text(json.dumps(content), "utf-8")
    assert glue.main(["--study", str(place / "study.json")]) == 0
    return place / "study.json", place / "study"


def rows_of(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_row_has_the_figures_and_the_command_of_its_cell(study):
    _, out = study
    rows = rows_of(out / "figures.csv")
    assert [row["sparsity.asked"] for row in rows] == ["0.8", "0.5"]
    for row in rows:
        (folder,) = out.glob(f"cells/*-{row['cell']}")
        result = json.loads((folder / "result.json").read_text("utf-8"))
        assert float(row["last"]) == result["last"]
        assert float(row["dense"]) == result["dense"]
        assert float(row["sparsity.encoder"]) == pytest.approx(result["sparsity"]["encoder"], rel=1e-9)
        assert row["last_metrics"].startswith(f"{result['metric']}=")
        python, flag, module, *arguments = shlex.split(row["command"])
        assert (python, flag, module) == ("python", "-m", "experiments.glue")
        settings = resolve(parse(arguments))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        different = {name for name, value in dataclasses.asdict(settings).items() if config[name] != value}
        assert different == {"learning_rate", "scores", "out", "resume"}  # of which the first are the recipe's
        assert tuned("sparsebert", settings) == by_recipe("sparsebert", OWN_FILES["best"])


def test_reading_gives_the_runs_back(study):
    _, out = study
    file = out / "figures.csv"
    found = read_figures(file)
    for cell, run in found.items():
        (folder,) = out.glob(f"cells/*-{cell}")
        whole = read_run(folder)
        assert (run.task, run.method, run.name, run.metric, run.pattern) == (
            whole.task, whole.method, whole.name, whole.metric, whole.pattern,
        )  # fmt: skip
        assert run.name == "sparsebert, temperature 2"
        assert command_of(run) == command_of(whole) == run.command
    assert format_figures(found) == file.read_text("utf-8")


def test_cells_of_which_only_the_table_is_left_are_not_run_again(study, tmp_path, capsys):
    file, out = study
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(out / "figures.csv", left)
    content = json.loads(file.read_text("utf-8")) | {"out": str(left)}
    content["grids"][0]["sparsity"].append(0.6)
    (tmp_path / "more.json").write_text(json.dumps(content), "utf-8")
    assert glue.main(["--study", str(tmp_path / "more.json")]) == 0
    assert capsys.readouterr().out.count("\ncell ") == 1
    assert len(list(left.glob("cells/*/result.json"))) == 1
    rows = rows_of(left / "figures.csv")
    assert [row["sparsity.asked"] for row in rows] == ["0.8", "0.6", "0.5"]
    assert [rows[0], rows[2]] == rows_of(out / "figures.csv")
    page = (left / "table.md").read_text("utf-8")
    assert page.count("| sparsebert, temperature 2 |") == 3
    assert "differ in more than the seed" not in page
    assert list(left.glob("sparsity-*.svg"))  # the curve is over all three


def test_the_report_takes_tables_and_folders(study, tmp_path, capsys):
    _, out = study
    own = make_run(tmp_path / "run", task="other", seed=3)
    assert main([str(out / "figures.csv"), str(own), "--out", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "table.md").read_text("utf-8")
    assert "mean loss (tasks)" in text
    assert "other" in text
    page = (tmp_path / "page" / "report.html").read_text("utf-8")
    curves = page[page.index("<h2>Score against step") : page.index("<h2>Runs")]
    assert "<h3>other, element, 95.0 % asked</h3>" in curves
    assert "80.0 % asked</h3>" not in curves  # a table has no curve
    assert "nothing was recorded" not in page


def test_tasks_side_by_side(tmp_path):
    runs = []
    for task, dense, lasts in (("a", 0.9, (0.8, 0.84)), ("b", 0.7, (0.69, 0.71)), ("c", 0.5, (0.4,))):
        for seed, last in enumerate(lasts):
            runs.append(read_run(make_run(tmp_path / f"{task}{seed}", task=task, seed=seed, dense=dense, last=last)))
    runs.append(read_run(make_run(tmp_path / "x", method="logits", task="a", dense=0.9, last=0.7)))
    header, rows = task_table(runs)
    assert header == ("", "a (accuracy)", "b (accuracy)", "c (accuracy)", "mean loss (tasks)")
    assert rows == [
        ("dense", "0.900 ± 0.000", "0.700 ± 0.000", "0.500", ""),
        ("95.0 %, sparsebert", "0.820 ± 0.028", "0.700 ± 0.014", "0.400", "6.0 (3)"),  # of 8, 0 and 10 points
        ("95.0 %, logits", "0.700", "–", "–", "20.0 (1)"),
    ]
    assert task_table(runs[:2])[1] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "no column 'task'"),
        (lambda text: text.replace(",cell,", ",cells,", 1), "no column 'cell'"),
        (lambda text: text + "a,b\n", "row 4: 2 values"),
        (lambda text: text.replace(",0.8,", ",much,", 1), "row 2: sparsity.asked 'much' is no number"),
        (lambda text: text.replace("experiments.glue", "os", 1), "row 2: command 'python -m os"),
        (lambda text: text.replace("--train-file", "--task unheard --text", 1), "row 2: command"),
        (lambda text: text.replace("--seed", "--color", 1).replace("--steps", "--color", 1), "--color"),
        (lambda text: text.replace('python -m', '"python', 1), "no table of figures"),
    ],
)  # fmt: skip
def test_odd_tables_are_refused_in_a_line(study, tmp_path, capsys, change, words):
    file = tmp_path / "figures.csv"
    file.write_text(change((study[1] / "figures.csv").read_text("utf-8")), "utf-8")
    with pytest.raises(InputError, match=r"figures\.csv") as error:
        read_figures(file)
    assert words in str(error.value)
    assert main([str(file), "--out", str(tmp_path / "page")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "page").exists()
    assert main([str(tmp_path / "none.csv")]) == 2


def test_figures_of_couplings_make_the_report_of_their_study(tmp_path, capsys):
    table = Path(report.__file__).parent / "studies" / "mpqa.csv"
    assert main([str(table), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "study.html")
    lines = (tmp_path / "study.md").read_text("utf-8").splitlines()
    joint = [line for line in lines if line.startswith("| cofi, joint with sst2 | 300 |")]
    (most,) = (line for line in joint if "| 3 (0, 1, 2) | 0.8607 | ± 0.0027 |" in line)  # one table for each sparsity
    assert "| +2.1 ± 0.8 (n = 3) | 3 / 0 / 0 |" in most


def test_no_changes_to_loss_weights_are_kept_where_the_recipe_has_some(tmp_path):
    folders = [make_run(tmp_path / name, task="stsb", metric="pearson") for name in ("none", "usual")]
    for folder, changes in zip(folders, ("", None), strict=True):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        settings = resolve(parse(["--task", "stsb", "--data-dir", "GLUE", "--model", "mini"]))
        config |= dataclasses.asdict(settings) | {"loss_weights": changes}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    runs = {f"0000000{n}": read_run(folder) for n, folder in enumerate(folders)}
    (tmp_path / "figures.csv").write_text(format_figures(runs), "utf-8")
    found = read_figures(tmp_path / "figures.csv")
    names = ["sparsebert, loss weights none", "sparsebert"]
    assert [run.name for run in runs.values()] == names
    assert [found[cell].name for cell in runs] == names
    assert "--loss-weights ''" in found["00000000"].command
    assert "--loss-weights attention=4" in found["00000001"].command


def test_the_command_of_questions_has_no_pooling(tmp_path):
    folder = make_run(tmp_path / "run", task="squad", metric="f1")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"task": "squad", "data_dir": "SQUAD", "pooling": "mean", "stride": 128}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    command = command_of(read_run(folder))
    assert "--pooling" not in command
    resolve(parse(shlex.split(command)[3:]))


def test_pruning_at_once_is_not_called_by_scores_that_it_does_not_use(tmp_path):
    folder = make_run(tmp_path / "run", method="prune-then-finetune")
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"task": "micro-rte", "scores": "sensitivity"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert read_run(folder).name == "prune-then-finetune"
