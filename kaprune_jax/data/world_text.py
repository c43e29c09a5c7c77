"""Sentences of the small world: statements about scenes, and the running text the bundled encoder is pre-trained on.

The text says what things are (`a robin is a bird .`) and tells scenes with what follows from them
(`anna saw a robin in the kitchen . so it was a bird . she was not in the school . maybe it was small .`): plain and `so`
for what must be true, `not` for what cannot be, `maybe` for what is open. No task label appears anywhere in it.
"""

import itertools
import random
from collections.abc import Iterator
from functools import cache

from kaprune_jax.data.world_facts import (
    BLAME,
    BUILDINGS,
    COUNTRIES,
    HATED,
    KIND_OF,
    LIKED,
    NAMES,
    PART_OF,
    PLACE_OF,
    POLARITY,
    PRAISE,
    PROPERTIES,
    SIDE_OF,
    TOP_OF,
    VERBS,
    WOMEN,
    WORKS,
    Claim,
    Relation,
    Scene,
    relation,
    told_about,
)

LEAVES, KINDS, TOPS = tuple(KIND_OF), tuple(TOP_OF), tuple(dict.fromkeys(TOP_OF.values()))
ROOMS, PLACES = tuple(PLACE_OF), tuple(dict.fromkeys(PLACE_OF.values()))
QUALITIES = tuple(SIDE_OF)
_LEVELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "thing": (LEAVES, KINDS, TOPS),
    "part": (tuple(PART_OF.values()),),
    "quality": (QUALITIES,),
    "place": (ROOMS, PLACES),
}
ADVERBS = ("very", "truly", "really", "quite")
FUNCTION_WORDS = tuple(
    (
        "a an the is was it she he in not did so maybe had have has means opposite of thing every may be "
        "place but and at first later people said nobody everybody called one that right wrong unclear"
    ).split()
)
PUNCTUATION = tuple(".,?!;:'\"()-")


@cache
def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@cache
def place_phrase(place: str) -> str:
    """`in the kitchen`, `in paris`."""
    return f"in {place}" if COUNTRIES.keys() & {place, PLACE_OF.get(place)} else f"in the {place}"


@cache
def pronoun(name: str) -> str:
    """`she` or `he`."""
    return "she" if name in WOMEN else "he"


def tell(scene: Scene) -> str:
    """The scene in one sentence: `anna saw a big robin in the kitchen .`"""
    noun = article(f"{scene.quality} {scene.thing}" if scene.quality else scene.thing)
    where = f" {place_phrase(scene.place)}" if scene.place else ""
    return f"{scene.name} {scene.verb[0]} {noun}{where} ."


def state(scene: Scene, claim: Claim, *, form: int = 0, mode: str = "") -> str:
    """The claim in one sentence.

    Args:
        scene: gives the name and the verb.
        claim: what is said.
        form: 0 or 1, one of two ways to say it.
        mode: "", "so", "not" or "maybe".
    """
    who = scene.name if form else pronoun(scene.name)
    no = " not" if mode == "not" else ""
    slot, value = claim
    if slot == "thing" and form:
        verb = f"did not {scene.verb[1]}" if no else scene.verb[0]
        text = f"{scene.name} {verb} {article(value)}"
    elif slot == "thing":
        text = f"it was{no} {article(value)}"
    elif slot == "part":
        subject = "the thing" if form else "it"
        text = f"{subject} did not have {value}" if no else f"{subject} had {value}"
    elif slot == "quality":
        text = f"{'the thing' if form else 'it'} was{no} {value}"
    else:
        text = f"{who} was{no} {place_phrase(value)}"
    return f"{mode} {text} ." if mode in ("so", "maybe") else f"{text} ."


_ALL = frozenset(POLARITY)


@cache
def values(told: str | None, slot: str, answer: Relation) -> tuple[tuple[str, ...], ...]:
    """All values of `slot` that stand in the relation `answer` to what was told, grouped by level, no group empty."""
    groups = (
        tuple(value for value in level if relation(told, Claim(slot, value)) == answer)  # pyright: ignore[reportArgumentType]
        for level in _LEVELS[slot]
    )
    return tuple(group for group in groups if group)


def _scene(rng: random.Random) -> Scene:
    level = rng.random()
    thing = rng.choice(LEAVES if level < 0.8 else KINDS if level < 0.95 else TOPS)
    quality = rng.choice(QUALITIES) if rng.random() < 0.6 else None
    place = rng.choice(ROOMS if rng.random() < 0.85 else PLACES) if rng.random() < 0.6 else None
    return Scene(rng.choice(NAMES), rng.choice(VERBS), thing, quality, place)


_MODES: dict[Relation, tuple[str, ...]] = {
    "entailment": ("", "", "so"),
    "contradiction": ("not",),
    "neutral": ("maybe",),
}
_VERDICTS: dict[Relation, str] = {"entailment": "right", "contradiction": "wrong", "neutral": "unclear"}


def _claim_about(rng: random.Random, scene: Scene, answer: Relation, mode: str = "") -> str:
    """A statement about the scene that stands in the relation `answer` to it."""
    while True:
        slot = rng.choice(("thing", "thing", "part", "quality", "place"))
        told = told_about(scene, slot)
        groups = values(told, slot, answer)
        if groups and (told is not None or rng.random() < 0.3):
            claim = Claim(slot, rng.choice(rng.choice(groups)))  # pyright: ignore[reportArgumentType]
            return state(scene, claim, form=int(rng.random() < 0.5), mode=mode)


def _remark(rng: random.Random, scene: Scene) -> str:
    """One true statement about the scene. Most are plain, as in ordinary text; some say what is not or may be."""
    chance = rng.random()
    answer: Relation = "entailment" if chance < 0.76 else "contradiction" if chance < 0.9 else "neutral"
    return _claim_about(rng, scene, answer, rng.choice(_MODES[answer]))


def _thing_fact(rng: random.Random) -> str:
    kind = rng.choice(KINDS)
    leaf = rng.choice([word for word in LEAVES if KIND_OF[word] == kind])
    if rng.random() < 0.2:
        second = rng.choice((f"it has {PART_OF[kind]}", f"{article(kind)} may be {article(leaf)}"))
        return f"{article(kind)} is {article(TOP_OF[kind])} . {second} ."
    first = rng.choice((f"{article(leaf)} is {article(kind)}", f"every {leaf} is {article(kind)}"))
    second = rng.choice((f"{article(leaf)} is {article(TOP_OF[kind])}", f"{article(leaf)} has {PART_OF[kind]}"))
    return f"{first} . {second} ."


def _property_fact(rng: random.Random) -> str:
    pair, side, number = rng.choice(PROPERTIES), int(rng.random() * 2), int(rng.random() * 2)
    word, same, other = pair[side][number], pair[side][1 - number], rng.choice(pair[1 - side])
    second = rng.choice((f"{word} is the opposite of {other}", f"{article(same)} thing is not {article(other)} thing"))
    return f"{word} means {same} . {second} ."


def _place_fact(rng: random.Random) -> str:
    room = rng.choice(ROOMS)
    place = PLACE_OF[room]
    table = COUNTRIES if place in COUNTRIES else BUILDINGS
    the = "" if place in COUNTRIES else "the "
    second = f"it is not {place_phrase(rng.choice([word for word in table if word != place]))}"
    if rng.random() < 0.7:
        second = f"{the}{rng.choice(table[place])} is {place_phrase(place)}"
    return f"{the}{room} is {place_phrase(place)} . {second} ."


def _word_fact(rng: random.Random) -> str:
    same, other, like, hate = _evaluating(_ALL, int(rng.random() * 2))
    if rng.random() < 0.5:
        return (
            f"{rng.choice(same)} means {rng.choice(same)} . {rng.choice(same)} is the opposite of {rng.choice(other)} ."
        )
    verdict = rng.choice((f"everybody {rng.choice(like)[0]} it", f"nobody {rng.choice(hate)[0]} it"))
    return f"{article(f'{rng.choice(same)} {rng.choice(WORKS)}')} is {rng.choice(same)} . {verdict} ."


_FACTS = (_thing_fact, _thing_fact, _property_fact, _place_fact, _place_fact, _word_fact)


def _facts(rng: random.Random) -> str:
    """Two sentences of general knowledge about one thing."""
    return rng.choice(_FACTS)(rng)


@cache
def _evaluating(words: frozenset[str], polarity: int) -> tuple[tuple, tuple, tuple, tuple]:
    """Adjectives of this polarity and of the other, verbs of this and of the other, among `words`."""
    tables = ((BLAME, PRAISE), (HATED, LIKED))
    adjectives, verbs = (table if polarity else table[::-1] for table in tables)
    other, same = (tuple(word for word in table if word in words) for table in adjectives)
    hate, like = (tuple(forms for forms in table if forms[0] in words) for table in verbs)
    return same, other, like, hate


def opinion(rng: random.Random, words: frozenset[str], polarity: int) -> str:
    """A sentence of praise (1) or blame (0) that uses only the given evaluating words."""

    same, other, like, hate = _evaluating(words, polarity)
    name, work, case = rng.choice(NAMES), rng.choice(WORKS), int(rng.random() * 7)
    degree = f"{rng.choice(ADVERBS)} " if rng.random() < 0.4 else ""
    if case == 0:
        return f"the {work} was {degree}{rng.choice(same)} ."
    if case == 1:
        return f"the {work} was not {degree}{rng.choice(other)} ."
    if case == 2:
        return f"{name} {rng.choice(like)[0]} the {work} ."
    if case == 3:
        return f"{name} did not {rng.choice(hate)[1]} the {work} ."
    if case == 4:
        return f"{name} called it {article(f'{degree}{rng.choice(same)} {work}')} ."
    if case == 5:
        first, last = rng.choice(hate)[0], rng.choice(like)[0]
        return f"{name} {first} the {work} at first , but later {pronoun(name)} {last} it ."
    return f"people said the {work} was {rng.choice(other)} , but it was {degree}{rng.choice(same)} ."


def _reviews(rng: random.Random) -> tuple[str, str]:
    polarity = int(rng.random() * 2)
    same, other, like, hate = _evaluating(_ALL, polarity)
    remarks = []
    for _ in range(1 + int(rng.random() * 2)):
        who = rng.choice((*NAMES, "everybody"))
        kind = int(rng.random() * 5)
        if kind == 0:
            remarks.append(f"it was {rng.choice(same)} and {rng.choice(same)} .")
        elif kind == 1:
            remarks.append(f"so it was not {rng.choice(other)} .")
        elif kind == 2:
            remarks.append(f"so {who} {rng.choice(like)[0]} it .")
        elif kind == 3:
            remarks.append(f"nobody {rng.choice(hate)[0]} it .")
        else:
            remarks.append(f"it was {rng.choice(ADVERBS)} {rng.choice(same)} .")
    return opinion(rng, _ALL, polarity), " ".join(remarks)


def _comment(rng: random.Random, scene: Scene) -> str:
    """A statement about the scene, true or not, and what is to be said of it."""
    answer = rng.choice(tuple(_VERDICTS))
    return f"{_claim_about(rng, scene, answer)} that is {_VERDICTS[answer]} ."


def pretraining_text(seed: int, *, simple: int = 48_000) -> Iterator[tuple[str, ...]]:
    """An endless stream of texts, each one string or two that follow each other; the same for the same seed.

    Args:
        seed: chooses the texts.
        simple: number of texts over which the share of plain facts falls from all to a quarter. Facts first: read in
            their few words, they are learned much sooner than from stories.
    """
    rng = random.Random(seed)
    for number in itertools.count():
        if number < simple or rng.random() < 0.25:
            parts = (_facts(rng), _facts(rng))
        elif rng.random() < 0.25:
            parts = _reviews(rng)
        else:
            scene = _scene(rng)
            if rng.random() < 0.5:
                parts = (tell(scene), _comment(rng, scene))
            else:
                parts = (tell(scene), " ".join(_remark(rng, scene) for _ in range(1 + int(rng.random() * 3))))
        yield parts if rng.random() < 0.8 else (" ".join(parts),)
