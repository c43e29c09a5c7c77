"""Answers of a model to new questions, against windows that are run one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.folder import load_start

PEOPLE, ANIMALS = "anna ben clara david emma felix julia paul".split(), "owl robin cat wolf shark bee".split()
LONG = " ".join(f"{person.title()} saw the {animal} ." for animal in ANIMALS[:3] for person in PEOPLE)
ROWS = [("What did Emma see ?", LONG), ("who saw the owl ?", "Anna saw the owl ."), ("who ?", LONG[:200])]


@pytest.fixture(scope="module")
def model():
    start = load_start("mini", head="span", labels=(), key=jax.random.key(3)).model
    head = jax.tree.map(lambda leaf: 20 * leaf, start.params["head"])  # no two spans are nearly equal
    return kp.Model(start.config, {**start.params, "head": head}, start.folder, {})


def by_hand(model, question, passage, length):
    """Text and score of the best span, from one window at a time without padding."""
    stride, best = min(128, length // 3), (-np.inf, "", 0.0)
    pieces = model.tokenizer(
        question, passage, truncation="only_second", max_length=length, stride=stride, return_overflowing_tokens=True,
        return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    for row, (ids, types) in enumerate(zip(pieces["input_ids"], pieces["token_type_ids"], strict=True)):
        logits = model.apply(model.params, jnp.array([ids]), None, jnp.array([types])).logits[0]
        shares = np.asarray(jax.nn.softmax(logits, axis=0))
        places = [place for place, part in enumerate(pieces.sequence_ids(row)) if part == 1]
        for i in places:
            for j in places[places.index(i) :][:30]:
                value = float(logits[i, 0] + logits[j, 1])
                if value > best[0]:
                    where = pieces["offset_mapping"][row]
                    best = (value, passage[where[i][0] : where[j][1]], float(shares[i, 0] * shares[j, 1]))
    return best[1:]


@pytest.mark.long
@pytest.mark.parametrize("length", [64, 24])
def test_answers_are_those_of_the_best_window(model, length):
    found = model.predict(ROWS, max_length=length)
    for each, row in zip(found, ROWS, strict=True):
        text, score = by_hand(model, *row, length)
        assert each.label == text
        assert each.score == pytest.approx(score, rel=1e-4)


def test_how_many_go_together_does_not_matter(model):
    one, many = (model.predict(ROWS, batch_size=size) for size in (1, 32))
    assert [each.label for each in one] == [each.label for each in many]
    np.testing.assert_allclose([each.score for each in one], [each.score for each in many], rtol=1e-4)
    assert model.predict(ROWS[::-1])[::-1][0].label == many[0].label


def test_what_is_no_question_with_a_passage_is_named(model):
    assert model.predict([]) == []
    for rows in (["who ?"], [("who ?", " ")], [("", "anna .")]):
        with pytest.raises(InputError, match=r"predict: row 0 is .*; a question and a passage"):
            model.predict(rows)
    with pytest.raises(InputError, match="predict: row 1: the question leaves room for 0 tokens"):
        model.predict([("who ?", "anna ."), ("who " * 90, "anna .")])
