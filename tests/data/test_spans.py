"""Answers from logits, against every span tried one by one; and SQuAD's metrics."""

import numpy as np
import pytest

from kaprune_jax.data.loader import Encoded
from kaprune_jax.data.rows import Rows, TaskData
from kaprune_jax.data.spans import (
    best_spans,
    exact_match,
    find_answers,
    first_words,
    normalize,
    overlap,
    score_answers,
    score_spans,
)
from kaprune_jax.data.windows import Windows


@pytest.mark.parametrize("most", [1, 3, 30])
def test_the_best_span_of_all(rng, most):
    logits = rng.normal(size=(40, 12, 2)).astype(np.float32)
    allowed = rng.random((40, 12)) < 0.6
    allowed[np.arange(40), rng.integers(0, 12, 40)] = True
    first, last, best = best_spans(logits, allowed, most=most)
    for row in range(40):
        every = {
            (i, j): logits[row, i, 0] + logits[row, j, 1]
            for i in range(12)
            for j in range(i, min(i + most, 12))
            if allowed[row, i] and allowed[row, j]
        }
        assert (first[row], last[row]) == max(every, key=lambda pair: every[pair])
        assert best[row] == max(every.values())


def test_equal_spans_give_the_shortest_then_the_first():
    first, last, _ = best_spans(np.zeros((1, 5, 2), np.float32), np.array([[False, True, True, True, False]]))
    assert (first[0], last[0]) == (1, 1)


def windows_of(*pieces):
    """Windows [CLS] q [SEP] passage [SEP] from the question's number and the places of the passage's tokens."""
    offsets = tuple(np.array([(-1, -1)] * 3 + list(piece) + [(-1, -1)], np.int32) for _, piece in pieces)
    ids = tuple(np.arange(len(where)) for where in offsets)
    encoded = Encoded(ids, ids, np.zeros((len(pieces), 2), np.int32), frozenset(), 12, 0)
    return Windows(encoded, np.array([number for number, _ in pieces], np.int32), offsets)


def test_the_best_window_answers_with_the_passages_own_text(rng):
    passages = ["Anna saw the OWL.", "Ben sleeps"]
    whole = [(0, 4), (5, 8), (9, 12), (13, 16), (16, 17)]
    windows = windows_of((0, whole[:3]), (0, whole[2:]), (1, [(0, 3), (4, 10)]))
    logits = np.full((3, 12, 2), -5.0, np.float32)
    logits[:, :3] = logits[:, 9:] = 50.0  # question, special tokens, padding: never an answer
    logits[0, 3, 0], logits[0, 3, 1] = 4.0, 1.0
    logits[1, 3, 0], logits[1, 4, 1] = 3.0, 3.0  # "the OWL" over two tokens of the second window
    logits[1, 5, 0] = 9.0  # its end would lie before it
    logits[1, 5, 1] = -20.0
    logits[2, 4, :] = 2.0
    found = find_answers(windows, logits, passages)
    assert [answer.text for answer in found] == ["the OWL", "sleeps"]
    assert [passage[answer.begin :].startswith(answer.text) for passage, answer in zip(passages, found, strict=True)]
    real = logits[1, :7].astype(np.float64)
    shares = np.exp(real) / np.exp(real).sum(axis=0)
    assert found[0].score == pytest.approx(shares[3, 0] * shares[4, 1])
    logits[:, 9:] = rng.normal(size=(3, 3, 2))
    assert find_answers(windows, logits, passages) == found  # what pads does not matter


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Denver  Broncos!", "denver broncos"),
        ("an apple, a pear and the THEATRE", "apple pear and theatre"),
        ("$1.50", "150"),
        ("A.", ""),
        ("the", ""),
        ("  \n", ""),
        ("the–end", "–end"),
        ("Kyōto’s", "kyōto’s"),
    ],
)
def test_normalization(text, wanted):
    assert normalize(text) == wanted


def by_hand(answer, right):
    """F1 with lists instead of counters."""
    best = 0.0
    for each in right:
        ours, theirs = normalize(answer).split(), normalize(each).split()
        left, common = list(theirs), 0
        for word in ours:
            if word in left:
                left.remove(word)
                common += 1
        if common:
            precision, recall = common / len(ours), common / len(theirs)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("the owl", ["Owl."], 1.0, 1.0),
        ("owl owl", ["owl"], 0.0, 2 / 3),
        ("a small owl", ["owl", "small brown owl"], 0.0, 0.8),
        ("robin", ["owl", "the eagle"], 0.0, 0.0),
        ("", ["owl"], 0.0, 0.0),
        ("the", ["."], 1.0, 0.0),  # no words in either: SQuAD 1.1 counts the match and no overlap
    ],
)
def test_metrics(answer, right, exact, f1):
    assert exact_match(answer, right) == exact
    assert overlap(answer, right) == pytest.approx(f1)
    assert overlap(answer, right) == pytest.approx(by_hand(answer, right))


def test_overlap_of_random_answers(rng):
    words = ["the", "owl", "Owl,", "saw", "robin", "a", "."]
    for _ in range(200):
        answer, *right = (" ".join(rng.choice(words, rng.integers(0, 6))) for _ in range(4))
        assert overlap(answer, right) == pytest.approx(by_hand(answer, right))


ROWS = Rows(
    (("Who?", "Anna saw the owl"), ("What?", "Anna saw the owl")),
    np.array([(0, 4), (9, 16)], np.int32),
    answers=(("Anna",), ("the owl", "owl")),
)


def test_scores_are_means_with_f1_first():
    scores = score_answers(["Anna", "saw the owl"], ROWS)
    assert list(scores) == ["f1", "exact_match"]
    assert scores == {"f1": pytest.approx((1 + 2 / 3) / 2), "exact_match": 0.5}
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        score_answers(["Anna"], ROWS)


def test_a_task_is_scored_by_its_windows():
    data = TaskData("mine", "span", (), ("f1", "exact_match"), ROWS, ROWS, "")
    pieces = [(0, 4), (5, 8), (9, 12), (13, 16)]
    logits = np.zeros((2, 12, 2), np.float32)
    logits[0, 3, :] = 1.0
    logits[1, 6, :] = 1.0
    assert score_spans(data, windows_of((0, pieces), (1, pieces)), logits) == {"f1": 1.0, "exact_match": 1.0}
    scores, error = first_words(data)  # "Anna", since the median of 1 and 2 words is cut to 1
    assert scores == {"f1": 0.5, "exact_match": 0.5}
    assert error == pytest.approx(0.5 / np.sqrt(2))
