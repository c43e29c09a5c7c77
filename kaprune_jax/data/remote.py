"""GLUE tasks and SQuAD 1.1 from the Hugging Face hub and TensorFlow Datasets, through their own libraries and caches.

Both give the same task as `glue.load_glue` or `squad.load_squad` for the same rows. The libraries are
optional and imported on use.
"""

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike, fspath
from types import ModuleType
from typing import Any

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import RawRows, TaskData, task_data
from kaprune_jax.data.squad import questions_of, squad_task
from kaprune_jax.data.tasks import GlueTask, glue_task

HUB_NAME = "nyu-mll/glue"
SQUAD_HUB_NAME = "rajpurkar/squad"


def load_hub(task: str, *, cache_dir: str | PathLike[str] | None = None) -> TaskData:
    """Load a GLUE task from the Hugging Face hub (`nyu-mll/glue`), or from its cache.

    Args:
      task: short name of the task, such as "rte".
      cache_dir: where `datasets` keeps its files; by default its own choice.

    Returns:
      The task. In error messages rows count from 0, as the data set indexes them.

    Raises:
      InputError: an unknown task, `datasets` not installed, the data out of reach, or a bad row.
    """
    spec = glue_task(task)
    datasets = _library("datasets", extra="hub")
    source = f"{HUB_NAME}, {spec.name}"
    try:
        splits = datasets.load_dataset(HUB_NAME, spec.name, cache_dir=None if cache_dir is None else fspath(cache_dir))
    except Exception as error:  # the library lets through whatever its network and file system layers raise
        raise _out_of_reach(source, error) from error
    raw = []
    for split in ("train", spec.remote_dev):
        data = _split(source, splits, split)
        columns = [*spec.remote_text, "label"]
        for column in columns:
            if column not in data.column_names:
                raise InputError(f"{source}, {split}: no column {column!r}; there are: {', '.join(data.column_names)}")
        names = getattr(data.features["label"], "names", None) or spec.labels
        values = data.select_columns(columns)[:]
        texts = zip(*(values[column] for column in spec.remote_text), strict=True)
        raw.append(_raw(f"{source}, {split}", texts, values["label"], names, range(len(data))))
    return _task(spec, raw)


def load_tfds(task: str, *, data_dir: str | PathLike[str] | None = None) -> TaskData:
    """Load a GLUE task from TensorFlow Datasets (`glue/TASK`), or from its cache.

    Data already prepared in `array_record` form is read without TensorFlow; other forms need it installed. TFDS
    shuffles rows when it prepares them; they are put back in GLUE's order by their `idx`.

    Args:
      task: short name of the task, such as "rte".
      data_dir: where TFDS keeps its files; by default its own choice.

    Returns:
      The task. In error messages a row is named by its `idx`, which counts from 0.

    Raises:
      InputError: an unknown task, `tensorflow-datasets` not installed, the data out of reach, or a bad row.
    """
    spec = glue_task(task)
    tfds = _library("tensorflow_datasets", extra="tfds")
    source = f"tfds glue/{spec.name}"
    place = None if data_dir is None else fspath(data_dir)
    raw = []
    try:
        splits = _tfds_splits(tfds, f"glue/{spec.name}", place)
        for split in ("train", spec.remote_dev):
            examples = sorted(_split(source, splits, split), key=lambda example: int(example["idx"]))
            texts = [tuple(_decoded(example[column]) for column in spec.remote_text) for example in examples]
            labels = [np.asarray(example["label"]).item() for example in examples]
            numbers = [int(example["idx"]) for example in examples]
            raw.append(_raw(f"{source}, {split}", texts, labels, spec.labels, numbers))
    except InputError:
        raise
    except Exception as error:  # as above: reading, too, goes through the library
        raise _out_of_reach(source, error) from error
    return _task(spec, raw)


def load_squad_hub(*, cache_dir: str | PathLike[str] | None = None) -> TaskData:
    """Load SQuAD 1.1 from the Hugging Face hub (`rajpurkar/squad`), or from its cache.

    Raises:
      InputError: `datasets` not installed, the data out of reach, or a bad question.
    """
    datasets = _library("datasets", extra="hub")
    try:
        splits = datasets.load_dataset(SQUAD_HUB_NAME, cache_dir=None if cache_dir is None else fspath(cache_dir))
    except Exception as error:  # as above
        raise _out_of_reach(SQUAD_HUB_NAME, error) from error
    found = []
    for split in ("train", "validation"):
        data = _split(SQUAD_HUB_NAME, splits, split)
        for column in (columns := ["id", "question", "context", "answers"]):
            if column not in data.column_names:
                there = ", ".join(data.column_names)
                raise InputError(f"{SQUAD_HUB_NAME}, {split}: no column {column!r}; there are: {there}")
        values = data.select_columns(columns)[:]
        rows = [
            (name, question, passage, answers["text"], answers["answer_start"])
            for name, question, passage, answers in zip(*(values[column] for column in columns), strict=True)
        ]
        found.append(questions_of(f"{SQUAD_HUB_NAME}, {split}", rows))
    return squad_task("squad", *found)


def load_squad_tfds(*, data_dir: str | PathLike[str] | None = None) -> TaskData:
    """Load SQuAD 1.1 from TensorFlow Datasets (`squad/v1.1`), or from its cache.

    Raises:
      InputError: `tensorflow-datasets` not installed, the data out of reach, or a bad question.
    """
    tfds = _library("tensorflow_datasets", extra="tfds")
    source = "tfds squad/v1.1"
    found = []
    try:
        module = "tensorflow_datasets.datasets.squad.squad_dataset_builder"
        splits = _tfds_splits(tfds, "squad/v1.1", None if data_dir is None else fspath(data_dir), module=module)
        for split in ("train", "validation"):
            rows = [
                (
                    _decoded(example["id"]),
                    _decoded(example["question"]),
                    _decoded(example["context"]),
                    [_decoded(text) for text in example["answers"]["text"]],
                    example["answers"]["answer_start"],
                )
                for example in _split(source, splits, split)
            ]
            found.append(questions_of(f"{source}, {split}", rows))
    except InputError:
        raise
    except Exception as error:  # as above
        raise _out_of_reach(source, error) from error
    return squad_task("squad", *found)


def _tfds_splits(
    tfds: ModuleType, name: str, data_dir: str | None, *, module: str = "tensorflow_datasets.text.glue"
) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    # TFDS registers its builders by importing all their packages in turn and stops at the first that fails, which
    # without TensorFlow comes before GLUE's.
    with suppress(ImportError):
        importlib.import_module(module)
    # tfds.load yields tf.data pipelines; without TensorFlow only tfds.data_source can read.
    if importlib.util.find_spec("tensorflow") is None:
        return tfds.data_source(name, data_dir=data_dir)
    return tfds.as_numpy(tfds.load(name, data_dir=data_dir))


def _library(module: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f'this source needs the Python package {module} ({error}): pip install "kaprune-jax[{extra}]"'
        ) from None


def _out_of_reach(source: str, error: Exception) -> InputError:
    reason = (str(error).strip() or "no reason given").splitlines()[0][:300]
    return InputError(f"{source}: neither downloaded nor found in the cache ({type(error).__name__}: {reason})")


def _split(source: str, splits: Mapping[str, Any], split: str) -> Any:
    if split not in splits:
        raise InputError(f"{source}: no split {split!r}; there are: {', '.join(map(str, splits))}")
    return splits[split]


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _raw(
    source: str,
    texts: Iterable[tuple[str, ...]],
    labels: Sequence[int | float],
    names: Sequence[str],
    numbers: Sequence[int],
) -> RawRows:
    written = []
    for number, label in zip(numbers, labels, strict=True):
        if names and label not in range(len(names)):
            raise InputError(
                f"{source}, row {number}: label {label} is not one of 0 to {len(names) - 1} (-1 marks rows without one)"
            )
        written.append(names[int(label)] if names else repr(label))
    return RawRows(source, tuple(texts), tuple(written), tuple(numbers))


def _task(spec: GlueTask, raw: Sequence[RawRows]) -> TaskData:
    kind = "classification" if spec.labels else "regression"
    return task_data(spec.name, raw[0], raw[1], kind=kind, metrics=spec.metrics, labels=spec.labels)
