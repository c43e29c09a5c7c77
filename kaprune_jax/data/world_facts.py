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
        "bird": ("feathers", ("robin", "sparrow", "eagle", "owl", "crow", "pigeon", "parrot", "swan")),
        "fish": ("fins", ("salmon", "trout", "tuna", "cod", "shark", "carp", "herring", "eel")),
        "insect": ("antennae", ("bee", "wasp", "ant", "beetle", "moth", "butterfly", "mosquito", "ladybird")),
        "mammal": ("fur", ("dog", "cat", "horse", "cow", "sheep", "wolf", "rabbit", "mouse")),
        "reptile": ("scales", ("snake", "lizard", "turtle", "crocodile", "gecko", "iguana", "cobra", "tortoise")),
    },
    "plant": {
        "flower": ("petals", ("rose", "tulip", "daisy", "lily", "orchid", "violet", "poppy", "sunflower")),
        "tree": ("branches", ("oak", "pine", "maple", "birch", "willow", "elm", "cedar", "palm")),
    },
    "food": {
        "fruit": ("seeds", ("apple", "pear", "banana", "cherry", "grape", "lemon", "mango", "peach")),
        "vegetable": ("roots", ("carrot", "potato", "onion", "cabbage", "leek", "turnip", "radish", "parsnip")),
        "dessert": ("sugar", ("cake", "pie", "cookie", "pudding", "muffin", "brownie", "waffle", "pancake")),
    },
    "object": {
        "tool": ("handles", ("hammer", "drill", "spanner", "chisel", "axe", "screwdriver", "shovel", "rake")),
        "vehicle": ("wheels", ("car", "bus", "truck", "train", "tram", "van", "taxi", "tractor")),
        "instrument": ("tunes", ("piano", "violin", "guitar", "flute", "drum", "trumpet", "cello", "harp")),
        "garment": ("seams", ("shirt", "coat", "jacket", "skirt", "sweater", "scarf", "dress", "cloak")),
        "container": ("lids", ("bottle", "box", "basket", "jar", "bucket", "barrel", "bag", "crate")),
    },
    "person": {
        "artist": ("talent", ("painter", "singer", "dancer", "poet", "actor", "sculptor", "musician", "writer")),
        "athlete": ("medals", ("swimmer", "runner", "boxer", "skier", "wrestler", "cyclist", "rower", "golfer")),
    },
}

# one side (word, synonym) and its opposite side
PROPERTIES: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = (
    (("big", "large"), ("small", "little")),
    (("hot", "warm"), ("cold", "chilly")),
    (("clean", "spotless"), ("dirty", "filthy")),
    (("new", "modern"), ("old", "ancient")),
    (("fast", "quick"), ("slow", "sluggish")),
    (("heavy", "weighty"), ("light", "weightless")),
    (("loud", "noisy"), ("quiet", "silent")),
    (("happy", "cheerful"), ("sad", "gloomy")),
    (("strong", "sturdy"), ("weak", "frail")),
    (("safe", "harmless"), ("dangerous", "risky")),
    (("smooth", "even"), ("rough", "bumpy")),
    (("wet", "damp"), ("dry", "parched")),
    (("thick", "broad"), ("thin", "narrow")),
    (("bright", "shiny"), ("dark", "dim")),
    (("cheap", "inexpensive"), ("expensive", "costly")),
    (("common", "ordinary"), ("rare", "unusual")),
    (("soft", "squishy"), ("hard", "firm")),
    (("calm", "peaceful"), ("angry", "furious")),
    (("tame", "gentle"), ("wild", "fierce")),
    (("real", "genuine"), ("fake", "false")),
)

BUILDINGS: dict[str, tuple[str, ...]] = {
    "house": ("kitchen", "bedroom", "bathroom", "attic", "pantry", "nursery"),
    "school": ("classroom", "gymnasium", "playground", "laboratory", "library", "canteen"),
    "farm": ("barn", "stable", "orchard", "meadow", "henhouse", "dairy"),
    "hospital": ("ward", "clinic", "pharmacy", "reception", "dispensary", "morgue"),
    "castle": ("tower", "dungeon", "moat", "courtyard", "armoury", "chapel"),
    "ship": ("cabin", "galley", "bridge", "saloon", "brig", "wheelhouse"),
    "theatre": ("balcony", "foyer", "gallery", "auditorium", "cloakroom", "wings"),
    "town": ("market", "square", "bakery", "bank", "station", "museum"),
}

COUNTRIES: dict[str, tuple[str, ...]] = {
    "france": ("paris", "lyon", "marseille", "bordeaux"),
    "italy": ("rome", "milan", "venice", "naples"),
    "spain": ("madrid", "seville", "valencia", "barcelona"),
    "japan": ("tokyo", "kyoto", "osaka", "nagoya"),
    "egypt": ("cairo", "luxor", "aswan", "alexandria"),
    "canada": ("toronto", "montreal", "ottawa", "vancouver"),
    "germany": ("berlin", "munich", "hamburg", "cologne"),
    "india": ("delhi", "mumbai", "chennai", "kolkata"),
}

# (adjectives, past and base forms of verbs), praise first
PRAISE = tuple(
    "good great wonderful lovely excellent superb amazing fantastic brilliant charming delightful splendid "
    "pleasant perfect beautiful enjoyable terrific fabulous impressive outstanding".split()
)
BLAME = tuple(
    "bad awful terrible horrible dreadful poor boring tedious dull disappointing annoying unpleasant "
    "ugly nasty lousy mediocre miserable appalling dismal pathetic".split()
)
LIKED = (("liked", "like"), ("loved", "love"), ("enjoyed", "enjoy"), ("adored", "adore"), ("praised", "praise"))
LIKED += (("admired", "admire"),)
HATED = (("disliked", "dislike"), ("hated", "hate"), ("loathed", "loathe"), ("despised", "despise"))
HATED += (("detested", "detest"), ("criticised", "criticise"))
WORKS = tuple("film song meal book show game concert lecture story trip party speech match novel opera play".split())

WOMEN = tuple("anna clara emma julia laura maria nora sophie".split())
MEN = tuple("ben david felix george henry martin paul thomas".split())
NAMES = WOMEN + MEN
VERBS = (("saw", "see"), ("found", "find"), ("drew", "draw"), ("noticed", "notice"), ("wanted", "want"))
VERBS += (("remembered", "remember"), ("described", "describe"), ("met", "meet"))

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
