"""The small world: deterministic, balanced, free of shortcuts, its labels true by the tables of facts."""

import itertools
from functools import cache

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from kaprune_jax._errors import InputError
from kaprune_jax.data import world_facts as facts
from kaprune_jax.data.world import MICRO_TASKS, SPECIAL, held_out_rows, load_world, vocabulary, write_tokenizer
from kaprune_jax.data.world_text import pretraining_text

INFERENCE = ("micro-rte", "micro-nli")
FINGERPRINTS = {"micro-nli": "4ddd4f38ce6a", "micro-rte": "78da26388958", "micro-sst": "503138c5fde3"}


loaded = cache(load_world)


@pytest.fixture(scope="module", params=MICRO_TASKS)
def data(request):
    return loaded(request.param)


def everything(data):
    return data.train.texts + data.dev.texts


@pytest.mark.parametrize("task", MICRO_TASKS)
def test_same_seed_same_rows(task):
    first, again, other = loaded(task), load_world(task), load_world(task, seed=1)
    assert first.train.texts == again.train.texts
    assert first.dev.texts == again.dev.texts
    np.testing.assert_array_equal(first.dev.labels, again.dev.labels)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.train.texts != other.train.texts


def test_fingerprint_is_the_same_on_every_machine_and_python():
    # Changing a table or a sentence changes every published figure of the built-in tasks: do it knowingly.
    assert {task: loaded(task).fingerprint[:12] for task in MICRO_TASKS} == FINGERPRINTS


def test_pretraining_text_is_seeded():
    def first(seed):
        return list(itertools.islice(pretraining_text(seed), 200))

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_unknown_task_names_the_allowed_ones():
    with pytest.raises(InputError, match=r"micro-qqp.*micro-rte, micro-nli, micro-sst"):
        load_world("micro-qqp")


def test_labels_are_balanced(data):
    for rows in (data.train, data.dev):
        counts = np.bincount(rows.labels, minlength=len(data.labels))
        assert counts.max() - counts.min() <= len(data.labels)
        assert rows.labels.dtype == np.int32
        assert len(rows.labels) == len(rows.texts)


def test_no_row_occurs_twice(data):
    rows = everything(data)
    assert len(set(rows)) == len(rows)


def test_training_rows_have_no_held_out_word_and_half_of_dev_does(data):
    train_words = {word for texts in data.train.texts for text in texts for word in text.split()}
    assert not train_words & facts.HELD_OUT
    held_out = held_out_rows(data.dev)
    assert held_out.mean() == 0.5
    for texts, held in zip(data.dev.texts, held_out, strict=True):
        assert held == bool({word for text in texts for word in text.split()} & facts.HELD_OUT)


def test_held_out_words_are_in_pretraining_text():
    words = {word for texts in itertools.islice(pretraining_text(0), 20_000) for text in texts for word in text.split()}
    assert words >= facts.HELD_OUT


def test_vocabulary_covers_every_word(data):
    known = set(vocabulary())
    text = [text for texts in everything(data) for text in texts]
    text += [text for texts in itertools.islice(pretraining_text(3), 5000) for text in texts]
    assert {word for line in text for word in line.split()} <= known


def test_world_has_no_ambiguous_word():
    leaves = [leaf for kinds in facts.THINGS.values() for _, xs in kinds.values() for leaf in xs]
    rooms = [room for table in (facts.BUILDINGS, facts.COUNTRIES) for xs in table.values() for room in xs]
    properties = [word for pair in facts.PROPERTIES for side in pair for word in side]
    tables = [leaves, rooms, properties, [*facts.TOP_OF], [*facts.THINGS], [*facts.BUILDINGS], [*facts.COUNTRIES]]
    tables += [[*facts.PRAISE], [*facts.BLAME], [*facts.NAMES], [*facts.WORKS], [*facts.PART_OF.values()]]
    words = [word for table in tables for word in table]
    assert sorted(words) == sorted(set(words))
    assert len(set(vocabulary())) == len(vocabulary())


# The independent judge: reads a sentence back into facts, with sets built from the raw tables.


@cache
def chain(word):
    for top, kinds in facts.THINGS.items():
        if word == top:
            return {top}
        for kind, (_, leaves) in kinds.items():
            if word == kind:
                return {top, kind}
            if word in leaves:
                return {top, kind, word}
    for table in (facts.BUILDINGS, facts.COUNTRIES):
        for place, rooms in table.items():
            if word == place:
                return {place}
            if word in rooms:
                return {place, word}
    return set()


def read(sentence):
    """(thing, part, property, place) named in a sentence, each None where absent."""
    found = {}
    for word in sentence.replace("the thing", "it").split():
        if chain(word) & set(facts.THINGS):
            found["thing"] = word
        elif side_of(word):
            found["quality"] = word
        elif any(word == part for kinds in facts.THINGS.values() for part, _ in kinds.values()):
            found["part"] = word
        elif chain(word):
            found["place"] = word
    return found


@cache
def side_of(word):
    return next(((n, s) for n, pair in enumerate(facts.PROPERTIES) for s in (0, 1) if word in pair[s]), None)


def judge(premise, hypothesis):
    told, claim = read(premise), read(hypothesis)
    (slot, value) = next((slot, value) for slot, value in claim.items())
    assert len(claim) == 1, hypothesis
    source = told.get("thing" if slot == "part" else slot)
    if source is None:
        return "neutral"
    if slot == "quality":
        (number, side), (other, other_side) = side_of(source), side_of(value)
        return "neutral" if number != other else "entailment" if side == other_side else "contradiction"
    if slot == "part":
        value = next(k for kinds in facts.THINGS.values() for k, (part, _) in kinds.items() if part == value)
    above, below = chain(source), chain(value)
    if slot == "place" and (above & set(facts.COUNTRIES) == set()) != (below & set(facts.COUNTRIES) == set()):
        return "neutral"
    return "entailment" if value in above else "neutral" if source in below else "contradiction"


@pytest.mark.parametrize("task", INFERENCE)
def test_labels_of_inference_follow_from_the_facts(task):
    data = loaded(task)
    for rows in (data.train, data.dev):
        for (premise, hypothesis), label in zip(rows.texts, rows.labels, strict=True):
            answer = judge(premise, hypothesis)
            if task == "micro-rte" and answer != "entailment":
                answer = "not_entailment"
            assert data.labels[label] == answer, (premise, hypothesis)


def test_labels_of_opinions_follow_from_the_facts():
    data = loaded("micro-sst")
    praise = {*facts.PRAISE, *(word for forms in facts.LIKED for word in forms)}
    blame = {*facts.BLAME, *(word for forms in facts.HATED for word in forms)}
    for rows in (data.train, data.dev):
        for (text,), label in zip(rows.texts, rows.labels, strict=True):
            last = set(text.split(" but ")[-1].split())
            assert bool(last & praise) != bool(last & blame), text
            assert data.labels[label] == ("positive" if bool(last & praise) != ("not" in last) else "negative")


@pytest.mark.parametrize("task", INFERENCE)
@pytest.mark.parametrize("side", [0, 1], ids=["premise-only", "hypothesis-only"])
def test_one_sentence_alone_does_not_tell_the_label(task, side):
    data = loaded(task)
    words = CountVectorizer(ngram_range=(1, 2))
    train = words.fit_transform([texts[side] for texts in data.train.texts])
    dev = words.transform([texts[side] for texts in data.dev.texts])
    score = LogisticRegression(max_iter=500).fit(train, data.train.labels).score(dev, data.dev.labels)
    chance = 1 / len(data.labels)
    assert score < chance + (0.06 if side else 0.12)


@pytest.mark.parametrize("task", MICRO_TASKS)
def test_counting_words_is_not_enough(task):
    data = loaded(task)
    words = CountVectorizer(ngram_range=(1, 2))

    def marked(rows):
        return [
            " ".join(f"{word}{number}" for number, text in enumerate(texts) for word in text.split())
            for texts in rows.texts
        ]

    model = LogisticRegression(max_iter=500).fit(words.fit_transform(marked(data.train)), data.train.labels)
    held_out = held_out_rows(data.dev)
    features = words.transform(marked(data.dev))[held_out]
    assert model.score(features, data.dev.labels[held_out]) < 0.72


def test_stock_tokenizer_reads_the_folder(tmp_path, data):
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(list(range(len(vocabulary())))) == list(vocabulary())
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)
    texts = data.dev.texts[-1]
    encoded = tokenizer(*texts)
    body = [[*text.split(), "[SEP]"] for text in texts]
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", *itertools.chain(*body)]
    segments = [0, *(number for number, part in enumerate(body) for _ in part)]
    assert encoded["token_type_ids"] == segments
    assert tokenizer("Anna SAW zzz!")["input_ids"] == tokenizer("anna saw [UNK] !")["input_ids"]
