"""Questions from files in SQuAD's layout, and what is wrong with some."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.sampling import hold_out, limit_train
from kaprune_jax.data.squad import load_squad, load_squad_files, read_squad

PASSAGE = "Anna saw a robin in Kyōto. Ben  saw the owl."


def one(id="q1", question="Who saw the owl?", answers=(("Ben", 27),), context=PASSAGE):
    """A file with one question, as JSON."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": "Birds",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": id,
                                "question": question,
                                "answers": [{"text": text, "answer_start": start} for text, start in answers],
                            }
                        ],
                    }
                ],
            }
        ],
    }


def qas(raw):
    return raw["data"][0]["paragraphs"][0]["qas"]


def write(file, raw):
    text = raw if isinstance(raw, str) else json.dumps(raw)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


@pytest.fixture
def load(tmp_path):
    """Loads a task whose training file is given; dev has one question."""
    dev = write(tmp_path / "dev.json", one())

    def run(raw, name="train.json"):
        return load_squad_files(write(tmp_path / name, raw), dev, name="mine")

    return run


def test_questions_passages_and_places(load):
    data = load(one(answers=((" robin ", 10), ("Anna", 0))), "train.json.gz")
    assert (data.name, data.kind, data.labels, data.metrics) == ("mine", "span", (), ("f1", "exact_match"))
    assert data.train.texts == (("Who saw the owl?", PASSAGE),)
    assert data.train.answers == ((" robin ", "Anna"),)
    begin, end = data.train.labels[0]
    assert PASSAGE[begin:end] == "robin"  # of the first answer, without the blanks around it
    assert data.train.labels.dtype == np.int32
    assert data.train.names[0].endswith("train.json.gz, question 'q1'")


def test_order_does_not_matter_and_every_content_does(load):
    def two(first, second):
        raw, other = one(id=first), one(id=second, question="Who?")
        qas(raw).extend(qas(other))
        return raw

    data = load(two("a", "b"))
    assert [question for question, _ in data.train.texts] == ["Who saw the owl?", "Who?"]
    swapped = two("a", "b")
    qas(swapped).reverse()
    assert load(swapped).fingerprint == data.fingerprint
    changed = [one(question="Who saw?"), one(answers=(("Anna", 0),)), one(answers=(("Ben", 27), ("Anna", 0)))]
    assert len({load(raw).fingerprint for raw in [one(), *changed]}) == 4


def test_the_limit_counts_questions_and_keeps_what_belongs_to_them(load):
    raw = one(id="q0")
    qas(raw).extend(qas(one(id=f"q{number}", question=f"Who {number}?"))[0] for number in range(1, 9))
    data = load(raw)
    fewer = limit_train(data, 4, seed=3)
    assert len(fewer.train.texts) == len(fewer.train.answers) == len(fewer.train.names) == len(fewer.train.labels) == 4
    at = [data.train.names.index(name) for name in fewer.train.names]
    assert at == sorted(at)
    assert [data.train.texts[place] for place in at] == list(fewer.train.texts)
    assert fewer.fingerprint != data.fingerprint
    with pytest.raises(InputError, match="limit_train 0 for mine: at least 1"):
        limit_train(data, 0)


def test_questions_about_one_passage_are_held_out_together(load):
    raw = one(id="q0")
    for paper in range(6):
        more = one(id=f"p{paper}", context=f"Anna saw owl number {paper}.", answers=(("Anna", 0),))
        qas(more).extend({**qas(more)[0], "id": f"p{paper}-{number}"} for number in range(2))
        raw["data"][0]["paragraphs"] += more["data"][0]["paragraphs"]
    held = hold_out(load(raw), 5)
    assert {passage for _, passage in held.train.texts}.isdisjoint(passage for _, passage in held.dev.texts)
    assert len(held.dev.answers) == len(held.dev.names) == len(held.dev.texts) >= 5
    assert len(held.train.texts) + len(held.dev.texts) == 19


def test_a_folder_of_squads_own_files(tmp_path):
    write(tmp_path / "train-v1.1.json", one())
    with pytest.raises(InputError, match=r"no dev-v1.1.json or dev-v1.1.json.gz; the folder holds: train-v1.1.json"):
        load_squad(tmp_path)
    write(tmp_path / "dev-v1.1.json.gz", one(id="other"))
    assert load_squad(tmp_path).name == "squad"
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_squad(tmp_path / "nowhere")


def without(raw, place, key):
    for step in place:
        raw = raw[step]
    del raw[key]


def put(raw, place, value):
    for step in place[:-1]:
        raw = raw[step]
    raw[place[-1]] = value


PARAGRAPH = ["data", 0, "paragraphs", 0]
QUESTION = [*PARAGRAPH, "qas", 0]
ANSWER = [*QUESTION, "answers", 0]


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        (["data"], None, ["train.json: no key 'data'; the keys are: 'version'"]),
        (["data"], {}, ["train.json: data is {}; a list is needed"]),
        (["data"], [3], ["train.json, data[0]: 3 is not a JSON object"]),
        (["data"], [], ["train.json: no questions"]),
        ([*PARAGRAPH, "context"], None, ["train.json, data[0], paragraphs[0]: no key 'context'"]),
        ([*PARAGRAPH, "context"], 7, ["paragraphs[0]: context is 7; a string is needed"]),
        ([*PARAGRAPH, "context"], " \n", ["question 'q1': the passage is empty"]),
        ([*PARAGRAPH, "qas"], [], ["train.json: no questions; at least one is needed"]),
        ([*PARAGRAPH, "qas"], ["x"], ["data[0], paragraphs[0], qas[0]: 'x' is not a JSON object"]),
        ([*QUESTION, "id"], None, ["paragraphs[0], qas[0]: no key 'id'"]),
        ([*QUESTION, "id"], 5, ["qas[0]: id is 5; a string is needed"]),
        ([*QUESTION, "question"], None, ["train.json, question 'q1': no key 'question'"]),
        ([*QUESTION, "question"], "", ["question 'q1': the question is empty"]),
        ([*QUESTION, "question"], "Who\0?", ["question 'q1': the question has a NUL character"]),
        ([*QUESTION, "answers"], None, ["question 'q1': no key 'answers'"]),
        ([*QUESTION, "answers"], {"text": "Ben"}, ["question 'q1': answers is {'text': 'Ben'}; a list is needed"]),
        ([*QUESTION, "answers"], [], ["train.json: 1 of 1 questions have no answer", "SQuAD 2.0", "first is 'q1'"]),
        ([*ANSWER, "text"], None, ["question 'q1', answers[0]: no key 'text'"]),
        ([*ANSWER, "text"], "", ["question 'q1': the answer is empty"]),
        ([*ANSWER, "answer_start"], "27", ["question 'q1', answers[0]: answer_start is '27'; a whole number"]),
        ([*ANSWER, "answer_start"], True, ["answer_start is True; a whole number is needed"]),
        ([*ANSWER, "answer_start"], 27.0, ["answer_start is 27.0; a whole number is needed"]),
        ([*ANSWER, "answer_start"], 28, ["1 of 1 answers are not in their passage", "'q1': 'Ben' at 28", "has 'en '"]),
        ([*ANSWER, "answer_start"], -17, ["question 'q1': 'Ben' at -17, where the passage has nothing"]),
        ([*ANSWER, "answer_start"], 10**9, ["'Ben' at 1000000000, where the passage has nothing"]),
        ([*ANSWER, "answer_start"], 43, ["'Ben' at 43, where the passage has '.'"]),
        ([*ANSWER, "text"], "ben", ["'ben' at 27, where the passage has 'Ben'"]),
    ],
)
def test_bad_questions_are_named(load, place, value, parts):
    raw = one()
    if value is None:
        without(raw, place[:-1], place[-1])
    else:
        put(raw, place, value)
    with pytest.raises(InputError) as error:
        load(raw)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["line 1: not JSON"]),
        ('{"data": [', ["line 1: not JSON"]),
        ("[]", ["a JSON object is needed, not list"]),
        ('{"data": ' + "[" * 200 + "]" * 200 + "}", ["nested more than 100 deep"]),
    ],
)
def test_no_json(load, text, parts):
    with pytest.raises(InputError) as error:
        load(text)
    assert all(part in str(error.value) for part in ["train.json", *parts])


def test_what_is_wrong_often_is_counted(load):
    raw = one(id="good")
    for number in range(3):
        qas(raw).extend(qas(one(id=f"bad{number}", answers=(("Ben", number),))))
    with pytest.raises(InputError, match="3 of 4 answers are not in their passage .* of question 'bad0': 'Ben' at 0"):
        load(raw)
    for question in qas(raw)[2:]:
        question["answers"] = []
    with pytest.raises(InputError, match="2 of 4 questions have no answer, as in SQuAD 2.0; the first is 'bad1'"):
        load(raw)
    qas(raw)[1]["id"] = "good"
    with pytest.raises(InputError, match="question 'good': the id occurs more than once"):
        load(raw)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_squad(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"name ends in '.txt'; allowed are .json, .json.gz"):
        read_squad(tmp_path / "none.txt")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(json.dumps(one()).encode())[:-9])
    with pytest.raises(InputError, match="cut short"):
        read_squad(tmp_path / "cut.json.gz")


def test_the_real_questions(shared):
    place = Path(shared) / "data" / "squad_v1.1"
    data = load_squad_files(place / "train_subset-v1.1.json.gz", place / "dev-v1.1.json.gz", name="squad")
    assert (len(data.train.texts), len(data.dev.texts)) == (3838, 10570)
    for rows in (data.train, data.dev):
        for (_, passage), (begin, end), answers in zip(rows.texts, rows.labels, rows.answers, strict=True):
            assert passage[begin:end] == answers[0]
