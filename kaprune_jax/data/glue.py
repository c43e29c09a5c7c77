"""Tasks from files on disk: GLUE's download layout, or files of one's own."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import TaskData, label_kind, task_data
from kaprune_jax.data.tables import read_rows
from kaprune_jax.data.tasks import GlueTask, glue_task


def load_glue(task: str, folder: str | PathLike[str]) -> TaskData:
    """Load a GLUE task from a folder in GLUE's download layout, such as `RTE/train.tsv` and `RTE/dev.tsv`.

    Each file may be gzip-compressed (`train.tsv.gz`). Columns are found by name, so further columns do no harm.
    MNLI is evaluated on `dev_matched`.

    Args:
      task: short name of the task, such as "rte".
      folder: the folder that holds the tasks' folders.

    Returns:
      The task, with the labels in GLUE's order.

    Raises:
      InputError: an unknown task, a missing folder or file, or a bad row, named with its file.
    """
    spec = glue_task(task)
    train, dev = (
        read_rows(_find(Path(folder), spec, stem), text=spec.text, label=spec.label, header=spec.header)
        for stem in ("train", spec.dev)
    )
    kind = "classification" if spec.labels else "regression"
    return task_data(task, train, dev, kind=kind, metrics=spec.metrics, labels=spec.labels, written=spec.written)


def load_files(
    train: str | PathLike[str],
    dev: str | PathLike[str],
    *,
    text: str | Sequence[str],
    label: str,
    kind: Literal["auto", "classification", "regression"] = "auto",
    metrics: tuple[str, ...] | None = None,
    name: str | None = None,
) -> TaskData:
    """Load a task from CSV, TSV or JSONL files, plain or gzip-compressed.

    With `kind="auto"` the task is regression when every label of both files is a number and either some number is
    fractional or more than 20 distinct ones occur; else it is classification. (A few labels, up to one in ten, that
    are no numbers among such scores are reported as bad scores.) Whole numbers with up to 20 values, such as stars,
    are classes; pass `kind="regression"` for scores.

    Args:
      train: file of the training rows.
      dev: file of the evaluation rows, with the same columns.
      text: one or two column names; a string is split at commas.
      label: name of the label column.
      kind: "classification", "regression", or "auto" to go by the labels.
      metrics: names of metrics, the main one first; by default accuracy and macro F1, or Pearson and Spearman.
      name: the task's name; by default that of the training file without its ending.

    Returns:
      The task, with the labels of train sorted (as numbers when all are numbers).

    Raises:
      InputError: no or more than two text columns, or anything wrong with a file, named with its row.
    """
    columns = tuple(text.split(",")) if isinstance(text, str) else tuple(text)
    columns = tuple(column.strip() for column in columns)
    if len(columns) not in (1, 2) or not all(columns) or len({*columns, label}) <= len(columns):
        raise InputError(
            f"text columns {', '.join(map(repr, columns))} with label column {label!r}: "
            "one or two text columns are allowed, all different and none of them the label"
        )
    raw = [read_rows(Path(path), text=columns, label=label) for path in (train, dev)]
    found = label_kind(raw[0].labels + raw[1].labels) if kind == "auto" else kind
    default = ("accuracy", "macro_f1") if found == "classification" else ("pearson", "spearman")
    title = Path(train).name.split(".")[0] if name is None else name
    return task_data(title, raw[0], raw[1], kind=found, metrics=metrics or default)


def _find(folder: Path, spec: GlueTask, stem: str) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for ending in (".tsv", ".tsv.gz"):
        path = folder / spec.folder / (stem + ending)
        if path.is_file():
            return path
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
    raise InputError(
        f"{folder}: no {spec.folder}/{stem}.tsv or {spec.folder}/{stem}.tsv.gz; the folder holds: {inside}"
    )
