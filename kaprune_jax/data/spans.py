"""From logits of tokens to answers, and what answers are worth: SQuAD's F1 and exact match.

Rajpurkar et al., 2016, arXiv:1606.05250, section 6.1: the metrics ignore punctuation and articles; exact match is the
share of answers equal to one of the right ones; F1 is the mean overlap of answer and right answer as bags of words, the
best over the right ones. Published figures are a hundred times these fractions.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from kaprune_jax.data.rows import Rows, TaskData
from kaprune_jax.data.windows import Windows

MAX_ANSWER = 30
"""Most tokens of an answer, as in BERT's own evaluation."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
    """A piece of a passage.

    Attributes:
      text: as the passage has it.
      score: probability of its first token times that of its last, over all tokens of its window, in [0, 1].
      begin: first character in the passage.
    """

    text: str
    score: float
    begin: int


def best_spans(
    logits: Float[np.ndarray, "rows seq 2"], allowed: Bool[np.ndarray, "rows seq"], *, most: int = MAX_ANSWER
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """For each row the tokens i <= j <= i + most - 1 with the largest sum of start logit i and end logit j.

    Args:
      logits: of the first and the last token.
      allowed: tokens that an answer may begin or end at; at least one in each row.
      most: tokens of an answer, >= 1.

    Returns:
      first token, last token, and the sum. Of equals the shortest, then the first.
    """
    starts, ends = (np.where(allowed, logits[:, :, part], -np.inf) for part in (0, 1))
    rows, seq = allowed.shape
    first, last = np.zeros(rows, int), np.zeros(rows, int)
    best = np.full(rows, -np.inf)
    for more in range(min(most, seq)):
        sums = starts[:, : seq - more] + ends[:, more:]
        place = sums.argmax(axis=1)
        value = sums[np.arange(rows), place]
        better = value > best
        first, last = np.where(better, place, first), np.where(better, place + more, last)
        best = np.where(better, value, best)
    return first, last, best


def find_answers(
    windows: Windows, logits: Float[np.ndarray, "windows seq 2"], passages: Sequence[str], *, most: int = MAX_ANSWER
) -> list[Answer]:
    """The answer to each question: the best span of tokens of the passage over all of its windows.

    Args:
      windows: of the questions.
      logits: of every window; what is behind its own tokens is not looked at.
      passages: of the questions.
      most: tokens of an answer.

    Returns:
      an answer for each passage, cut out of it.
    """
    allowed = np.zeros(logits.shape[:2], bool)
    for row, where in enumerate(windows.offsets):
        allowed[row, : len(where)] = where[:, 1] > where[:, 0]
    first, last, best = best_spans(logits, allowed, most=most)
    found = []
    edges = np.searchsorted(windows.question, np.arange(len(passages) + 1))
    for passage, low, high in zip(passages, edges[:-1], edges[1:], strict=True):
        row = int(low + best[low:high].argmax())
        where = windows.offsets[row]
        begin, end = int(where[first[row], 0]), int(where[last[row], 1])
        real = logits[row, : len(where)].astype(np.float64)
        shares = np.exp(real - real.max(axis=0))
        shares /= shares.sum(axis=0)
        found.append(Answer(passage[begin:end], float(shares[first[row], 0] * shares[last[row], 1]), begin))
    return found


def normalize(text: str) -> str:
    """An answer as the metrics compare it: lower case, without punctuation (ASCII), articles and needless blanks.

    Example:
      >>> normalize("The  Beyoncé-era, a.k.a. B!")
      'beyoncéera aka b'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where an answer is one of the right ones, but for case, punctuation, articles and blanks; else 0."""
    return float(normalize(answer) in map(normalize, right))


def overlap(answer: str, right: Sequence[str]) -> float:
    """The F1 of the words of an answer with those of a right one, the best of them, in [0, 1].

    Without a common word it is 0, also where both have no words at all, as in SQuAD 1.1's own evaluation.
    """
    given = normalize(answer).split()

    def f1(wanted: list[str]) -> float:
        common = (Counter(given) & Counter(wanted)).total()
        return 2 * common / (len(given) + len(wanted)) if common else 0.0

    return max(f1(normalize(each).split()) for each in right)


def score_answers(answers: Sequence[str], rows: Rows) -> dict[str, float]:
    """SQuAD's metrics, the main one first: means over the questions, fractions.

    Raises:
      ValueError: no questions, or not an answer for each.
    """
    if not rows.answers or len(answers) != len(rows.answers):
        raise ValueError(
            f"{len(answers)} answers to {len(rows.answers)} questions; equally many, at least one, allowed"
        )
    measures: dict[str, Callable[[str, Sequence[str]], float]] = {"f1": overlap, "exact_match": exact_match}
    pairs = list(zip(answers, rows.answers, strict=True))
    return {name: float(np.mean([measure(*pair) for pair in pairs])) for name, measure in measures.items()}


def score_spans(data: TaskData, windows: Windows, logits: Float[np.ndarray, "windows seq 2"]) -> dict[str, float]:
    """Score a model's outputs for the windows of dev."""
    found = find_answers(windows, logits, [passage for _, passage in data.dev.texts])
    return score_answers([answer.text for answer in found], data.dev)


def first_words(data: TaskData) -> tuple[dict[str, float], float]:
    """What answers that do not look at the question get on dev: the first words of the passage.

    As many words as right answers of train have in the middle (the median).

    Returns:
      metric name to score, and the standard error of F1's mean.
    """
    count = int(np.median([len(answers[0].split()) for answers in data.train.answers]))
    answers = [" ".join(passage.split()[: max(count, 1)]) for _, passage in data.dev.texts]
    each = [overlap(answer, right) for answer, right in zip(answers, data.dev.answers, strict=True)]
    return score_answers(answers, data.dev), float(np.std(each) / np.sqrt(len(each)))
