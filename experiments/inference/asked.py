"""Rows of a file that a saved model is asked about, and what its answers are worth where the file has labels."""

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

import numpy as np

from experiments.runs.source import HELD_OUT
from kaprune_jax._errors import InputError
from kaprune_jax.data.metrics import score
from kaprune_jax.data.rows import RawRows, Rows
from kaprune_jax.data.spans import score_answers
from kaprune_jax.data.squad import is_squad_file, read_squad
from kaprune_jax.data.tables import column_names, read_content, read_rows
from kaprune_jax.data.tasks import GLUE_TASKS
from kaprune_jax.deploy.model import Model, Prediction


class Asked(NamedTuple):
    """Rows to be answered.

    Attributes:
      names: what to call each row: its line in the file, the header being row 1, or the id of a question.
      columns: names of the texts.
      texts: one or two strings a row.
      labels: as written, of each row; empty where the file has none.
      answers: of questions: every answer that counts as right; empty where the file has none.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] = ()
    answers: tuple[tuple[str, ...], ...] = ()


def read_asked(model: Model, file: Path, *, text: str | None = None, label: str | None = None) -> Asked:
    """Reads texts, and labels if there are some.

    Args:
      model: whose task may say what the columns are called.
      file: `.txt`, a text on each line; `.tsv`, `.csv` or `.jsonl`; `.json` in SQuAD's layout for a model that answers
        questions. Each also with `.gz`.
      text: names of one or two text columns, comma-separated; by default those that the model was trained on.
      label: name of the label column; by default that of the training rows, where the file has it.

    Raises:
      InputError: the file cannot be read, a column is missing, a row has no text, or file and model do not go together.
    """
    lines = file.name.endswith((".txt", ".txt.gz"))
    if is_squad_file(file) != (model.config.head == "span"):
        wanted = "questions in SQuAD's layout, .json" if model.config.head == "span" else "rows, .tsv .csv .jsonl .txt"
        raise InputError(f"{file}: {model.folder} needs {wanted}, plain or with .gz")
    if (lines or is_squad_file(file)) and (text or label):
        raise InputError(f"{'--text' if text else '--label'} {text or label}: {file} has no columns")
    if is_squad_file(file):
        return _questions(file)
    if lines:
        texts = read_content(file).split("\n")
        raw = RawRows(
            str(file), tuple((each.removesuffix("\r"),) for each in texts), (), tuple(range(1, len(texts) + 1))
        )
        columns = ("text",)
    else:
        columns, label, header = _columns(model, file, text, label)
        raw = read_rows(file, text=columns, label=label, header=header)
    for number, row in zip(raw.numbers, raw.texts, strict=True):
        if not any(each.strip() for each in row):
            raise InputError(f"{file}, row {number}: the text is empty; some text is needed")
    texts = tuple(tuple(each.strip() for each in row) for row in raw.texts)
    return Asked(tuple(map(str, raw.numbers)), columns, texts, raw.labels if label else ())


def _columns(
    model: Model, file: Path, text: str | None, label: str | None
) -> tuple[tuple[str, ...], str | None, tuple[str, ...] | None]:
    """Text columns, the label column if there is one, and a header for a file that lacks it."""
    there, spec = column_names(file), GLUE_TASKS.get(_task(model))
    usual, usual_label = _trained_on(model)
    columns = tuple(each.strip() for each in text.split(",")) if text else usual
    if len(columns) not in (1, 2) or not all(columns) or len(set(columns)) < len(columns):
        raise InputError(f"--text {text}: one column or two, separated by a comma")
    header = spec.header if spec else None
    if not (header and len(header) == len(there) and not set(columns) <= set(there)):
        header = None
    if label is None and usual_label in (header or there) and usual_label not in columns:
        label = usual_label
    return columns, label, header


def _trained_on(model: Model) -> tuple[tuple[str, ...], str]:
    """Text columns and label column of the rows that a model was trained on, as far as its folder tells."""
    spec, own = GLUE_TASKS.get(_task(model)), model.details.get("columns")
    match own:
        case {"text": [*names], "label": str(label)} if all(isinstance(name, str) for name in names):
            return tuple(names), label
    return (spec.text, spec.label) if spec else (("sentence",), "label")


def _task(model: Model) -> str:
    return str(model.details.get("task", "")).removesuffix(HELD_OUT)


def _questions(file: Path) -> Asked:
    asked = read_squad(file).questions
    if not asked:
        raise InputError(f"{file}: no questions; at least one is needed")
    for each in asked:
        if not each.question.strip() or not each.passage.strip():
            raise InputError(f"{file}, question {short(each.id)}: question or passage is empty; some text is needed")
    answers = tuple(tuple(text for text, _ in each.answers) for each in asked)
    texts = tuple((each.question, each.passage) for each in asked)
    return Asked(tuple(each.id for each in asked), ("question", "passage"), texts, (), answers if all(answers) else ())


def score_asked(model: Model, asked: Asked, given: Sequence[Prediction], source: str) -> dict[str, float]:
    """The metrics of the model's task, the main one first; none where the file has no labels.

    Raises:
      InputError: a label that is none of the model's classes, or no finite number where it gives scores.
    """
    if asked.answers:
        rows = Rows(asked.texts, np.zeros((len(asked.texts), 2), np.int32), answers=asked.answers)
        return score_answers([str(each.label) for each in given], rows)
    if not asked.labels:
        return {}
    if model.config.head == "regression":
        values = np.array([_number(source, *row) for row in zip(asked.names, asked.labels, strict=True)], np.float32)
        return score(
            _metrics(model, "pearson", "spearman"), np.array([each.label for each in given], np.float32), values
        )
    ids = {name: number for number, name in enumerate(model.config.labels)}
    spec, unnamed = GLUE_TASKS.get(_task(model)), [f"LABEL_{number}" for number in range(len(ids))]
    written = spec.written if spec and spec.labels == model.config.labels else ()
    written = map(str, range(len(ids))) if list(ids) == unnamed else written  # as stock scripts number them
    ids = {**dict(zip(written, range(len(ids)), strict=False)), **ids}
    for name, label in zip(asked.names, asked.labels, strict=True):
        if label.strip() not in ids:
            raise InputError(f"{source}, row {name}: label {short(label)} is not one of: {', '.join(ids)}")
    right = np.array([ids[label.strip()] for label in asked.labels], np.int32)
    chosen = np.array([ids[str(each.label)] for each in given], np.int32)
    return score(_metrics(model, "accuracy", "macro_f1"), chosen, right)


def _metrics(model: Model, *usual: str) -> tuple[str, ...]:
    """Those that the folder names, of a known task its own, else the usual ones."""
    spec = GLUE_TASKS.get(_task(model))
    named = model.details.get("metrics") or (spec.metrics if spec else None)
    if model.config.head == "regression":
        allowed = {"pearson", "spearman"}
    else:
        allowed = {"accuracy", "macro_f1", "matthews_correlation"} | (
            {"f1"} if len(model.config.labels) == 2 else set()
        )
    if isinstance(named, list | tuple) and named and all(isinstance(name, str) and name in allowed for name in named):
        return tuple(named)
    return usual


def _number(source: str, name: str, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not np.isfinite(np.float32(value)):
        raise InputError(f"{source}, row {name}: score {short(label)} is not a finite number")
    return value
