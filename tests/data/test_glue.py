"""GLUE's layout and own files; the real GLUE files where they are at hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.glue import load_files, load_glue
from kaprune_jax.data.tasks import GLUE_TASKS

# Rows of train and dev; training and dev rows of each class, in the order of the class ids.
COUNTS = {
    "cola": (8551, 1043, [2528, 6023], [322, 721]),
    "mnli": (29339, 9815, [9735, 9785, 9819], [3479, 3123, 3213]),
    "mrpc": (3668, 408, [1194, 2474], [129, 279]),
    "qnli": (2000, 5463, [1019, 981], [2702, 2761]),
    "qqp": (10000, 10000, [5000, 5000], [5000, 5000]),
    "rte": (2490, 277, [1249, 1241], [146, 131]),
    "sst2": (67349, 872, [29780, 37569], [428, 444]),
    "stsb": (5749, 1500, None, None),
    "wnli": (635, 71, [323, 312], [40, 31]),
}


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_real_files(name, shared):
    data = load_glue(name, shared / "data" / "glue")
    train, dev, train_classes, dev_classes = COUNTS[name]
    assert (len(data.train.texts), len(data.dev.texts)) == (train, dev)
    assert {len(row) for row in data.train.texts} == {len(GLUE_TASKS[name].text)}
    if train_classes is None:
        assert (data.kind, data.labels) == ("regression", ())
        assert data.train.labels.min() == 0
        assert data.train.labels.max() == 5
    else:
        assert (data.kind, data.labels) == ("classification", GLUE_TASKS[name].labels)
        assert np.bincount(data.train.labels).tolist() == train_classes
        assert np.bincount(data.dev.labels).tolist() == dev_classes


@pytest.fixture
def folder(tmp_path):
    """Small files with the columns of the official download, which has more than are read."""
    for task in ("RTE", "MNLI", "CoLA"):
        (tmp_path / task).mkdir()
    rte = "index\tsentence1\tsentence2\tlabel\n" + "".join(
        f"{i}\tp{i}\th{i}\t{'not_' * (i % 2)}entailment\n" for i in range(4)
    )
    (tmp_path / "RTE" / "train.tsv").write_text(rte)
    (tmp_path / "RTE" / "dev.tsv").write_text(rte)
    names = ("neutral", "entailment", "contradiction")
    head = (
        "index\tpromptID\tpairID\tgenre\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    )
    mnli = head + "".join(f"{i}\t1\t1e\tx\t( )\t( )\tp{i}\th{i}\tneutral\t{names[i % 3]}\n" for i in range(6))
    (tmp_path / "MNLI" / "train.tsv.gz").write_bytes(gzip.compress(mnli.encode()))
    (tmp_path / "MNLI" / "dev_matched.tsv").write_text(mnli)
    cola = "".join(f"gj04\t{i % 2}\t{'*' * (1 - i % 2)}\tSentence {i}.\n" for i in range(4))
    (tmp_path / "CoLA" / "train.tsv").write_text(cola)
    (tmp_path / "CoLA" / "dev.tsv").write_text(cola)
    return tmp_path


def test_official_layout(folder):
    rte = load_glue("rte", folder)
    assert (rte.name, rte.kind, rte.metrics) == ("rte", "classification", ("accuracy",))
    assert rte.train.texts[1] == ("p1", "h1")
    np.testing.assert_array_equal(rte.train.labels, [0, 1, 0, 1])
    mnli = load_glue("mnli", str(folder))
    assert mnli.dev.texts[5] == ("p5", "h5")
    np.testing.assert_array_equal(mnli.dev.labels, [1, 0, 2, 1, 0, 2])


def test_cola_has_no_header(folder):
    cola = load_glue("cola", folder)
    assert cola.train.texts == tuple((f"Sentence {i}.",) for i in range(4))
    np.testing.assert_array_equal(cola.train.labels, [0, 1, 0, 1])


def test_folder_errors(folder):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        load_glue("rte", folder / "nowhere")
    expected = r"no STS-B/train\.tsv or STS-B/train\.tsv\.gz; the folder holds: CoLA, MNLI, RTE"
    with pytest.raises(InputError, match=expected):
        load_glue("stsb", folder)
    with pytest.raises(InputError, match="task 'imdb' is not one of GLUE's"):
        load_glue("imdb", folder)


def test_bad_row_is_named(folder):
    path = folder / "RTE" / "dev.tsv"
    path.write_text(path.read_text() + "4\tonly a premise\n")
    with pytest.raises(InputError, match=r"RTE/dev\.tsv, row 6: too few fields, 2 instead of 4"):
        load_glue("rte", folder)
    path.write_text("index\tsentence1\tsentence2\tlabel\n0\tp\th\tneutral\n")
    with pytest.raises(InputError, match=r"dev\.tsv, row 2: label 'neutral' is not one of: entailment, not_entailment"):
        load_glue("rte", folder)


def own(tmp_path: Path, labels: list[str], dev: list[str] | None = None) -> tuple[Path, Path]:
    paths = tmp_path / "reviews.train.csv", tmp_path / "reviews.dev.csv"
    for path, column in zip(paths, (labels, labels if dev is None else dev), strict=True):
        path.write_text("title,body,stars\n" + "".join(f"t{i},b{i},{v}\n" for i, v in enumerate(column)))
    return paths


def test_own_classes(tmp_path):
    data = load_files(*own(tmp_path, ["1", "2", "10"] * 2), text="title, body", label="stars")
    assert (data.name, data.kind, data.labels) == ("reviews", "classification", ("1", "2", "10"))
    assert data.metrics == ("accuracy", "macro_f1")
    assert data.train.texts[0] == ("t0", "b0")


def test_own_scores(tmp_path):
    data = load_files(*own(tmp_path, ["1", "2.5", "10"]), text=["body"], label="stars", name="mine")
    assert (data.name, data.kind, data.labels) == ("mine", "regression", ())
    assert data.metrics == ("pearson", "spearman")
    assert data.train.texts[0] == ("b0",)


def test_own_kind_and_metrics_are_overridden(tmp_path):
    paths = own(tmp_path, ["1", "2"] * 2)
    data = load_files(*paths, text="body", label="stars", kind="regression", metrics=("spearman",))
    assert (data.kind, data.metrics) == ("regression", ("spearman",))
    data = load_files(*own(tmp_path, ["0.5", "1.5"] * 2), text="body", label="stars", kind="classification")
    assert data.labels == ("0.5", "1.5")


@pytest.mark.parametrize("bad", ["nan", "inf", "good"])
def test_own_bad_score_is_named(tmp_path, bad):
    paths = own(tmp_path, [*(["1.5", "2", "3"] * 4), bad])
    with pytest.raises(InputError, match=rf"reviews\.train\.csv, row 14: score '{bad}' is not a finite number"):
        load_files(*paths, text="body", label="stars")


def test_own_unseen_label(tmp_path):
    paths = own(tmp_path, ["a", "b"] * 2, dev=["a", "c"])
    with pytest.raises(InputError, match=r"dev\.csv, row 3: label 'c' is never seen in .*train\.csv, which has: a, b"):
        load_files(*paths, text="body", label="stars")


@pytest.mark.parametrize("text", ["", "a,b,c", "title,title", "title,stars", "title,"])
def test_own_columns(tmp_path, text):
    with pytest.raises(InputError, match="one or two text columns are allowed"):
        load_files(*own(tmp_path, ["a", "b"] * 2), text=text, label="stars")
