"""Extractive question answering: passages, questions, and answers that are pieces of the passage.

The layout is SQuAD 1.1's (Rajpurkar et al., 2016, arXiv:1606.05250), one JSON object, plain or gzip-compressed:

    {"data": [{"paragraphs": [{"context": TEXT, "qas": [{"id": TEXT, "question": TEXT,
                                                         "answers": [{"text": TEXT, "answer_start": NUMBER}]}]}]}]}

`answer_start` counts characters of the context from 0. Further keys do no harm. Every source (files, the hub, TFDS)
hands `Questions` to `squad_task`, which checks them and puts them in the order of their ids, so that equal questions
give equal tasks.
"""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_json
from kaprune_jax.data.rows import Rows, TaskData, fingerprint_of

METRICS = ("f1", "exact_match")
_ENDINGS = (".json", ".json.gz")
_FILES = ("train-v1.1", "dev-v1.1")
_CALLED = {dict: "a JSON object", list: "a list", str: "a string", int: "a whole number"}


class Question(NamedTuple):
    """A question about a passage.

    Attributes:
      id: its own.
      question: its text.
      passage: the text that it is about.
      answers: text and first character of every right answer.
    """

    id: str
    question: str
    passage: str
    answers: tuple[tuple[str, int], ...]


class Questions(NamedTuple):
    """The questions of one split, as read.

    Attributes:
      source: file name (or data set and split) for error messages.
      questions: in the order they were in.
    """

    source: str
    questions: tuple[Question, ...]


def is_squad_file(name: str | PathLike[str]) -> bool:
    """Whether a file's name says that it is in SQuAD's layout (JSON lines end in .jsonl)."""
    return str(name).endswith(_ENDINGS)


def load_squad(folder: str | PathLike[str], *, name: str = "squad") -> TaskData:
    """Load SQuAD 1.1 from a folder with `train-v1.1.json` and `dev-v1.1.json`, each plain or with `.gz`.

    Raises:
      InputError: a missing folder or file, or a bad question, named with its file.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{place}: no such folder")
    found = []
    for stem in _FILES:
        files = [place / f"{stem}{ending}" for ending in _ENDINGS]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            inside = ", ".join(sorted(entry.name for entry in place.iterdir())[:12]) or "nothing"
            raise InputError(f"{place}: no {stem}.json or {stem}.json.gz; the folder holds: {inside}")
        found.append(file)
    return load_squad_files(found[0], found[1], name=name)


def load_squad_files(train: str | PathLike[str], dev: str | PathLike[str], *, name: str) -> TaskData:
    """Load a task from two files in SQuAD's layout, `.json` or `.json.gz`.

    Args:
      train: file of the training questions.
      dev: file of the evaluation questions, each with one or more right answers.
      name: the task's name.

    Raises:
      InputError: anything wrong with a file or a question, named.
    """
    return squad_task(name, read_squad(Path(train)), read_squad(Path(dev)))


def read_squad(path: Path) -> Questions:
    """Read a file in SQuAD's layout; what its values mean is checked by `squad_task`.

    Raises:
      InputError: another ending, a file that cannot be read or is no JSON object, a key that is missing, or a value
        of another type, named with its place or with the question's id.
    """
    if not is_squad_file(path):
        raise InputError(f"{path}: name ends in {path.suffix!r}; allowed are {', '.join(_ENDINGS)}")
    found = []
    for at, article in _each(read_json(path), "data", str(path)):
        for there, paragraph in _each(article, "paragraphs", at):
            passage = _value(paragraph, "context", str, there)
            found += [_question(path, where, raw, passage) for where, raw in _each(paragraph, "qas", there)]
    return Questions(str(path), tuple(found))


def _question(path: Path, where: str, raw: Any, passage: str) -> Question:
    name = _value(raw, "id", str, where)
    where = f"{path}, question {short(name)}"
    answers = tuple(
        (_value(answer, "text", str, at), _value(answer, "answer_start", int, at))
        for at, answer in _each(raw, "answers", where)
    )
    return Question(name, _value(raw, "question", str, where), passage, answers)


def _each(holder: Any, key: str, where: str) -> Iterator[tuple[str, Any]]:
    """Where each of a list of objects is, and the object."""
    for number, value in enumerate(_value(holder, key, list, where)):
        yield f"{where}, {key}[{number}]", value


def _value(holder: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(holder, dict):
        raise InputError(f"{where}: {short(holder)} is not a JSON object")
    if key not in holder:
        raise InputError(f"{where}: no key {key!r}; the keys are: {', '.join(map(repr, holder)) or 'none'}")
    if type(holder[key]) is not kind:  # not isinstance: true and false are no whole numbers here
        raise InputError(f"{where}: {key} is {short(holder[key])}; {_CALLED[kind]} is needed")
    return holder[key]


def squad_task(name: str, train: Questions, dev: Questions) -> TaskData:
    """Turn questions into a task, after checking what people get wrong in them.

    Args:
      name: the task's name.
      train: training questions; of several right answers the first is learned.
      dev: evaluation questions.

    Returns:
      a task of kind "span"; `Rows` has questions and passages as texts.

    Raises:
      InputError: no questions; an id that occurs twice; a blank question, passage or answer, or one with a NUL
        character; questions without answers, or answers that the passage does not have at their place, which are
        counted and the first named.
    """
    rows = []
    for split in (train, dev):
        _check_texts(split)
        _check_answers(split)
        ordered = sorted(split.questions)
        rows.append(
            Rows(
                texts=tuple((each.question, each.passage) for each in ordered),
                labels=np.array([_place(*each.answers[0]) for each in ordered], np.int32),
                answers=tuple(tuple(text for text, _ in each.answers) for each in ordered),
                names=tuple(f"{split.source}, question {short(each.id)}" for each in ordered),
            )
        )
    return TaskData(name, "span", (), METRICS, rows[0], rows[1], fingerprint_of((), *rows))


def _place(text: str, start: int) -> tuple[int, int]:
    """Where an answer begins and ends, white space around it left out."""
    begin = start + len(text) - len(text.lstrip())
    return begin, begin + len(text.strip())


def _check_texts(split: Questions) -> None:
    if not split.questions:
        raise InputError(f"{split.source}: no questions; at least one is needed")
    seen: set[str] = set()
    for each in split.questions:
        where = f"{split.source}, question {short(each.id)}"
        if each.id in seen:
            raise InputError(f"{where}: the id occurs more than once; every question needs its own")
        seen.add(each.id)
        texts = [
            ("question", each.question),
            ("passage", each.passage),
            *(("answer", text) for text, _ in each.answers),
        ]
        for what, text in texts:
            if not text.strip():
                raise InputError(f"{where}: the {what} is empty; some text is needed")
            if "\0" in text:
                raise InputError(f"{where}: the {what} has a NUL character; text is needed")


def _check_answers(split: Questions) -> None:
    without = [each.id for each in split.questions if not each.answers]
    if without:
        raise InputError(
            f"{split.source}: {len(without)} of {len(split.questions)} questions have no answer, as in SQuAD 2.0; "
            f"the first is {short(without[0])}; every question needs one"
        )
    every = [(each, text, start) for each in split.questions for text, start in each.answers]
    wrong = [
        (each, text, start) for each, text, start in every if start < 0 or not each.passage.startswith(text, start)
    ]
    if wrong:
        each, text, start = wrong[0]
        there = short(each.passage[start : start + len(text)]) if 0 <= start < len(each.passage) else "nothing"
        raise InputError(
            f"{split.source}: {len(wrong)} of {len(every)} answers are not in their passage at answer_start, counted "
            f"in characters from 0; the first is of question {short(each.id)}: {short(text)} at {start}, where the "
            f"passage has {there}"
        )


def questions_of(source: str, rows: Sequence[tuple[Any, Any, Any, Sequence[Any], Sequence[Any]]]) -> Questions:
    """Questions from columns, as data set libraries have them: id, question, passage, answers and their starts."""
    return Questions(
        source,
        tuple(
            Question(name, question, passage, tuple(zip(texts, map(int, starts), strict=True)))
            for name, question, passage, texts, starts in rows
        ),
    )
