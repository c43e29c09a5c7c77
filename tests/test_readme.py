"""What the README shows runs."""

import csv
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from sklearn.metrics import matthews_corrcoef

import experiments
import kaprune_jax as kp
from experiments.config import settings as glue_settings
from experiments.config import transfer_settings
from experiments.config.resolve import resolve
from experiments.grid.figures import read_figures
from experiments.grid.file import digest, read_grid
from experiments.grid.glue import make_kind
from experiments.grid.transfer import make_kind as make_coupled_kind
from experiments.pages.markdown import markdown_table
from experiments.pages.pairs import alone, gap, study_rows
from experiments.pages.pooled import POOLED_HEADER, pool, pooled_table
from experiments.pages.study import HEADER, table_rows, write_study
from experiments.pages.tasks import task_table
from experiments.pages.write import write_comparison
from kaprune_jax.deploy.folder import load_start
from kaprune_jax.models.bert import init_params

STUDIES = Path(experiments.__file__).parent / "studies"
LENGTHS = ["table", "full", "long"]
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


TABLES = (STUDIES / "README.md").read_text("utf-8")


def block_with(words):
    """The one block of Python that has these words."""
    (found,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if words in block)
    return found


def make_classifier(folder):
    start = kp.load("mini")
    config = start.config.replace(head="classification", labels=("no", "yes"), pooling="mean")
    params = {name: start.params[name] for name in ("embeddings", "encoder")}
    params |= init_params(config, jax.random.key(0), parts=("head",))
    kp.save(folder, params, config, tokenizer=start.tokenizer)
    return config


def test_the_library_example_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = block_with("kp.save(")
    assert len(list(filter(None, example.splitlines()))) == 15
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"print\(.*\)  # (.*)", example)[1]
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def test_the_example_of_gates_runs_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = block_with("kp.save("), block_with("kp.bert_layout")
    names: dict = {}
    exec(compile(first, "README.md", "exec"), names)
    exec(compile(second, "README.md", "exec"), names)
    assert names["smaller"].config.is_shrunk
    assert float(names["shortfall"]) > 0.88


def test_the_examples_of_training_loops_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block_with("kp.save("), "README.md", "exec"), names)
    network = dict(names)
    exec(compile(block_with("nnx.split"), "README.md", "exec"), network)
    masks = optax.tree.get(network["state"], "masks")
    assert kp.sparsity(masks) == pytest.approx(0.9, abs=0.005)
    assert float((network["network"].layers[0].kernel[...] == 0).mean()) == pytest.approx(0.9, abs=0.005)
    assert float(network["error"]) < 0.1
    exec(compile(block_with("kp.bert_layout"), "README.md", "exec"), names)
    exec(compile(block_with("kp.dual_ascent"), "README.md", "exec"), names)
    assert float(names["expected"]) > 0.59


def test_the_example_of_use_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = block_with("runs/micro-rte")
    make_classifier(re.search(r"kp\.load\(\"(.*?)\"\)", example)[1])
    names: dict = {"kp": kp}
    exec(compile(example.replace("model.predict", "found = model.predict"), "README.md", "exec"), names)
    assert names["found"][0].label in ("no", "yes")


def test_the_example_of_answers_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = load_start("mini", head="span", labels=(), key=jax.random.key(0)).model
    kp.save("runs/mine", start.params, start.config, tokenizer=start.tokenizer)
    names: dict = {"kp": kp}
    example = block_with("who saw the owl")
    exec(compile(example.replace("model.predict", "found = model.predict"), "README.md", "exec"), names)
    assert names["found"][0].label in "anna saw the owl ."
    assert 0.0 <= names["found"][0].score <= 1.0


def test_the_example_of_compiled_models_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_classifier("runs/mine")
    names: dict = {"kp": kp}
    exec(compile(block_with("kp.compile"), "README.md", "exec"), names)
    assert len(names["fast"].plan) == 4 * config.num_hidden_layers


@pytest.mark.parametrize("study", LENGTHS)
def test_the_tables_of_tasks_are_those_of_the_figures(study):
    runs = read_figures(STUDIES / f"{study}.csv")
    assert markdown_table(*task_table([*runs.values()])) in README
    cells = {digest(cell) for cell in read_grid(str(STUDIES / f"{study}.json"), make_kind()).cells}
    assert runs.keys() <= cells  # so that the study goes on from there


def test_what_a_teacher_is_worth_beside_labels_is_that_of_the_figures():
    runs = read_figures(STUDIES / "table.csv").values()
    last: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if run.figure("sparsity", "asked") == 0.95:
            last.setdefault((run.task, run.name), []).append(run.figure("last"))
    mean = {key: np.mean(values) for key, values in last.items()}
    ahead = {
        task: 100 * (mean[task, "sparsebert"] - mean[task, "hard-labels"])
        for task, name in mean
        if name == "hard-labels"
    }
    text = " ".join(README.split())
    assert (
        f"ahead by {ahead['cola']:.1f} points on CoLA, {ahead['mrpc']:.1f} on MRPC, {ahead['stsb']:.1f} on STS-B and "
        f"{ahead['sst2']:.1f} on SST-2" in text
    )
    assert f"of hard labels by {ahead['trec6']:.1f}" in text
    least, most = min(ahead.values()), max(ahead.values())
    assert len(ahead) == 5
    assert f"it would be {least:.0f} to {most:.0f} points less on the five tasks where this was run" in text


def test_no_placeholder_is_left():
    assert "@" not in re.sub(r"```.*?```", "", README, flags=re.DOTALL)


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.csv")), ids=lambda file: file.stem)
def test_the_commands_in_the_tables_are_accepted(file):
    settings = {"experiments.glue": (glue_settings, resolve), "experiments.transfer": (transfer_settings, None)}
    for run in read_figures(file).values():
        python, _, module, *arguments = shlex.split(run.command)
        assert python == "python"
        read, complete = settings[module]
        (complete or read.resolve)(read.parse(arguments))


@pytest.mark.parametrize(("kind", "studies"), [("sparsity", ["table"]), ("steps", LENGTHS)])
def test_the_curves_are_those_of_the_figures(kind, studies, tmp_path):
    runs = [run for study in studies for run in read_figures(STUDIES / f"{study}.csv").values()]
    write_comparison(tmp_path, runs)
    drawn = {file.name: file.read_text("utf-8") for file in tmp_path.glob(f"{kind}-*.svg")}
    assert drawn == {file.name: file.read_text("utf-8") for file in STUDIES.glob(f"{kind}-*.svg")}
    assert all(f"(experiments/studies/{name})" in README for name in drawn)
    assert drawn


@pytest.mark.parametrize("study", ["mpqa", "mrpc", "rte", "scierc", "trec6"])
def test_the_tables_of_couplings_are_those_of_the_figures(study, tmp_path):
    runs = read_figures(STUDIES / f"{study}.csv")
    write_study(tmp_path, [*runs.values()])
    drawn = [file for kind in ("gains", "scores") for file in STUDIES.glob(f"{kind}-{study}-*.svg")]
    assert drawn
    for picture in drawn:
        assert picture.read_text("utf-8") == (tmp_path / picture.name).read_text("utf-8")
        assert f"({picture.name})" in TABLES or f"(experiments/studies/{picture.name})" in README
    groups = study_rows([*runs.values()])
    for rows in groups.values():
        assert markdown_table(HEADER, table_rows(rows)) in TABLES
    for pooled in pool(groups).values():
        assert markdown_table(POOLED_HEADER, pooled_table(pooled)) in TABLES
    cells = {digest(cell) for cell in read_grid(str(STUDIES / f"{study}.json"), make_coupled_kind()).cells}
    assert runs.keys() <= cells


def _points(mean: float, error: float) -> str:
    return f"{mean:+.1f} ± {error:.1f}".replace("-", "−")


@pytest.mark.parametrize(("kind", "coupling"), [("start auxiliary", "joint"), ("when before", "sequential")])
def test_the_means_over_pairs_are_those_of_the_figures(kind, coupling):
    means, errors, cells = [], [], []
    pairs = {
        "rte": "mnli ({}, auxiliary rows 29000)",
        "mpqa": "sst2 ({})",
        "mrpc": "qqp ({})",
        "trec6": "sst2 ({})",
        "scierc": "chemprot ({})",
    }
    for study, more in pairs.items():
        groups = study_rows([*read_figures(STUDIES / f"{study}.csv").values()])
        (rows,) = (rows for setting, rows in groups.items() if setting.sparsity == 0.9)
        name = f"cofi, {coupling} with " + more.format(kind)
        (row,) = (each for each in rows if (each.name, each.rows) == (name, 300))
        difference = gap(row, alone(row, rows)).difference
        assert difference.n == 3
        means.append(100 * difference.mean)
        errors.append(100 * difference.error)
        cells.append(_points(means[-1], errors[-1]))
    for many in (3, 5):
        error = sum(error**2 for error in errors[:many]) ** 0.5 / many
        cells.append(_points(sum(means[:many]) / many, error))
    line = f"| {' | '.join([f'{coupling} ({kind})', *cells])} |"
    assert line in TABLES
    assert line in README


def test_other_measures_of_paraphrases_are_those_of_the_figures():
    def measures(row):
        """Accuracy and Matthews correlation: F1 and accuracy say which of 279 paraphrases and 129 others were found."""
        accuracy, f1 = float(re.search(r"accuracy=([\d.]+)", row["last_metrics"])[1]), float(row["last"])
        wrong = round(408 * (1 - accuracy))
        found = round(f1 * wrong / (2 * (1 - f1)))
        false = wrong - (279 - found)
        said = np.repeat([1, 0, 1, 0], [found, 279 - found, false, 129 - false])
        return accuracy, matthews_corrcoef(np.repeat([1, 0], [279, 129]), said)

    with (STUDIES / "mrpc.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = {"none": "alone", "joint": "joint with qqp (start auxiliary)"}
    kinds["sequential"] = "sequential with qqp (when before)"
    found = {
        kind: np.array([measures(row) for row in rows if f"--coupling {kind}" in row["command"]]) for kind in kinds
    }
    for kind, name in kinds.items():
        cells = [", ".join(f"{value:.3f}"[1:] for value in column) for column in found[kind].T] + ["–", "–"]
        if kind != "none":
            gains = 100 * (found[kind] - found["none"])
            cells[2:] = map(_points, gains.mean(0), gains.std(0, ddof=1) / 3**0.5)
        assert f"| cofi, {name} | {' | '.join(cells)} |" in TABLES
