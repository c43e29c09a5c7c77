import re
from collections import Counter

import pytest

from kaprune_jax.data.augment import STOP_WORDS, augment, eligible_words, is_candidate


def propose_from(table):
    return lambda words: [tuple(table.get(word.word.lower(), ())) for word in words]


ANIMALS = propose_from({"cat": ("lion", "tiger", "lynx"), "dog": ("wolf", "fox"), "sleeps": ("rests",)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The film isn't half-baked, it is a masterpiece.", ["film", "masterpiece"]),
        ("does n't work , 3d tv2 x 42", ["work"]),
        ("it 's the filmmaker 's own «Übermut»", ["filmmaker", "Übermut"]),
        ("'quoted' words-and -dashes- under_score", ["quoted", "dashes"]),
        ("<br /> a [MASK] </b>word", ["word"]),
        ("cafe\u0301 nai\u0308ve mas\u00adter plain", ["plain"]),
        ("café naïve Straße Москва λόγος", ["café", "naïve", "Straße", "Москва", "λόγος"]),
        ("km² ²³ हिन्दी 东西 สวัสดี", []),
        ("", []),
        ("of the and", []),
    ],
)
def test_eligible_are_words_of_letters_that_are_no_stop_words(text, words):
    found = eligible_words(text)
    assert [word.word for word in found] == words
    assert all(text[word.start : word.end] == word.word for word in found)


@pytest.mark.parametrize(
    ("word", "allowed"),
    [("film", True), ("Übermut", True)]
    + [(word, False) for word in ("the", "##ing", "[MASK]", "a1", "x", "don't", "▁film", "")],
)
def test_candidates_are_whole_words(word, allowed):
    assert is_candidate(word) == allowed


def test_stop_words_hold_no_contents():
    assert {"the", "not", "with", "because"} <= STOP_WORDS
    assert not {"good", "bad", "man", "system", "first", "new"} & STOP_WORDS


def test_each_word_is_replaced_with_the_asked_probability_by_any_candidate():
    # Copies of one row are made different from each other, so each row here is tried once.
    rows = tuple((f"the cat sleeps {number} .",) for number in range(20_000))
    made = augment(rows, ANIMALS, copies=1, probability=0.4, seed=3)
    assert len(made.texts) / len(rows) == pytest.approx(1 - 0.6**2, abs=0.01)  # else the copy is the row itself
    words = [text.split() for (text,) in made.texts]
    cats = Counter(word[1] for word in words)
    assert sum(cats[name] for name in ("lion", "tiger", "lynx")) / len(rows) == pytest.approx(0.4, abs=0.01)
    for name in ("lion", "tiger", "lynx"):
        assert cats[name] / len(rows) == pytest.approx(0.4 / 3, abs=0.008)
    assert sum(word[2] == "rests" for word in words) / len(rows) == pytest.approx(0.4, abs=0.01)
    both = sum(word[1] != "cat" and word[2] != "sleeps" for word in words)
    assert both / len(rows) == pytest.approx(0.16, abs=0.01)  # independent of each other


def test_what_is_not_eligible_stays_to_the_letter():
    text = "  The cat — isn't that a DOG?  42% of it sleeps\tnow. "
    made = augment(((text,),), ANIMALS, copies=40)
    for (new,) in made.texts:
        assert re.fullmatch(
            r"  The (cat|lion|tiger|lynx) — isn't that a (DOG|WOLF|FOX)\?  42% of it (sleeps|rests)\tnow\. ", new
        )


def test_copies_differ_from_the_row_and_from_each_other():
    rows = (("cat",), ("nothing here to take",), ("of the",), ("cat dog",))
    made = augment(rows, ANIMALS, copies=2000)
    assert {new for (new,), origin in zip(made.texts, made.origins, strict=True) if origin == 0} == {
        "lion", "tiger", "lynx"
    }  # fmt: skip
    assert len({new for (new,), origin in zip(made.texts, made.origins, strict=True) if origin == 3}) == 4 * 3 - 1
    assert Counter(made.origins) == {0: 3, 3: 11}
    assert list(made.origins) == sorted(made.origins)


def test_a_copy_of_a_pair_changes_one_side():
    rows = (("a cat and a dog", "the dog sleeps"), ("a cat", "42"))
    made = augment(rows, ANIMALS, copies=2000)
    changed = Counter()
    for new, origin in zip(made.texts, made.origins, strict=True):
        sides = [side for side in (0, 1) if new[side] != rows[origin][side]]
        assert len(sides) == 1
        changed[origin, sides[0]] += 1
    assert changed[0, 0] == 4 * 3 - 1
    assert changed[0, 1] == 3 * 2 - 1
    assert changed[1, 0] == 3


def test_a_row_gives_the_same_whatever_stands_around_it_and_however_many_are_asked_for():
    rows = (("the cat sleeps by the dog",), ("a dog sleeps",))

    def of_first(rows, place, copies, seed=5):
        made = augment(rows, ANIMALS, copies=copies, seed=seed)
        return [new for new, origin in zip(made.texts, made.origins, strict=True) if origin == place]

    many = of_first(rows, 0, 8)
    assert of_first(rows[::-1], 1, 8) == many
    assert of_first(rows[:1], 0, 8) == many
    few = of_first(rows, 0, 3)
    assert few == many[: len(few)]
    assert of_first(rows, 0, 8, seed=6) != many


@pytest.mark.parametrize(("copies", "probability"), [(0, 0.4), (-1, 0.4), (1, 0.0), (1, 1.1), (1, float("nan"))])
def test_ranges(copies, probability):
    with pytest.raises(ValueError, match="is needed"):
        augment((("cat",),), ANIMALS, copies=copies, probability=probability)
