"""Rows of a file that a saved model is asked about, and what its answers are worth where the file has labels."""

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from experiments.runs.source import HELD_OUT
from kaprune_jax._errors import InputError
from kaprune_jax.data.metrics import metrics_for, score
from kaprune_jax.data.rows import RawRows, Rows
from kaprune_jax.data.spans import score_answers
from kaprune_jax.data.squad import is_squad_file, read_squad
from kaprune_jax.data.tables import column_names, read_content, read_rows
from kaprune_jax.data.tasks import GLUE_TASKS, GlueTask
from kaprune_jax.deploy.model import Model, Prediction

_ENDINGS = (".txt", ".tsv", ".csv", ".jsonl")
_OURS = ("row", "prediction", "probability", "probabilities")


class Asked(NamedTuple):
    """Rows to be answered.

    Attributes:
      names: what to call each row: its line in the file, the header being row 1, or the id of a question.
      columns: names of the texts.
      texts: one or two strings a row.
      label: name of the label column; None where there are no labels.
      labels: as written, of each row; empty without.
      truth: class ids or scores that the labels mean; None without.
      answers: of questions: every answer that counts as right; empty where the file has none.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    label: str | None = None
    labels: tuple[str, ...] = ()
    truth: Int32[np.ndarray, " rows"] | Float32[np.ndarray, " rows"] | None = None
    answers: tuple[tuple[str, ...], ...] = ()


def read_asked(model: Model, file: Path, *, text: str | None = None, label: str | None = None) -> Asked:
    """Reads texts, and labels if there are some.

    Args:
      model: whose task may say what the columns are called.
      file: `.txt`, a text on each line; `.tsv`, `.csv` or `.jsonl`; `.json` in SQuAD's layout for a model that answers
        questions. Each also with `.gz`.
      text: names of one or two text columns, comma-separated; by default those that the model was trained on.
      label: name of the label column, empty for none; by default that of the training rows, where the file has it.

    Raises:
      InputError: the file cannot be read, a column is missing, a row has no text, a label is none of the model's, or
        file and model do not go together.
    """
    ending = "".join(file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:]).removesuffix(".gz")
    spans = model.config.head == "span"
    if file.is_dir():
        raise InputError(f"{file}: a folder; a file of rows is needed")
    if not (is_squad_file(file) if spans else ending in _ENDINGS):
        wanted = "questions in SQuAD's layout, .json" if spans else f"a file that ends in {', '.join(_ENDINGS)}"
        raise InputError(f"{file}: {model.folder} needs {wanted}, plain or with .gz")
    if (spans or ending == ".txt") and (text or label):
        raise InputError(f"{'--text' if text else '--label'} {text or label}: {file} has no columns")
    if spans:
        return _questions(file)
    columns, label, header = (("text",), None, None) if ending == ".txt" else _columns(model, file, text, label)
    if (wanted := _texts(model)) and wanted != len(columns):
        raise InputError(
            f"{file}: {model.folder} was trained on {('single texts', 'pairs of texts')[wanted - 1]}; --text with "
            f"{('one column', 'two columns')[wanted - 1]} is needed, not {', '.join(columns)}"
        )
    raw = _lines(file) if ending == ".txt" else read_rows(file, text=columns, label=label, header=header)
    for number, row in zip(raw.numbers, raw.texts, strict=True):
        if not any(each.strip() for each in row):
            raise InputError(f"{file}, row {number}: the text is empty; some text is needed")
    texts = tuple(tuple(each.strip() for each in row) for row in raw.texts)
    names, labels = tuple(map(str, raw.numbers)), tuple(each.strip() for each in raw.labels)
    if not any(labels):
        return Asked(names, columns, texts)
    return Asked(names, columns, texts, label, labels, _truth(model, file, names, labels))


def check_columns(asked: Asked) -> None:
    """Refuses columns that a file of answers could not hold beside its own."""
    for name in filter(None, (*asked.columns, asked.label)):
        if name in _OURS:
            raise InputError(
                f"column {name!r}: answers have a column of that name; call it otherwise, or leave out --out"
            )


def _lines(file: Path) -> RawRows:
    texts = tuple((line.removesuffix("\r"),) for line in read_content(file).split("\n"))
    return RawRows(str(file), texts, ("",) * len(texts), tuple(range(1, len(texts) + 1)))


def _columns(
    model: Model, file: Path, text: str | None, label: str | None
) -> tuple[tuple[str, ...], str | None, tuple[str, ...] | None]:
    """Text columns, the label column if there is one, and a header for a file that lacks it."""
    there, spec = column_names(file), _glue(model)
    columns, usual = _trained_on(model)
    if text is not None:
        columns = tuple(each.strip() for each in text.split(","))
        if len(columns) not in (1, 2) or not all(columns) or len(set(columns)) < len(columns):
            raise InputError(f"--text {text}: one column or two, separated by a comma")
    header = spec.header if spec and ".tsv" in file.suffixes else None
    if header is not None and (len(header) != len(there) or {*header, *columns} & set(there)):
        header = None
    if label is None and usual in (header or there) and usual not in columns:
        label = usual
    if label in columns:
        raise InputError(f"--label {label}: is a text column, too")
    return columns, label or None, header


def _trained_on(model: Model) -> tuple[tuple[str, ...], str]:
    """Text columns and label column of the rows that a model was trained on, as far as its folder tells."""
    match model.details.get("columns"):
        case {"text": [*names], "label": str(label)} if len(names) in (1, 2) and all(isinstance(n, str) for n in names):
            return tuple(names), label
    spec = _glue(model)
    return (spec.text, spec.label) if spec else (("sentence",), "label")


def _texts(model: Model) -> int:
    """How many texts a row has that the model was trained on; 0 where nothing tells."""
    if (count := model.details.get("texts")) in (1, 2):
        return int(count)
    return len(_trained_on(model)[0]) if _glue(model) or "columns" in model.details else 0


def _glue(model: Model) -> GlueTask | None:
    """The task of GLUE that a model was trained on, if it was one."""
    return GLUE_TASKS.get(str(model.details.get("task", "")).removesuffix(HELD_OUT))


def _questions(file: Path) -> Asked:
    asked = read_squad(file).questions
    if not asked:
        raise InputError(f"{file}: no questions; at least one is needed")
    for each in asked:
        if not each.question.strip() or not each.passage.strip():
            raise InputError(f"{file}, question {short(each.id)}: question or passage is empty; some text is needed")
    without = [each.id for each in asked if not each.answers]
    if without and len(without) < len(asked):
        raise InputError(
            f"{file}: {len(without)} of {len(asked)} questions have no answer, the first is {short(without[0])}; "
            "all or none need one"
        )
    answers = () if without else tuple(tuple(text for text, _ in each.answers) for each in asked)
    texts = tuple((each.question, each.passage) for each in asked)
    return Asked(tuple(each.id for each in asked), ("question", "passage"), texts, answers=answers)


def _truth(model: Model, file: Path, names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """What labels mean: class ids, or scores."""
    if model.config.head == "regression":
        return np.array([_number(file, *row) for row in zip(names, labels, strict=True)], np.float32)
    spec, ids = _glue(model), {name: number for number, name in enumerate(model.config.labels)}
    written = spec.written if spec and spec.labels == model.config.labels else ()
    if list(ids) == [f"LABEL_{number}" for number in range(len(ids))]:  # as stock scripts call them
        written = tuple(map(str, range(len(ids))))
    ids = {**dict(zip(written, range(len(ids)), strict=False)), **ids}
    for name, label in zip(names, labels, strict=True):
        if label not in ids:
            raise InputError(
                f"{file}, row {name}: label {short(label)} is not one of: {', '.join(ids)}; --label '' answers without "
                "a score"
            )
    return np.array([ids[label] for label in labels], np.int32)


def _number(file: Path, name: str, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"{file}, row {name}: score {short(label)} is not a finite number")
    return value


def score_asked(model: Model, asked: Asked, given: Sequence[Prediction]) -> dict[str, float]:
    """The metrics of the model's task, the main one first; none where the file has no labels."""
    if asked.answers:
        rows = Rows(asked.texts, np.zeros((len(asked.texts), 2), np.int32), answers=asked.answers)
        return score_answers([str(each.label) for each in given], rows)
    if asked.truth is None:
        return {}
    if model.config.head == "regression":
        scores = np.array([each.label for each in given], np.float32)
        return score(_metrics(model), scores, asked.truth)
    chosen = np.array([model.config.labels.index(str(each.label)) for each in given], np.int32)
    return score(_metrics(model), chosen, asked.truth)


def _metrics(model: Model) -> tuple[str, ...]:
    """Those that the folder names, of a known task its own, else the usual ones."""
    spec = _glue(model)
    named = model.details.get("metrics") or (spec.metrics if spec else None)
    allowed = metrics_for(0 if model.config.head == "regression" else len(model.config.labels))
    if isinstance(named, list | tuple) and named and all(isinstance(name, str) and name in allowed for name in named):
        return tuple(named)
    return allowed[:2]
