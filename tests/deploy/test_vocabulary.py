import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers.processors import BertProcessing, Sequence, TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerFast

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.data.loader import encode
from kaprune_jax.data.rows import Rows
from kaprune_jax.data.world import vocabulary, write_tokenizer
from kaprune_jax.deploy.tokenizer import load_tokenizer
from kaprune_jax.deploy.vocabulary import prune_vocabulary, used_ids
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig

TEXTS = ["a robin is a bird .", "the film was great !", "is it a bird ?"]
LETTERS = "abcd"
SPECIAL = ("[unused0]", "[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused2]")
NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture
def world(tmp_path):
    """The built-in tokenizer: whole words and punctuation."""
    write_tokenizer(tmp_path / "tokens")
    return load_tokenizer(tmp_path / "tokens")


@pytest.fixture
def pieces():
    """A tokenizer with all pieces of up to three letters, special tokens in the middle of others, as BERT's are."""
    bodies = ["".join(body) for length in (1, 2, 3) for body in itertools.product(LETTERS, repeat=length)]
    vocab = [*SPECIAL, *bodies, *(f"##{body}" for body in bodies)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocab)}, model_max_length=32)


def small(tokenizer, **changes):
    sizes = {"pooling": "mean", "head": "classification", "labels": ("no", "yes"), **changes}
    return BertConfig(len(tokenizer), 16, 2, 2, 32, 32, pad_token_id=tokenizer.pad_token_id, **sizes)


def logits(params, config, tokenizer, *texts):
    batch = tokenizer(*texts, padding=True, return_token_type_ids=True, return_tensors="np")
    assert batch["input_ids"].max() < config.vocab_size
    columns = [jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask", "token_type_ids")]
    return np.asarray(make_apply(config)(params, *columns).logits)


def spelt(tokenizer, *texts):
    """What the tokenizer makes of each row, as tokens rather than ids."""
    return [tokenizer.convert_ids_to_tokens(row) for row in tokenizer(*texts)["input_ids"]]


def test_used_ids_are_unique_and_ascending():
    rows = [[7, 2, 2], np.array([9, 7], np.int32), []]
    assert used_ids(rows).tolist() == [2, 7, 9]
    assert used_ids([]).tolist() == []
    assert used_ids(iter(rows)).dtype == np.int32


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("pair", [False, True])
def test_kept_texts_have_the_same_logits_bit_for_bit(world, getkey, pair, pooling):
    config = small(world, pooling=pooling)
    params = init_params(config, getkey())
    columns = [TEXTS, TEXTS[::-1]] if pair else [TEXTS]
    pruned = prune_vocabulary(params, config, world, used_ids(world(*columns)["input_ids"]))
    assert pruned.config.vocab_size < config.vocab_size
    assert spelt(pruned.tokenizer, *columns) == spelt(world, *columns)
    for name in ("token_type_ids", "attention_mask"):
        assert pruned.tokenizer(*columns)[name] == world(*columns)[name]
    np.testing.assert_array_equal(logits(*pruned, *columns), logits(params, config, world, *columns))


def test_exactly_the_asked_the_special_and_the_single_characters_stay(pieces, getkey):
    config = small(pieces)
    params = init_params(config, getkey())
    asked = pieces.convert_tokens_to_ids(["abc", "##ab"])
    pruned = prune_vocabulary(params, config, pieces, asked)
    expected = [
        token
        for token in pieces.convert_ids_to_tokens(range(len(pieces)))
        if token in {*NAMES, "abc", "##ab", *LETTERS, *(f"##{letter}" for letter in LETTERS)}
    ]
    assert pruned.tokenizer.convert_ids_to_tokens(range(len(pruned.tokenizer))) == expected
    assert pruned.config == config.replace(vocab_size=len(expected), pad_token_id=0)
    words = params["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(
        pruned.params["embeddings"]["word"]["embedding"], words[np.array(pieces.convert_tokens_to_ids(expected))]
    )
    for name in ("encoder", "head"):
        assert pruned.params[name] is params[name]
    assert jax.tree.structure(pruned.params) == jax.tree.structure(params)
    shapes = jax.tree.map(jnp.shape, init_params(pruned.config, getkey()))
    assert jax.tree.map(jnp.shape, pruned.params) == shapes
    assert config.vocab_size == words.shape[0] == len(pieces)  # nothing given was changed


def test_no_ids_leave_what_always_stays(pieces, getkey):
    config = small(pieces)
    pruned = prune_vocabulary(init_params(config, getkey()), config, pieces, [])
    assert len(pruned.tokenizer) == pruned.config.vocab_size == len(NAMES) + 2 * len(LETTERS)
    assert spelt(pruned.tokenizer, ["abca"]) == [["[CLS]", "a", "##b", "##c", "##a", "[SEP]"]]


def test_all_ids_leave_all_as_it_was(pieces, getkey):
    config = small(pieces)
    params = init_params(config, getkey())
    pruned = prune_vocabulary(params, config, pieces, np.arange(len(pieces)))
    assert pruned.config == config
    assert pruned.tokenizer.get_vocab() == pieces.get_vocab()
    assert json.loads(pruned.tokenizer.backend_tokenizer.to_str()) == json.loads(pieces.backend_tokenizer.to_str())


def test_any_text_of_kept_tokens_gets_the_same_pieces(pieces, getkey, rng):
    """Random words, some with a letter that is in no piece, under random vocabularies."""
    config = small(pieces)
    params = init_params(config, getkey())
    same = other = 0
    for _ in range(10):
        asked = rng.choice(len(pieces), len(pieces) // 2, replace=False)
        pruned = prune_vocabulary(params, config, pieces, asked)
        texts = [
            "".join(rng.choice(list(f"{LETTERS}{LETTERS}{LETTERS}z "), int(rng.integers(1, 14)))) for _ in range(100)
        ]
        there = set(pruned.tokenizer.get_vocab())
        for before, after in zip(spelt(pieces, texts), spelt(pruned.tokenizer, texts), strict=True):
            assert set(after) <= there
            if set(before) <= there:
                assert after == before
                same += 1
            else:
                assert [token == "[UNK]" for token in after].count(True) == before.count("[UNK]")
                other += 1
    assert min(same, other) > 100


def test_unknown_words_still_work(world, pieces, getkey):
    for tokenizer, text in ((world, "a zebra xylophone \U0001f600 ."), (pieces, "abcdabcd zzz dcba e")):
        config = small(tokenizer)
        params = init_params(config, getkey())
        pruned = prune_vocabulary(params, config, tokenizer, tokenizer("a .")["input_ids"])
        assert np.isfinite(logits(*pruned, [text])).all()
        assert "[UNK]" in spelt(pruned.tokenizer, [text])[0]


def test_special_ids_and_types_of_pairs(pieces, getkey):
    config = small(pieces)
    asked = pieces.convert_tokens_to_ids(["ab", "ba"])
    tokenizer = prune_vocabulary(init_params(config, getkey()), config, pieces, asked).tokenizer
    new = {token: tokenizer.convert_tokens_to_ids(token) for token in (*NAMES, "ab", "ba")}
    batch = tokenizer("ab", "ba ab")
    assert batch["input_ids"] == [new[token] for token in ("[CLS]", "ab", "[SEP]", "ba", "ab", "[SEP]")]
    assert batch["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    assert [new[name] for name in NAMES] == [0, 1, 2, 3, 4]
    named = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (*named, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert tokenizer("ab [MASK]")["input_ids"] == [2, new["ab"], 4, 3]
    assert tokenizer(["ab", "ab ab"], padding=True)["input_ids"][0] == [2, new["ab"], 3, 0]
    assert tokenizer.decode(batch["input_ids"], skip_special_tokens=True) == "ab ba ab"


def test_settings_stay_and_padding_and_truncation_are_off(pieces, getkey):
    tokenizer = BertTokenizer(vocab=pieces.get_vocab(), do_lower_case=False, model_max_length=11, padding_side="left")
    twice = TemplateProcessing(
        "[CLS] $A [SEP] [SEP]", special_tokens=[(n, tokenizer.get_vocab()[n]) for n in NAMES[2:4]]
    )
    tokenizer.backend_tokenizer.post_processor = twice
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=1)
    tokenizer.backend_tokenizer.enable_truncation(max_length=9)
    config = small(tokenizer)
    made = prune_vocabulary(init_params(config, getkey()), config, tokenizer, []).tokenizer
    assert (type(made), made.model_max_length, made.padding_side) == (BertTokenizer, 11, "left")
    assert made.backend_tokenizer.padding is None
    assert made.backend_tokenizer.truncation is None
    assert (tokenizer.backend_tokenizer.padding or {})["length"] == 9
    assert spelt(made, ["A"]) == [["[CLS]", "[UNK]", "[SEP]", "[SEP]"]]
    before, after = (json.loads(one.backend_tokenizer.to_str()) for one in (tokenizer, made))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        assert after[part] == before[part]


@pytest.mark.parametrize("wrapped", [False, True])
def test_other_classes_and_post_processors(pieces, getkey, wrapped):
    backend = tokenizers.Tokenizer.from_str(pieces.backend_tokenizer.to_str())
    processor = BertProcessing(("[SEP]", pieces.sep_token_id), ("[CLS]", pieces.cls_token_id))
    backend.post_processor = Sequence([processor]) if wrapped else processor
    names = {f"{name.strip('[]').lower()}_token": name for name in NAMES}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    config = small(pieces)
    params = init_params(config, getkey())
    pruned = prune_vocabulary(params, config, tokenizer, tokenizer("abcab")["input_ids"])
    assert type(pruned.tokenizer) is PreTrainedTokenizerFast
    assert spelt(pruned.tokenizer, ["abcab"], ["abc"]) == spelt(tokenizer, ["abcab"], ["abc"])
    np.testing.assert_array_equal(
        logits(*pruned, ["abcab"], ["abc"]), logits(params, config, tokenizer, ["abcab"], ["abc"])
    )


def test_added_tokens_stay(tmp_path, pieces, getkey):
    pieces.add_tokens(["<name>", "aabb"])
    config = small(pieces)
    pruned = prune_vocabulary(init_params(config, getkey()), config, pieces, [])
    kp.save(tmp_path / "m", pruned.params, pruned.config, tokenizer=pruned.tokenizer)
    for tokenizer in (pruned.tokenizer, kp.load(tmp_path / "m").tokenizer):
        assert spelt(tokenizer, ["a <name> aabb"]) == [["[CLS]", "a", "<name>", "aabb", "[SEP]"]]
        assert tokenizer.convert_tokens_to_ids(["<name>", "aabb"]) == [len(tokenizer) - 2, len(tokenizer) - 1]
        assert len(tokenizer) == pruned.config.vocab_size


def test_saves_and_loads_the_same(tmp_path, world, getkey):
    config = small(world)
    pruned = prune_vocabulary(init_params(config, getkey()), config, world, used_ids(world(TEXTS)["input_ids"]))
    kp.save(tmp_path / "m", pruned.params, pruned.config, tokenizer=pruned.tokenizer)
    model = kp.load(tmp_path / "m")
    assert model.config == pruned.config
    texts = [*TEXTS, "a zebra ."]
    assert dict(model.tokenizer(texts, texts)) == dict(pruned.tokenizer(texts, texts))
    assert model.tokenizer.model_max_length == world.model_max_length
    np.testing.assert_array_equal(logits(model.params, model.config, model.tokenizer, texts), logits(*pruned, texts))
    again = prune_vocabulary(model.params, model.config, model.tokenizer, model.tokenizer(TEXTS[0])["input_ids"])
    np.testing.assert_array_equal(logits(*again, TEXTS[:1]), logits(*pruned, TEXTS[:1]))


def test_the_bias_of_a_masked_lm_head_goes_too(world, getkey):
    config = small(world, head="masked-lm", labels=())
    params = init_params(config, getkey())
    params["lm_head"]["bias"] = jnp.arange(float(config.vocab_size))
    kept = sorted({*world.all_special_ids, *world(TEXTS)["input_ids"][0]})
    pruned = prune_vocabulary(params, config, world, kept)
    rows = world.convert_tokens_to_ids(pruned.tokenizer.convert_ids_to_tokens(range(pruned.config.vocab_size)))
    assert set(kept) <= set(rows)
    # Fewer columns can be summed in another order.
    np.testing.assert_allclose(
        logits(*pruned, TEXTS[:1]), logits(params, config, world, TEXTS[:1])[..., np.array(rows)], atol=1e-5
    )
    assert params["lm_head"]["bias"].shape == (len(vocabulary()),)


@pytest.mark.parametrize(
    ("keep_ids", "message"),
    [
        ([2, 10_000, 20_000], "keep_ids: 10000 is no id of the tokenizer \\(2 such in all\\)"),
        ([-1], "keep_ids: -1 is no id"),
        (np.array([1.5]), "keep_ids: .*1.5.*; whole numbers are needed"),
    ],
)
def test_ids_that_are_none_are_refused(world, getkey, keep_ids, message):
    config = small(world)
    with pytest.raises(InputError, match=message):
        prune_vocabulary(init_params(config, getkey()), config, world, keep_ids)


def test_what_does_not_fit_is_refused(world, getkey):
    config = small(world)
    params = init_params(config, getkey())
    letters = {"<unk>": 0, "a": 1}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [], unk_token="<unk>"))
    with pytest.raises(InputError, match=r"\(BPE\); only fast WordPiece ones can be pruned"):
        prune_vocabulary(params, config, PreTrainedTokenizerFast(tokenizer_object=bpe), [])
    with pytest.raises(InputError, match="no fast tokenizer"):
        prune_vocabulary(params, config, object(), [])
    with pytest.raises(InputError, match="rows of word embedding, but config has 7"):
        prune_vocabulary(params, config.replace(vocab_size=7), world, [])
    count = config.vocab_size
    padded = config.replace(vocab_size=count + 5, pad_token_id=count + 4)
    with pytest.raises(InputError, match=f"no token has id {count + 4}"):
        prune_vocabulary(init_params(padded, getkey()), padded, world, [])
    world.add_tokens(["<new>"])
    with pytest.raises(InputError, match=f"has id {len(world) - 1}, but the model has {len(world) - 1} tokens only"):
        prune_vocabulary(params, config, world, [])


def test_rows_without_a_token_go(world, getkey):
    config = small(world)
    padded = config.replace(vocab_size=config.vocab_size + 5)
    pruned = prune_vocabulary(init_params(padded, getkey()), padded, world, np.arange(config.vocab_size))
    assert pruned.config == config


def test_minilm_keeps_its_logits(tmp_path, shared, getkey):
    model = kp.load(shared / "models" / "minilm-l6-h384-uncased")
    config = model.config.replace(head="classification", labels=("no", "yes"), pooling="mean")
    head = init_params(config, getkey(), parts=("head",))["head"]
    params = {**{name: model.params[name] for name in ("embeddings", "encoder")}, "head": head}
    one = ["The film was unbelievably good, wasn't it?", "Naïve café-goers paid $12.50 for 2 espressos."]
    two = ["A zebrafish swims in 東京.", "Nobody liked it \U0001f600!"]
    data = encode(Rows(tuple(zip(one, two, strict=True)), np.zeros(2, np.int32)), model.tokenizer, max_length=64)
    pruned = prune_vocabulary(params, config, model.tokenizer, used_ids(data.input_ids))
    assert len(pruned.tokenizer) == pruned.config.vocab_size < 2_100
    assert pruned.params["embeddings"]["word"]["embedding"].shape == (pruned.config.vocab_size, 384)
    assert spelt(pruned.tokenizer, one, two) == spelt(model.tokenizer, one, two)
    before = logits(params, config, model.tokenizer, one, two)
    np.testing.assert_array_equal(logits(*pruned, one, two), before)
    new = ["an entirely different sentence about photosynthesis"] * 2
    assert np.isfinite(logits(*pruned, new)).all()
    assert "[UNK]" not in spelt(pruned.tokenizer, new)[0]
    kp.save(tmp_path / "m", pruned.params, pruned.config, tokenizer=pruned.tokenizer)
    loaded = kp.load(tmp_path / "m")
    assert dict(loaded.tokenizer(one, new)) == dict(pruned.tokenizer(one, new))
    np.testing.assert_array_equal(logits(loaded.params, loaded.config, loaded.tokenizer, one, two), before)
    assert [prediction.label for prediction in loaded.predict(list(zip(one, two, strict=True)))]
