"""The hub and TFDS: the same task as from files, and one-line errors. Only the libraries' network side is replaced."""

import importlib.machinery
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.glue import load_glue
from kaprune_jax.data.remote import load_hub, load_squad_hub, load_squad_tfds, load_tfds
from kaprune_jax.data.rows import TaskData
from kaprune_jax.data.squad import load_squad

datasets = pytest.importorskip("datasets")

RTE = [(f"premise {i} é ", f"hypothesis {i}", i % 2) for i in range(8)]
STSB = [(f"one {i}", f"other {i}", score) for i, score in enumerate([0.0, 2.75, 3.8, 5.0])]


def same(a: TaskData, b: TaskData) -> bool:
    rows = zip((a.train, a.dev), (b.train, b.dev), strict=True)
    return (
        a._replace(train=b.train, dev=b.dev) == b
        and all(x.texts == y.texts and np.array_equal(x.labels, y.labels) for x, y in rows)
        and a.train.labels.dtype == b.train.labels.dtype
    )


@pytest.fixture
def glue(tmp_path) -> Path:
    """The same rows as files."""
    folder = tmp_path / "glue"
    for name, rows, column in (("RTE", RTE, "label"), ("STS-B", STSB, "score")):
        (folder / name).mkdir(parents=True)
        for split, part in (("train", rows), ("dev", rows[:3])):
            lines = [
                f"{i}\t{a}\t{b}\t{v if column == 'score' else ('not_' * v) + 'entailment'}\n"
                for i, (a, b, v) in enumerate(part)
            ]
            (folder / name / f"{split}.tsv").write_text(f"index\tsentence1\tsentence2\t{column}\n" + "".join(lines))
    return folder


def hub_split(rows, label) -> "datasets.Dataset":
    a, b, values = map(list, zip(*rows, strict=True))
    features = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": label}
    return datasets.Dataset.from_dict(
        {"sentence1": a, "sentence2": b, "label": values}, features=datasets.Features(features)
    )


@pytest.fixture
def hub(monkeypatch):
    """Puts real `datasets` objects where `load_dataset` would fetch them."""
    entailment = datasets.ClassLabel(names=["entailment", "not_entailment"])
    splits = {
        "rte": {"train": hub_split(RTE, entailment), "validation": hub_split(RTE[:3], entailment)},
        "stsb": {
            "train": hub_split(STSB, datasets.Value("float32")),
            "validation": hub_split(STSB[:3], datasets.Value("float32")),
        },
    }

    def load_dataset(path, name, cache_dir=None):
        assert path == "nyu-mll/glue"
        if isinstance(splits[name], Exception):
            raise splits[name]
        return datasets.DatasetDict(splits[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_hub_equals_files(glue, hub, task):
    assert same(load_hub(task), load_glue(task, glue))


def test_hub_rows_without_label(hub):
    hub["rte"]["validation"] = hub_split([("a", "b", -1)], datasets.Value("int64"))
    with pytest.raises(InputError, match=r"nyu-mll/glue, rte, validation, row 0: label -1 is not one of 0 to 1"):
        load_hub("rte")


def test_hub_without_split_or_column(hub):
    hub["rte"]["train"] = hub["rte"]["train"].remove_columns("sentence2")
    with pytest.raises(InputError, match="rte, train: no column 'sentence2'; there are: sentence1, label"):
        load_hub("rte")
    del hub["rte"]["train"]
    with pytest.raises(InputError, match="nyu-mll/glue, rte: no split 'train'; there are: validation"):
        load_hub("rte")


def test_hub_out_of_reach(hub):
    hub["rte"] = ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nand a second line")
    with pytest.raises(InputError, match=r"rte: neither downloaded nor found in the cache \(ConnectionError: .*Hub\)$"):
        load_hub("rte")


@pytest.mark.parametrize(
    ("load", "module", "extra"), [(load_hub, "datasets", "hub"), (load_tfds, "tensorflow_datasets", "tfds")]
)
def test_missing_library_names_the_extra(monkeypatch, load, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'needs the Python package {module} .*pip install "kaprune-jax\[{extra}\]"'):
        load("rte")


@pytest.mark.parametrize("load", [load_hub, load_tfds])
def test_unknown_task(load):
    with pytest.raises(InputError, match="is not one of GLUE's"):
        load("imdb")


@pytest.fixture
def tfds(monkeypatch):
    module = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="TFDS builders need it")
    monkeypatch.setenv("TFDS_DATA_DIR", "/nonexistent")
    return module


def no_tensorflow(monkeypatch, *, present: bool = False):
    real = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec("tensorflow", None) if present else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "tensorflow" else real(name))


def prepare(tfds, monkeypatch, task: str, rows, data_dir: Path):
    """Runs TFDS's own GLUE builder on rows that need no download."""
    from tensorflow_datasets.text import glue as builders

    examples = [{"sentence1": a, "sentence2": b, "label": v, "idx": i} for i, (a, b, v) in enumerate(rows)]

    def splits(self, manager):
        return {"train": iter(enumerate(examples)), "validation": iter(enumerate(examples[:3]))}

    monkeypatch.setattr(builders.Glue, "_split_generators", splits)
    builder = tfds.builder(f"glue/{task}", data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


@pytest.mark.parametrize(("task", "rows"), [("rte", RTE), ("stsb", STSB)])
def test_tfds_cache_equals_files(tfds, monkeypatch, glue, tmp_path, task, rows):
    no_tensorflow(monkeypatch)
    prepare(tfds, monkeypatch, task, rows, tmp_path / "tfds")
    assert same(load_tfds(task, data_dir=tmp_path / "tfds"), load_glue(task, glue))


def test_tfds_with_tensorflow(tfds, monkeypatch, glue):
    no_tensorflow(monkeypatch, present=True)
    examples = [
        {"sentence1": a.encode(), "sentence2": b.encode(), "label": np.int64(v), "idx": np.int32(i)}
        for i, (a, b, v) in enumerate(RTE)
    ]
    prepared = {"glue/rte": {"train": examples[::-1], "validation": examples[:3], "test": []}}
    monkeypatch.setattr(tfds, "load", lambda name, data_dir: prepared[name])
    monkeypatch.setattr(tfds, "as_numpy", lambda splits: splits)
    assert same(load_tfds("rte"), load_glue("rte", glue))


def test_tfds_out_of_reach(tfds, monkeypatch):
    no_tensorflow(monkeypatch)

    def fail(name, data_dir):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(tfds, "data_source", fail)
    with pytest.raises(InputError, match=r"tfds glue/rte: neither downloaded nor .* \(OSError: no route to host\)$"):
        load_tfds("rte")


QUESTIONS = [
    (f"id{9 - i}", f"who is {i} ?", f"person {i} é is {i} .", [f"person {i} é", f"{i}"], [0, 7]) for i in range(6)
]


@pytest.fixture
def squad(tmp_path) -> Path:
    """The same questions as files."""
    folder = tmp_path / "squad"
    folder.mkdir()
    for stem, part in (("train", QUESTIONS), ("dev", QUESTIONS[:2])):
        paragraphs = [
            {
                "context": passage,
                "qas": [
                    {
                        "id": name,
                        "question": question,
                        "answers": [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)],
                    }
                ],
            }
            for name, question, passage, texts, starts in part
        ]
        (folder / f"{stem}-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return folder


def same_answers(a: TaskData, b: TaskData) -> bool:
    pairs = zip((a.train, a.dev), (b.train, b.dev), strict=True)
    return same(a, b) and all(x.answers == y.answers for x, y in pairs)


def test_questions_of_the_hub_equal_files(squad, monkeypatch):
    def split(rows):
        names, questions, passages, texts, starts = map(list, zip(*rows, strict=True))
        answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        return datasets.Dataset.from_dict(
            {"id": names, "title": names, "context": passages, "question": questions, "answers": answers}
        )

    splits = datasets.DatasetDict({"train": split(QUESTIONS[::-1]), "validation": split(QUESTIONS[:2])})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, cache_dir: {"rajpurkar/squad": splits}[path])
    assert same_answers(load_squad_hub(), load_squad(squad))
    splits["train"] = splits["train"].remove_columns("answers")
    with pytest.raises(InputError, match=r"rajpurkar/squad, train: no column 'answers'; there are: id, title"):
        load_squad_hub()
    del splits["train"]
    with pytest.raises(InputError, match=r"rajpurkar/squad: no split 'train'; there are: validation"):
        load_squad_hub()


def test_questions_of_a_tfds_cache_equal_files(tfds, monkeypatch, squad, tmp_path):
    no_tensorflow(monkeypatch)
    from tensorflow_datasets.datasets.squad import squad_dataset_builder as builders

    def examples(rows):
        for name, question, passage, texts, starts in rows:
            answers = {"text": texts, "answer_start": starts}
            yield name, {"id": name, "title": "", "context": passage, "question": question, "answers": answers}

    def splits(self, manager):
        return {"train": examples(QUESTIONS), "validation": examples(QUESTIONS[:2])}

    monkeypatch.setattr(builders.Builder, "_split_generators", splits)
    builder = tfds.builder("squad/v1.1", data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    assert same_answers(load_squad_tfds(data_dir=tmp_path / "tfds"), load_squad(squad))
