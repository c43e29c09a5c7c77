import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizerFast

import kaprune_jax as kp
from kaprune_jax.data.augment import eligible_words, is_candidate
from kaprune_jax.data.world import load_world
from kaprune_jax.deploy.candidates import candidates
from kaprune_jax.deploy.tokenizer import load_tokenizer
from kaprune_jax.models.bert import init_params


@pytest.fixture(scope="module")
def mini():
    return kp.load("mini")


@pytest.fixture(scope="module")
def words():
    texts = dict.fromkeys(text for row in load_world("micro-nli").train.texts[:40] for text in row)
    return [word for text in texts for word in eligible_words(text)]


def nearest(model, word, count):
    """By loops over the vocabulary."""
    table = np.asarray(model.params["embeddings"]["word"]["embedding"], np.float64)
    own = table[model.tokenizer(word, add_special_tokens=False)["input_ids"]].mean(axis=0)
    similar = {}
    for token, index in model.tokenizer.get_vocab().items():
        if is_candidate(token) and token.lower() != word.lower():
            similar[token] = own @ table[index] / np.linalg.norm(table[index])
    return tuple(sorted(similar, key=similar.__getitem__, reverse=True)[:count])


def filled_in(model, word, count):
    """By the whole forward pass, of one text."""
    tokenizer = model.tokenizer
    ids = tokenizer(word.text[: word.start] + "[MASK]" + word.text[word.end :])["input_ids"]
    logits = np.asarray(model.apply(model.params, jnp.array([ids])).logits)[0, ids.index(tokenizer.mask_token_id)]
    best = [tokenizer.convert_ids_to_tokens(int(index)) for index in np.argsort(-logits)[:count]]
    return tuple(token for token in best if is_candidate(token) and token.lower() != word.word.lower())


@pytest.mark.long
def test_by_masked_lm(mini, words):
    found = candidates(mini, count=15, batch_size=16)(words)
    expected = [filled_in(mini, word, 15) for word in words]
    for word, given, wanted in zip(words, found, expected, strict=True):
        assert given == (wanted if len(wanted) >= 3 else nearest(mini, word.word, 15)), word
    assert any(len(wanted) < 15 for wanted in expected)


def test_by_embedding_without_the_head(mini, words):
    bare = dataclasses.replace(mini, config=mini.config.replace(head="none"))
    found = candidates(bare, count=5)(words)
    assert found == [nearest(mini, word.word, 5) for word in words]


@pytest.mark.long
def test_few_from_the_masked_lm_are_replaced_by_neighbours(mini, words):
    few = [word for word in words if len(filled_in(mini, word, 3)) < 3]
    assert few
    assert candidates(mini, count=3)(few) == [nearest(mini, word.word, 3) for word in few]


def test_a_text_with_a_mask_of_its_own(mini):
    text = "anna [MASK] a robin ."
    word = eligible_words(text)[-1]
    assert word.word == "robin"
    ids = mini.tokenizer("anna [MASK] a [MASK] .")["input_ids"]
    place = [index for index, token in enumerate(ids) if token == mini.tokenizer.mask_token_id][1]
    logits = np.asarray(mini.apply(mini.params, jnp.array([ids])).logits)[0, place]
    best = mini.tokenizer.convert_ids_to_tokens(np.argsort(-logits)[:6].tolist())
    wanted = tuple(token for token in best if is_candidate(token) and token != "robin")
    assert candidates(mini, count=6)([word])[0] == wanted


def test_a_word_beyond_the_models_length_has_neighbours(mini):
    text = " ".join(["robin"] * 100)
    words = eligible_words(text)
    found = candidates(mini, count=5)([words[0], words[-1]])
    assert found[1] == nearest(mini, "robin", 5)
    assert found[0]


def test_batch_size_has_no_effect(mini, words):
    assert candidates(mini, batch_size=3)(words[:20]) == candidates(mini, batch_size=64)(words[:20])


def test_no_words_no_candidates(mini):
    assert candidates(mini)([]) == []
    with pytest.raises(ValueError, match="count=0"):
        candidates(mini, count=0)


def with_tokenizer(model, tokenizer):
    """The model with another tokenizer; its embeddings are what they are."""
    changed = dataclasses.replace(model)
    changed.__dict__["tokenizer"] = tokenizer
    return changed


def test_unknown_words_have_no_candidates_and_a_word_is_not_its_own(mini):
    bare = dataclasses.replace(mini, config=mini.config.replace(head="none"))
    unknown, accented, known = (eligible_words(text)[0] for text in ("Übermut", "róbin", "robin"))
    assert mini.tokenizer.unk_token_id in mini.tokenizer("Übermut")["input_ids"]
    found = candidates(bare)([unknown, accented, known])
    assert found[0] == ()
    assert found[1] == found[2]  # the tokenizer drops the accent: one and the same word
    assert "robin" not in found[1]


def test_only_tokens_that_begin_and_end_a_word_are_proposed(mini):
    trainer = UnigramTrainer(vocab_size=200, special_tokens=["<pad>", "<unk>"], unk_token="<unk>")
    unigram = Tokenizer(Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [text for row in load_world("micro-nli").train.texts[:300] for text in row]
    unigram.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, pad_token="<pad>", unk_token="<unk>")
    model = with_tokenizer(dataclasses.replace(mini, config=mini.config.replace(head="none")), tokenizer)
    words = [word for text in texts[:20] for word in eligible_words(text)]
    proposed = {other for others in candidates(model)(words) for other in others}
    assert len(proposed) > 20
    vocabulary = tokenizer.get_vocab()
    assert all("▁" + word in vocabulary for word in proposed)
    assert any(is_candidate(token) and "▁" + token not in vocabulary for token in vocabulary)  # the ends of words


def test_a_tokenizer_without_a_mask_asks_the_embeddings(mini, words):
    tokenizer = load_tokenizer(mini.folder)
    tokenizer.mask_token = None
    bare = dataclasses.replace(mini, config=mini.config.replace(head="none"))
    assert candidates(with_tokenizer(mini, tokenizer))(words[:9]) == candidates(bare)(words[:9])


def test_random_model_still_proposes_words(mini, words, getkey):
    random = dataclasses.replace(mini, params=init_params(mini.config, getkey()))
    for word, others in zip(words[:10], candidates(random)(words[:10]), strict=True):
        assert others
        assert word.word not in others
        assert all(is_candidate(other) for other in others)
