"""The built-in tasks: made from the small world, so that they need neither network nor files.

`micro-nli` (does the second sentence follow, contradict, or neither), `micro-rte` (does it follow or contradict, with
few training rows) and `micro-sst` (praise or blame). Training rows use about half of the world's words
(`world_facts.HELD_OUT` are the others); half of the development rows need the held-out ones, which a model can only
know from pre-training. What is asked is drawn before the answer, so neither sentence alone tells the label.
"""

import json
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import RawRows, Rows, TaskData, task_data
from kaprune_jax.data.world_facts import (
    HELD_OUT,
    NAMES,
    PART_OF,
    POLARITY,
    VERBS,
    WORKS,
    Claim,
    Relation,
    Scene,
    relation,
)
from kaprune_jax.data.world_text import (
    _LEVELS,
    ADVERBS,
    FUNCTION_WORDS,
    KINDS,
    LEAVES,
    PLACES,
    PUNCTUATION,
    QUALITIES,
    ROOMS,
    TOPS,
    opinion,
    state,
    tell,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_SIZES = {"micro-rte": (300, 1600), "micro-nli": (4000, 1200), "micro-sst": (600, 800)}
# The few rows of micro-rte are all about kinds of things; places and properties are told beside them.
_SLOTS = {"micro-rte": ("thing",), "micro-nli": ("thing", "quality", "quality", "place", "place")}
_LEVELS_ASKED: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "micro-rte": {"thing": (KINDS,)},
    "micro-nli": {
        "thing": (KINDS, KINDS, KINDS, LEAVES),
        "quality": (QUALITIES,),
        "place": (PLACES, PLACES, PLACES, ROOMS),
    },
}
_LABELS: dict[str, tuple[str, ...]] = {
    "micro-rte": ("entailment", "not_entailment"),
    "micro-nli": ("entailment", "neutral", "contradiction"),
    "micro-sst": ("negative", "positive"),
}
MICRO_TASKS = tuple(_SIZES)

# Levels that a claim may name; "leaf" only where the premise can name the same leaf or its kind.


_Fits = Callable[[tuple[str, ...]], bool]


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id: the special ones, punctuation, then the world's words."""
    words = {*FUNCTION_WORDS, *ADVERBS, *LEAVES, *KINDS, *TOPS, *PART_OF.values(), *QUALITIES, *ROOMS, *PLACES}
    words |= {*POLARITY, *NAMES, *WORKS, *(word for forms in VERBS for word in forms)}
    return (*SPECIAL, *PUNCTUATION, *sorted(words))


def write_tokenizer(folder: str | Path, *, max_length: int = 64) -> None:
    """Writes `vocab.txt`, `tokenizer.json` and `tokenizer_config.json` of a lower-casing BERT WordPiece tokenizer.

    Args:
        folder: where to; made if it is not there.
        max_length: the longest input of the model, in tokens.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(vocabulary())}
    lower = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    start, end = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    last = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **added} for token in SPECIAL],
        "normalizer": {"type": "BertNormalizer", **lower},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first, end],
            "pair": [start, first, end, second, last],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": max_length,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    }
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in ids), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


@cache
def _premises(claim: Claim, answer: Relation, held_out: bool) -> tuple[tuple[str, ...], ...]:
    """What a premise may tell so that `claim` stands in the relation `answer` to it, by level, no level empty."""
    levels = _LEVELS["thing" if claim.slot == "part" else claim.slot]
    kept = (
        tuple(
            word
            for word in level
            if (held_out or word not in HELD_OUT)
            and relation(word, claim) == answer
            and (word != claim.value or word in LEAVES or word in ROOMS)
        )
        for level in levels
    )
    return tuple(level for level in kept if level)


@cache
def _allowed(words: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    return tuple(word for word in words if held_out or word not in HELD_OUT)


def _claim(rng: random.Random, task: str, held_out: bool) -> Claim:
    """What is asked; drawn before the answer, from a distribution that does not depend on it."""
    slot = rng.choice(_SLOTS[task])
    level = rng.choice(_LEVELS_ASKED[task][slot])
    return Claim(slot, rng.choice(_allowed(level, held_out)))


def _inference(rng: random.Random, task: str, label: str, held_out: bool, fits: _Fits) -> tuple[str, ...]:
    """A premise and a hypothesis with the given label that fit; held-out words only if `held_out`."""
    claim, form = _claim(rng, task, held_out), int(rng.random() < 0.5)
    slot = "thing" if claim.slot == "part" else claim.slot
    for _ in range(1000):
        answer: Relation = label  # pyright: ignore[reportAssignmentType]
        if label == "not_entailment":
            answer = "contradiction"
        groups = _premises(claim, answer, held_out)
        told = rng.choice(groups[0] if rng.random() < 0.8 else rng.choice(groups)) if groups else None
        quality = rng.choice(_allowed(QUALITIES, held_out)) if rng.random() < 0.6 else None
        place = rng.choice(_allowed(ROOMS, held_out)) if rng.random() < 0.6 else None
        thing = rng.choice(_allowed(LEAVES, held_out))
        scene = Scene(rng.choice(NAMES), rng.choice(VERBS), thing, quality, place)._replace(**{slot: told})
        row = (tell(scene), state(scene, claim, form=form))
        if fits(row):
            return row
    raise AssertionError(f"no row for {claim}, {label}")


def _review(rng: random.Random, task: str, label: str, held_out: bool, fits: _Fits) -> tuple[str, ...]:
    words = frozenset(_allowed(tuple(POLARITY), held_out))
    while True:
        row = (opinion(rng, words, int(label == "positive")),)
        if fits(row):
            return row


def uses_held_out(texts: Iterable[str]) -> bool:
    """Whether a row contains a word that no training row contains."""
    return any(word in HELD_OUT for text in texts for word in text.split())


def held_out_rows(rows: Rows) -> Bool[np.ndarray, " rows"]:
    """Which rows contain held-out words, hence need knowledge from pre-training."""
    return np.array([uses_held_out(texts) for texts in rows.texts], bool)


def _draw(
    rng: random.Random, task: str, count: int, held_out: bool, taken: set[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], str]]:
    """`count` new rows, the labels in turn; every row of a held-out draw contains a held-out word."""
    make = _review if task == "micro-sst" else _inference
    rows = []
    for index in range(count):
        label = _LABELS[task][index % len(_LABELS[task])]
        texts = make(rng, task, label, held_out, lambda row: row not in taken and uses_held_out(row) == held_out)
        taken.add(texts)
        rows.append((texts, label))
    return rows


def load_world(task: str, *, seed: int = 0) -> TaskData:
    """One of the built-in tasks.

    Args:
        task: "micro-rte", "micro-nli" or "micro-sst".
        seed: chooses the rows; the world and the held-out words stay.

    Returns:
        Balanced rows without duplicates; the first half of `dev` uses words of the training rows only, every row of
        the second half (`dev_groups["new_words"]`) contains a held-out word.

    Raises:
        InputError: another task.
    """
    if task not in _SIZES:
        raise InputError(f"task={task!r}; built in are {', '.join(_SIZES)}")
    rng = random.Random(f"{task} {seed}")
    train_count, dev_count = _SIZES[task]
    taken: set[tuple[str, ...]] = set()
    train = _draw(rng, task, train_count, False, taken)
    dev = [*_draw(rng, task, dev_count // 2, False, taken), *_draw(rng, task, dev_count // 2, True, taken)]

    def raw(split: str, rows: list[tuple[tuple[str, ...], str]]) -> RawRows:
        texts, labels = zip(*rows, strict=True)
        return RawRows(f"{task} {split}", texts, labels, tuple(range(1, len(rows) + 1)))

    data = task_data(
        task, raw("train", train), raw("dev", dev), kind="classification", metrics=("accuracy",), labels=_LABELS[task]
    )
    return data._replace(dev_groups={"new_words": held_out_rows(data.dev)})
