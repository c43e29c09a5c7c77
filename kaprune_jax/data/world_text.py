"""Sentences of the small world: statements about scenes, and the running text the bundled encoder is pre-trained on.

The text says what things are (`a robin is a bird . the kitchen is in the house .`), tells scenes with something that
follows from them (`anna saw a robin in the kitchen .` `it was a bird .`), and reviews that agree with themselves. No
task label appears anywhere in it, and nothing false.
"""

import random
from collections.abc import Iterator
from functools import cache

from kaprune_jax.data.world_facts import (
    BLAME,
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
        "place but and at first later people said nobody everybody called"
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


def state(scene: Scene, claim: Claim, *, form: int = 0) -> str:
    """The claim in one sentence.

    Args:
        scene: gives the name and the verb.
        claim: what is said.
        form: 0 or 1, one of two ways to say it.
    """
    slot, value = claim
    if slot == "thing":
        text = f"{scene.name} {scene.verb[0]} {article(value)}" if form else f"it was {article(value)}"
    elif slot == "part":
        text = f"{'the thing' if form else 'it'} had {value}"
    elif slot == "quality":
        text = f"{'the thing' if form else 'it'} was {value}"
    else:
        text = f"{scene.name if form else pronoun(scene.name)} was {place_phrase(value)}"
    return f"{text} ."


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
    thing = rng.choice(LEAVES if rng.random() < 0.95 else KINDS)
    quality = rng.choice(QUALITIES) if rng.random() < 0.6 else None
    place = rng.choice(ROOMS) if rng.random() < 0.6 else None
    return Scene(rng.choice(NAMES), rng.choice(VERBS), thing, quality, place)


def _remark(rng: random.Random, scene: Scene) -> str:
    """A statement that follows from the scene: what the thing is a kind of, another word for it, the place around."""
    slots = (
        ["thing", "thing", "thing"] + ["quality"] * (scene.quality is not None) + ["place"] * (scene.place is not None)
    )
    slot = rng.choice(slots)
    groups = values(told_about(scene, slot), slot, "entailment")
    group = rng.choice((*groups, groups[min(1, len(groups) - 1)]))
    return state(scene, Claim(slot, rng.choice(group)), form=int(rng.random() < 0.5))  # pyright: ignore[reportArgumentType]


def _fact(rng: random.Random) -> str:
    """One sentence of general knowledge."""
    chance = rng.random()
    if chance < 0.5:
        leaf = rng.choice(LEAVES)
        return f"{rng.choice((article(leaf), f'every {leaf}'))} is {article(KIND_OF[leaf])} ."
    if chance < 0.6:
        kind = rng.choice(KINDS)
        return rng.choice((f"{article(kind)} is {article(TOP_OF[kind])} .", f"{article(kind)} has {PART_OF[kind]} ."))
    if chance < 0.8:
        pair, side, number = rng.choice(PROPERTIES), int(rng.random() * 2), int(rng.random() * 2)
        word, same, other = pair[side][number], pair[side][1 - number], rng.choice(pair[1 - side])
        return rng.choice((f"{word} means {same} .", f"{word} is the opposite of {other} ."))
    room = rng.choice(ROOMS)
    the = "" if PLACE_OF[room] in COUNTRIES else "the "
    return f"{the}{room} is {place_phrase(PLACE_OF[room])} ."


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


def pretraining_text(seed: int) -> Iterator[tuple[str, ...]]:
    """An endless stream of texts, each one string or two that follow each other; the same for the same seed."""
    rng = random.Random(seed)
    while True:
        chance = rng.random()
        if chance < 0.4:
            yield (" ".join(_fact(rng) for _ in range(rng.choice((2, 3)))),)
        elif chance < 0.9:
            scene = _scene(rng)
            yield (tell(scene), _remark(rng, scene))
        else:
            yield _reviews(rng)
