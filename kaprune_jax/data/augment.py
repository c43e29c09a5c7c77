"""New training rows from old ones: words replaced by others that could stand in their place.

The data augmentation of TinyBERT (Jiao et al., 2020, arXiv:1909.10351, algorithm 1), which SparseBERT prunes over
(arXiv:2104.08682). Where the candidates come from is an argument; `kaprune_jax.deploy.candidates` asks a model. The
new rows have no labels: a teacher gives them.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Texts = tuple[tuple[str, ...], ...]
"""One or two strings a row."""

# Articles, pronouns, auxiliaries, prepositions, conjunctions, particles: what holds a sentence together, and no words
# with contents of their own, which scikit-learn's list has too ("system", "bill", "fire", "interest").
STOP_WORDS = frozenset(
    (
        "a an the this that these those each every either neither some any no all both few many much more most other "
        "another such own same i me my mine myself we us our ours ourselves you your yours yourself yourselves he him "
        "his himself she her hers herself it its itself they them their theirs themselves who whom whose which what "
        "where when why how there here one be am is are was were been being have has had having do does did doing "
        "done will would shall should can could may might must ought need not never nor cannot of in on at by for "
        "with from to into onto upon out off over under up down about above below across after before behind between "
        "beyond during against along among around as near past since than through throughout till until toward "
        "towards within without and or but if because while although though unless whether so yet then thus hence "
        "also too very just only even still again already ever once else re ve ll don doesn didn isn aren wasn "
        "weren won wouldn couldn shouldn hasn haven hadn"
    ).split()
)

# Runs of word characters, but not parts of `don't`, `3d`, `twenty-one` or a tag such as <br> or [MASK].
_WORD = re.compile(r"(?<![\w\[<])(?<!</)(?<!\w['’-])[^\W\d_]{2,}(?!\w)(?!['’-]\w)")


class Word(NamedTuple):
    """A word that may be replaced: `text[start:end]`."""

    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The word itself, as written."""
        return self.text[self.start : self.end]


Propose = Callable[[Sequence[Word]], list[tuple[str, ...]]]
"""Gives for each word those that could stand in its place, lower case or as the vocabulary has them; maybe none."""


class Augmented(NamedTuple):
    """New rows.

    Attributes:
      texts: the new rows.
      origins: index of the row that each was made from, ascending.
    """

    texts: Texts
    origins: tuple[int, ...]


def eligible_words(text: str) -> list[Word]:
    """The words of a text that may be replaced: letters only, two or more, no stop words.

    Letters are those of scripts with upper and lower case; others, in which words are not what stands between spaces,
    or letters carry marks of their own, are left alone.

    Example:
      >>> [word.word for word in eligible_words("The film isn't half-baked, it is a masterpiece.")]
      ['film', 'masterpiece']
    """
    found = (Word(text, *match.span()) for match in _WORD.finditer(text))
    return [word for word in found if is_candidate(word.word) and not _part_of_more(word)]


def _part_of_more(word: Word) -> bool:
    """Whether an accent that is a character of its own, or an invisible character, joins the word to something."""
    around = word.text[max(0, word.start - 1) : word.start] + word.text[word.end : word.end + 1]
    return any(unicodedata.category(sign) in ("Mn", "Mc", "Me", "Cf") for sign in around)


def is_candidate(word: str) -> bool:
    """Whether a word may be put in another's place: letters only, two or more, no stop word."""
    letters = len(word) > 1 and all(sign.isupper() or sign.islower() for sign in word) and word.isalpha()
    return letters and word.lower() not in STOP_WORDS


def augment(rows: Texts, propose: Propose, *, copies: int, probability: float = 0.4, seed: int = 0) -> Augmented:
    """Copies of rows in which each eligible word is replaced with some probability by one of its candidates.

    A copy of a pair changes one of its two texts, drawn anew for each copy. Copies that are equal to their row or to an
    earlier copy of it are left out, so a row has at most `copies` and short ones have fewer. What a row gives depends
    on its text, `seed` and the first `copies` alone, not on the rows around it.

    Args:
      rows: one or two texts a row.
      propose: candidates of words; asked once, for every eligible word of every different text.
      copies: tries for each row, at least 1.
      probability: of replacing a word, in (0, 1].
      seed: of the draws, at least 0.

    Raises:
      ValueError: `copies` or `probability` out of range.
    """
    if copies < 1:
        raise ValueError(f"copies={copies}; a whole number >= 1 is needed")
    if not 0 < probability <= 1:
        raise ValueError(f"probability={probability}; a number in (0, 1] is needed")
    words = {text: eligible_words(text) for row in rows for text in row}
    asked = [word for found in words.values() for word in found]
    candidates = dict(zip(asked, propose(asked), strict=True))
    usable = {text: [(word, candidates[word]) for word in found if candidates[word]] for text, found in words.items()}
    texts, origins = [], []
    for index, row in enumerate(rows):
        sides = [side for side, text in enumerate(row) if usable[text]]
        if not sides:
            continue
        random = np.random.default_rng([seed, *hashlib.sha256("\0".join(row).encode()).digest()[:8]])
        made = {row}
        for _ in range(copies):
            side = sides[random.integers(len(sides))]
            new = _replace(row[side], usable[row[side]], probability, random)
            copy = (*row[:side], new, *row[side + 1 :])
            if copy not in made:
                made.add(copy)
                texts.append(copy)
                origins.append(index)
    return Augmented(tuple(texts), tuple(origins))


def _replace(
    text: str, words: Sequence[tuple[Word, tuple[str, ...]]], probability: float, random: np.random.Generator
) -> str:
    parts, end = [], 0
    for (word, choices), draw in zip(words, random.random(len(words)), strict=True):
        if draw < probability:
            chosen = choices[random.integers(len(choices))]
            parts += [text[end : word.start], _cased_like(word.word, chosen)]
            end = word.end
    return "".join([*parts, text[end:]])


def _cased_like(old: str, new: str) -> str:
    if old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new
