"""Passages in windows, against windows that are tried one by one, and against the tokenizer's own."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import Rows
from kaprune_jax.data.windows import cut, default_stride, encode_windows
from kaprune_jax.deploy.folder import MINI
from kaprune_jax.deploy.tokenizer import load_tokenizer

WORDS = "anna saw the robin in kyoto . Ben, who adored zebras (2) naïve".split()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINI)


def rows_of(*triples):
    """Rows from questions, passages and places of answers."""
    return Rows(
        tuple((question, passage) for question, passage, _ in triples),
        np.array([place for _, _, place in triples], np.int32),
        names=tuple(f"train.json, question '{number}'" for number in range(len(triples))),
    )


def brute(tokens, room, stride):
    """Windows laid one by one."""
    found, start = [], 0
    while True:
        found.append((start, min(start + room, tokens)))
        if start + room >= tokens:
            return found
        start += room - stride


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_are_laid_one_after_the_other(tokens, room, data):
    stride = data.draw(st.integers(0, room - 1))
    windows = cut(tokens, room, stride)
    assert windows == brute(tokens, room, stride)
    assert all(end - start <= room for start, end in windows)
    for start in range(tokens):  # every piece of up to stride + 1 tokens lies in one
        end = min(start + stride + 1, tokens)
        assert any(low <= start and end <= high for low, high in windows)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60), st.integers(16, 40), st.data())
def test_answers_that_fit_lie_in_a_window_and_decode_to_their_text(tokenizer, words, max_length, data):
    passage = data.draw(st.sampled_from(["", " ", "\n\t"])) + "  ".join(words)
    stride = data.draw(st.integers(0, max_length - 16))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 4, len(words) - 1)))
    begin = passage.index("  ".join(words)) + sum(len(word) + 2 for word in words[:first])
    end = begin + len("  ".join(words[first : last + 1]))
    found = encode_windows(
        rows_of(("who ?", passage, (begin, end))), tokenizer, max_length=max_length, stride=stride
    )  # fmt: skip
    holding = [number for number, place in enumerate(found.encoded.labels) if place.any()]
    whole = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    size = sum(low < end and high > begin for low, high in whole)
    assert found.encoded.truncated == (not holding)
    if size <= stride + 1:
        assert holding
    for number in holding:
        (start, stop), where = found.encoded.labels[number], found.offsets[number]
        assert passage[where[start, 0] : where[stop, 1]] == passage[begin:end]
    for number, place in enumerate(found.encoded.labels):
        if number not in holding:
            assert place.tolist() == [0, 0]
            assert found.encoded.input_ids[number][0] == tokenizer.cls_token_id


@pytest.mark.parametrize(("max_length", "stride"), [(16, 4), (24, 0), (24, 11), (64, 21)])
def test_the_same_windows_as_the_tokenizers_own(tokenizer, max_length, stride):
    triples = [
        (f"what did {name} see ?", " ".join(itertools.islice(itertools.cycle(WORDS), count)), (0, 3))
        for name, count in (("anna", 1), ("ben", 9), ("zebra", 40), ("clara", 71))
    ]
    found = encode_windows(rows_of(*triples), tokenizer, max_length=max_length, stride=stride)
    theirs = tokenizer(
        [question for question, _, _ in triples], [passage for _, passage, _ in triples], truncation="only_second",
        max_length=max_length, stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True,
        return_token_type_ids=True,
    )  # fmt: skip
    assert found.question.tolist() == theirs["overflow_to_sample_mapping"]
    for row, (ids, types, where) in enumerate(
        zip(found.encoded.input_ids, found.encoded.token_type_ids, found.offsets, strict=True)
    ):
        assert ids.tolist() == theirs["input_ids"][row]
        assert types.tolist() == theirs["token_type_ids"][row]
        ours = np.array(theirs.sequence_ids(row)) == np.array(1)
        assert where[ours].tolist() == [list(pair) for pair in np.array(theirs["offset_mapping"][row])[ours].tolist()]
        assert (where[~ours] == -1).all()


def test_part_of_a_word_points_at_the_token_that_has_it(tokenizer):
    found = encode_windows(rows_of(("who ?", "anna's robin .", (0, 2))), tokenizer, max_length=32, stride=4)
    start, stop = found.encoded.labels[0]
    assert found.offsets[0][start].tolist() == found.offsets[0][stop].tolist() == [0, 4]


def test_what_does_not_fit_is_named(tokenizer):
    good, long = ("who ?", "anna saw ben .", (0, 4)), ("who " * 12, "anna saw ben .", (0, 4))
    with pytest.raises(InputError, match=r"json, question '1': the question leaves room for 1 tokens .* of 16; .*, 4,"):
        encode_windows(rows_of(good, long), tokenizer, max_length=16, stride=4)
    encode_windows(rows_of(good, long), tokenizer, max_length=16, stride=0)
    with pytest.raises(InputError, match="question '0': the question leaves room for 0 tokens"):
        encode_windows(rows_of(("who " * 99, "anna .", (0, 4))), tokenizer, max_length=16, stride=0)
    with pytest.raises(InputError, match="stride 12: windows of 16 tokens hold up to 12 .* from 0 to 11 is allowed"):
        encode_windows(rows_of(good), tokenizer, max_length=16, stride=12)
    with pytest.raises(InputError, match="question '0': the tokenizer finds no token in the passage"):
        encode_windows(rows_of(("who ?", "\u200b", (0, 1))), tokenizer, max_length=16, stride=0)
    with pytest.raises(InputError, match="question '0': the tokenizer finds no token in the answer"):
        encode_windows(rows_of(("who ?", "anna \u200b saw", (5, 6))), tokenizer, max_length=16, stride=0)
    with pytest.raises(InputError, match="question '0': the passage has 10002 tokens, more than 1000 windows hold"):
        encode_windows(rows_of(("who ?", "saw " * 10002, (0, 3))), tokenizer, max_length=16, stride=1)


def test_the_default_stride_fits_the_window():
    assert [default_stride(length) for length in (8, 64, 383, 384, 512)] == [2, 21, 127, 128, 128]
