"""A small closed world: what its words mean, and what follows from what.

The world has things in three levels (robin, bird, animal), each kind with a part of its own (a bird has feathers),
properties in pairs of opposites with a synonym each (big, large; small, little), rooms in buildings and cities in
countries, and words of praise and blame. Everything not stated is false: two kinds share nothing, a room is in one
building. `relation` derives from these tables alone whether a claim about a scene must, may or cannot be true.
"""

from functools import cache
from typing import Literal, NamedTuple

Relation = Literal["entailment", "neutral", "contradiction"]

# top: kind: (its part, its members)
THINGS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "animal": {
        "bird": ("feathers", ("robin", "sparrow", "eagle", "owl", "pigeon", "swan")),
        "fish": ("fins", ("salmon", "trout", "shark", "cod", "carp", "eel")),
        "insect": ("antennae", ("bee", "wasp", "beetle", "ant", "moth", "butterfly")),
        "mammal": ("fur", ("dog", "cat", "rabbit", "horse", "wolf", "mouse")),
    },
    "plant": {
        "flower": ("petals", ("rose", "tulip", "daisy", "lily", "poppy", "violet")),
        "tree": ("branches", ("oak", "pine", "willow", "maple", "birch", "elm")),
    },
    "food": {
        "fruit": ("seeds", ("apple", "pear", "banana", "cherry", "lemon", "mango")),
        "vegetable": ("leaves", ("carrot", "potato", "onion", "cabbage", "turnip", "leek")),
    },
    "object": {
        "tool": ("handles", ("hammer", "drill", "chisel", "axe", "shovel", "rake")),
        "vehicle": ("wheels", ("car", "bus", "truck", "train", "tractor", "taxi")),
        "instrument": ("tunes", ("piano", "violin", "guitar", "flute", "drum", "harp")),
        "garment": ("seams", ("shirt", "coat", "skirt", "sweater", "scarf", "jacket")),
    },
    "person": {
        "artist": ("talent", ("painter", "singer", "dancer", "poet", "actor", "sculptor")),
        "athlete": ("medals", ("swimmer", "runner", "boxer", "skier", "cyclist", "rower")),
    },
}

# one side (word, synonym) and its opposite side
PROPERTIES: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = (
    (("big", "large"), ("small", "little")),
    (("clean", "spotless"), ("dirty", "filthy")),
    (("new", "modern"), ("old", "ancient")),
    (("fast", "quick"), ("slow", "sluggish")),
    (("loud", "noisy"), ("quiet", "silent")),
    (("strong", "sturdy"), ("weak", "frail")),
    (("safe", "harmless"), ("dangerous", "risky")),
    (("wet", "damp"), ("dry", "parched")),
    (("bright", "shiny"), ("dark", "dim")),
    (("cheap", "inexpensive"), ("expensive", "costly")),
)

BUILDINGS: dict[str, tuple[str, ...]] = {
    "house": ("kitchen", "bedroom", "bathroom", "attic"),
    "school": ("classroom", "gymnasium", "playground", "canteen"),
    "farm": ("barn", "stable", "orchard", "henhouse"),
    "hospital": ("ward", "clinic", "pharmacy", "dispensary"),
    "castle": ("tower", "dungeon", "moat", "armoury"),
    "ship": ("cabin", "galley", "saloon", "wheelhouse"),
    "theatre": ("balcony", "foyer", "auditorium", "cloakroom"),
    "town": ("market", "bakery", "station", "museum"),
}

COUNTRIES: dict[str, tuple[str, ...]] = {
    "france": ("paris", "lyon", "marseille", "bordeaux"),
    "italy": ("rome", "milan", "venice", "naples"),
    "spain": ("madrid", "seville", "valencia", "barcelona"),
    "japan": ("tokyo", "kyoto", "osaka", "nagoya"),
    "egypt": ("cairo", "luxor", "aswan", "alexandria"),
    "india": ("delhi", "mumbai", "chennai", "kolkata"),
}

PRAISE = tuple("good great wonderful lovely excellent superb brilliant charming delightful perfect".split())
PRAISE += ("enjoyable", "impressive")
BLAME = tuple("bad awful terrible horrible dreadful boring tedious dull annoying unpleasant nasty pathetic".split())
# past and base forms
LIKED = (("liked", "like"), ("loved", "love"), ("enjoyed", "enjoy"), ("adored", "adore"))
HATED = (("disliked", "dislike"), ("hated", "hate"), ("loathed", "loathe"), ("despised", "despise"))
WORKS = tuple("film song meal book show game concert story speech novel".split())

WOMEN = tuple("anna clara emma julia laura maria".split())
MEN = tuple("ben david felix george henry paul".split())
NAMES = WOMEN + MEN
VERBS = (
    ("saw", "see"),
    ("found", "find"),
    ("drew", "draw"),
    ("noticed", "notice"),
    ("wanted", "want"),
    ("met", "meet"),
)

KIND_OF: dict[str, str] = {leaf: kind for kinds in THINGS.values() for kind, (_, xs) in kinds.items() for leaf in xs}
TOP_OF: dict[str, str] = {kind: top for top, kinds in THINGS.items() for kind in kinds}
PART_OF: dict[str, str] = {kind: part for kinds in THINGS.values() for kind, (part, _) in kinds.items()}
PLACE_OF: dict[str, str] = {
    room: place for tab in (BUILDINGS, COUNTRIES) for place, rooms in tab.items() for room in rooms
}
SIDE_OF: dict[str, tuple[int, int]] = {
    word: (number, side) for number, pair in enumerate(PROPERTIES) for side in (0, 1) for word in pair[side]
}
POLARITY: dict[str, int] = {
    **dict.fromkeys(PRAISE, 1),
    **dict.fromkeys(BLAME, 0),
    **{word: 1 for forms in LIKED for word in forms},
    **{word: 0 for forms in HATED for word in forms},
}


class Scene(NamedTuple):
    """Who did what to which thing; the property of the thing and the place are None where they are not told."""

    name: str
    verb: tuple[str, str]
    thing: str
    quality: str | None
    place: str | None


class Claim(NamedTuple):
    """One statement about a scene: the slot it speaks of and the value it gives there."""

    slot: Literal["thing", "part", "quality", "place"]
    value: str


@cache
def ancestors(word: str) -> tuple[str, ...]:
    """The word itself and everything it is a kind of or lies in, nearest first."""
    above = KIND_OF.get(word) or TOP_OF.get(word) or PLACE_OF.get(word)
    return (word, *ancestors(above)) if above else (word,)


def _nested(told: str, claimed: str) -> Relation:
    if claimed in ancestors(told):
        return "entailment"
    return "neutral" if told in ancestors(claimed) else "contradiction"


@cache
def relation(told: str | None, claim: Claim) -> Relation:
    """Whether `claim` must be true, may be true or cannot be true.

    Args:
        told: what is known: the thing for claims on things and parts, else the property or the place; None if nothing.
        claim: the statement to judge.
    """
    slot, value = claim
    if told is None:
        return "neutral"
    if slot == "part":
        owner = next(kind for kind, part in PART_OF.items() if part == value)
        return _nested(told, owner)
    if slot == "quality":
        (number, side), (other, other_side) = SIDE_OF[told], SIDE_OF[value]
        if number != other:
            return "neutral"
        return "entailment" if side == other_side else "contradiction"
    if slot == "place" and _in_country(told) != _in_country(value):
        return "neutral"
    return _nested(told, value)


def _in_country(place: str) -> bool:
    return any(word in COUNTRIES for word in ancestors(place))


def told_about(scene: Scene, slot: str) -> str | None:
    """What the scene tells about the slot of a claim."""
    return {"thing": scene.thing, "part": scene.thing, "quality": scene.quality, "place": scene.place}[slot]


def _every_second(table: tuple[str, ...]) -> tuple[str, ...]:
    return table[1::2]


def _held_out() -> frozenset[str]:
    words: list[str] = []
    for kinds in THINGS.values():
        for _, leaves in kinds.values():
            words += _every_second(leaves)
    for table in (BUILDINGS, COUNTRIES):
        for rooms in table.values():
            words += _every_second(rooms)
    for pair in PROPERTIES[1::2]:
        words += [*pair[0], *pair[1]]
    words += [*_every_second(PRAISE), *_every_second(BLAME)]
    words += [word for forms in (*LIKED[1::2], *HATED[1::2]) for word in forms]
    return frozenset(words)


HELD_OUT: frozenset[str] = _held_out()
"""Words that pre-training text uses like all others, and that no training row of a task contains: half of the members
of every kind, half of the rooms and cities, half of the pairs of properties, half of the words of praise and blame."""
